"""`pyro-lowrank forecast`: what follows a recording, with bands."""

from __future__ import annotations

import argparse

import numpy as np
import torch

from pyro_lowrank.cli.files import list_files, output_files
from pyro_lowrank.cli.filtering import filtered, load_both
from pyro_lowrank.cli.tables import write_bands
from pyro_lowrank.data import read_recording
from pyro_lowrank.errors import check_share


def run(options: argparse.Namespace) -> int:
    """Read, filter, draw on, write; return the exit code."""
    output_files(options.out, "forecast.csv", "forecast.nc")
    level = check_share("--level", options.level)
    loaded = load_both(options)
    recording, u = loaded.recording, None
    if options.future_inputs is not None:
        inputs = read_recording(options.future_inputs)
        print(f"Future inputs: {inputs.orientation}")
        u = torch.as_tensor(inputs.data, dtype=next(loaded.model.parameters()).dtype)
    elif loaded.model.dynamics.num_inputs:
        raise ValueError(
            f"The model has {loaded.model.dynamics.num_inputs} inputs: pass those of the next "
            f"{options.horizon} time bins with `--future-inputs FILE`."
        )
    posterior, found = filtered(
        options, loaded, lambda posterior: posterior.forecast(options.horizon, u, num_draws=options.draws)
    )
    ends = [0.5 - level / 2, 0.5 + level / 2]
    latents, y = (
        np.concatenate([draws.mean(0, keepdims=True), np.quantile(draws, ends, axis=0)])
        for draws in (found.z.numpy(), found.y.numpy())
    )
    names = [f"latent_{index + 1}" for index in range(latents.shape[-1])]
    made = write_bands(
        options.out,
        "forecast",
        {"latents": (names, latents), "y": (recording.feature_names, y)},
        recording,
        first_bins=found.start.numpy(),
        lengths=np.full(len(recording.data), options.horizon),
        attributes={"level": level, "num_draws": options.draws, "num_particles": posterior.num_particles},
    )
    print(f"Forecast: {options.horizon} time bins after each trial's last one with data, {options.draws} draws.")
    list_files(options.out, made)
    return 0
