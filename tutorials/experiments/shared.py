"""What the experiments share: where the data lie, the teachers of the paper, students for them, rounding for JSON."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

import pyro_lowrank as plr
from pyro_lowrank.plots.phase import MARKERS

REPOSITORY = "https://github.com/mackelab/smc_rnns"
HOW_TO_GET = f"""Set the environment variable PYRO_LOWRANK_DATA to a folder with it, or put it into `shared/data` beside
the checkout. Teachers: from `data/student_teacher` of {REPOSITORY} (Apache-2.0),
one `.npz` each with U and V (N x R and R x N factors of m n^T alpha / N), b_rec, w_inp, w_inp_scale and decay. EEG:
S001R01 of the EEG Motor Movement/Imagery Dataset (https://physionet.org/content/eegmmidb/1.0.0/, ODC-BY 1.0) as
`raw_uv`, time x channels, in microvolts; and the same smoothed and standardised, as tutorial 01 tells. Spikes: premotor
ones from `data` of https://github.com/BenjoCowley/DataHigh (GPL-3.0), in bins of 1 ms, with `condition` and, of the
reaches, `trial_offsets`; hippocampal ones and positions from `linear-track` and `w-maze` of
https://github.com/nelpy/example-data (MIT), by the names that hippocampus.py reads. Lorenz-63 and the bursting neuron:
from https://github.com/DurstewitzLab/GTF-shPLRNN and https://github.com/DurstewitzLab/dendPLRNN (GPL-3.0). MC_Maze: the
training file of https://dandiarchive.org/dandiset/000128 (CC BY 4.0), see mc_maze.py."""


class DataMissing(Exception):
    """A file that an experiment needs is not here."""


def data_file(name: str) -> Path:
    """Return the path of a data file, from the folder PYRO_LOWRANK_DATA or `shared/data` beside the checkout."""
    folder = os.environ.get("PYRO_LOWRANK_DATA")
    beside = Path(__file__).resolve().parents[3] / "shared" / "data"
    path = (Path(folder) if folder else beside) / name
    if not path.is_file():
        raise DataMissing(f"{name} is not here. {HOW_TO_GET}")
    return path


@dataclass(frozen=True, eq=False)
class Teacher:
    """One of the paper's trained teachers, in the form z' = a z + V relu(U z + W v + b) with orthonormal U."""

    decay: float
    left: np.ndarray
    right: np.ndarray
    bias: np.ndarray
    input_weights: np.ndarray

    @classmethod
    def load(cls, name: str) -> Teacher:
        """Read `teacher_NAME.npz`."""
        with np.load(data_file(f"teacher_{name}.npz")) as file:
            weights = file["w_inp"].T.astype(float) * file["w_inp_scale"]
            return cls(float(file["decay"]), file["U"], file["V"], file["b_rec"].astype(float), weights)

    @property
    def rank(self) -> int:
        """The number of latents."""
        return self.left.shape[1]

    @property
    def units(self) -> int:
        """The number of units."""
        return self.left.shape[0]

    @cached_property
    def network(self) -> tuple:
        """The arguments of `find_fixed_points`; there the bias is subtracted."""
        return self.decay, self.left, self.right, -self.bias, "relu"

    def filtered(self, u: np.ndarray) -> np.ndarray:
        """Return inputs after the network's own leak, v_t = a v_{t-1} + (1 - a) u_{t-1} from v_0 = 0."""
        v = np.zeros_like(u)
        for t in range(1, u.shape[1]):
            v[:, t] = self.decay * v[:, t - 1] + (1 - self.decay) * u[:, t - 1]
        return v

    def latents(
        self, start: np.ndarray, num_steps: int, noise: float, rng: np.random.Generator, v: np.ndarray | None = None
    ) -> np.ndarray:
        """Return latents, trials x time x rank, from the first ones and effective inputs, trials x time x inputs."""
        z = np.zeros((len(start), num_steps, self.rank))
        z[:, 0] = start
        for t in range(1, num_steps):
            current = z[:, t - 1] @ self.left.T + self.bias
            if v is not None:
                current += v[:, t - 1] @ self.input_weights.T
            z[:, t] = self.decay * z[:, t - 1] + np.maximum(current, 0) @ self.right.T
            z[:, t] += noise * rng.standard_normal((len(start), self.rank))
        return z

    def ring_start(self, num_trials: int, noise: float, rng: np.random.Generator) -> np.ndarray:
        """Return first latents at random angles and radii, as the paper draws them."""
        radius, angle = 2 * rng.standard_normal(num_trials), 2 * np.pi * rng.standard_normal(num_trials)
        ring = radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], -1)
        return ring + noise * rng.standard_normal(ring.shape)

    def currents(self, z: np.ndarray, v: np.ndarray | None = None) -> np.ndarray:
        """Return the currents of the units without their bias, trials x time x units."""
        return z @ self.left.T if v is None else z @ self.left.T + v @ self.input_weights.T


