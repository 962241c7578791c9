"""Reaches through mazes of 108 kinds, motor and premotor units, 20 ms bins: a network of rank 6, told the target.

The recording of the paper's reaching experiment: MC_Maze of the Neural Latents Benchmark (DANDI:000128, CC BY 4.0,
`sub-Jenkins_ses-full_desc-train_behavior+ecephys.nwb`), here `mc_maze_full.nwb`. A trial lasts from 250 ms before the
movement to 450 ms after its onset; its input is where the hand ends, on average over the trials of its kind that were
trained on. On a fifth of the trials the hand's velocity, 80 ms later than the spikes, is decoded linearly from
posterior latents, beside the same decoder on the smoothed counts of all units and on as many principal components.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from shared import data_file
from spikes import (
    Training,
    decoded,
    decoded_from_counts,
    evidence_per_spike,
    generated_agreement,
    posterior_of,
    trained,
)

import pyro_lowrank as plr
from pyro_lowrank.data import Recording, read_recording, split_trials

REFERENCE = {"latents_r2": 0.90}
GOAL = {}

FILE = "mc_maze_full.nwb"
BIN_SIZE, EPOCH, LAG = 0.02, (-0.25, 0.45), 0.08  # seconds


@dataclass(frozen=True)
class Settings:
    """How the network is trained."""

    training: Training = field(default_factory=lambda: Training(rank=6, units=256, num_steps=3000, batch_size=32))


FULL = Settings()
REDUCED = Settings(Training(units=32, num_steps=30, batch_size=10, num_particles=4, test_particles=50, num_draws=10))


def trials_of(path: Path) -> tuple[Recording, np.ndarray, np.ndarray]:
    """Return the spikes of all reaches, the hand's velocity of each bin, and where the hand ends, trials x 2."""
    import pynwb

    with pynwb.NWBHDF5IO(str(path), mode="r") as opened:
        file = opened.read()
        onsets = np.asarray(file.trials["move_onset_time"][:], dtype=float)
        kinds = [
            f"{kind}.{version}"
            for kind, version in zip(file.trials["trial_type"][:], file.trials["trial_version"][:], strict=True)
        ]
        hand = {}
        for one in file.objects.values():
            if one.name in ("hand_vel", "hand_pos"):
                times = one.timestamps
                seconds = one.starting_time + np.arange(len(one.data)) / one.rate if times is None else times[:]
                hand[one.name] = np.asarray(seconds), np.asarray(one.data[:]) * one.conversion
    moved = np.isfinite(onsets)
    onsets, kinds = onsets[moved], np.array(kinds)[moved]
    recording = read_recording(path, bin_size=BIN_SIZE, epochs=onsets[:, None] + np.array(EPOCH))
    recording = replace(recording, conditions=kinds, trial_names=tuple(map(str, range(len(onsets)))))
    middles = EPOCH[0] + BIN_SIZE * (np.arange(recording.data.shape[1]) + 0.5)
    velocity = _at(hand["hand_vel"], onsets[:, None] + middles + LAG)
    return recording, velocity, _at(hand["hand_pos"], onsets + EPOCH[1])


def _at(series: tuple[np.ndarray, np.ndarray], times: np.ndarray) -> np.ndarray:
    seconds, values = series
    return np.stack([np.interp(times, seconds, x) for x in values.T], -1)


def with_cues(recording: Recording, ends: np.ndarray, seen: list[int]) -> Recording:
    """Return the recording with the mean end of the trials `seen` of each kind as its input, in shares of the farthest.

    Kinds that were not seen have the mean of all.
    """
    cue = np.tile(ends[seen].mean(0), (recording.num_trials, 1))
    for kind in np.unique(recording.conditions[seen]):
        mine = recording.conditions == kind
        cue[mine] = ends[[trial for trial in seen if mine[trial]]].mean(0)
    cue /= np.abs(cue).max()
    return replace(recording, inputs=np.repeat(cue[:, None], recording.data.shape[1], axis=1))


def run(seed: int, settings: Settings) -> dict:
    """Train and judge one network, and the baselines, on one split."""
    recording, velocity, ends = trials_of(data_file(FILE))
    seen = [int(name) for name in split_trials(recording, 0.2, seed=seed, by=recording.conditions)[0].trial_names]
    train, test = split_trials(with_cues(recording, ends, seen), 0.2, seed=seed, by=recording.conditions)
    where = [[velocity[int(name)] for name in part.trial_names] for part in (train, test)]
    started = time.perf_counter()
    model, guide = trained(train, plr.LaplaceGuide, settings.training, seed)
    found = {"training_seconds": time.perf_counter() - started}
    fits = [posterior_of(model, guide, part, settings.training, seed) for part in (train, test)]
    latents = [list(draws.mean(0).numpy()) for _, draws in fits]
    found["latents_r2"], predicted = decoded(latents[0], where[0], latents[1], where[1])
    found |= decoded_from_counts(train, test, where, settings.training.rank)
    found["evidence_per_spike"] = evidence_per_spike(fits[1][0], test)
    found |= generated_agreement(model, train, seed)
    num_bins, shown = recording.data.shape[1], min(20, test.num_trials)
    paths = predicted.reshape(-1, num_bins, 2)[:shown].cumsum(1) * BIN_SIZE
    return found | {"paths": paths, "hand": np.stack(where[1])[:shown].cumsum(1) * BIN_SIZE}


def draw(figure, record: dict) -> None:
    """Draw paths of the hand on held-out trials of the first seed, decoded and real, and all scores."""
    *both, right = figure.subplots(1, 3, width_ratios=(1, 1, 1.2))
    row = record["rows"][0]
    for axes, name, title in zip(both, ("hand", "paths"), ("hand", "decoded from latents"), strict=True):
        for path in np.array(row[name]):
            axes.plot(*path.T, lw=0.8)
        axes.set(title=title, aspect="equal")
        axes.set_axis_off()
    names = ("latents_r2", "components_r2", "counts_r2")
    for place, name in enumerate(names):
        values = [r[name] for r in record["rows"]]
        right.scatter(values, [place] * len(values), s=16, color="C0" if "latents" in name else "0.5")
    right.set_yticks(range(len(names)), ["latents", "principal components", "counts, all units"])
    right.set(xlabel="R$^2$ of the velocity", xlim=(0, 1))
    right.invert_yaxis()
