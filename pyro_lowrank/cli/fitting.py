"""`pyro-lowrank fit`: fit a low-rank network to a recording."""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyro_lowrank.cli import on_disk
from pyro_lowrank.cli.codes import INTERRUPTED
from pyro_lowrank.cli.files import draw, list_files, output_files
from pyro_lowrank.cli.models import SCALED, build
from pyro_lowrank.cli.prepared import STANDARDISED, Prepared
from pyro_lowrank.cli.recordings import read
from pyro_lowrank.data import Recording
from pyro_lowrank.data.held_out import HeldOut, held_out
from pyro_lowrank.files import write_whole
from pyro_lowrank.models.state_space import StateSpaceModel
from pyro_lowrank.observations.gaussian import GaussianObservation
from pyro_lowrank.plots.figures import new_figure
from pyro_lowrank.plots.training import plot_effective_size, plot_evidence
from pyro_lowrank.serialization import save
from pyro_lowrank.training.batches import Batch
from pyro_lowrank.training.fit import fit
from pyro_lowrank.training.initialise import initialise_from_data, start_at_means
from pyro_lowrank.training.randomness import own_generators, seed_generators
from pyro_lowrank.training.recipe import Recipe
from pyro_lowrank.training.result import FitResult
from pyro_lowrank.training.standardise import Standardisation

CPU = torch.device("cpu")


@dataclass(frozen=True)
class _Part:
    """Some of a recording, `trials x time x features`, and its inputs."""

    y: Tensor
    u: Tensor | None


@dataclass(frozen=True)
class _Split:
    """A recording's training part and held-out part (or None), and where they are."""

    train: _Part
    held_out: _Part | None
    places: HeldOut


def _split(recording: Recording, y: Tensor, u: Tensor | None, share: float) -> _Split:
    places = held_out(y.shape[0], y.shape[1], share, recording)

    def part(chosen: NDArray[np.int64]) -> _Part:
        index = torch.as_tensor(chosen)
        inputs = None if u is None else u.index_select(places.dim, index)
        return _Part(y.index_select(places.dim, index), inputs)

    return _Split(part(places.train), part(places.held_out) if len(places.held_out) else None, places)


def run(options: argparse.Namespace) -> int:
    """Read, split, fit, save; return the exit code."""
    files = output_files(options.out, "model.safetensors", "checkpoint.safetensors", "training.png", "summary.json")
    given = on_disk.prepare(options) if on_disk.stays_on_disk(options.data) else _prepare(options)
    model, guide = given.model, given.guide
    _start(model, given.train.sample)
    result = _train(options, given, files["checkpoint.safetensors"])
    if given.standardisation is not None:
        given.standardisation.fold_into(model.observation)
    save(files["model.safetensors"], model, guide)
    _write_summary(files["summary.json"], options, given, result)
    made = draw(files["training.png"], lambda: _training_figure(result))
    print(result)
    list_files(options.out, ["model.safetensors", "summary.json", *made])
    print(f"Look at it:      pyro-lowrank report {options.out} {options.data}")
    print("Use the model:  model, guide = pyro_lowrank.load(...); model.simulate(10, 200)")
    if result.interrupted:
        print("Interrupted: the same command with --resume goes on.")
        return INTERRUPTED
    return 0


def _prepare(options: argparse.Namespace) -> Prepared:
    """Read and split a recording as a whole, and build its model."""
    recording = read(options)
    print(recording)
    y = torch.as_tensor(recording.data, dtype=torch.float64)
    u = None if recording.inputs is None else torch.as_tensor(recording.inputs, dtype=torch.float32)
    print("As trials x time bins x features, that is {} x {} x {}.".format(*y.shape))
    split = _split(recording, y, u, options.held_out)
    print(split.places.sentence)
    train, left, standardisation = split.train, split.held_out, None
    if options.standardise and options.likelihood in SCALED:
        # In double precision: an offset far larger than the signal would round it away.
        standardisation = Standardisation.of(train.y)
        train = replace(train, y=standardisation.apply(train.y))
        left = None if left is None else replace(left, y=standardisation.apply(left.y))
        print(STANDARDISED)
    with own_generators(CPU):
        seed_generators(CPU, options.seed)
        model, guide = build(options, y.shape[-1], 0 if u is None else u.shape[-1], recording.bin_size)
    return Prepared(
        model=model,
        guide=guide,
        train=Batch.whole(train.y.float(), train.u),
        held_out=None if left is None else Batch.whole(left.y.float(), left.u),
        places=split.places,
        standardisation=standardisation,
        orientation=recording.orientation,
        bin_size=recording.bin_size,
        feature_names=recording.feature_names,
    )


