"""BOLD of 28 regions at rest: a network behind a response of second order against vector autoregressions of order 2.

Trained on the first 200 of 250 volumes (TR 1.89 s, the recording of the examples of nitime), each region standardised
by these; white matter and ventricles are regressed out by them. Each of the last 50 volumes is forecast from all before
it: mean squared error. VAR(1), VAR(2) and each region's own AR(2) are fitted by least squares, VAR(2) with its 57
weights per region by ridge regression too, whose weight was chosen on volumes 150 to 199. So short a recording tells
little: this says whether the model runs, not whether it is right about brains.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from shared import data_file, fitted, tensor

import pyro_lowrank as plr

# That of VAR(2), by least squares, on the same volumes.
REFERENCE = {"error_network": "0.785 (VAR(2))"}
GOAL = {"error_network": 0.785}

TRAIN = 200
RIDGES = (1.0, 10.0, 100.0, 1000.0)


@dataclass(frozen=True)
class Settings:
    """The model, and its training."""

    rank: int = 3
    units: int = 32
    num_steps: int = 150
    window: int = 100
    batch_size: int = 8
    num_particles: int = 16
    judging_particles: int = 200
    learning_rate: float = 1e-2
    final_learning_rate: float = 1e-3


FULL, REDUCED = Settings(), Settings(num_steps=2, judging_particles=20)
SEEDS = range(2)


def recording() -> tuple[np.ndarray, float]:
    """Return standardised volumes x regions, and the seconds between volumes."""
    with np.load(data_file("fmri_rest_28roi.npz")) as file:
        y, nuisance, step = file["bold"].astype(float), file["nuisance"][:, :2].astype(float), float(file["tr_s"])
    nuisance = nuisance - nuisance[:TRAIN].mean(0)
    y = y - nuisance @ np.linalg.lstsq(nuisance[:TRAIN], y[:TRAIN], rcond=None)[0]
    return (y - y[:TRAIN].mean(0)) / y[:TRAIN].std(0), step


def lagged(y: np.ndarray, order: int) -> np.ndarray:
    """Return what came before each volume from `order` on, the latest first."""
    return np.concatenate([y[order - lag : len(y) - lag] for lag in range(1, order + 1)], 1)


def vector_forecast(y: np.ndarray, order: int, ridge: float, until: int, to: int) -> float:
    """Return the error of a vector autoregression fitted before `until`, from there to `to`."""
    x, after = lagged(y, order), y[order:]
    x, after = (each[: to - order] for each in (x, after))
    seen = slice(0, until - order)
    gram = x[seen].T @ x[seen] + ridge * np.eye(x.shape[1])
    weights = np.linalg.solve(gram, x[seen].T @ after[seen])
    return float(np.square(after[until - order :] - x[until - order :] @ weights).mean())


def own_forecast(y: np.ndarray, order: int) -> float:
    """Return the error of each region's own autoregression."""
    return float(np.mean([vector_forecast(y[:, [i]], order, 0.0, TRAIN, len(y)) for i in range(y.shape[1])]))


def network_forecast(model: plr.StateSpaceModel, guide, y: torch.Tensor, particles: int) -> float:
    """Return the error of forecasts of the network, each from all volumes before."""
    smc, errors = plr.SMCFilter(model, guide, particles), []
    for t in range(len(y)):
        (smc.init if t == 0 else smc.step)(y[t : t + 1])
        if TRAIN - 1 <= t < len(y) - 1:
            forecast = smc.posterior().forecast(1, num_draws=400).mean[:, 0, 0].mean(0)
            errors.append((forecast - y[t + 1]).square().mean())
    return float(torch.stack(errors).mean())


def run(seed: int, settings: Settings) -> dict[str, float]:
    """Train on the beginning, forecast the rest."""
    array, step = recording()
    y = tensor(array)
    torch.manual_seed(seed)
    observation = plr.HaemodynamicObservation(rank=settings.rank, features=y.shape[1], bin_size=step)
    model = plr.StateSpaceModel(plr.LowRankRNN(rank=settings.rank, units=settings.units, decay=0.7), observation)
    guide = plr.OptimalGuide(model)
    fitted(model, guide, settings, seed, y[None, :TRAIN], window=settings.window)
    torch.manual_seed(seed)
    ridge = min(RIDGES, key=lambda weight: vector_forecast(array, 2, weight, 150, TRAIN))
    return {
        "error_network": network_forecast(model, guide, y, settings.judging_particles),
        "error_last_volume": float(np.square(np.diff(array, axis=0)[TRAIN - 1 :]).mean()),
        "error_own_ar2": own_forecast(array, 2),
        "error_var1": vector_forecast(array, 1, 0.0, TRAIN, len(array)),
        "error_var2": vector_forecast(array, 2, 0.0, TRAIN, len(array)),
        "error_var2_ridge": vector_forecast(array, 2, ridge, TRAIN, len(array)),
    }


def draw(figure, record: dict) -> None:
    """Draw the errors."""
    axes = figure.subplots()
    names = [name for name in record["rows"][0] if name.startswith("error_")]
    for place, name in enumerate(names):
        color = "C0" if name == "error_network" else "0.5"
        axes.scatter([row[name] for row in record["rows"]], [place] * len(record["rows"]), color=color, s=24)
    labels = [name.removeprefix("error_").replace("_", " ") for name in names]
    axes.set(
        yticks=range(len(names)), yticklabels=labels, xlabel="mean squared error, one volume ahead", xlim=(0, None)
    )
