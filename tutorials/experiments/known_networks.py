"""Six known dynamics, seen through Gaussian noise or as spikes, fitted by `plr.fit(model, guide, y)` with its defaults.

Each is simulated with its transition noise (100 trials x 100 bins x 30 features, and 40 trials more that are held
out) and fitted by a network of 100 units of its rank, with `OptimalGuide` or `LaplaceGuide`. A fit is `right` if the
noiseless network does what the truth does, in the truth's coordinates: smoothed latents of the held-out trials are
mapped to the true ones by least squares. `share` is how much of the held-out evidence that the truth has beyond
independent features the fit has, truth by its own particle filter.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

import pyro_lowrank as plr
from pyro_lowrank.training.independent import independent_evidence

REFERENCE = {}
GOAL = {"right": 11.0, "share_gaussian": 0.99, "share_poisson": 0.97, "longest": 120.0}

PERIOD = 30
CORNERS = torch.tensor([[1.0, 0.0], [-0.5, math.sqrt(3) / 2], [-0.5, -math.sqrt(3) / 2]])


@dataclass(frozen=True)
class Settings:
    """Data and networks; how they are fitted is left to `plr.fit`, unless a number of steps is given."""

    num_trials: int = 100
    num_test_trials: int = 40
    num_bins: int = 100
    features: int = 30
    units: int = 100
    num_steps: int | None = None
    judge_particles: int = 500


FULL, REDUCED = Settings(), Settings(num_trials=10, num_test_trials=4, num_bins=40, num_steps=5, judge_particles=20)


class Known(plr.Dynamics):
    """Dynamics whose drift is a function."""

    def __init__(self, drift: Callable[[Tensor, Tensor | None], Tensor], rank: int, noise: float, inputs: int) -> None:
        super().__init__(rank=rank, inputs=inputs, noise="scalar", noise_scale=noise)
        self.drift = drift

    def mean(self, z: Tensor, v: Tensor | None = None) -> Tensor:
        """Return the next latents."""
        return self.drift(z, v)


def bistable(z: Tensor, v: Tensor | None) -> Tensor:
    """Attractors at -1 and 1."""
    # Far out the cube would throw latents to infinity.
    return z + 0.15 * (z - z.clamp(-2, 2) ** 3)


def line(z: Tensor, v: Tensor | None) -> Tensor:
    """A line attractor from -1 to 1."""
    return z - 0.3 * (z - z.clamp(-1, 1))


def oscillator(z: Tensor, v: Tensor | None) -> Tensor:
    """A limit cycle of radius 1 and a period of 30 bins."""
    angle = 2 * math.pi / PERIOD
    turn = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    return (z @ turn.mT) * (1 + 0.15 * (1 - z.square().sum(-1, keepdim=True))).clamp(min=0.3)


def three_states(z: Tensor, v: Tensor | None) -> Tensor:
    """Attractors near the corners of a triangle."""
    weights = torch.softmax(-(z.unsqueeze(-2) - CORNERS).square().sum(-1) / 0.35, -1)
    return z + 0.3 * (weights @ CORNERS - z)


def driven(z: Tensor, v: Tensor | None) -> Tensor:
    """The oscillator while the input is 1, rest while it is 0."""
    assert v is not None
    return v * oscillator(z, None) + (1 - v) * 0.85 * z


def lorenz(z: Tensor, v: Tensor | None) -> Tensor:
    """The Lorenz system over 0.04 units of time, centred and scaled."""
    scale, shift = torch.tensor([8.0, 9.0, 8.0]), torch.tensor([0.0, 0.0, 24.0])
    x = z * scale + shift
    for _ in range(8):
        a, b, c = x.unbind(-1)
        x = x + 0.005 * torch.stack([10 * (b - a), a * (28 - c) - b, a * b - 8 / 3 * c], -1)
    return (x - shift) / scale


# Drift, rank, transition noise, inputs.
NETWORKS = {
    "bistable": (bistable, 1, 0.1, 0),
    "line": (line, 1, 0.1, 0),
    "oscillator": (oscillator, 2, 0.05, 0),
    "three_states": (three_states, 2, 0.12, 0),
    "driven": (driven, 2, 0.05, 1),
    "lorenz": (lorenz, 3, 0.02, 0),
}


INDEPENDENT = {
    "gaussian": lambda mean, variance: torch.distributions.Normal(mean, variance.sqrt()),
    "poisson": lambda mean, variance: torch.distributions.Poisson(mean.clamp(min=1e-6)),
}


def observation(kind: str, rank: int, features: int) -> plr.Observation:
    """Return an untrained observation model."""
    model = plr.GaussianObservation if kind == "gaussian" else plr.PoissonObservation
    return model(rank=rank, features=features)


def truth(name: str, kind: str, settings: Settings) -> plr.StateSpaceModel:
    """Return the known dynamics, seen through a random readout."""
    drift, rank, noise, inputs = NETWORKS[name]
    model = plr.StateSpaceModel(Known(drift, rank, noise, inputs), observation(kind, rank, settings.features))
    readout = model.observation.readout
    with torch.no_grad():
        readout.weight = torch.randn(settings.features, rank) / rank**0.5
        readout.bias = torch.randn(settings.features) * (1.0 if kind == "gaussian" else 0.3)
        if kind == "gaussian":
            model.observation.noise_scale = torch.full((settings.features,), 0.5)
        else:
            readout.bias = readout.bias - 0.5
    return model


def pulses(num_trials: int, num_bins: int) -> Tensor:
    """Return inputs that are 1 for half of a trial, from a random bin on."""
    begin = torch.randint(num_bins // 10, 4 * num_bins // 10, (num_trials, 1))
    times = torch.arange(num_bins)
    return ((times >= begin) & (times < begin + num_bins // 2)).float().unsqueeze(-1)


@dataclass(frozen=True)
class Seen:
    """A fitted network in the coordinates of the truth."""

    model: plr.StateSpaceModel
    matrix: Tensor
    offset: Tensor

    @classmethod
    def through(cls, model: plr.StateSpaceModel, found: Tensor, true: Tensor) -> Seen:
        """Map latents `trials x time x rank` to the true ones by least squares."""
        rows = torch.cat([found, torch.ones_like(found[..., :1])], -1).flatten(0, 1).double()
        solution = torch.linalg.lstsq(rows, true.flatten(0, 1).double()).solution.float()
        return cls(model, solution[:-1], solution[-1])

    @torch.no_grad()
    def run(self, start: Tensor, num_steps: int, v: float | None = None) -> Tensor:
        """Return the noiseless network's path from true coordinates, `time x starts x rank`, in these coordinates."""
        z = (start - self.offset) @ torch.linalg.pinv(self.matrix)
        inputs = None if v is None else torch.full((len(start), 1), v)
        path = [z]
        for _ in range(num_steps):
            path.append(self.model.dynamics(path[-1], inputs))
        return torch.stack(path) @ self.matrix + self.offset