def _start(model: StateSpaceModel, train: Batch) -> None:
    """Start a model at the data, as far as they reach."""
    features, rank = train.y.shape[-1], model.dynamics.rank
    if features < rank:
        return
    if isinstance(model.observation, GaussianObservation):
        centred = (train.y - train.y.nanmean((0, 1))).nan_to_num(nan=0.0).flatten(0, 1).double()
        values = torch.linalg.eigvalsh(centred.mT @ centred / len(centred))
        components = int((values >= 1e-8 * values[-1]).sum())
        if components < rank:
            print(
                f"The {features} features have {components} principal components, as after an average reference: fewer"
            )
            print(f"than the {rank} latents (`--rank`), whose weights therefore start at random.")
            start_at_means(model.observation, train.y)
            return
    initialise_from_data(model, train.y, train.u)


def _train(options: argparse.Namespace, given: Prepared, checkpoint: Path) -> FitResult:
    train, left = (_arguments(part) for part in (given.train, given.held_out))
    num_trials, num_bins = given.train.shape[:2]
    window: int | Literal["auto"] | None = "auto"
    if options.window is not None:
        window = options.window if 0 < options.window < num_bins else None
    whole = options.batch_size is not None and window is None
    recipe = Recipe.of(
        given.train.observed,
        given.guide,
        num_steps=options.steps,
        window=window,
        batch_size=min(options.batch_size, num_trials) if whole else options.batch_size,
        num_particles=options.particles,
        learning_rate=options.learning_rate,
        final_learning_rate=options.final_learning_rate,
    )
    what = "whole trials" if recipe.window is None else f"windows of {recipe.window} time bins"
    number = num_trials if recipe.batch_size is None else recipe.batch_size
    print(f"Each of {recipe.num_steps} steps sees {number} {what}, with {recipe.num_particles} particles.")
    return fit(
        given.model,
        given.guide,
        *train,
        num_steps=recipe.num_steps,
        window=recipe.window,
        batch_size=recipe.batch_size,
        num_particles=recipe.num_particles,
        learning_rate=recipe.learning_rate,
        final_learning_rate=recipe.final_learning_rate,
        held_out=left[0],
        held_out_inputs=left[1],
        checkpoint=checkpoint,
        resume=options.resume,
        seed=options.seed,
    )


def _arguments(part: Any) -> tuple[Any, Any]:
    """Return what `fit` is given of a part: tensors, or what was looked through already."""
    return (part.y, part.u) if isinstance(part, Batch) else (part, None)


def _write_summary(path: Path, options: argparse.Namespace, given: Prepared, result: FitResult) -> None:
    evidence = result.held_out_evidence.tolist()
    summary = {
        "options": {
            name: str(v) if isinstance(v, Path) else v for name, v in vars(options).items() if name != "module"
        },
        "orientation": given.orientation,
        "bin_size": given.bin_size,
        "feature_names": list(given.feature_names),
        "steps": result.steps,
        "interrupted": result.interrupted,
        "seconds": round(result.seconds, 2),
        "held_out_evidence_per_bin": {"before": evidence[0], "after": evidence[-1]} if evidence else None,
        "held_out_steps": result.held_out_steps.tolist(),
        "held_out_evidence": evidence,
        "held_out_trials": given.places.held_out.tolist() if given.places.dim == 0 else None,
        "without_dynamics": result.without_dynamics,
        "baselines": None if result.baselines is None else result.baselines.records(),
        "evidence_by_particles": _by_particles(result),
        "evidence": result.evidence.tolist(),
        "ess": result.ess.tolist(),
        "kept_step": result.kept_step,
        "num_steps": result.num_steps,
    }
    write_whole(path, (json.dumps(summary, indent=1) + "\n").encode())


def _by_particles(result: FitResult) -> dict[str, float] | None:
    found = result.particles
    return None if found is None else dict(zip(map(str, found.num_particles), found.evidence.tolist(), strict=True))


def _training_figure(result: FitResult) -> Any:
    figure, axes = new_figure(1, 2, width=9, height=3.5)
    plot_evidence(
        axes[0, 0], result.evidence, result.held_out_steps, result.held_out_evidence, reference=result.without_dynamics
    )
    plot_effective_size(axes[0, 1], result.ess)
    return figure
