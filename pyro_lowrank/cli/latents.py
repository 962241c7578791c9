"""`pyro-lowrank latents`: smoothed latents of a recording, with bands."""

from __future__ import annotations

import argparse

import numpy as np

from pyro_lowrank.cli.files import draw, list_files, output_files
from pyro_lowrank.cli.filtering import filtered, load_both
from pyro_lowrank.cli.tables import write_bands
from pyro_lowrank.plots.figures import new_figure
from pyro_lowrank.plots.posterior import plot_latents

_TRIALS_DRAWN = 3


def run(options: argparse.Namespace) -> int:
    """Read, filter, smooth, write; return the exit code."""
    files = output_files(options.out, "latents.csv", "latents.nc", "latents.png")
    loaded = load_both(options)
    recording = loaded.recording
    posterior, latents = filtered(
        options, loaded, lambda posterior: posterior.latents(options.level, num_draws=options.draws)
    )
    print(latents)
    bands = np.stack([part.numpy() for part in (latents.mean, latents.lower, latents.upper)])
    names = [f"latent_{index + 1}" for index in range(bands.shape[-1])]
    made = write_bands(
        options.out,
        "latents",
        {"latents": (names, bands)},
        recording,
        first_bins=np.zeros(len(recording.data), dtype=np.int64),
        lengths=recording.trial_lengths,
        attributes={
            "level": latents.level,
            "num_particles": posterior.num_particles,
            "log_evidence": float(posterior.log_evidence.sum()),
        },
    )

    def figure() -> object:
        shown = min(_TRIALS_DRAWN, len(recording.data))
        made_here, axes = new_figure(shown, 1, width=9, height=2.6 * shown)
        for trial in range(shown):
            name = recording.trial_names[trial]
            plot_latents(axes[trial, 0], latents, trial=trial, bin_size=recording.bin_size, title=name)
        return made_here

    made += draw(files["latents.png"], figure)
    list_files(options.out, made)
    return 0
