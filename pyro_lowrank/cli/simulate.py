"""`pyro-lowrank simulate`: trials generated from a model."""

from __future__ import annotations

import argparse
import io

import numpy as np
import torch

from pyro_lowrank.cli.files import list_files, output_files
from pyro_lowrank.cli.filtering import CPU, load_model
from pyro_lowrank.cli.recordings import read_inputs
from pyro_lowrank.errors import check_positive_int
from pyro_lowrank.files import write_whole
from pyro_lowrank.training.randomness import own_generators, seed_generators


def run(options: argparse.Namespace) -> int:
    """Load, generate, write; return the exit code."""
    files = output_files(options.out, "simulation.npz")
    trials, bins = (check_positive_int(f"--{name}", getattr(options, name)) for name in ("trials", "bins"))
    model = load_model(options.model)[0]
    u = None
    if options.inputs is not None:
        u = torch.as_tensor(read_inputs(options).data, dtype=next(model.parameters()).dtype)
    elif model.dynamics.num_inputs:
        raise ValueError(f"The model has {model.dynamics.num_inputs} inputs: pass them with `--inputs FILE`.")
    with own_generators(CPU):
        seed_generators(CPU, options.seed)
        drawn = model.simulate(trials, bins, u)
    parts = {"y": drawn.y, "z": drawn.z, "mean": drawn.mean}
    arrays = {name: value.numpy() for name, value in parts.items() if value is not None}
    content = io.BytesIO()
    np.savez(content, **arrays)
    write_whole(files["simulation.npz"], content.getvalue())
    print("Generated {} trials x {} time bins x {} features.".format(*arrays["y"].shape))
    list_files(options.out, ["simulation.npz"])
    return 0
