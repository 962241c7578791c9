"""What the experiments on hippocampal spikes share: runs from end to end, training, decoding of the position, pictures.

The network is trained on four fifths of the runs. On the others, the position is decoded linearly (ridge regression,
trained on the first ones) from posterior latents as they are and smoothed, beside the same decoder on the smoothed
counts of all units and on as many principal components of them as there are latents; the width of each kernel is that
which does best on the test.

Beside the statistics of generated runs, `recorded` is how far the runs that were trained on agree with the held-out
ones.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
from scipy.ndimage import gaussian_filter1d
from shared import data_file
from spikes import (
    SMOOTHING,
    Training,
    agreements,
    decoded,
    decoded_from_counts,
    evidence_per_spike,
    generated_agreement,
    posterior_of,
    trained,
)

import pyro_lowrank as plr
from pyro_lowrank.data import Recording, bin_spikes, split_trials

REFERENCE = {"latents_r2": "decodable (figure)"}
GOAL = {"pooled_rates_r": 0.95, "pooled_intervals_r": 0.95}

BIN_SIZE = 0.025  # seconds
SHOWN = slice(0, 800, 5)  # bins, few enough for small files


@dataclass(frozen=True)
class Settings:
    """How the network is trained."""

    training: Training = field(default_factory=lambda: Training(window=100, num_steps=3000))


FULL = Settings()
REDUCED = Settings(Training(units=32, num_steps=30, window=40, num_particles=4, test_particles=50, num_draws=10))

Track = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


def runs_of(name: str, track: Track, *, longest: float, min_spikes: int = 100) -> tuple[Recording, np.ndarray]:
    """Return runs from one end of a track to another, and the position in each time bin.

    A run starts where the animal leaves one end and stops where it enters another; those that take longer than
    `longest` seconds, with a rest on the way, are left out, and so are units that are marked suspect and those with
    fewer spikes than `min_spikes` in all runs. The condition is the two ends. Positions are trials x time x
    coordinates, NaN in padding.

    Args:
        name: of the data file.
        track: makes coordinates, samples x coordinates, and the number of the end that the animal is at, -1 between
            them, of camera pixels, samples x 2. Coordinates have the same unit.
        longest: seconds.
        min_spikes: in all runs.
    """
    with np.load(data_file(name)) as d:
        file = {key: d[key] for key in d.files}
    times, epochs = file["position_t"], file["run_epochs"]
    # Between the epochs the animal rests in a box and the tracker stands still.
    running = np.any([(times >= start) & (times <= stop) for start, stop in epochs], axis=0)
    coordinates, ends = track(file["position_xy"][running].astype(float))
    times, epoch = times[running], np.searchsorted(epochs[:, 0], times[running], side="right")
    runs = [run for e in np.unique(epoch) for run in _runs(times[epoch == e], ends[epoch == e])]
    runs = [run for run in runs if run[1] - run[0] <= longest]
    spikes = [file["spike_times"][a:b] for a, b in pairwise(file["unit_offsets"])]
    units = {unit: spikes[unit] for unit in np.flatnonzero(~file["unit_suspect"])}
    recording = bin_spikes(
        units, bin_size=BIN_SIZE, epochs=np.array([run[:2] for run in runs]), conditions=np.array([r[2] for r in runs])
    )
    recording = recording.select(features=np.nansum(recording.data, (0, 1)) >= min_spikes)
    positions = np.full((*recording.data.shape[:2], coordinates.shape[1]), np.nan)
    for trial, (begin, *_), length in zip(positions, runs, recording.trial_lengths, strict=True):
        middles = begin + BIN_SIZE * (np.arange(length) + 0.5)
        trial[:length] = np.stack([np.interp(middles, times, x) for x in coordinates.T], -1)
    return recording, positions


def _runs(times: np.ndarray, ends: np.ndarray) -> list[tuple[float, float, str]]:
    """Return the begin, stop and the two ends of each run."""
    at = np.flatnonzero(ends >= 0)
    return [(times[i], times[j], f"to {ends[j]} from {ends[i]}") for i, j in pairwise(at) if ends[i] != ends[j]]


def judged(recording: Recording, positions: np.ndarray, seed: int, settings: Settings) -> dict:
    """Train and judge one network, and the baselines, on one split."""
    named = replace(recording, trial_names=tuple(map(str, range(recording.num_trials))))
    train, test = split_trials(named, 0.2, seed=seed, by=recording.conditions)
    parts = [[int(name) for name in part.trial_names] for part in (train, test)]
    where = [[positions[trial, : recording.trial_lengths[trial]] for trial in part] for part in parts]
    started = time.perf_counter()
    model, guide = trained(train, plr.LaplaceGuide, settings.training, seed)
    found = {"training_seconds": time.perf_counter() - started}
    latents, posteriors = [], []
    for part in (train, test):
        posterior, draws = posterior_of(model, guide, part, settings.training, seed)
        mean = draws.mean(0).numpy()
        latents.append([trial[:length] for trial, length in zip(mean, part.trial_lengths, strict=True)])
        posteriors.append(posterior)
    found["latents_r2"], predicted = decoded(latents[0], where[0], latents[1], where[1])
    smoothed = []
    for sd in SMOOTHING:
        slow = [[gaussian_filter1d(trial, sd, axis=0, mode="nearest") for trial in part] for part in latents]
        smoothed.append(decoded(slow[0], where[0], slow[1], where[1])[0])
    found["smoothed_latents_r2"] = max(smoothed)
    found |= decoded_from_counts(train, test, where, settings.training.rank)
    found["evidence_per_spike"] = evidence_per_spike(posteriors[1], test)
    found["ess"] = float(posteriors[1].ess.mean()) / settings.training.test_particles
    found |= generated_agreement(model, train, seed)
    found |= {f"recorded_{name}_r": r for name, r in agreements(train.data, test.data).items()}
    return found | {"position": np.concatenate(where[1])[SHOWN].T, "predicted": predicted[SHOWN].T}


def draw_decoded(figure, record: dict, coordinates: Sequence[str]) -> None:
    """Draw positions of held-out runs, decoded and real, one row for each coordinate, and all scores."""
    grid = figure.add_gridspec(len(coordinates), 2)
    row = record["rows"][0]
    shown = {name: np.array(row[name]) for name in ("position", "predicted")}
    times = BIN_SIZE * np.arange(SHOWN.stop)[SHOWN][: shown["position"].shape[1]]
    jump = (np.abs(np.diff(shown["position"], prepend=shown["position"][:, :1])) > 0.3).any(0)
    for number, name in enumerate(coordinates):
        axes = figure.add_subplot(grid[number, 0])
        for key, label, color in (("position", "position", "k"), ("predicted", "decoded from latents", "C0")):
            axes.plot(times, np.where(jump, np.nan, shown[key][number]), color=color, lw=1.2, label=label)
        axes.set(ylabel=name, ylim=(0, 1.25 if number == 0 else 1))
        if number == 0:
            axes.legend(frameon=False, fontsize=8, ncols=2, loc="upper center")
    axes.set(xlabel="time on held-out runs, joined (s)")
    right = figure.add_subplot(grid[:, 1])
    names = ("latents_r2", "smoothed_latents_r2", "components_r2", "counts_r2")
    for place, name in enumerate(names):
        values = [r[name] for r in record["rows"]]
        right.scatter(values, [place] * len(values), s=16, color="C0" if "latents" in name else "0.5")
    right.set_yticks(range(len(names)), ["latents", "latents, smoothed", "principal components", "counts, all units"])
    right.set(xlabel="R$^2$ of the position", title="held-out runs", xlim=(min(0, right.get_xlim()[0]), 1))
    right.invert_yaxis()
