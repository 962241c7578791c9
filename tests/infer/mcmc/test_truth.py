"""The kernels against what does not use them: quadrature and simulation.

Geweke's test compares draws of the prior with a chain that draws parameters and latents by the kernel and data given
them in turn: both are draws of the same joint distribution.
"""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from pyro.infer import MCMC
from pyro.nn import PyroSample
from pyro.ops.stats import effective_sample_size
from torch import Tensor

import pyro_lowrank as plr
from pyro_lowrank.infer.mcmc.sampled import Sampled, own_store
from pyro_lowrank.smc.pair import Sequences
from tests.infer.mcmc.test_potential import pyro_init
from tests.oracles.quadrature import log_evidence_on_a_grid

NAMES = ("dynamics.decay", "dynamics.noise_scale", "dynamics.right")


def one() -> Tensor:
    return torch.ones((), dtype=torch.float64)


def put(model: plr.StateSpaceModel, *, right: bool = True) -> plr.StateSpaceModel:
    """Give the decay, the noise and the right vectors their priors."""
    model.dynamics.decay = PyroSample(dist.Beta(6 * one(), 3 * one()))
    model.dynamics.noise_scale = PyroSample(dist.LogNormal(-one().expand(1, 1), 0.5 * one()).to_event(2))
    if right:
        units = model.dynamics.units
        model.dynamics.right = PyroSample(dist.Normal(torch.zeros(1, units).double(), 0.4 * one()).to_event(2))
    return model


def counts(units: int = 3) -> plr.StateSpaceModel:
    """A network of rank 1 that is not linear, seen through counts."""
    dynamics = plr.LowRankRNN(rank=1, units=units, activation="tanh", dtype=torch.float64)
    observation = plr.PoissonObservation(rank=1, features=2, dtype=torch.float64)
    return plr.StateSpaceModel(dynamics, observation)


def check_moments(draws: Tensor, mean: float, variance: float, spread: float) -> None:
    """Compare a chain's mean and variance with the true ones, in Monte Carlo standard errors of the true posterior."""
    chain = draws.reshape(1, -1)
    square = (chain - mean).square()
    assert abs(chain.mean() - mean) < 4 * (variance / effective_sample_size(chain)).sqrt()
    assert abs(square.mean() - variance) < 4 * spread / effective_sample_size(square).sqrt()


def gibbs(model: plr.StateSpaceModel) -> plr.ParticleGibbs:
    return plr.ParticleGibbs(model, plr.LaplaceGuide(model), 8, max_tree_depth=3)


def pmmh(model: plr.StateSpaceModel) -> plr.PMMH:
    return plr.PMMH(model, plr.LaplaceGuide(model), 30, target_accept_prob=0.3)


def langevin(model: plr.StateSpaceModel) -> plr.PMMH:
    return plr.PMMH(model, plr.LaplaceGuide(model), 30, steps=plr.LangevinSteps(4))


KERNELS = {"gibbs": gibbs, "pmmh": pmmh, "langevin": langevin}
# A step of each takes about 30, 3 and 50 ms.
NUM_DRAWS = {"gibbs": 1500, "pmmh": 6000, "langevin": 2500}


@pytest.mark.slow
@pytest.mark.parametrize("kernel", KERNELS)
def test_a_nonlinear_network_against_quadrature(kernel: str) -> None:
    model = counts()
    y = model.simulate(2, 5).y
    y[1, 3:] = torch.nan
    size = 32
    decay = torch.linspace(0, 1, size + 2).double()[1:-1]
    log_scale = torch.linspace(-3.0, 1.0, size).double()
    log_density = torch.empty(size, size).double()
    with torch.no_grad():
        for i in range(size):
            model.dynamics.decay = torch.nn.Parameter(decay[i])
            for j in range(size):
                model.dynamics.noise_scale = torch.nn.Parameter(log_scale[j].exp().reshape(1, 1))
                log_density[i, j] = log_evidence_on_a_grid(model, y, half_width=9.0, points=181).sum()
    log_density += dist.Beta(6 * one(), 3 * one()).log_prob(decay).unsqueeze(-1)
    log_density += dist.Normal(-one(), 0.5).log_prob(log_scale)
    weight = torch.softmax(log_density.flatten(), 0).reshape(size, size)
    mcmc = MCMC(KERNELS[kernel](put(model, right=False)), NUM_DRAWS[kernel], 300, disable_progbar=True)
    mcmc.run(y)
    draws = mcmc.get_samples()
    # By the logarithm, whose tails are light.
    found = {"decay": draws[NAMES[0]], "scale": draws[NAMES[1]].log()}
    for name, values, shares in (("decay", decay, weight.sum(1)), ("scale", log_scale, weight.sum(0))):
        mean = (shares * values).sum()
        square = (values - mean).square()
        variance = (shares * square).sum()
        spread = (shares * (square - variance).square()).sum().sqrt()
        check_moments(found[name], mean.item(), variance.item(), spread.item())


