"""A rat on a linear track: runs from end to end, hippocampal units, 25 ms bins, a network of rank 4.

The network is trained on four fifths of the runs. On the others, the position is decoded linearly (ridge regression,
trained on the first ones) from posterior latents as they are and smoothed, beside the same decoder on the smoothed
counts of all units and on as many principal components of them as there are latents; the width of each kernel is that
which does best on the test.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace

import numpy as np
from scipy.ndimage import gaussian_filter1d
from sklearn.decomposition import PCA
from sklearn.linear_model import RidgeCV
from spikes import (
    SMOOTHING,
    Training,
    evidence_per_spike,
    generated_agreement,
    posterior_of,
    smoothed_counts,
    track_laps,
    trained,
)

import pyro_lowrank as plr
from pyro_lowrank.data import split_trials

REFERENCE = {"latents_r2": "decodable (figure)"}
GOAL = {"generated_rates_r": 0.95, "generated_intervals_r": 0.95}


@dataclass(frozen=True)
class Settings:
    """How the network is trained."""

    training: Training = field(default_factory=lambda: Training(window=100, num_steps=1000))


FULL = Settings()
REDUCED = Settings(Training(units=32, num_steps=30, window=40, num_particles=4, test_particles=50, num_draws=10))


def decoded(x_train: list, train: list, x_test: list, test: list) -> tuple[float, np.ndarray]:
    """Return the coefficient of determination on the test runs, and the positions decoded there."""
    ridge = RidgeCV(np.logspace(-3, 4, 15)).fit(np.concatenate(x_train), np.concatenate(train))
    x, y = np.concatenate(x_test), np.concatenate(test)
    return float(ridge.score(x, y)), ridge.predict(x)


def run(seed: int, settings: Settings) -> dict:
    """Train and judge one network, and the baselines, on one split."""
    recording, positions = track_laps()
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
    scores = {"smoothed_latents_r2": [], "counts_r2": [], "components_r2": []}
    for sd in SMOOTHING:
        slow = [[gaussian_filter1d(trial, sd, axis=0, mode="nearest") for trial in part] for part in latents]
        scores["smoothed_latents_r2"].append(decoded(slow[0], where[0], slow[1], where[1])[0])
        counts = [smoothed_counts(part, sd) for part in (train, test)]
        scores["counts_r2"].append(decoded(counts[0], where[0], counts[1], where[1])[0])
        analysis = PCA(settings.training.rank).fit(np.concatenate(counts[0]))
        components = [[analysis.transform(trial) for trial in part] for part in counts]
        scores["components_r2"].append(decoded(components[0], where[0], components[1], where[1])[0])
    found |= {name: max(values) for name, values in scores.items()}
    found["evidence_per_spike"] = evidence_per_spike(posteriors[1], test)
    found["ess"] = float(posteriors[1].ess.mean()) / settings.training.test_particles
    found |= generated_agreement(model, train, seed)
    return found | {"position": np.concatenate(where[1])[:800], "predicted": predicted[:800]}


def draw(figure, record: dict) -> None:
    """Draw positions of held-out runs, decoded and real, and all scores."""
    left, right = figure.subplots(1, 2)
    row = record["rows"][0]
    times = 0.025 * np.arange(len(row["position"]))
    jump = np.abs(np.diff(row["position"], prepend=row["position"][0])) > 0.3
    for name, label, color in (("position", "position", "k"), ("predicted", "decoded from latents", "C0")):
        left.plot(times, np.where(jump, np.nan, row[name]), color=color, lw=1.2, label=label)
    left.set(xlabel="time on held-out runs, joined (s)", ylabel="share of the track", ylim=(0, 1.25))
    left.legend(frameon=False, fontsize=8, ncols=2, loc="upper center")
    names = ("latents_r2", "smoothed_latents_r2", "components_r2", "counts_r2")
    for place, name in enumerate(names):
        values = [r[name] for r in record["rows"]]
        right.scatter(values, [place] * len(values), s=16, color="C0" if "latents" in name else "0.5")
    right.set_yticks(range(len(names)), ["latents", "latents, smoothed", "principal components", "counts, all units"])
    right.set(xlabel="R$^2$ of the position", title="held-out runs", xlim=(min(0, right.get_xlim()[0]), 1))
    right.invert_yaxis()
