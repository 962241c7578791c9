"""`pyro-lowrank fit`: fit a low-rank network to a recording."""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from pyro_lowrank.cli.codes import INTERRUPTED
from pyro_lowrank.cli.files import draw, list_files, output_files
from pyro_lowrank.cli.models import IN_SECONDS, SCALED, build, independent_features
from pyro_lowrank.data import Recording, read_recording, read_suite2p
from pyro_lowrank.data.overlaps import apart_from
from pyro_lowrank.files import write_whole
from pyro_lowrank.guides.base import Guide
from pyro_lowrank.models.state_space import StateSpaceModel
from pyro_lowrank.observations.gaussian import GaussianObservation
from pyro_lowrank.plots.figures import new_figure
from pyro_lowrank.plots.training import plot_effective_size, plot_evidence
from pyro_lowrank.serialization import save
from pyro_lowrank.training.fit import fit
from pyro_lowrank.training.independent import independent_evidence
from pyro_lowrank.training.initialise import initialise_from_data, start_at_means
from pyro_lowrank.training.randomness import own_generators, seed_generators
from pyro_lowrank.training.recipe import Recipe
from pyro_lowrank.training.result import FitResult
from pyro_lowrank.training.standardise import Standardisation
from pyro_lowrank.validation.baselines import baselines

CPU = torch.device("cpu")


@dataclass(frozen=True)
class _Part:
    """Some of a recording, `trials x time x features`, and its inputs."""

    y: Tensor
    u: Tensor | None


@dataclass(frozen=True)
class _Split:
    """A recording's training part and held-out part (or None), and the sentence that says so."""

    train: _Part
    held_out: _Part | None
    sentence: str


def _split(recording: Recording, y: Tensor, u: Tensor | None, share: float) -> _Split:
    if not 0 <= share < 1:
        raise ValueError(f"`--held-out` is a share, at least 0 and below 1, got {share}.")
    dim, what = (1, "time bins") if y.shape[0] == 1 else (0, "trials")
    size = y.shape[dim]
    held = min(math.ceil(share * size), size - 1)
    if held == 0:
        return _Split(_Part(y, u), None, f"Training on all {size} {what}; nothing is held out.")
    sizes = [size - held, held]
    inputs = (None, None) if u is None else u.split(sizes, dim)
    train, held_out = (_Part(*part) for part in zip(y.split(sizes, dim), inputs, strict=True))
    sentence = f"Training on the first {size - held} {what}; the last {held} are held out."
    apart = apart_from(recording, np.arange(size) >= size - held) if dim == 0 else np.arange(size - held)
    if len(apart) < size - held:
        if not len(apart):
            raise ValueError(
                f"All {size - held} trials to train on share time with the last {held}, which are held out: cut trials "
                "that do not overlap, or pass `--held-out 0`."
            )
        train = _Part(train.y[apart], None if train.u is None else train.u[apart])
        sentence += f"\n{size - held - len(apart)} trials share time with these, and are left out of the training."
    return _Split(train, held_out, sentence)


def _read(options: argparse.Namespace) -> Recording:
    if options.data.is_dir():
        if options.bin is None:
            raise ValueError(
                f"{options.data} is a folder, as Suite2p writes them: pass `--bin SECONDS`, the time from frame to "
                "frame."
            )
        recording = read_suite2p(options.data, bin_size=options.bin)
    else:
        recording = read_recording(
            options.data,
            key=options.key,
            time_axis=options.time_axis,
            trials_axis=options.trials_axis,
            # Fluorescence and BOLD are no counts, which are summed.
            bin_size=None if options.likelihood in IN_SECONDS else options.bin,
        )
        if options.likelihood in IN_SECONDS and options.bin is not None:
            recording = _with_bin(recording, options.bin)
    print(recording.orientation)
    if options.inputs is None:
        return recording
    inputs = read_recording(options.inputs, key=options.inputs_key)
    print(f"Inputs: {inputs.orientation}")
    return replace(recording, inputs=inputs.data)


def _with_bin(recording: Recording, seconds: float) -> Recording:
    if recording.bin_size is not None and not math.isclose(recording.bin_size, seconds, rel_tol=0.02):
        raise ValueError(
            f"The file tells {recording.bin_size:g} s from frame to frame, and --bin {seconds:g} came: leave `--bin` "
            "out."
        )
    return replace(recording, bin_size=seconds)


