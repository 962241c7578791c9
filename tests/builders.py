"""Small models in general position, and comparison to the precision of their floating-point type."""

from __future__ import annotations

from typing import Any

import pyro
import torch
from torch import Tensor, nn

import pyro_lowrank as plr
from pyro_lowrank.observations.family import ScalarDistribution

TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-10}


def shaken(module: nn.Module, scale: float = 0.3) -> Any:
    """Move every parameter off its initial value, so that no symmetry hides a bug; return the module."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
    return module


def network(dtype: torch.dtype = torch.float64, *, rank: int = 2, units: int = 6, **options: Any) -> plr.LowRankRNN:
    """Build a low-rank network in general position."""
    return shaken(plr.LowRankRNN(rank=rank, units=units, dtype=dtype, **options))


def gaussian_model(
    dtype: torch.dtype = torch.float64, *, features: int = 3, inputs: int = 0, noise_scale: float = 0.5, **options: Any
) -> plr.StateSpaceModel:
    """Build a network seen through noise, in general position."""
    dynamics = network(dtype, inputs=inputs, **options)
    observation = plr.GaussianObservation(
        rank=dynamics.rank, features=features, inputs=inputs, noise_scale=noise_scale, dtype=dtype
    )
    return plr.StateSpaceModel(dynamics, shaken(observation))


def assert_close(actual: Tensor, expected: Tensor, *, factor: float = 1.0) -> None:
    """Compare two tensors to the precision of the first one's type."""
    tolerance = factor * TOLERANCE[actual.dtype]
    torch.testing.assert_close(actual, expected.to(actual.dtype), rtol=tolerance, atol=tolerance)


def sites(program: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
    """Run a program and return its sample sites by name, with `log_prob_sum` of each, plates left out."""
    # Another model of the test may have left values under the same names.
    pyro.clear_param_store()
    trace = pyro.poutine.trace(program).get_trace(*args, **kwargs)
    trace.compute_log_prob()
    pruned = pyro.poutine.util.prune_subsample_sites(trace)
    return {name: site for name, site in pruned.nodes.items() if site["type"] == "sample"}


def poisson(log_rate: Tensor) -> Any:
    """Independent Poisson counts at log rates."""
    family = plr.PoissonObservation(rank=1, features=1, link="exp").family()
    return ScalarDistribution(family, log_rate, ())


def negative_binomial(log_rate: Tensor, dispersion: Tensor) -> Any:
    """Independent negative binomial counts at log rates."""
    family = plr.NegativeBinomialObservation(rank=1, features=1, link="exp").family()
    return ScalarDistribution(family, log_rate, (dispersion,))