def ends(path: Tensor, close: float = 0.1) -> list[Tensor]:
    """Return where paths that come to rest end, each place once; none if some do not come to rest."""
    if (path[-1] - path[-20]).abs().max() > 0.02:
        return []
    places: list[Tensor] = []
    for end in path[-1]:
        if all((end - place).norm() > close for place in places):
            places.append(end)
    return places


def cycles(path: Tensor) -> bool:
    """Whether every path ends on the limit cycle: its period within a twentieth, its radius within a tenth."""
    path = path[-20 * PERIOD :]
    angle = torch.atan2(path[..., 1], path[..., 0])
    turned = torch.remainder(angle[1:] - angle[:-1] + math.pi, 2 * math.pi) - math.pi
    period = 2 * math.pi / turned.mean(0).abs()
    radius = path.norm(dim=-1).mean(0)
    return bool((period / PERIOD - 1).abs().max() < 0.05 and (radius - 1).abs().max() < 0.1)


def same_places(found: list[Tensor], expected: Tensor, close: float) -> bool:
    """Whether as many places were found as are expected, each of these near one."""
    near = all(any((place - true).norm() < close for place in found) for true in expected)
    return len(found) == len(expected) and near


def lyapunov(
    step: Callable[[Tensor], Tensor], start: Tensor, num_steps: int = 5000, noise: Tensor | None = None
) -> float:
    """Return the largest Lyapunov exponent per bin along a path, by a second one that is drawn close again.

    With `noise`, the Cholesky factor of its covariance, both paths meet the same draws of it.
    """
    z, near, total = start.double(), start.double() + 1e-6 / len(start) ** 0.5, 0.0
    for _ in range(num_steps):
        drawn = torch.zeros_like(z) if noise is None else noise.double() @ torch.randn_like(z)
        z, near = step(z) + drawn, step(near) + drawn
        apart = (near - z).norm()
        total += float((apart / 1e-6).log())
        near = z + (near - z) * (1e-6 / apart)
    return total / num_steps


