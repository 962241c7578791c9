"""What helps to train on EEG: one change at a time, at an equal number of particle steps (bins x windows x particles).

`paper` trains as the authors do, for a tenth of their steps; `rate` with larger ones; `data` starts at the principal
components of the recording. Both together are what all others change in one thing. Judged are the evidence of the whole
recording, per bin, with 100 particles, and D_stsp and D_H as in `eeg`, means of three generated recordings.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial

import eeg
import numpy as np
import torch
from shared import draw_within, fitted, tensor

import pyro_lowrank as plr

REFERENCE = {}
GOAL: dict[str, float] = {}


@dataclass(frozen=True)
class Variant:
    """One way to train; `late_particles` takes the last fifth of the particle steps with as many particles."""

    from_data: bool = True
    learning_rate: float = 5e-3
    final_learning_rate: float = 1e-5
    window: int = 50
    num_particles: int = 10
    late_particles: int | None = None
    stop_gradient: bool = False
    weight_decay: float = 0.0
    optimizer: str = "RAdam"
    weights: str = "uniform"
    double: bool = False


VARIANTS = {
    "paper": Variant(from_data=False, learning_rate=1e-3, final_learning_rate=1e-6),
    "rate": Variant(from_data=False),
    "data": Variant(learning_rate=1e-3, final_learning_rate=1e-6),
    "data_rate": Variant(),
    "window_200": Variant(window=200),
    "window_800": Variant(window=800),
    "particles_64": Variant(num_particles=64),
    "late_particles": Variant(late_particles=64),
    "stop_gradient": Variant(stop_gradient=True),
    "weight_decay": Variant(weight_decay=1e-2),
    "adam": Variant(optimizer="Adam"),
    "overlap": Variant(weights="gaussian"),
    "float64": Variant(double=True),
}


@dataclass(frozen=True)
class Settings:
    """The size of the network and of the training."""

    rank: int = 3
    units: int = 512
    batch_size: int = 10
    particle_steps: int = 37_500_000
    num_generated: int = 3
    variants: tuple[str, ...] = tuple(VARIANTS)


FULL, REDUCED = Settings(), Settings(units=64, particle_steps=250_000, num_generated=1, variants=("paper", "float64"))
SEEDS = range(3)


@dataclass(frozen=True)
class Stage:
    """What `shared.fitted` asks for."""

    num_steps: int
    num_particles: int
    batch_size: int
    learning_rate: float
    final_learning_rate: float


def stages(variant: Variant, settings: Settings) -> list[Stage]:
    """Return the one or two parts of a training, in which the learning rate decays as in one."""
    parts = [(1.0, variant.num_particles)]
    if variant.late_particles is not None:
        parts = [(0.8, variant.num_particles), (0.2, variant.late_particles)]
    found, rate = [], variant.learning_rate
    decay = variant.final_learning_rate / variant.learning_rate
    for share, particles in parts:
        cost = settings.batch_size * variant.window * particles
        steps = max(1, round(share * settings.particle_steps / cost))
        found.append(Stage(steps, particles, settings.batch_size, rate, rate * decay**share))
        rate *= decay**share
    return found


def trained(y: torch.Tensor, variant: Variant, settings: Settings, seed: int) -> tuple[plr.StateSpaceModel, object]:
    """Return a network and its guide."""
    torch.manual_seed(seed)
    dtype = torch.float64 if variant.double else torch.float32
    units = {"units": settings.units, "activation": "clipped_relu", "weights": variant.weights}
    model = plr.StateSpaceModel(
        plr.LowRankRNN(rank=settings.rank, decay=0.9, dtype=dtype, **units),
        plr.GaussianObservation(rank=settings.rank, features=y.shape[-1], noise_scale=0.1, dtype=dtype),
    )
    if variant.from_data:
        plr.initialise_from_data(model, y.to(dtype))
    guide = plr.OptimalGuide(model)
    optimizer = partial(getattr(torch.optim, variant.optimizer), weight_decay=variant.weight_decay)
    gradient = plr.StopGradient() if variant.stop_gradient else None
    for stage in stages(variant, settings):
        elbo = plr.SMC_ELBO(stage.num_particles, gradient=gradient)
        fitted(model, guide, stage, seed, y.to(dtype), window=variant.window, elbo=elbo, optimizer=optimizer)
    return model.float(), guide


def run(seed: int, settings: Settings) -> dict[str, float]:
    """Train and judge a network of each variant."""
    raw, smoothed = eeg.recordings()
    y, row = tensor(raw[None]), {}
    for name in settings.variants:
        started = time.perf_counter()
        model, guide = trained(y, VARIANTS[name], settings, seed)
        row[f"seconds_{name}"] = time.perf_counter() - started
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            evidence = plr.SMCFilter(model, guide, num_particles=100).run(y).log_evidence
        row[f"evidence_{name}"] = float(evidence) / y.shape[1]
        found = [eeg.judge(model, guide, raw, smoothed, number) for number in range(settings.num_generated)]
        row |= {f"{measure}_{name}": float(np.mean([each[measure] for each in found])) for measure in found[0]}
    return row


SCALES = {"evidence": ("evidence (nats per bin)", 4.0), "d_stsp": ("D_stsp (nats)", 1.5), "d_h": ("D_H", 0.1)}


def draw(figure, record: dict) -> None:
    """Draw evidence and both measures of each variant; arrows point to what lies far beyond the others."""
    names = record["settings"]["variants"]
    axes = figure.subplots(1, 3, sharey=True)
    for each, (measure, (label, far)) in zip(axes, SCALES.items(), strict=True):
        table = np.array([[row[f"{measure}_{name}"] for row in record["rows"]] for name in names])
        limit = {"lowest": table.max() - far} if measure == "evidence" else {"highest": table.min() + far}
        for place, values in enumerate(table):
            draw_within(each, values, place, **limit)
        each.set(xlabel=label)
        each.grid(axis="y", lw=0.3)
    axes[0].set_yticks(range(len(names)), [name.replace("_", " ") for name in names], fontsize=7)
    axes[1].set(title="triangles: beyond the axis")
    axes[0].invert_yaxis()
