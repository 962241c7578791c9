"""Premotor spikes generated for each target: delayed reaches to two targets and delay periods before seven, rank 4.

The target is the network's input, one channel each, from the moment that it can be seen: 200 ms into the trials with
reaches, and all of the delay periods. For each target twenty times as many trials are generated as were trained on, so
that chance in them hardly counts, and compared with those held out, a fifth of the reaches and a third of the delays: a
matrix of distances between vectors of mean rates over units, and of mean intervals between spikes, for all pairs of
targets, recorded and generated. A distance is the root mean squared difference over units; units with fewer than ten
intervals for some target are left out of those of intervals.

What makes targets differ is small beside what makes units differ. So the number is the correlation, over units and
targets, of what a target adds to the mean over targets, generated against held out; `recorded` is that of the trials
that were trained on against the held-out ones, which is as far as so few trials agree with each other.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace

import numpy as np
from spikes import GENERATIONS, Training, delays, evidence_per_spike, generated, posterior_of, reaches, trained

import pyro_lowrank as plr
from pyro_lowrank import metrics
from pyro_lowrank.data import Recording, split_trials

REFERENCE = {"delays_rates_r": "figure of dissimilarity matrices"}
GOAL = {}

FEWEST_INTERVALS = 10


@dataclass(frozen=True)
class Settings:
    """How the networks are trained; as in premotor_reach.py and premotor_delay.py."""

    reaches: Training = field(default_factory=Training)
    delays: Training = field(default_factory=lambda: Training(batch_size=50))


FULL = Settings()
_SMALL = Training(units=32, num_steps=30, window=20, num_particles=4, test_particles=50, num_draws=10)
REDUCED = Settings(_SMALL, replace(_SMALL, batch_size=50))

# What makes each recording, its share of held-out trials, and the time bin in which the target comes on.
RECORDINGS = {"reaches": (reaches, 0.2, 10), "delays": (delays, 1 / 3, 0)}


def with_cues(recording: Recording, onset: int) -> Recording:
    """Return a recording with one input per condition, one from its onset to the end of the trial."""
    mine = recording.conditions[:, None] == np.unique(recording.conditions)
    time_bins = np.arange(recording.data.shape[1])
    on = (time_bins >= onset) & (time_bins < recording.trial_lengths[:, None])
    return replace(recording, inputs=(mine[:, None] & on[..., None]).astype(float))


def statistics(counts: np.ndarray, conditions: np.ndarray, bin_size: float) -> dict[str, np.ndarray]:
    """Return mean rates in Hz and mean intervals in ms, NaN where there are few, conditions x units."""
    groups = [counts[conditions == condition] for condition in np.unique(conditions)]
    intervals = [metrics.isi_statistics(group, bin_size=1000 * bin_size) for group in groups]
    return {
        "rates": np.stack([metrics.mean_rates(group, bin_size=bin_size) for group in groups]),
        "intervals": np.stack([np.where(each.number >= FEWEST_INTERVALS, each.mean, np.nan) for each in intervals]),
    }


def dissimilarity(vectors: np.ndarray) -> np.ndarray:
    """Return root mean squared differences over units, vectors x vectors."""
    return np.sqrt(((vectors[:, None] - vectors) ** 2).mean(-1))


def deviations(vectors: np.ndarray) -> np.ndarray:
    """Return what each condition adds to the mean over conditions."""
    return vectors - vectors.mean(0)


def compared(held_out: np.ndarray, drawn: np.ndarray) -> dict[str, float]:
    """Return how well generated vectors, conditions x units, agree with held-out ones.

    `r` is the correlation of deviations from the mean over conditions, `matrix_r` that of the distances between
    conditions, where there are three or more, and `matched` the share of conditions whose generated deviations are
    nearest to their own held-out ones.
    """
    real, new = deviations(held_out), deviations(drawn)
    num = len(real)
    matrix = dissimilarity(np.concatenate([real, new]))
    found = {
        "r": metrics.agreement(real, new).correlation,
        "matched": float((matrix[num:, :num].argmin(1) == np.arange(num)).mean()),
    }
    pairs = np.triu_indices(num, 1)
    if num > 2:
        found["matrix_r"] = metrics.agreement(matrix[:num, :num][pairs], matrix[num:, num:][pairs]).correlation
    return found


def run(seed: int, settings: Settings) -> dict:
    """Train a network on each recording, and compare what it generates."""
    found = {}
    for name, (load, share, onset) in RECORDINGS.items():
        training = getattr(settings, name)
        recording = with_cues(load(), onset)
        train, test = split_trials(recording, share, seed=seed, by=recording.conditions)
        started = time.perf_counter()
        model, guide = trained(train, plr.LaplaceGuide, training, seed)
        found[f"{name}_training_seconds"] = time.perf_counter() - started
        posterior, _ = posterior_of(model, guide, test, training, seed)
        found[f"{name}_evidence_per_spike"] = evidence_per_spike(posterior, test)
        of = {
            key: statistics(counts, np.resize(part.conditions, len(counts)), recording.bin_size)
            for key, counts, part in (
                ("held_out", test.data, test),
                ("generated", generated(model, train, seed, GENERATIONS), train),
                ("recorded", train.data, train),
            )
        }
        for kind in ("rates", "intervals"):
            there = np.all([np.isfinite(each[kind]).all(0) for each in of.values()], axis=0)
            vectors = {key: each[kind][:, there] for key, each in of.items()}
            found[f"{name}_{kind}_units"] = int(there.sum())
            for key, prefix in (("generated", ""), ("recorded", "recorded_")):
                scores = compared(vectors["held_out"], vectors[key])
                found |= {f"{name}_{prefix}{kind}_{score}": value for score, value in scores.items()}
            found[f"{name}_{kind}_matrix"] = dissimilarity(np.concatenate([vectors["held_out"], vectors["generated"]]))
    return found


def draw(figure, record: dict) -> None:
    """Draw the matrices of the first seed."""
    row = record["rows"][0]
    panels = [(name, kind) for name in RECORDINGS for kind in ("rates", "intervals")]
    for axes, (name, kind) in zip(figure.subplots(1, 4), panels, strict=True):
        matrix = np.array(row[f"{name}_{kind}_matrix"])
        num = len(matrix) // 2
        shown = axes.imshow(matrix, cmap="viridis")
        for draw_line in (axes.axhline, axes.axvline):
            draw_line(num - 0.5, color="w", lw=1)
        middles = [num / 2 - 0.5, 1.5 * num - 0.5]
        axes.set_xticks(middles, ["held out", "generated"], fontsize=8)
        axes.set_yticks(middles, ["held out", "generated"], fontsize=8, rotation=90, va="center")
        axes.tick_params(length=0)
        r = np.median([each[f"{name}_{kind}_r"] for each in record["rows"]])
        axes.set_title(f"{name}, {kind}\nr {r:.2f}", fontsize=9)
        unit = "Hz" if kind == "rates" else "ms"
        figure.colorbar(shown, ax=axes, location="bottom", shrink=0.9, label=f"distance ({unit})")