@torch.no_grad()
def does_the_same(name: str, seen: Seen, starts: Tensor) -> bool:
    """Whether the noiseless network does what the truth does."""
    rank = starts.shape[-1]
    if name == "bistable":
        found = ends(seen.run(torch.linspace(-1.5, 1.5, 31)[:, None], 400))
        return same_places(found, torch.tensor([[-1.0], [1.0]]), 0.2)
    if name == "line":
        inside, outside = torch.linspace(-0.8, 0.8, 9)[:, None], torch.tensor([[-1.6], [1.6]])
        stays = (seen.run(inside, 10)[-1] - inside).abs().max() < 0.2
        return bool(stays and (seen.run(outside, 20)[-1].abs() - 1).abs().max() < 0.25)
    if name == "three_states":
        expected = seen.run(starts, 0)[-1]
        for _ in range(400):
            expected = three_states(expected, None)
        true = torch.stack(ends(expected.expand(20, *expected.shape)))
        return same_places(ends(seen.run(starts, 400)), true, 0.2)
    if name == "oscillator":
        return cycles(seen.run(starts[starts.norm(dim=-1) > 0.3], 40 * PERIOD))
    if name == "driven":
        rest = ends(seen.run(starts, 400, 0.0))
        turning = seen.run(starts[starts.norm(dim=-1) > 0.3], 40 * PERIOD, 1.0)
        return cycles(turning) and same_places(rest, torch.zeros(1, rank), 0.2)
    return abs(exponent(seen, starts[:1], False) / TRUE_LYAPUNOV - 1) < 0.33


TRUE_LYAPUNOV = 0.038  # nats per bin, of `lorenz` itself over 5,000 bins


@torch.no_grad()
def exponent(seen: Seen, start: Tensor, with_noise: bool) -> float:
    """Return the Lyapunov exponent of a network from true coordinates on, `1 x rank`."""
    z = (seen.run(start, 500)[-1, 0] - seen.offset) @ torch.linalg.pinv(seen.matrix)
    noise = torch.linalg.cholesky(seen.model.dynamics.noise_covariance) if with_noise else None
    # A copy: the model stays in single precision.
    return lyapunov(copy.deepcopy(seen.model).double().dynamics, z, noise=noise)


def exponents(seen: Seen, starts: Tensor) -> dict[str, float]:
    """Return exponents of a network without noise and with its own, medians over starts; nothing is judged by them.

    One path alone tells little: small errors of a chaotic drift open points and cycles on which paths without noise
    end, and which the network with its noise does not stay at. With its noise the truth has 0.035.
    """
    kinds = {"exponent": False, "exponent_with_noise": True}
    return {key: float(np.median([exponent(seen, z[None], kind) for z in starts])) for key, kind in kinds.items()}


