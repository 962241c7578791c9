"""The mean of the next latents and its gradients, compiled, against its definition in tensor operations."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

import pyro_lowrank as plr
from pyro_lowrank.dynamics import means

LEAKY = plr.PiecewiseLinear(knots=(-0.5, 0.5), slopes=(0.1, 1.0, 0.0))

# Batch dims of latents and of inputs that broadcast with them.
SHAPES = [
    ((7, 4), (4,)),
    ((4,), (4,)),
    ((5, 1), (4,)),
    ((5, 2, 4), (2, 4)),
    ((5, 4), (5, 1)),
    ((1, 4), (3, 1)),
    ((), ()),
]


def drift(dynamics: Any) -> Any:
    """Return the dynamics in tensor operations, for which nothing is compiled."""
    return dynamics.transition().drift


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(means, "_WORTH_COMPILING", 0)


def compiled_only(*_: object) -> Tensor:
    raise AssertionError("tensor operations were used")


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize(
    ("activation", "inputs", "full_rank", "dtype"),
    [
        *((name, 2, False, torch.float64) for name in ("relu", "clipped_relu", "tanh", "softplus", "identity", LEAKY)),
        *((name, 2, False, torch.float32) for name in ("tanh", "softplus")),
        ("clipped_relu", 0, False, torch.float32),
        ("relu", 2, True, torch.float64),
        ("relu", 0, True, torch.float32),
    ],
)
def test_it_equals_the_definition(
    activation: str | plr.PiecewiseLinear,
    inputs: int,
    full_rank: bool,
    dtype: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = {"units": 6, "activation": activation, "inputs": inputs, "dtype": dtype}
    dynamics = plr.FullRankRNN(**options) if full_rank else plr.LowRankRNN(rank=3, **options)  # type: ignore[arg-type]
    for latents_shape, inputs_shape in SHAPES:
        z = torch.randn(*latents_shape, dynamics.rank, dtype=dtype)
        u = torch.randn(*inputs_shape, inputs, dtype=dtype) if inputs else None
        seen = [z.requires_grad_()] if u is None else [z.requires_grad_(), u.requires_grad_()]
        asked = [*seen, *(p for name, p in dynamics.named_parameters() if not name.startswith(("noise", "initial")))]
        expected = drift(dynamics).mean(z, u)
        weight = torch.randn_like(expected)
        gradients = torch.autograd.grad(expected, asked, weight)
        with monkeypatch.context() as patch:
            patch.setattr("pyro_lowrank.dynamics.network.Network.mean", compiled_only)
            found = dynamics(z, u)
            torch.testing.assert_close(found, expected)
            # Of one number type: what is compiled for gradients takes longer than all the rest of the test.
            if dtype == torch.float64:
                for one, other in zip(torch.autograd.grad(found, asked, weight), gradients, strict=True):
                    torch.testing.assert_close(one, other)
            with torch.no_grad():
                torch.testing.assert_close(dynamics(z, u), expected)


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("inputs", [0, 2])
@pytest.mark.parametrize("activation", ["tanh", "clipped_relu"])
def test_derivatives_of_second_order_are_those_of_the_definition(activation: str, inputs: int) -> None:
    dynamics = plr.LowRankRNN(rank=2, units=5, activation=activation, inputs=inputs, dtype=torch.float64)
    z = torch.randn(3, 4, 2, dtype=torch.float64, requires_grad=True)
    u = torch.randn(4, inputs, dtype=torch.float64, requires_grad=True) if inputs else None
    # One parameter is made from another, and latents from a parameter: neither gradient may be counted twice.
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)
    asked = [scale, z, *dynamics.parameters()]

    def penalty(mean: Any) -> list[Tensor]:
        moved = mean(z * scale, u)
        first = torch.autograd.grad(moved.square().sum(), [z, dynamics.right], create_graph=True)
        total = sum(each.square().sum() for each in first)
        return [first[0], *torch.autograd.grad(total, asked, allow_unused=True)]

    for found, expected in zip(penalty(dynamics), penalty(drift(dynamics).mean), strict=True):
        assert (found is None) == (expected is None)
        if expected is not None:
            torch.testing.assert_close(found, expected)


@pytest.mark.usefixtures("always")
def test_tangents_are_those_of_tensor_operations() -> None:
    dynamics = plr.LowRankRNN(rank=2, units=5, activation="tanh")
    z, direction = torch.randn(3, 2), torch.randn(3, 2)
    _, expected = torch.autograd.functional.jvp(drift(dynamics).mean, z, direction)
    with forward_ad.dual_level():
        found = forward_ad.unpack_dual(dynamics(forward_ad.make_dual(z, direction))).tangent
    torch.testing.assert_close(found, expected)


@pytest.mark.usefixtures("always")
def test_densities_of_trajectories_and_their_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    dynamics = plr.LowRankRNN(rank=2, units=5, inputs=1, dtype=torch.float64)
    u = torch.randn(3, 6, 1, dtype=torch.float64)
    trajectory = dynamics.trajectory(6, u)
    z = trajectory.sample().requires_grad_()
    found = torch.autograd.grad(trajectory.log_prob(z).sum(), [z, dynamics.left, dynamics.input_weights])
    monkeypatch.setattr(means, "_WORTH_COMPILING", 10**9)
    expected = torch.autograd.grad(trajectory.log_prob(z).sum(), [z, dynamics.left, dynamics.input_weights])
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.usefixtures("always")
def test_what_is_no_number_stays_none(dtype: torch.dtype) -> None:
    dynamics = plr.LowRankRNN(rank=2, units=5, activation="clipped_relu", dtype=dtype)
    z = torch.tensor([[float("nan"), 0.0], [1.0, 2.0]], dtype=dtype)
    with torch.no_grad():
        found = dynamics(z)
    assert found[0].isnan().all()
    torch.testing.assert_close(found[1], dynamics(z[1]).detach())


@pytest.mark.usefixtures("always")
def test_transforms_of_torch_see_tensor_operations() -> None:
    dynamics = plr.LowRankRNN(rank=2, units=5, activation="tanh")
    z = torch.randn(3, 2)
    with torch.no_grad():
        expected = dynamics(z)
        torch.testing.assert_close(torch.func.vmap(dynamics)(z), expected)
        with pytest.warns(DeprecationWarning, match="jit.trace"):
            traced = torch.jit.trace(dynamics, (torch.zeros(3, 2),), check_trace=False)
        torch.testing.assert_close(traced(z), expected)
    jacobian = torch.func.jacfwd(dynamics)(z[0])
    step = 1e-3 * torch.eye(2)
    with torch.no_grad():
        difference = (dynamics(z[0] + step) - dynamics(z[0] - step)).mT / 2e-3
    torch.testing.assert_close(jacobian, difference, rtol=1e-3, atol=1e-3)


@pytest.mark.usefixtures("always")
def test_a_sampled_parameter_keeps_its_batch_dims() -> None:
    dynamics = plr.LowRankRNN(rank=2, units=5)
    dynamics.bias = torch.nn.Parameter(torch.randn(4, 1, 5))
    with torch.no_grad():
        assert dynamics(torch.randn(4, 3, 2)).shape == (4, 3, 2)


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("z", [torch.randn(4, 6), torch.randn(4, 3, dtype=torch.float64)])
def test_latents_that_do_not_fit_are_refused(z: Tensor) -> None:
    dynamics = plr.LowRankRNN(rank=3, units=5)
    with torch.no_grad(), pytest.raises(RuntimeError):
        dynamics(z)
