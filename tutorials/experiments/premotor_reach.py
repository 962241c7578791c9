"""Delayed reaches to two targets: 112 trials of different lengths, 61 premotor units, networks of rank 4.

Each network is trained on four fifths of the trials. Of the others, the target is decoded from posterior latents, and
the spikes of 15 units are predicted from those of the other 46 (co-smoothing): these 15 are hidden from the filter, in
the test only. Baselines see the same split: Poisson regression on the smoothed counts of the 46 units, and on as many
factors of them as the network has latents; the width of the kernel is that which does best on the test trials.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace

import numpy as np
from spikes import (
    SMOOTHING,
    Training,
    classified,
    evidence_per_spike,
    generated_agreement,
    posterior_of,
    predicted_rates,
    reaches,
    trained,
    windows,
)

import pyro_lowrank as plr
from pyro_lowrank.data import split_features, split_trials
from pyro_lowrank.metrics import bits_per_spike

REFERENCE = {"laplace_decoded": "0.5 by chance", "laplace_co_smoothing": "0.25 by factor analysis"}
GOAL = {}

NUM_BINS, WIDTH = 50, 10  # Targets are decoded from means over 200 ms of the first second.


@dataclass(frozen=True)
class Settings:
    """How both networks are trained, and how many units are predicted."""

    training: Training = field(default_factory=Training)
    encoder_particles: int = 64
    held_out_units: int = 15


FULL = Settings()
REDUCED = Settings(Training(units=32, num_steps=30, window=25, num_particles=4, test_particles=50, num_draws=10), 16)


def guides(features: int, settings: Settings) -> dict:
    """Return what makes each guide, and the number of particles that it is trained with."""
    encoder = plr.ConvEncoder(features=features, rank=settings.training.rank, padding="centred")
    return {
        "laplace": (plr.LaplaceGuide, settings.training.num_particles),
        "encoder": (lambda model: plr.EncoderGuide(model, encoder), settings.encoder_particles),
    }


def run(seed: int, settings: Settings) -> dict:
    """Train and judge a network with each guide, and the baselines, on one split."""
    recording = reaches()
    train, test = split_trials(recording, 0.2, seed=seed, by=recording.conditions)
    units = split_features(recording, settings.held_out_units, seed=seed)
    hidden, wanted = test.hide(units.held_out), test.data[..., units.held_out]
    found = {}
    for name, (guide_of, particles) in guides(recording.data.shape[-1], settings).items():
        training = replace(settings.training, num_particles=particles)
        started = time.perf_counter()
        model, guide = trained(train, guide_of, training, seed)
        found[f"{name}_seconds"] = time.perf_counter() - started
        latents = [posterior_of(model, guide, part, training, seed) for part in (train, test)]
        x_train, x_test = (windows(draws.mean(0).numpy(), NUM_BINS, WIDTH) for _, draws in latents)
        found[f"{name}_decoded"] = classified(x_train, train.conditions, x_test, test.conditions)
        found[f"{name}_evidence_per_spike"] = evidence_per_spike(latents[1][0], test)
        found[f"{name}_ess"] = float(latents[1][0].ess.mean()) / training.test_particles
        posterior, draws = posterior_of(model, guide, hidden, training, seed)
        rates = posterior.predict(draws)[..., units.held_out].numpy()
        found[f"{name}_co_smoothing"] = float(bits_per_spike(wanted, rates))
        found |= {f"{name}_{key}": value for key, value in generated_agreement(model, train, seed).items()}
    return found | baselines(train, test, units, settings.training.rank)


def baselines(train, test, units, rank: int) -> dict[str, float]:
    """Return what decoding and co-smoothing without a network come to."""
    wanted = test.data[..., units.held_out]
    counts = [windows(np.nan_to_num(part.data), NUM_BINS, WIDTH) for part in (train, test)]
    found = {"counts_decoded": classified(counts[0], train.conditions, counts[1], test.conditions)}
    for name, factors in (("smoothed", None), ("factor_analysis", rank)):
        scores = [
            float(
                bits_per_spike(
                    wanted, predicted_rates(train, test, units.held_in, units.held_out, sd=sd, factors=factors)
                )
            )
            for sd in SMOOTHING
        ]
        found[f"{name}_co_smoothing"] = max(scores)
    return found


def draw(figure, record: dict) -> None:
    """Draw co-smoothing and decoding of every seed."""
    for axes, what, label in zip(
        figure.subplots(1, 2), ("co_smoothing", "decoded"), ("bits per spike", "share of targets decoded"), strict=True
    ):
        names = [name for name in record["rows"][0] if name.endswith(what)]
        for place, name in enumerate(names):
            values = [row[name] for row in record["rows"]]
            axes.scatter(values, [place] * len(values), s=16, color="C0" if name[0] in "le" else "0.5")
        axes.set_yticks(range(len(names)), [name.removesuffix(f"_{what}").replace("_", " ") for name in names])
        axes.set(xlabel=label, xlim=(0, None if what == "co_smoothing" else 1.05))
        axes.invert_yaxis()
