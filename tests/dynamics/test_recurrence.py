"""The recurrent drive with its own backward pass against autograd of its definition."""

from __future__ import annotations

import copy

import pytest
import torch

import pyro_lowrank as plr
from pyro_lowrank.dynamics.recurrence import Workspace

LEAKY = plr.PiecewiseLinear(knots=(-0.5, 0.5), slopes=(0.1, 1.0, 0.0))


@pytest.mark.parametrize("activation", ["relu", "clipped_relu", "tanh", "softplus", "identity", LEAKY])
@pytest.mark.parametrize("inputs", [0, 2])
@pytest.mark.parametrize("full_rank", [False, True])
@pytest.mark.parametrize("copied", [False, True])
def test_values_and_gradients_equal_those_of_the_definition(
    activation: str | plr.PiecewiseLinear, inputs: int, full_rank: bool, copied: bool, dtype: torch.dtype
) -> None:
    options = {"units": 6, "activation": activation, "inputs": inputs, "dtype": dtype}
    dynamics = plr.FullRankRNN(**options) if full_rank else plr.LowRankRNN(rank=3, **options)  # type: ignore[arg-type]
    dynamics = copy.deepcopy(dynamics) if copied else dynamics
    with torch.no_grad():
        dynamics.bias += 0.5 * torch.randn_like(dynamics.bias)
    z = torch.randn(5, 4, dynamics.rank, dtype=dtype, requires_grad=True)
    v = torch.randn(4, inputs, dtype=dtype, requires_grad=True) if inputs else None
    upstream = torch.randn(5, 4, dynamics.rank, dtype=dtype)
    leaves = [z, *([] if v is None else [v]), *dynamics.parameters()]
    transition = dynamics.transition().drift
    workspace = Workspace()
    # The scratch memory is used a second time before the first backward pass.
    found_value = transition.mean_of_particles(z, v, workspace)
    transition.mean_of_particles(z + 1, v, workspace)
    expected_value = transition.mean(z, v)
    torch.testing.assert_close(found_value, expected_value)
    found, expected = (
        torch.autograd.grad((value * upstream).sum(), leaves, allow_unused=True, retain_graph=True)
        for value in (found_value, expected_value)
    )
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            torch.testing.assert_close(ours, theirs)
