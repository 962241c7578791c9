"""What the experiments on simulated attractors share: networks of rank 3, trained on one noisy trajectory.

They are judged against another trajectory, without noise. From the network's own start 1,000 bins are simulated and
dropped, then as many as are compared, 100,000: with the transition noise that the network was trained to, but without
observation noise, since there is none in the test.

D_stsp of few dimensions is published from histograms of 30 bins per dimension, with 1e-5 added to each count; that is
`d_stsp` here. Their range is that of the test and a tenth of a standard deviation more (Hess et al. 2023), or two
standard deviations to each side, and nothing beyond (Brenner et al. 2022): `d_stsp_legacy`. `d_stsp_kernels` is
`metrics.state_space_kl` with kernels of 0.1 standard deviations. D_H is the same as published, with a Gaussian of 20
frequency bins. `d_stsp_halves` and `d_h_halves` compare both halves of the test, and tell what a sample of 50,000 bins
does not know of the attractor.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from shared import data_file, fitted, tensor

import pyro_lowrank as plr
from pyro_lowrank import metrics

TRANSIENT = 1000  # bins
SHOWN = slice(0, 600, 2)  # bins, few enough for small files
TEST_TRANSIENT = 5000  # bins, left out of the picture only
BINS, ADDED = 30, 1e-5


@dataclass(frozen=True)
class Settings:
    """The network and how it is trained; the same for all attractors."""

    rank: int = 3
    units: int = 256
    num_steps: int = 4000
    window: int = 200
    batch_size: int = 10
    num_particles: int = 16
    learning_rate: float = 1e-2
    final_learning_rate: float = 1e-5


FULL = Settings()
REDUCED = Settings(units=32, num_steps=100, window=50, num_particles=4)


def binned_divergence(real: np.ndarray, generated: np.ndarray, lowest: np.ndarray, highest: np.ndarray) -> float:
    """Return the divergence of the histogram of generated states from that of real ones, in nats.

    Args:
        real: time x dimensions.
        generated: likewise; what lies outside the range does not count.
        lowest: of the range of each dimension.
        highest: likewise.
    """
    edges = [np.linspace(low, high, BINS + 1) for low, high in zip(lowest, highest, strict=True)]
    p, q = (np.histogramdd(x, edges)[0].ravel() + ADDED for x in (real, generated))
    p, q = p / p.sum(), q / q.sum()
    return float((p * np.log(p / q)).sum())


def distances(real: np.ndarray, generated: np.ndarray) -> dict[str, float]:
    """Return all measures of one trajectory against another."""
    spread = real.std(0)
    return {
        "d_stsp": binned_divergence(real, generated, real.min(0) - 0.1 * spread, real.max(0) + 0.1 * spread),
        "d_stsp_legacy": binned_divergence(real, generated, -2 * spread, 2 * spread),
        "d_stsp_kernels": float(metrics.state_space_kl(real, generated, scale=0.1, num_draws=1000)),
        "d_h": float(metrics.power_spectrum_hellinger(real, generated, smoothing=20)),
    }


def judged(name: str, seed: int, settings: Settings) -> dict:
    """Train a network on `NAME_train.npy` and judge it against `NAME_test.npy`."""
    train, test = (np.load(data_file(f"{name}_{part}.npy")).astype(float) for part in ("train", "test"))
    torch.manual_seed(seed)
    model = plr.StateSpaceModel(
        plr.LowRankRNN(rank=settings.rank, units=settings.units, activation="clipped_relu"),
        plr.GaussianObservation(rank=settings.rank, features=train.shape[1]),
    )
    y = tensor(train[None])
    plr.initialise_from_data(model, y)
    fit = fitted(model, plr.OptimalGuide(model), settings, seed, y, window=settings.window)
    torch.manual_seed(seed)
    simulated = model.simulate(num_trials=1, num_steps=TRANSIENT + len(test)).mean
    generated = simulated[0, TRANSIENT:].double().numpy()
    halves = distances(*np.array_split(test, 2))
    return {
        **distances(test, generated),
        "d_stsp_halves": halves["d_stsp"],
        "d_h_halves": halves["d_h"],
        "observation_noise": float(model.observation.noise_scale.detach().mean()),
        "evidence": float(fit.evidence[-len(fit.evidence) // 10 :].mean()),
        "parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "training_seconds": fit.seconds,
        "generated": generated[SHOWN, ::2].T,
    }


def draw_generated(figure, record: dict, name: str) -> None:
    """Draw the test, what the first seed generates, both measures of each network, and those of the test's halves."""
    axes = figure.subplots(1, 3, width_ratios=(1, 1, 1.2))
    row = record["rows"][0]
    test = np.load(data_file(f"{name}_test.npy"))[TEST_TRANSIENT:][SHOWN, ::2].T
    for place, title, x, color in zip(axes, ("test", "generated"), (test, row["generated"]), ("k", "C0"), strict=False):
        place.plot(*x, color=color, lw=0.6)
        place.set(title=title, xlabel="first feature", ylabel="third feature", xlim=(-3, 3), ylim=(-3, 3.5))
    names = ("d_stsp", "d_h")
    for number, name in enumerate(names):
        values = [r[name] for r in record["rows"]]
        axes[2].scatter(values, [number] * len(values), s=16, color="C0")
        axes[2].plot([row[f"{name}_halves"]] * 2, [number - 0.3, number + 0.3], color="0.5", lw=1)
    axes[2].set_yticks(range(2), ["D$_{stsp}$", "D$_H$"])
    axes[2].set(ylim=(1.6, -0.6), xlim=(0, None), xlabel="D$_{stsp}$ in nats", title="grey: halves of the test")
