"""The command line, `pyro-lowrank`: a thin front of the library."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_lowrank.data import read_recording
from pyro_lowrank.dynamics.low_rank import LowRankRNN
from pyro_lowrank.guides.base import Guide
from pyro_lowrank.guides.bootstrap import BootstrapGuide
from pyro_lowrank.guides.optimal import OptimalGuide
from pyro_lowrank.infer.elbo import SMC_ELBO
from pyro_lowrank.models.state_space import StateSpaceModel
from pyro_lowrank.observations.gaussian import GaussianObservation
from pyro_lowrank.observations.poisson import PoissonObservation
from pyro_lowrank.plots.figures import new_figure, save_figure
from pyro_lowrank.plots.training import plot_effective_size, plot_evidence
from pyro_lowrank.plots.trajectories import plot_phase_portrait, plot_traces
from pyro_lowrank.serialization import check_writable, save
from pyro_lowrank.training.fit import fit
from pyro_lowrank.training.independent import independent_evidence
from pyro_lowrank.training.initialise import initialise_from_data
from pyro_lowrank.training.randomness import own_generators, seed_generators
from pyro_lowrank.training.result import FitResult
from pyro_lowrank.training.standardise import Standardisation
from pyro_lowrank.training.teacher import oscillator_student, oscillator_teacher

USER_ERROR = 2
INTERRUPTED = 130
CPU = torch.device("cpu")
ACTIVATIONS = ("clipped_relu", "relu", "tanh", "softplus", "identity")
LIKELIHOODS = ("gaussian", "poisson")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code: 0, 2 for an error of the user's, 130 after Ctrl-C.

    Args:
        arguments: the words after `pyro-lowrank`; those of the process if None.
    """
    options = _parser().parse_args(arguments)
    try:
        code: int = options.run(options)
    except (ValueError, OSError, ModuleNotFoundError) as error:
        print(f"pyro-lowrank: error: {error}", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        print("pyro-lowrank: interrupted", file=sys.stderr)
        return INTERRUPTED
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pyro-lowrank",
        description="Stochastic low-rank recurrent networks, fitted by variational sequential Monte Carlo.",
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    about = "fit a student network to data of a noisy-oscillator teacher, and compare the two"
    demo = commands.add_parser("demo", help=about, description=about)
    demo.add_argument(
        "--out", type=Path, default=Path("demo"), metavar="DIR", help="where files are written (%(default)s)"
    )
    demo.add_argument("--steps", type=int, default=600, metavar="N", help="steps of training (%(default)s)")
    demo.add_argument("--seed", type=int, default=0, help="of everything random (%(default)s)")
    demo.set_defaults(run=_demo)

    about = "fit a low-rank network to a recording (.npy, .npz, .csv or xarray .nc)"
    command = commands.add_parser("fit", help=about, description=about)
    command.add_argument("data", type=Path, metavar="DATA", help="the recording")
    command.add_argument("--out", type=Path, required=True, metavar="DIR", help="where files are written")
    _add_reading(command.add_argument_group("the recording"))
    _add_model(command.add_argument_group("the model"))
    _add_training(command.add_argument_group("the training"))
    command.set_defaults(run=_fit)
    return parser


def _add_reading(group: Any) -> None:
    group.add_argument("--key", help="which array of a .npz or variable of a .nc file")
    group.add_argument("--time-axis", type=int, metavar="AXIS", help="axis of time; guessed, and told, if left out")
    group.add_argument("--trials-axis", type=int, metavar="AXIS", help="axis of trials; guessed, and told, if left out")
    group.add_argument(
        "--held-out",
        type=float,
        default=0.1,
        metavar="SHARE",
        help="share of the trials, or of time, that is not trained on (%(default)s)",
    )
    group.add_argument(
        "--standardise",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="train on features of mean 0 and variance 1 (Gaussian only, on unless refused); the saved model is in the "
        "recording's own units all the same",
    )


def _add_model(group: Any) -> None:
    group.add_argument("--rank", type=int, default=3, metavar="R", help="number of latents (%(default)s)")
    group.add_argument("--units", type=int, default=512, metavar="N", help="number of units (%(default)s)")
    group.add_argument(
        "--activation",
        default="clipped_relu",
        choices=ACTIVATIONS,
        help="of the units (%(default)s)",
    )
    group.add_argument("--likelihood", default="gaussian", choices=LIKELIHOODS, help="of the recording (%(default)s)")


def _add_training(group: Any) -> None:
    group.add_argument("--steps", type=int, default=1000, metavar="N", help="steps of training (%(default)s)")
    group.add_argument(
        "--window",
        type=int,
        default=50,
        metavar="BINS",
        help="train on windows of this length (%(default)s); 0: whole trials",
    )
    group.add_argument(
        "--batch-size", type=int, default=10, metavar="B", help="windows, or trials, per step (%(default)s)"
    )
    group.add_argument("--particles", type=int, metavar="K", help="number of particles (10; for poisson 100)")
    group.add_argument(
        "--learning-rate", type=float, default=1e-2, metavar="RATE", help="of the first step (%(default)s)"
    )
    group.add_argument(
        "--final-learning-rate", type=float, default=1e-3, metavar="RATE", help="of the last step (%(default)s)"
    )
    group.add_argument("--seed", type=int, default=0, help="of everything random (%(default)s)")
    group.add_argument("--resume", action="store_true", help="go on with a fit that was stopped")


# --- fit -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Split:
    """A recording's training part and held-out part (or None), and the sentence that says so."""

    train: Tensor
    held_out: Tensor | None
    sentence: str


def _split(y: Tensor, share: float) -> _Split:
    if not 0 <= share < 1:
        raise ValueError(f"`--held-out` is a share, at least 0 and below 1, got {share}.")
    dim, what = (1, "time bins") if y.shape[0] == 1 else (0, "trials")
    size = y.shape[dim]
    held = min(math.ceil(share * size), size - 1)
    if held == 0:
        return _Split(y, None, f"Training on all {size} {what}; nothing is held out.")
    train, held_out = y.split([size - held, held], dim)
    return _Split(train, held_out, f"Training on the first {size - held} {what}; the last {held} are held out.")


def _fit(options: argparse.Namespace) -> int:
    files = _output_files(options.out, "model.safetensors", "checkpoint.safetensors", "training.png", "summary.json")
    recording = read_recording(
        options.data, key=options.key, time_axis=options.time_axis, trials_axis=options.trials_axis
    )
    print(recording.orientation)
    y = torch.as_tensor(recording.values, dtype=torch.float32)
    print("As trials x time bins x features, that is {} x {} x {}.".format(*y.shape))
    split = _split(y, options.held_out)
    print(split.sentence)
    train, held_out, standardisation = split.train, split.held_out, None
    if options.standardise and options.likelihood == "gaussian":
        standardisation = Standardisation.of(train)
        train = standardisation.apply(train)
        held_out = None if held_out is None else standardisation.apply(held_out)
        print("Each feature is standardised for the training, and the evidence below is of the")
        print("standardised data; the saved model is in the recording's own units.")
    with own_generators(CPU):
        seed_generators(CPU, options.seed)
        model, guide = _build(options, y.shape[-1])
    if y.shape[-1] >= options.rank:
        initialise_from_data(model, train)
    result = _train(options, model, guide, train, held_out, files["checkpoint.safetensors"])
    if standardisation is not None:
        standardisation.fold_into(model)
    save(files["model.safetensors"], model, guide)
    _write_summary(files["summary.json"], options, recording.orientation, result)
    made = _draw(files["training.png"], lambda: _training_figure(result))
    print(result)
    if held_out is not None:
        reference = independent_evidence(train, held_out, counts=options.likelihood == "poisson")
        print(f"  for scale       {reference:.3f} nats per bin held out, were every bin and feature independent")
    _list_files(options.out, ["model.safetensors", "summary.json", *made])
    print("Use the model:  model, guide = pyro_lowrank.load(...); model.simulate(10, 200)")
    if result.interrupted:
        print("Interrupted: the same command with --resume goes on.")
        return INTERRUPTED
    return 0


def _build(options: argparse.Namespace, features: int) -> tuple[StateSpaceModel, Guide]:
    dynamics = LowRankRNN(rank=options.rank, units=options.units, activation=options.activation)
    if options.likelihood == "poisson":
        model = StateSpaceModel(dynamics, PoissonObservation(rank=options.rank, features=features))
        return model, BootstrapGuide(model)
    model = StateSpaceModel(dynamics, GaussianObservation(rank=options.rank, features=features))
    return model, OptimalGuide(model)


def _train(
    options: argparse.Namespace,
    model: StateSpaceModel,
    guide: Guide,
    train: Tensor,
    held_out: Tensor | None,
    checkpoint: Path,
) -> FitResult:
    num_trials, num_steps = train.shape[:2]
    window = options.window if 0 < options.window < num_steps else None
    batch_size = min(options.batch_size, num_trials) if window is None else options.batch_size
    particles = options.particles or (10 if options.likelihood == "gaussian" else 100)
    what = "whole trials" if window is None else f"windows of {window} time bins"
    print(f"Each of {options.steps} steps sees {batch_size} {what}, with {particles} particles.")
    return fit(
        model,
        guide,
        train,
        num_steps=options.steps,
        window=window,
        batch_size=batch_size,
        num_particles=particles,
        learning_rate=options.learning_rate,
        final_learning_rate=options.final_learning_rate,
        held_out=held_out,
        checkpoint=checkpoint,
        resume=options.resume,
        seed=options.seed,
    )


def _write_summary(path: Path, options: argparse.Namespace, orientation: str, result: FitResult) -> None:
    held_out = result.held_out_evidence.tolist()
    summary = {
        "options": {name: str(v) if isinstance(v, Path) else v for name, v in vars(options).items() if name != "run"},
        "orientation": orientation,
        "steps": result.steps,
        "interrupted": result.interrupted,
        "seconds": round(result.seconds, 2),
        "held_out_evidence_per_bin": {"before": held_out[0], "after": held_out[-1]} if held_out else None,
        "held_out_steps": result.held_out_steps.tolist(),
        "held_out_evidence": held_out,
        "evidence": result.evidence.tolist(),
    }
    path.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")


def _training_figure(result: FitResult) -> Any:
    figure, axes = new_figure(1, 2, width=9, height=3.5)
    plot_evidence(axes[0, 0], result.evidence, result.held_out_steps, result.held_out_evidence)
    plot_effective_size(axes[0, 1], result.ess)
    return figure


# --- demo ------------------------------------------------------------------------------------------------------------


def _demo(options: argparse.Namespace) -> int:
    files = _output_files(options.out, "student.safetensors", "teacher.safetensors", "demo.png")
    with own_generators(CPU):
        seed_generators(CPU, options.seed)
        teacher = oscillator_teacher()
        y = teacher.simulate(num_trials=200, num_steps=75).y
        student = oscillator_student(units=20)
    train, held_out = y[:150], y[150:]
    print("Teacher: a noisy oscillator, a network of rank 2 with 20 units (Pals et al. 2024).")
    print("Data: 200 trials x 75 time bins x 20 units with Gaussian noise; 50 trials are held out.")
    print(f"Student: a network of the same form, fitted in {options.steps} steps.")
    initialise_from_data(student, train)
    guide = OptimalGuide(student)
    result = fit(
        student,
        guide,
        train,
        num_steps=options.steps,
        batch_size=30,
        num_particles=16,
        learning_rate=3e-2,
        final_learning_rate=1e-3,
        held_out=held_out,
        seed=options.seed,
    )
    save(files["teacher.safetensors"], teacher, OptimalGuide(teacher))
    save(files["student.safetensors"], student, guide)
    made = _draw(files["demo.png"], lambda: _demo_figure(teacher, student, options.seed))
    _compare(teacher, student, held_out, options.seed)
    _list_files(options.out, ["student.safetensors", "teacher.safetensors", *made])
    return INTERRUPTED if result.interrupted else 0


def _compare(teacher: StateSpaceModel, student: StateSpaceModel, held_out: Tensor, seed: int) -> None:
    rows = []
    with own_generators(CPU), torch.no_grad():
        for model in (teacher, student):
            seed_generators(CPU, seed)
            loss = SMC_ELBO(num_particles=256).loss(model, OptimalGuide(model), held_out)
            evidence = -loss / (held_out.shape[0] * held_out.shape[1])
            rows.append((_transition_noise(model), float(model.observation.noise_scale), evidence))
    (true_z, true_y, true_evidence), (z, noise_y, evidence) = rows
    print()
    print(f"{'':36}{'teacher':>16}{'student':>16}")
    for axis, name in enumerate(("largest", "smallest")):
        print(f"{f'transition noise std, {name} axis':36}{true_z[axis]:16.3f}{z[axis]:16.3f}")
    print(f"{'observation noise std':36}{true_y:16.3f}{noise_y:16.3f}")
    print(f"{'held-out evidence, nats per bin':36}{true_evidence:16.3f}{evidence:16.3f}")
    print("(Transition noise as the units see it, which does not depend on the latents' basis.)")


def _transition_noise(model: StateSpaceModel) -> list[float]:
    """Return the standard deviations of M eps along the principal axes that it has, largest first."""
    left = model.dynamics.left
    variances = torch.linalg.eigvalsh(left @ model.dynamics.noise_covariance @ left.mT)
    return variances[-model.dynamics.rank :].flip(0).sqrt().tolist()


def _demo_figure(teacher: StateSpaceModel, student: StateSpaceModel, seed: int) -> Any:
    figure, axes = new_figure(2, 2, width=9, height=7.5)
    plane = torch.linalg.qr(teacher.dynamics.left.detach()).Q
    for column, (model, name) in enumerate(((teacher, "teacher (true)"), (student, "student (fitted)"))):
        with own_generators(CPU):
            seed_generators(CPU, seed)
            draw = model.simulate(num_trials=15, num_steps=75)
        # Both in the plane in which the teacher's units move: latents themselves are known up to a basis only.
        seen = (draw.mean @ plane).numpy()
        plot_phase_portrait(axes[0, column], seen, title=f"{name}: latents", color=f"C{column}")
        traces = draw.y[0, :, :5].numpy()
        plot_traces(axes[1, column], traces, spacing=1.5, title=f"{name}: 5 units, one trial", color=f"C{column}")
    for row in axes:
        for one, other in (row, row[::-1]):
            one.set(xlim=_joint(one.get_xlim(), other.get_xlim()), ylim=_joint(one.get_ylim(), other.get_ylim()))
    axes[0, 0].legend(frameon=False, loc="upper right")
    return figure


def _joint(one: tuple[float, float], other: tuple[float, float]) -> tuple[float, float]:
    return min(one[0], other[0]), max(one[1], other[1])


# --- files -----------------------------------------------------------------------------------------------------------


def _output_files(folder: Path, *names: str) -> dict[str, Path]:
    """Return the paths of the files to be written, after making sure that they can be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"The folder {folder} cannot be made: {error.strerror}; choose another `--out`.") from error
    files = {name: folder / name for name in names}
    for path in files.values():
        check_writable(path)
    return files


def _draw(path: Path, make: Any) -> list[str]:
    """Save a figure, if matplotlib is there; return the names of the files written."""
    try:
        save_figure(make(), path)
    except ModuleNotFoundError as error:
        print(error)
        return []
    return [path.name]


def _list_files(folder: Path, names: list[str]) -> None:
    print(f"\nWritten to {folder}: {', '.join(names)}")
