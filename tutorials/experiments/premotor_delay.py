"""The delay before reaches to seven targets: 210 trials of 400 ms, 61 premotor units, a network of rank 4.

The network is trained on two thirds of the trials of each target; of the others, the target is decoded from posterior
latents by linear discriminant analysis. Naive Bayes on the summed counts of all 61 units, and discriminant analysis on
as many factors of them as there are latents, see the same split.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np
from sklearn.decomposition import FactorAnalysis
from sklearn.naive_bayes import MultinomialNB
from spikes import (
    Training,
    classified,
    delays,
    evidence_per_spike,
    generated_agreement,
    posterior_of,
    trained,
    windows,
)

import pyro_lowrank as plr
from pyro_lowrank.data import split_trials

REFERENCE = {"decoded": "0.98 (all units, naive Bayes)"}
GOAL = {}

WIDTH = 10  # Latents are averaged over 200 ms.


@dataclass(frozen=True)
class Settings:
    """How the network is trained."""

    training: Training = field(default_factory=lambda: Training(batch_size=50))


FULL = Settings()
REDUCED = Settings(Training(units=32, num_steps=30, num_particles=4, test_particles=50, num_draws=10))


def run(seed: int, settings: Settings) -> dict:
    """Train and judge one network, and the baselines, on one split."""
    recording = delays()
    train, test = split_trials(recording, 1 / 3, seed=seed, by=recording.conditions)
    started = time.perf_counter()
    model, guide = trained(train, plr.LaplaceGuide, settings.training, seed)
    seconds = time.perf_counter() - started
    latents = [posterior_of(model, guide, part, settings.training, seed) for part in (train, test)]
    num_bins = recording.data.shape[1]
    x_train, x_test = (windows(draws.mean(0).numpy(), num_bins, WIDTH) for _, draws in latents)
    counts = [part.data.sum(1) for part in (train, test)]
    factors = FactorAnalysis(settings.training.rank, random_state=0).fit(np.sqrt(counts[0]))
    f_train, f_test = (factors.transform(np.sqrt(part)) for part in counts)
    return {
        "training_seconds": seconds,
        "decoded": classified(x_train, train.conditions, x_test, test.conditions),
        "factors_decoded": classified(f_train, train.conditions, f_test, test.conditions),
        "counts_decoded": float(MultinomialNB().fit(counts[0], train.conditions).score(counts[1], test.conditions)),
        "evidence_per_spike": evidence_per_spike(latents[1][0], test),
        "ess": float(latents[1][0].ess.mean()) / settings.training.test_particles,
        **generated_agreement(model, train, seed),
        "latents": x_test[:, -settings.training.rank :],
        "targets": test.conditions,
    }


def draw(figure, record: dict) -> None:
    """Draw the test trials of the first seed in the plane that separates the targets best, and all scores."""
    left, right = figure.subplots(1, 2)
    row = record["rows"][0]
    x, targets = np.array(row["latents"]), np.array(row["targets"])
    means = np.stack([x[targets == target].mean(0) for target in np.unique(targets)])
    plane = np.linalg.svd(means - means.mean(0), full_matrices=False)[2][:2].T
    left.scatter(*((x - means.mean(0)) @ plane).T, c=targets, cmap="tab10", vmax=9, s=14)
    left.set(xlabel="latent plane, axis 1", ylabel="axis 2", title="last 200 ms of the delay, colours are targets")
    names = ("decoded", "factors_decoded", "counts_decoded")
    for place, name in enumerate(names):
        values = [r[name] for r in record["rows"]]
        right.scatter(values, [place] * len(values), s=16, color="C0" if name == "decoded" else "0.5")
    right.set_yticks(range(len(names)), ["latents", "factor analysis", "counts, 61 units"])
    right.set(xlabel="share of targets decoded", title="held-out trials", xlim=(0, 1.05))
    right.invert_yaxis()