def with_data(kernel: Any, params: dict[str, Tensor], y: Tensor) -> None:
    """Let a chain go on with other data, in which parameters and latents are as they are."""
    kernel._data = y, None
    if isinstance(kernel, plr.ParticleGibbs):
        kernel._potential._data = Sequences.of(kernel._sampled.model.bind(), y, None)
        return
    # The particles of the estimate that was accepted last are those given the latents.
    kernel._sampled.assign({name: value for name, value in params.items() if name != "z"})
    log_prior = kernel._sampled.log_prior({name: value for name, value in params.items() if name != "z"})
    given = kernel._smc.run(y, reference=params["z"], ancestor_sampling=False)
    slope = {}
    if kernel.steps is not None:
        kernel._potential._data = Sequences.of(kernel._sampled.model.bind(), y, None)
        slope = kernel._slope({name: value for name, value in params.items() if name != "z"}, given)
    kernel._last = kernel._last._replace(log_joint=(log_prior + given.log_evidence.sum()).item(), slope=slope)


def joint_chain(kernel: Any, model: plr.StateSpaceModel, number: int, *, steps: int) -> dict[str, Tensor]:
    """Draw parameters and latents by the kernel, and data given them, in turn."""
    # A start that is a draw of the joint distribution already: with it the whole chain is.
    with own_store():
        parts = Sampled(model, plr.BootstrapGuide(model), pyro_init)
        params = parts.start()
        parts.assign(params)
        simulated = parts.model.simulate(1, steps)
    kernel.initial_params = {**params, "z": simulated.z}
    kernel.setup(0, simulated.y)
    if isinstance(kernel, plr.ParticleGibbs):
        kernel._nuts._adapter.step_size = 0.7
    params, rows = kernel.initial_params, []
    with_data(kernel, params, simulated.y)
    for _ in range(number):
        params = kernel.sample(params)
        unconstrained = {name: value for name, value in params.items() if name != "z"}
        with torch.no_grad():
            kernel._sampled.assign(unconstrained)
            emission = kernel._sampled.model.bind().emission
            y = emission.distribution(params["z"]).sample()
        with_data(kernel, params, y)
        rows.append({**unconstrained, "z": params["z"]})
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def check_joint(kernel_of: Any, number: int) -> None:
    model = put(counts())
    drawn = joint_chain(kernel_of(model), model, number, steps=4)
    expected = {
        # Log odds of Beta(6, 3): moments by digamma and trigamma.
        NAMES[0]: (torch.digamma(6 * one()) - torch.digamma(3 * one()), polygamma(6.0) + polygamma(3.0)),
        NAMES[1]: (-one(), 0.25 * one()),
        NAMES[2]: (0 * one(), 0.16 * one()),
    }
    for name, (mean, variance) in expected.items():
        value = drawn[name].reshape(number, -1)[:, :1].mT
        for found, true, spread in (
            (value, mean, variance.sqrt()),
            ((value - mean).square(), variance, math.sqrt(2) * variance),
        ):
            # The log odds have tails a little beyond the normal ones.
            wide = 1.2 * spread if name == NAMES[0] else spread
            error = wide / effective_sample_size(found).clamp(max=number).sqrt()
            assert abs(found.mean() - true) < 4 * error, (name, found.mean(), true, error)


def polygamma(at: float) -> Tensor:
    return torch.special.polygamma(1, at * one())


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_joint_distribution_is_kept(kernel: str) -> None:
    check_joint(KERNELS[kernel], 80)


@pytest.mark.slow
@pytest.mark.parametrize("kernel", KERNELS)
def test_the_joint_distribution_is_kept_in_long_chains(kernel: str) -> None:
    check_joint(KERNELS[kernel], 2 * NUM_DRAWS["gibbs"] if kernel == "gibbs" else NUM_DRAWS[kernel])
