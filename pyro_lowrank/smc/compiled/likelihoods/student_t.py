"""Student-t noise around a readout."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pyro_lowrank.dynamics.compiled.arithmetic import HALF, ONE, log, scalar
from pyro_lowrank.observations.student_t import StudentTEmission
from pyro_lowrank.smc.compiled.likelihoods.base import Likelihood, register


@scalar
def _log_density(y: Any, x: Any, inverse: Any, freedom: Any) -> Any:
    error = (y - x) * inverse
    return -HALF * (freedom + ONE) * log(ONE + error * error / freedom)


@scalar
def _aim(y: Any, inverse: Any, freedom: Any) -> Any:
    return y, y


@scalar
def _curvature(y: Any, target: Any, aimed: Any, x: Any, inverse: Any, freedom: Any) -> Any:
    error = (y - x) * inverse
    # The weights of the EM algorithm: an outlier has little information.
    information = (freedom + ONE) / (freedom + error * error) * inverse * inverse
    return information * (y - x), information, information


def _parameters(emission: StudentTEmission) -> tuple[Tensor, ...]:
    return emission.scale.reciprocal(), emission.freedom


def _constant(emission: StudentTEmission, y: Tensor) -> Tensor:
    nu = emission.freedom.double()
    of_freedom = torch.lgamma(0.5 * (nu + 1)) - torch.lgamma(0.5 * nu) - 0.5 * (math.pi * nu).log()
    return of_freedom.to(y.dtype) - emission.scale.log()


@register(StudentTEmission)
def _of(emission: StudentTEmission) -> Likelihood:
    return Likelihood(
        log_density=_log_density, parameters=_parameters, constant=_constant, aim=_aim, curvature=_curvature
    )
