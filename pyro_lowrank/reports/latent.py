"""Sections on the latents: over time, by condition, in the flow of the network, and what can be decoded from them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from pyro_lowrank.metrics import decode, decoding_r2
from pyro_lowrank.plots.conditions import plot_latents_by_condition
from pyro_lowrank.plots.decoding import plot_decoded
from pyro_lowrank.plots.phase import plot_flow
from pyro_lowrank.plots.posterior import plot_latents
from pyro_lowrank.reports.material import Array, Material
from pyro_lowrank.reports.parts import HEIGHT, Picture, Section, Table, picture

_MOST_BINS, _TRIALS_SHOWN, _MOST_PATH = 1000, 2, 2000
# Of a single trial, so many parts are decoded from each other.
_PARTS = 10
_MOST_POINTS, _TARGETS_SHOWN, _TRIALS_DECODED = 30, 4, 5


def over_time(material: Material) -> Section:
    """Latents of the first trials, with their bands."""
    recording, rank = material.recording, material.draws.shape[-1]
    pictures = []
    for trial in range(min(_TRIALS_SHOWN, len(recording.data))):
        name, bins = recording.trial_names[trial], min(_MOST_BINS, int(recording.trial_lengths[trial]))

        def paint(axes: Any, trial: int = trial, bins: int = bins) -> None:
            panels = np.atleast_1d(axes)
            plot_latents(panels, material.draws[:, trial, :bins], bin_size=recording.bin_size)
            panels[0].set_title(recording.trial_names[trial], loc="left")

        pictures.append(
            picture(
                paint,
                f"Latents of {name} over time",
                "Medians given the whole recording, with bands that hold 50 % and 95 % of the posterior.",
                panels=min(rank, 6) if rank <= 6 else 1,
                height=1.6 if rank > 1 else HEIGHT,
            )
        )
    return Section("Latents over time", pictures=pictures, text=str(material.latents))


def by_condition(material: Material) -> Section | None:
    """Latents of all trials in the plane and in space; None where there is but one latent."""
    rank, recording = material.draws.shape[-1], material.recording
    if rank < 2:
        return None
    z = material.means[:, :_MOST_PATH]
    pictures = [
        picture(
            lambda axes: plot_latents_by_condition(axes, z, recording.conditions),
            "Latents in the plane",
            "Thin: trials; thick: their mean; a dot is where it begins." if len(z) > 1 else "A dot is where it begins.",
            height=4.0,
        )
    ]
    if rank > 2:
        pictures.append(
            picture(
                lambda axes: plot_latents_by_condition(axes, z, recording.conditions),
                "Latents in space",
                "The first three latents; plr.plots.interactive_space makes a picture of them that can be turned.",
                height=4.2,
                space=True,
            )
        )
    return Section("Latents by condition" if recording.conditions is not None else "Latents together", (), pictures)


def flow(material: Material) -> Section:
    """The flow with posterior trajectories and fixed points, and a table of these."""
    title, result, rank = "Flow and fixed points", material.fixed_points, material.draws.shape[-1]
    if result is None:
        return Section(title, [material.why_none])
    notes = []
    if material.recording.inputs is not None:
        notes.append("The flow and its fixed points are those without input.")
    complete = result.certificate.complete
    proved = "there are no others, which is proved" if complete else "there may be others"
    number = len(result.points)
    notes.append(f"{number} fixed point{'s' * (number != 1)} found; {proved}.")
    pictures: list[Picture] = []
    if rank <= 3:
        z = material.means[:, :_MOST_PATH]

        def paint(axes: Any) -> None:
            plot_flow(axes, result, trajectories=z)
            if rank == 2:
                # Below: beside the axes it would take the width of a phone.
                axes.legend(frameon=False, fontsize="small", ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.14))

        pictures.append(
            picture(
                paint,
                "Flow of the network, with the latents of the data and the fixed points",
                "The flow is where the noiseless network goes from each state.",
                height=4.4,
                space=rank == 3,
            )
        )
    else:
        notes.append(f"Flows can be drawn up to rank 3; this one has rank {rank}.")
    headings = ["", *(f"latent {dim + 1}" for dim in range(rank)), "stability", "largest |eigenvalue|"]
    rows = [
        [
            str(index + 1),
            *(f"{value:.3g}" for value in result.points[index]),
            str(result.stability[index]),
            f"{np.abs(result.eigenvalues[index]).max():.4f}",
        ]
        for index in range(min(number, _MOST_POINTS))
    ]
    if number > _MOST_POINTS:
        notes.append(f"The table holds the first {_MOST_POINTS}.")
    return Section(title, notes, pictures, Table(headings, rows) if rows else None, str(result.certificate))


def behaviour(material: Material, targets: Array | None, names: Sequence[str]) -> Section | None:
    """True behaviour and what is decoded of it from the latents; None where there is none."""
    if targets is None:
        return None
    recording = material.recording
    bins = recording.data.shape[1]
    targets = targets[: len(recording.data), :bins]
    x = material.latents.mean.cpu().numpy().astype(np.float64)
    y = np.where(material.within[..., np.newaxis], targets, np.nan)
    if len(x) < 3:
        length = bins // _PARTS
        x, y = (one[:, : length * _PARTS].reshape(-1, length, one.shape[-1]) for one in (x, y))
    score, decoded = decoding_r2(x, y), decode(x, y)

    def paint(axes: Any, target: int) -> None:
        shown = (one[:_TRIALS_DECODED, :, target] for one in (y, decoded))
        plot_decoded(axes, *shown, bin_size=recording.bin_size, label=names[target])

    pictures = [
        picture(
            partial(paint, target=target),
            f"{names[target]}, true and decoded from the latents",
            f"{names[target]}: decoded by a ridge regression that did not see these trials.",
        )
        for target in range(min(_TARGETS_SHOWN, y.shape[-1]))
    ]
    told = (
        f"R² = {float(score):.3f} ± {score.standard_error:.3f} on trials that were left out, linearly from the "
        "smoothed latents (mean and standard error over folds)."
    )
    return Section("Behaviour decoded", [told], pictures)
