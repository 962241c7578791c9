"""A network's fixed points stay where they are under its own dynamics, in the precision of its parameters."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from pyro.distributions import Normal
from pyro.infer import Predictive
from pyro.nn import PyroSample

import pyro_lowrank as plr
from pyro_lowrank.fixed_points import find_fixed_points
from tests.builders import shaken

ACTIVATIONS: list[Any] = ["relu", "clipped_relu", "tanh", "softplus", plr.PiecewiseLinear((-1.0, 1.0), (0.1, 1.0, 0.0))]


def build(dtype: torch.dtype, **options: Any) -> plr.LowRankRNN:
    """A network with strong weights, which has several fixed points."""
    dynamics = shaken(plr.LowRankRNN(rank=2, units=12, dtype=dtype, **options), 0.5)
    with torch.no_grad():
        dynamics.right.mul_(2)
    return dynamics


def stay(dynamics: Any, points: np.ndarray, u: torch.Tensor | None = None) -> None:
    """Assert that a step leaves the points where they are."""
    z = torch.as_tensor(points, dtype=dynamics.bias.dtype)
    tolerance = 1e-4 if z.dtype == torch.float32 else 1e-9
    with torch.no_grad():
        torch.testing.assert_close(dynamics(z, u), z, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
def test_fixed_points_stay(activation: Any, dtype: torch.dtype) -> None:
    total = 0
    for _ in range(8):
        dynamics = build(dtype, activation=activation)
        result = dynamics.fixed_points(method="search", num_starts=50)
        stay(dynamics, result.points)
        total += len(result)
    assert total >= 3


@pytest.mark.parametrize("input_filter", [False, True])
def test_under_a_constant_input(input_filter: bool, dtype: torch.dtype) -> None:
    dynamics = build(dtype, inputs=3, input_filter=input_filter, activation="clipped_relu")
    u = torch.tensor([1.0, -2.0, 0.5], dtype=dtype)
    result = dynamics.fixed_points(u, method="enumerate")
    assert result.certificate.complete
    stay(dynamics, result.points, u)
    # The same by simulation, filter included: the noiseless network ends at one of its attractors.
    z, v = torch.zeros(2, dtype=dtype), torch.zeros(3, dtype=dtype)
    transition = dynamics.transition()
    with torch.no_grad():
        for _ in range(2000):
            z, v = transition.mean(z, v), transition.drift.next_input(v, u, u)
    attractors = result.points[result.stability == "attractor"]
    if len(attractors):
        assert np.linalg.norm(attractors - z.numpy(), axis=1).min() < 1e-3
    np.testing.assert_array_equal(dynamics.fixed_points(u.tolist(), method="enumerate").points, result.points)


def test_no_input_is_zero_input() -> None:
    dynamics = build(torch.float64, inputs=2)
    np.testing.assert_array_equal(
        dynamics.fixed_points(method="enumerate").points, dynamics.fixed_points([0, 0], method="enumerate").points
    )


def test_a_decay_per_latent() -> None:
    dynamics = build(torch.float64, decay=[0.3, 0.9])
    result = dynamics.fixed_points(method="enumerate")
    stay(dynamics, result.points)
    assert len(result) >= 1


def test_a_full_rank_network() -> None:
    dynamics = shaken(plr.FullRankRNN(units=4, dtype=torch.float64))
    result = dynamics.fixed_points(method="enumerate")
    assert result.certificate.complete
    assert len(result) >= 1
    stay(dynamics, result.points)


def test_nothing_is_changed() -> None:
    dynamics = build(torch.float32)
    before = {name: value.clone() for name, value in dynamics.state_dict().items()}
    dynamics.fixed_points(method="search", num_starts=10)
    for name, value in dynamics.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
        assert all(parameter.grad is None for parameter in dynamics.parameters())


def test_inputs_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="built with inputs=0"):
        build(torch.float64).fixed_points([1.0])
    dynamics = build(torch.float64, inputs=2)
    with pytest.raises(ValueError, match="a vector of 2, got shape"):
        dynamics.fixed_points(torch.zeros(5, 2))
    with pytest.raises(ValueError, match="`u` must be finite"):
        dynamics.fixed_points([0.0, float("nan")])


def test_an_activation_of_unknown_shape_is_refused() -> None:
    own = plr.Activation("sine", lambda x, h: torch.sin(x - h))
    with pytest.raises(ValueError, match="'sine' is a function whose shape is not known"):
        build(torch.float64, activation=own).fixed_points()


def test_parameters_with_batch_dims_are_refused() -> None:
    dynamics = build(torch.float64)
    dynamics.bias = PyroSample(lambda _: Normal(torch.zeros(5, 12).double(), 1.0).to_event(1))
    with pytest.raises(ValueError, match="sampled_fixed_points"):
        dynamics.fixed_points(method="search")


def with_prior(dtype: torch.dtype) -> plr.LowRankRNN:
    """A network whose bias has a prior."""
    dynamics = build(dtype, inputs=2, activation="clipped_relu")
    dynamics.bias = PyroSample(Normal(torch.zeros(12, dtype=dtype), 1.0).to_event(1))
    return dynamics


def test_posterior_samples_are_networks_one_by_one(dtype: torch.dtype) -> None:
    dynamics, biases = with_prior(dtype), torch.randn(6, 12, dtype=dtype)
    u = [1.0, -0.5]
    posterior = plr.posterior_fixed_points(dynamics, {"bias": biases, "z": torch.zeros(6, 3)}, u)
    assert posterior.complete.all()
    parts = (dynamics.decay, dynamics.left, dynamics.right, dynamics.input_weights)
    decay, left, right, inputs = (part.detach().double().numpy() for part in parts)
    for bias, result in zip(biases.double().numpy(), posterior.results, strict=True):
        expected = find_fixed_points(float(decay), left, right, bias, "clipped_relu", inputs @ u)
        np.testing.assert_allclose(result.points, expected.points, atol=1e-9)
    assert sum(posterior.distribution().values()) == pytest.approx(1)


def test_samples_of_predictive_from_a_whole_model() -> None:
    dynamics = with_prior(torch.float64)
    model = plr.StateSpaceModel(dynamics, plr.GaussianObservation(rank=2, features=3, inputs=2, dtype=torch.float64))
    draws = Predictive(model, num_samples=4)(torch.randn(2, 5, 3).double(), torch.zeros(2, 5, 2).double())
    assert draws["dynamics.bias"].shape == (4, 1, 12)
    posterior = plr.posterior_fixed_points(dynamics, draws)
    assert len(posterior.results) == 4
    with pytest.raises(ValueError, match=r"`samples` lacks dynamics.bias; it holds z"):
        plr.posterior_fixed_points(dynamics, {"z": draws["z"]})


def test_samples_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"must be samples x \(12,\), got \(5, 3\)"):
        plr.posterior_fixed_points(with_prior(torch.float64), {"bias": torch.zeros(5, 3)})
    with pytest.raises(ValueError, match="No parameter of the dynamics has a prior"):
        plr.posterior_fixed_points(build(torch.float64), {"bias": torch.zeros(5, 12)})
