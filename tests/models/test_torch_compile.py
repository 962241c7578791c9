"""`torch.compile` of what reads a model's parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import pyro_lowrank as plr

OBSERVATIONS: dict[str, Callable[..., plr.Observation]] = {
    "gaussian": plr.GaussianObservation,
    "poisson": plr.PoissonObservation,
    "bernoulli": plr.BernoulliObservation,
    "negative binomial": plr.NegativeBinomialObservation,
}


# Dynamo tells of every function that it leaves alone.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "kind", [kind if kind == "poisson" else pytest.param(kind, marks=pytest.mark.slow) for kind in OBSERVATIONS]
)
def test_means_of_observations_and_dynamics(kind: str) -> None:
    model = plr.StateSpaceModel(plr.LowRankRNN(rank=2, units=9), OBSERVATIONS[kind](rank=2, features=3))
    z = torch.randn(4, 2)
    torch._dynamo.reset()
    functions: tuple[Callable[[Tensor], Any], ...] = (
        model.observation.mean,
        lambda z: model.observation.mean(model.dynamics(z)) + 1,
    )
    for function in functions:
        compiled = torch.compile(function, backend="eager")(z)
        torch.testing.assert_close(compiled, function(z))
        for ours, theirs in zip(
            *(torch.autograd.grad(value.sum(), list(model.parameters()), allow_unused=True)
              for value in (compiled, function(z))),
            strict=True,
        ):  # fmt: skip
            assert (ours is None) == (theirs is None)
            if ours is not None:
                torch.testing.assert_close(ours, theirs)