def student(
    teacher: Teacher, *, decay: float, observation_noise: float, inputs: int = 0, input_filter: bool = False
) -> plr.StateSpaceModel:
    """Return the untrained student of the paper: as many units, each of them seen through Gaussian noise."""
    dynamics = plr.LowRankRNN(
        rank=teacher.rank,
        units=teacher.units,
        activation="relu",
        decay=decay,
        inputs=inputs,
        input_filter=input_filter,
    )
    readout = plr.UnitReadout(units=teacher.units, source="currents", train_scale=False, train_bias=False)
    return plr.StateSpaceModel(dynamics, plr.GaussianObservation(readout=readout, noise_scale=observation_noise))


def tensor(array: np.ndarray) -> torch.Tensor:
    """Return an array as a tensor of float32."""
    return torch.as_tensor(array, dtype=torch.float32)


def fitted(
    model: plr.StateSpaceModel,
    guide,
    settings,
    seed: int,
    y,
    u=None,
    *,
    window: int | None = None,
    held_out: torch.Tensor | None = None,
    elbo: plr.SMC_ELBO | None = None,
    optimizer=torch.optim.RAdam,
) -> plr.FitResult:
    """Train a model as the settings of its experiment say; return what the training went through.

    Options that no setting names are those of `plr.fit`; an `elbo` brings its own number of particles.
    """
    return plr.fit(
        model,
        guide,
        y,
        u,
        num_steps=settings.num_steps,
        batch_size=settings.batch_size,
        window=window,
        num_particles=settings.num_particles if elbo is None else None,
        elbo=elbo,
        optimizer=optimizer,
        learning_rate=settings.learning_rate,
        final_learning_rate=settings.final_learning_rate,
        held_out=held_out,
        seed=seed,
        progress=False,
    )


def noise_std(model: plr.StateSpaceModel, scale: torch.Tensor | float = 1.0) -> float:
    """Return the standard deviation of the transition noise in an orthonormal basis of the left vectors' span.

    The root of the mean variance does not depend on which basis, so nothing has to be aligned with the teacher. A
    student whose readout is free to scale the currents has them scaled first, by a number or one per unit.
    """
    scale = torch.as_tensor(scale).detach().double().reshape(-1, 1)
    _, basis = torch.linalg.qr(scale * model.dynamics.left.detach().double())
    covariance = basis @ model.dynamics.noise_covariance.detach().double() @ basis.mT
    return float(covariance.diagonal().mean().sqrt())


def draw_fixed_points(axes, z: list, kinds: list[str], reach: float = 0.0) -> None:
    """Draw fixed points of rank 2 by their stability, at least up to so far from the origin."""
    for kind, style in MARKERS.items():
        chosen = [point for point, label in zip(z, kinds, strict=True) if label == kind]
        if chosen:
            # Hollow ones last: what lies below one shows through.
            axes.scatter(*zip(*chosen, strict=True), **style, s=16, label=f"{kind}: {len(chosen)}")
    axes.set(xlabel="latent 1 (a.u.)", ylabel="latent 2 (a.u.)")
    # Boxes that shrink to their aspect end up below the labels of their neighbours.
    axes.set_aspect("equal", adjustable="datalim")
    axes.update_datalim([(-reach, -reach), (reach, reach)])
    axes.autoscale_view()


def draw_within(axes, values: list[float], place: float, lowest: float = -np.inf, highest: float = np.inf) -> None:
    """Draw values in a row; triangles at the limits stand for those that lie beyond."""
    values = np.asarray(values)
    shown = np.clip(values, lowest, highest)
    for chosen, style in (
        (shown == values, {"s": 14, "color": "C0"}),
        (shown > values, {"s": 24, "color": "C3", "marker": "<"}),
        (shown < values, {"s": 24, "color": "C3", "marker": ">"}),
    ):
        axes.scatter(shown[chosen], np.full(chosen.sum(), place), **style)


def rounded(value):
    """Return numbers, lists and dicts of them with four significant digits, for small JSON files."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return rounded(value.tolist())
    if isinstance(value, (list, tuple)):
        return [rounded(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.4g}")
    return value
