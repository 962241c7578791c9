"""How sure the weights are: the posterior of a student of the noisy oscillator, by particle Gibbs.

Twenty trials of the paper's teacher (20 units, rank 2, 75 bins, Gaussian noise). Every parameter has its prior by
default. Each chain starts from a short fit with its own seed. R-hat and effective sizes are of what the data identify:
noise, decay, the flow, the readout. True noise and period are compared with 90 % intervals.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import pyro
import torch
from pyro.infer import MCMC
from pyro.poutine import condition
from shared import Teacher, fitted, student, tensor
from teacher_gaussian import OBSERVATION_NOISE, draw_trials

import pyro_lowrank as plr

REFERENCE: dict[str, str] = {}
GOAL = {"rhat": 1.01, "minutes": 10.0}


@dataclass(frozen=True)
class Settings:
    """Chains run one after the other, each in `processor_minutes`."""

    num_trials: int = 20
    num_bins: int = 75
    num_chains: int = 4
    num_samples: int = 200
    warmup_steps: int = 200
    mcmc_particles: int = 20
    max_tree_depth: int = 5
    num_steps: int = 200
    batch_size: int = 10
    num_particles: int = 32
    learning_rate: float = 1e-2
    final_learning_rate: float = 1e-3
    noise: float = 0.2
    num_period_draws: int = 20


SEEDS = (0,)

FULL, REDUCED = (
    Settings(),
    Settings(num_trials=10, num_bins=30, num_chains=1, num_samples=6, warmup_steps=4, max_tree_depth=2, num_steps=20),
)


def period(z: np.ndarray) -> float:
    """Return the period of latents, trials x time x 2, in bins: from the mean turn about the origin in a bin."""
    phase = np.unwrap(np.arctan2(z[..., 1], z[..., 0]), axis=1)
    turn = np.abs(phase[:, -1] - phase[:, 0]).mean() / (z.shape[1] - 1)
    return float(2 * np.pi / turn)


def start_of(model: plr.StateSpaceModel) -> dict[str, torch.Tensor]:
    """Return the values of a fitted model, as a chain starts from them."""
    values = {}
    for name, _ in model.named_parameters():
        part, _, attribute = name.removesuffix("_unconstrained").rpartition(".")
        values[f"{part}.{attribute}"] = getattr(model.get_submodule(part), attribute).detach()
    for name in ("noise_scale", "initial_noise_scale"):
        factor = values.pop(f"dynamics.{name}")
        deviations = factor.square().sum(-1).sqrt()
        values[f"dynamics.{name}_deviations"] = deviations
        values[f"dynamics.{name}_correlations"] = factor / deviations.unsqueeze(-1)
    return values


def chain(seed: int, y: torch.Tensor, settings: Settings) -> tuple[MCMC, float]:
    """Run one chain from a fit of its own; return it, and the processor time of the chain alone, in seconds."""
    torch.manual_seed(seed)
    model = student(Teacher.load("osc_rnn"), decay=0.7, observation_noise=OBSERVATION_NOISE)
    fitted(model, plr.OptimalGuide(model), settings, seed, y)
    sampled = plr.with_priors(model)
    kernel = plr.ParticleGibbs(
        sampled,
        plr.OptimalGuide(sampled),
        settings.mcmc_particles,
        max_tree_depth=settings.max_tree_depth,
        init_strategy=pyro.infer.autoguide.init_to_value(
            values=start_of(model), fallback=pyro.infer.autoguide.init_to_median
        ),
    )
    mcmc = MCMC(kernel, settings.num_samples, settings.warmup_steps, disable_progbar=True)
    begin = time.process_time()
    mcmc.run(y)
    return mcmc, time.process_time() - begin


def measures(model: plr.StateSpaceModel, draws: dict[str, torch.Tensor], teacher: Teacher, settings: Settings) -> dict:
    """Return draws of the noise and of the period, in the teacher's own basis."""
    number = len(draws["z"])
    noise, periods = [], []
    basis = torch.as_tensor(teacher.left, dtype=torch.float32)
    for index in range(number):
        with pyro.poutine.block(), condition(data={name: value[index] for name, value in draws.items()}):
            bound = model.bind()
            left = bound.transition.drift.left
            _, orthonormal = torch.linalg.qr(left)
            covariance = orthonormal @ bound.transition.noise.covariance @ orthonormal.mT
            noise.append(float(covariance.diagonal().mean().sqrt()))
            if index % max(1, number // settings.num_period_draws) == 0:
                z = model.dynamics.trajectory(200).sample((50,))
                periods.append(period((z @ left.mT @ basis).numpy()[:, 50:]))
    return {"noise": np.array(noise), "period": np.array(periods)}


def run(seed: int, settings: Settings) -> dict:
    """Draw from the posterior given one set of trials."""
    teacher, rng = Teacher.load("osc_rnn"), np.random.default_rng(seed)
    y = tensor(draw_trials(teacher, settings.num_trials, settings.num_bins, rng, settings.noise))
    begin = time.perf_counter()
    runs = [chain(100 * seed + number, y, settings) for number in range(settings.num_chains)]
    minutes = (time.perf_counter() - begin) / 60
    chains = [mcmc.get_samples() for mcmc, _ in runs]
    stacked = {name: torch.stack([each[name] for each in chains]) for name in chains[0]}
    model = runs[0][0].kernel.model
    found = plr.convergence(model, stacked)
    each = [measures(model, draws, teacher, settings) for draws in chains]
    start = teacher.ring_start(500, settings.noise, rng)
    truth = period(teacher.latents(start, 200, settings.noise, rng)[:, 50:])
    noise, periods = (np.concatenate([one[name] for one in each]) for name in ("noise", "period"))
    ends = {name: np.quantile(value, [0.05, 0.95]) for name, value in (("noise", noise), ("period", periods))}
    return {
        "minutes": minutes,
        "processor_minutes": sum(seconds for _, seconds in runs) / 60,
        "rhat": found.worst_rhat,
        "ess": found.least_ess,
        "rhat_of": {name: float(value.max()) for name, value in found.rhat.items()},
        "ess_of": {name: float(value.min()) for name, value in found.ess.items()},
        "noise_low": ends["noise"][0],
        "noise_high": ends["noise"][1],
        "noise_inside": bool(ends["noise"][0] <= settings.noise <= ends["noise"][1]),
        "true_period": truth,
        "period_low": ends["period"][0],
        "period_high": ends["period"][1],
        "period_inside": bool(ends["period"][0] <= truth <= ends["period"][1]),
        "curves": {"noise": [one["noise"] for one in each], "period": [one["period"] for one in each]},
    }


def draw(figure, record: dict) -> None:
    """Draw the chains of the noise, and the posterior of the period, beside what is true."""
    left, right = figure.subplots(1, 2)
    row = record["rows"][0]
    for values in row["curves"]["noise"]:
        left.plot(values, lw=0.8)
    left.axhline(record["settings"]["noise"], color="k", lw=1.5)
    left.set(xlabel="draw", ylabel="transition noise", title="chains; the truth is black")
    periods = np.concatenate([np.atleast_1d(values) for values in row["curves"]["period"]])
    right.hist(periods, bins=20, color="C0")
    right.axvline(row["true_period"], color="k", lw=1.5)
    right.set(xlabel="period (bins)", ylabel="draws", title="posterior; the truth is black")
