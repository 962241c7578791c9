"""A saved model run over a recording."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch

from pyro_lowrank.cli.recordings import read
from pyro_lowrank.data import Recording
from pyro_lowrank.guides.bootstrap import BootstrapGuide
from pyro_lowrank.infer.filter import SMCFilter
from pyro_lowrank.infer.posterior import SMCPosterior
from pyro_lowrank.serialization import load
from pyro_lowrank.training.randomness import own_generators, seed_generators
from pyro_lowrank.training.tensors import as_tensors

CPU = torch.device("cpu")
Result = TypeVar("Result")


class Loaded(NamedTuple):
    """A model, its guide, and a recording for them."""

    model: Any
    guide: Any
    recording: Recording


def load_both(options: argparse.Namespace) -> Loaded:
    """Read model and recording; a folder of `fit` stands for the model in it.

    Raises:
        ValueError: if their features or inputs differ.
    """
    model, guide = load_model(options.model)
    recording = read(options)
    print(recording)
    features = recording.data.shape[-1]
    inputs = 0 if recording.inputs is None else recording.inputs.shape[-1]
    for what, ours, theirs, option in (
        ("features", features, model.observation.features, "--key"),
        ("inputs", inputs, model.dynamics.num_inputs, "--inputs"),
    ):
        if ours != theirs:
            raise ValueError(
                f"The model has {theirs} {what}, {options.data} {ours}: pass the recording that was fitted, read the "
                f"same way (`{option}`)."
            )
    return Loaded(model, guide, recording)


def load_model(path: Path) -> tuple[Any, Any]:
    """Load a model file, or that of a folder that `fit` wrote."""
    return load(path / "model.safetensors" if path.is_dir() else path)


def filtered(
    options: argparse.Namespace, loaded: Loaded, then: Callable[[SMCPosterior], Result]
) -> tuple[SMCPosterior, Result]:
    """Run the filter, and what follows it, with the seed that was asked for."""
    y, u = (*as_tensors(loaded.recording, loaded.model), None)[:2]
    alone = loaded.guide is None or isinstance(loaded.guide, BootstrapGuide)
    particles = options.particles if options.particles is not None else 1000 if alone else 200
    with own_generators(CPU), torch.no_grad():
        seed_generators(CPU, options.seed)
        posterior = SMCFilter(loaded.model, loaded.guide, particles).run(y, u)
        print(posterior)
        return posterior, then(posterior)
