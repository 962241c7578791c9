"""Train the networks that lie in this folder: `python -m tests.fixed_points.trained.make` (a few minutes on one core).

Each is a network of 512 clipped relu units, started at the principal components of a recording and trained on it by
variational SMC. The recordings are simulated from networks of 200 units with several attractors, so that whoever runs
this trains on the same data.
"""

from __future__ import annotations

import logging
import sys
import time
from pathlib import Path

import numpy as np
import pyro
import torch

import pyro_lowrank as plr

log = logging.getLogger(__name__)

FOLDER = Path(__file__).resolve().parent
RANK_AND_SEED = ((3, 0), (3, 1), (3, 2), (3, 3), (3, 4), (4, 0), (4, 1))
FEATURES, TRIALS, BINS, STEPS = 40, 200, 100, 2000


def teacher(rank: int, seed: int) -> plr.StateSpaceModel:
    """A noisy network whose units excite the direction that excites them, read out by channels at random."""
    rng = np.random.default_rng(seed)
    left, bias = rng.normal(size=(200, rank)), np.abs(rng.normal(size=200))
    right = 0.02 * (left * rng.uniform(-0.2, 1.0, size=(200, 1)) + 0.5 * rng.normal(size=left.shape)).T
    dynamics = plr.LowRankRNN(rank=rank, units=200, activation="clipped_relu", noise_scale=0.1, initial_scale=3.0)
    model = plr.StateSpaceModel(dynamics, plr.GaussianObservation(rank=rank, features=FEATURES, noise_scale=0.1))
    with torch.no_grad():
        dynamics.left.copy_(torch.tensor(left))
        dynamics.right.copy_(torch.tensor(right))
        dynamics.bias.copy_(torch.tensor(bias))
        model.observation.readout.weight.copy_(torch.tensor(0.5 * rng.normal(size=(FEATURES, rank))))
    return model


def train(rank: int, seed: int) -> None:
    """Train a network and write its weights, in single precision, as they were trained."""
    pyro.set_rng_seed(seed)
    y = teacher(rank, seed).simulate(num_trials=TRIALS, num_steps=BINS).y
    dynamics = plr.LowRankRNN(rank=rank, units=512, activation="clipped_relu", initial_scale=3.0)
    model = plr.StateSpaceModel(dynamics, plr.GaussianObservation(rank=rank, features=FEATURES))
    plr.initialise_from_data(model, y)
    start = time.perf_counter()
    rates = {"learning_rate": 1e-2, "final_learning_rate": 1e-4}
    fitted = plr.fit(
        model,
        plr.OptimalGuide(model),
        y,
        num_steps=STEPS,
        batch_size=10,
        num_particles=16,
        seed=seed,
        progress=False,
        **rates,
    )
    found = dynamics.fixed_points(max_seconds=120)
    log.info("rank %d, seed %d: %.0f s\n%s\n%s", rank, seed, time.perf_counter() - start, fitted, found)
    weights = {name: getattr(dynamics, name).detach().numpy() for name in ("decay", "left", "right", "bias")}
    np.savez_compressed(FOLDER / f"rank{rank}_seed{seed}.npz", activation="clipped_relu", **weights)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for rank, seed in RANK_AND_SEED[int(sys.argv[1]) if len(sys.argv) > 1 else 0 :]:
        train(rank, seed)