def fitted(name: str, kind: str, seed: int, settings: Settings) -> dict[str, float]:
    """Simulate, fit and judge one network."""
    torch.manual_seed(1000 * seed + 10 * list(NETWORKS).index(name) + (kind == "poisson"))
    teacher = truth(name, kind, settings)
    num_trials = settings.num_trials + settings.num_test_trials
    u = pulses(num_trials, settings.num_bins) if teacher.dynamics.num_inputs else None
    z, y, _ = teacher.simulate(num_trials, settings.num_bins, u)
    train, test = slice(settings.num_trials), slice(settings.num_trials, None)
    given = () if u is None else (u[train],)
    rank = z.shape[-1]
    model = plr.StateSpaceModel(
        plr.LowRankRNN(rank=rank, units=settings.units, inputs=teacher.dynamics.num_inputs),
        observation(kind, rank, settings.features),
    )
    guide_type = plr.OptimalGuide if kind == "gaussian" else plr.LaplaceGuide
    started = time.perf_counter()
    options = {} if settings.num_steps is None else {"num_steps": settings.num_steps}
    guide = guide_type(model)
    plr.fit(model, guide, y[train], *given, progress=False, seed=seed, **options)
    seconds = time.perf_counter() - started
    unseen = (y[test],) if u is None else (y[test], u[test])
    torch.manual_seed(seed)
    posterior = plr.SMCFilter(model, guide, settings.judge_particles).run(*unseen)
    known = plr.SMCFilter(teacher, guide_type(teacher), settings.judge_particles).run(*unseen)
    found, best = (float(each.log_evidence.mean()) / settings.num_bins for each in (posterior, known))
    independent = independent_evidence(y[train], y[test], INDEPENDENT[kind])
    seen = Seen.through(model, posterior.smooth(50).mean(0), z[test])
    return {
        "right": float(does_the_same(name, seen, z[test, ::25].flatten(0, 1))),
        "share": (found - independent) / (best - independent),
        "evidence": found,
        "truth": best,
        "seconds": seconds,
        # Reduced they would take longer than the fit.
        **(exponents(seen, z[test][:5, -1]) if name == "lorenz" and settings == FULL else {}),
    }


def run(seed: int, settings: Settings) -> dict:
    """Fit all six, both ways."""
    each = {f"{name} {kind}": fitted(name, kind, seed, settings) for kind in INDEPENDENT for name in NETWORKS}
    shares = {k: np.median([row["share"] for name, row in each.items() if name.endswith(k)]) for k in INDEPENDENT}
    return {
        "right": sum(row["right"] for row in each.values()),
        **{f"share_{kind}": float(share) for kind, share in shares.items()},
        "longest": max(row["seconds"] for row in each.values()),
        "each": each,
    }


def draw(figure, record: dict) -> None:
    """Draw the share of the evidence that each fit found; hollow where the dynamics are not right."""
    for axes, kind in zip(figure.subplots(1, 2, sharey=True), ("gaussian", "poisson"), strict=True):
        for place, name in enumerate(NETWORKS):
            rows = [row["each"][f"{name} {kind}"] for row in record["rows"]]
            for row in rows:
                face = "C0" if row["right"] else "none"
                axes.scatter(row["share"], place, s=24, edgecolors="C0", facecolors=face)
        axes.axvline(1, color="0.7", lw=0.8)
        axes.set_yticks(range(len(NETWORKS)), [name.replace("_", " ") for name in NETWORKS])
        axes.set(title=kind.capitalize(), xlabel="share of the truth's evidence")
        axes.locator_params(axis="x", nbins=5)
    for face, told in (("C0", "dynamics right"), ("none", "not right")):
        axes.scatter([], [], s=24, edgecolors="C0", facecolors=face, label=told)
    axes.legend(frameon=False, fontsize=7, loc="upper left")
    axes.invert_yaxis()
