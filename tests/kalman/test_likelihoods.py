"""Derivatives of likelihoods that are known as expressions are those of automatic differentiation."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import pyro_lowrank as plr
from pyro_lowrank.kalman.likelihoods import CurvedLikelihood
from pyro_lowrank.observations.curvature import Expanded
from pyro_lowrank.observations.density import ScalarDensity
from pyro_lowrank.observations.observed import Observed
from tests.builders import network
from tests.kalman.test_kalman_filter import KINDS, gapped, observation_of


class Unknown:
    """An emission whose expansion is not known."""

    def __init__(self, emission: Any) -> None:
        self.emission = emission

    def __getattr__(self, name: str) -> Any:
        if name == "expansion":
            raise AttributeError(name)
        return getattr(self.emission, name)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("gaussian", "joint")])
def test_to_third_order(kind: str, dtype: torch.dtype) -> None:
    model = plr.StateSpaceModel(network(dtype, activation="tanh"), observation_of(kind, 2, 6, dtype))
    seen = Observed.of(gapped(model.simulate(3, 5).y))
    emission: Any = model.bind().emission
    assert isinstance(emission, Expanded)
    assert not isinstance(Unknown(emission), Expanded)
    own, differentiated = (CurvedLikelihood(each, seen, None) for each in (emission, Unknown(emission)))
    z = torch.randn(3, 5, 2, dtype=dtype)
    options = {"rtol": 1e-9, "atol": 1e-9} if dtype == torch.float64 else {"rtol": 1e-3, "atol": 1e-3}
    found, expected = own.pulls(z), differentiated.pulls(z)
    for name in ("score", "information", "fallback"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), **options)
    third = own.third(z)
    assert third.abs().max() > 1e-2
    torch.testing.assert_close(third, differentiated.third(z), **options)
    # Differentiable in the parameters, as the other is.
    parameters = list(model.observation.parameters())
    options_of_grad: Any = {"retain_graph": True, "allow_unused": True, "materialize_grads": True}
    gradients = [
        torch.autograd.grad(each.information.square().sum(), parameters, **options_of_grad)
        for each in (found, expected)
    ]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, **options)


def test_where_the_third_derivative_is_not_known_nothing_is() -> None:
    y, eta = torch.ones(3), torch.full((3,), 2.0)
    known = ScalarDensity.of(lambda y, x: y * x - math.exp(x), [])
    assert known.expansion(y, eta) is not None
    unknown = ScalarDensity.of(lambda y, x: y * x - math.lgamma(x), [])
    assert unknown.expansion(y, eta) is None
    score, *_ = unknown.curvature(y, eta)
    torch.testing.assert_close(score, y - torch.digamma(eta))
