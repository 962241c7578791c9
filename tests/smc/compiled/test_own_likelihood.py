"""A likelihood of one's own in the compiled loops: a zero-inflated Poisson, one file and nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroParam
from torch import Tensor
from torch.distributions import constraints
from torch.nn.functional import softplus

import pyro_lowrank as plr
from pyro_lowrank.dynamics.compiled.arithmetic import ONE, exp, log, scalar, softplus_and_slope
from pyro_lowrank.observations.curvature import Curvature, weight_of
from pyro_lowrank.smc.compiled.likelihoods.base import Likelihood, register
from tests.smc.compiled.test_equals_plain import assert_equal


@dataclass(frozen=True)
class ZeroInflatedEmission:
    """Counts that are zero with probability `gate`, else of rate softplus(readout)."""

    readout: Any
    gate: Tensor

    def mean(self, z: Tensor, v: Tensor | None = None) -> Tensor:
        return (1 - self.gate) * softplus(self.readout(z, v))

    def distribution(self, z: Tensor, v: Tensor | None = None) -> dist.TorchDistribution:
        return dist.ZeroInflatedPoisson(softplus(self.readout(z, v)), gate=self.gate).to_event(1)

    def curvature(self, z: Tensor, v: Tensor | None, y: Tensor) -> Curvature:
        x = self.readout(z, v)
        rate, slope = softplus(x), x.sigmoid()
        silent = (1 - self.gate) * (-rate).exp()
        alive = torch.where(y > 0, 1.0, silent / (self.gate + silent))
        return Curvature(alive * (y / rate - 1) * slope, alive * slope.square() / rate, weight_of(self.readout))


class ZeroInflatedObservation(plr.Observation):
    def __init__(self, rank: int, features: int) -> None:
        super().__init__(features=features)
        self.readout = plr.AffineReadout(rank=rank, features=features, dtype=torch.float64)
        self.gate = PyroParam(torch.full((features,), 0.3, dtype=torch.float64), constraints.unit_interval)

    def distribution(self, z: Tensor, v: Tensor | None = None) -> dist.TorchDistribution:
        return self.bind(None).distribution(z, v)

    def bind(self, units: Any) -> ZeroInflatedEmission:
        return ZeroInflatedEmission(self.readout.bind(units), self.gate)


@scalar
def _log_density(y: Any, x: Any, gate: Any) -> Any:
    rate, _ = softplus_and_slope(x)
    return log(ONE - gate) + y * log(rate) - rate


@scalar
def _at_zero(y: Any, x: Any, gate: Any) -> Any:
    rate, _ = softplus_and_slope(x)
    return log(gate + (ONE - gate) * exp(-rate))


@scalar
def _aim(y: Any, gate: Any) -> Any:
    return y, y


@scalar
def _curvature(y: Any, target: Any, aimed: Any, x: Any, gate: Any) -> Any:
    rate, slope = softplus_and_slope(x)
    silent = (ONE - gate) * exp(-rate)
    alive = ONE if y > 0 else silent / (gate + silent)
    information = alive * slope * slope / rate
    return alive * (y / rate - ONE) * slope, information, information


@register(ZeroInflatedEmission)
def _of(emission: ZeroInflatedEmission) -> Likelihood:
    return Likelihood(
        log_density=_log_density,
        at_zero=_at_zero,
        parameters=lambda emission: (emission.gate,),
        constant=lambda emission, y: -torch.lgamma(y + 1) * (y > 0),
        aim=_aim,
        curvature=_curvature,
    )


@pytest.mark.parametrize("guide_of", [plr.BootstrapGuide, plr.LaplaceGuide])
def test_it_is_compiled_and_gives_the_numbers_of_the_plain_loop(guide_of: Any) -> None:
    torch.manual_seed(3)
    model = plr.StateSpaceModel(
        plr.LowRankRNN(rank=2, units=21, noise_scale=0.4, dtype=torch.float64), ZeroInflatedObservation(2, 5)
    )
    y = model.simulate(num_trials=3, num_steps=12).y.clone()
    y[0, 3, 1] = y[1, 5] = torch.nan
    assert (y == 0).float().mean() > 0.2
    assert_equal(model, guide_of(model), y)
