"""The mean of the next latents without gradients, compiled, against its definition in tensor operations."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

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


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(means, "_WORTH_COMPILING", 0)


def compiled_only(*_: object) -> Tensor:
    raise AssertionError("tensor operations were used")


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize(
    ("activation", "inputs", "full_rank"),
    [
        *((activation, 2, False) for activation in ("relu", "clipped_relu", "tanh", "softplus", "identity", LEAKY)),
        ("clipped_relu", 0, False),
        ("relu", 2, True),
        ("relu", 0, True),
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
        expected = dynamics(z, u)
        with torch.no_grad(), monkeypatch.context() as patch:
            patch.setattr("pyro_lowrank.dynamics.network.Network.mean", compiled_only)
            found = dynamics(z, u)
        assert expected.requires_grad
        assert not found.requires_grad
        torch.testing.assert_close(found, expected.detach())


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