def run(options: argparse.Namespace) -> int:
    """Read, split, fit, save; return the exit code."""
    files = output_files(options.out, "model.safetensors", "checkpoint.safetensors", "training.png", "summary.json")
    recording = _read(options)
    y = torch.as_tensor(recording.data, dtype=torch.float64)
    u = None if recording.inputs is None else torch.as_tensor(recording.inputs, dtype=torch.float32)
    print("As trials x time bins x features, that is {} x {} x {}.".format(*y.shape))
    split = _split(recording, y, u, options.held_out)
    print(split.sentence)
    train, held_out, standardisation = split.train, split.held_out, None
    if options.standardise and options.likelihood in SCALED:
        # In double precision: an offset far larger than the signal would round it away.
        standardisation = Standardisation.of(train.y)
        train = replace(train, y=standardisation.apply(train.y))
        held_out = None if held_out is None else replace(held_out, y=standardisation.apply(held_out.y))
        print("Each feature is standardised for the training, and the evidence below is of the")
        print("standardised data; the saved model is in the recording's own units.")
    train = replace(train, y=train.y.float())
    held_out = None if held_out is None else replace(held_out, y=held_out.y.float())
    with own_generators(CPU):
        seed_generators(CPU, options.seed)
        model, guide = build(options, y.shape[-1], 0 if u is None else u.shape[-1], recording.bin_size)
    _start(model, train)
    result = _train(options, model, guide, train, held_out, files["checkpoint.safetensors"])
    if standardisation is not None:
        standardisation.fold_into(model.observation)
    save(files["model.safetensors"], model, guide)
    _write_summary(files["summary.json"], options, recording, result)
    made = draw(files["training.png"], lambda: _training_figure(result))
    print(result)
    if held_out is not None:
        reference = independent_evidence(train.y, held_out.y, independent_features(options.likelihood))
        print(f"  for scale       {reference:.3f} nats per bin held out, without any dynamics")
        _tell_baselines(options, train.y, held_out.y)
    list_files(options.out, ["model.safetensors", "summary.json", *made])
    print("Use the model:  model, guide = pyro_lowrank.load(...); model.simulate(10, 200)")
    if result.interrupted:
        print("Interrupted: the same command with --resume goes on.")
        return INTERRUPTED
    return 0


def _start(model: StateSpaceModel, train: _Part) -> None:
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


def _train(
    options: argparse.Namespace,
    model: StateSpaceModel,
    guide: Guide,
    train: _Part,
    held_out: _Part | None,
    checkpoint: Path,
) -> FitResult:
    num_trials, num_bins = train.y.shape[:2]
    window: int | Literal["auto"] | None = "auto"
    if options.window is not None:
        window = options.window if 0 < options.window < num_bins else None
    whole = options.batch_size is not None and window is None
    recipe = Recipe.of(
        train.y,
        guide,
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
        model,
        guide,
        train.y,
        train.u,
        num_steps=recipe.num_steps,
        window=recipe.window,
        batch_size=recipe.batch_size,
        num_particles=recipe.num_particles,
        learning_rate=recipe.learning_rate,
        final_learning_rate=recipe.final_learning_rate,
        held_out=None if held_out is None else held_out.y,
        held_out_inputs=None if held_out is None else held_out.u,
        checkpoint=checkpoint,
        resume=options.resume,
        seed=options.seed,
    )


def _tell_baselines(options: argparse.Namespace, train: Tensor, held_out: Tensor) -> None:
    """Print what real-valued data are worth without latent dynamics, where there are enough of them."""
    bins, features = train.shape[1:]
    order = min(options.order or 4, bins - 1)
    if options.likelihood in (*SCALED, *IN_SECONDS) and features > options.rank and order > 0:
        print(baselines(train, held_out, order=order, factors=options.rank))


def _write_summary(path: Path, options: argparse.Namespace, recording: Recording, result: FitResult) -> None:
    held_out = result.held_out_evidence.tolist()
    summary = {
        "options": {
            name: str(v) if isinstance(v, Path) else v for name, v in vars(options).items() if name != "module"
        },
        "orientation": recording.orientation,
        "bin_size": recording.bin_size,
        "feature_names": list(recording.feature_names),
        "steps": result.steps,
        "interrupted": result.interrupted,
        "seconds": round(result.seconds, 2),
        "held_out_evidence_per_bin": {"before": held_out[0], "after": held_out[-1]} if held_out else None,
        "held_out_steps": result.held_out_steps.tolist(),
        "held_out_evidence": held_out,
        "evidence": result.evidence.tolist(),
    }
    write_whole(path, (json.dumps(summary, indent=1) + "\n").encode())


def _training_figure(result: FitResult) -> Any:
    figure, axes = new_figure(1, 2, width=9, height=3.5)
    plot_evidence(axes[0, 0], result.evidence, result.held_out_steps, result.held_out_evidence)
    plot_effective_size(axes[0, 1], result.ess)
    return figure
