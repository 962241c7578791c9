"""The search for fixed points of dynamics of one's own, against those that are known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroSample
from torch import Tensor

import pyro_lowrank as plr
from pyro_lowrank.fixed_points.own import OwnMap, search_own


class Rewritten(plr.Dynamics):
    """A network's mean, in torch operations that nobody knows for a network's."""

    def __init__(self, network: plr.LowRankRNN, inputs: int = 0) -> None:
        super().__init__(rank=network.rank, inputs=inputs, dtype=network.bias.dtype)
        self.network = network

    def mean(self, z: Tensor, v: Tensor | None = None) -> Tensor:
        network = self.network
        currents = z @ network.left.mT if v is None else z @ network.left.mT + v @ network.input_weights.mT
        return network.decay * z + (currents - network.bias).tanh() @ network.right.mT


def network(dtype: torch.dtype, inputs: int = 0) -> plr.LowRankRNN:
    """A network with several fixed points."""
    made = plr.LowRankRNN(rank=2, units=12, inputs=inputs, activation="tanh", decay=0.5, dtype=dtype)
    with torch.no_grad():
        made.right = 3 * made.left.mT / 12
        made.bias = 0.2 * torch.randn(12, dtype=dtype)
        made.input_weights = 0.1 * made.input_weights
    return made


@pytest.mark.parametrize("inputs", [0, 1])
def test_it_finds_what_the_analyzer_proves(inputs: int, dtype: torch.dtype) -> None:
    known = network(dtype, inputs)
    u = torch.tensor([0.3], dtype=dtype) if inputs else None
    proved = known.fixed_points(u)
    assert proved.certificate.complete
    assert len(proved) >= 3
    found = Rewritten(known, inputs).search_fixed_points(u, num_starts=400)
    np.testing.assert_allclose(found.points, proved.points, atol=1e-6)
    np.testing.assert_allclose(np.abs(found.eigenvalues), np.abs(proved.eigenvalues), atol=1e-5)
    assert found.stability.tolist() == proved.stability.tolist()
    assert found.certificate.index_sum == proved.certificate.index_sum
    assert not found.certificate.complete
    assert "search, not complete: there may be others" in str(found)
    np.testing.assert_allclose(found.step(found.points), found.points, atol=1e-6)


class Told(Rewritten):
    """The same, which says what it is: the decay as a matrix, the current of the input as a drive of its own."""

    def __init__(self, network: plr.LowRankRNN, inputs: int = 0, wrong: float = 0.0) -> None:
        super().__init__(network, inputs)
        self.wrong = wrong

    def as_network(self, u: Tensor | None = None) -> dict[str, Any]:
        known = self.network
        return {
            "decay": known.decay * torch.eye(2, dtype=known.bias.dtype),
            "left": known.left,
            # Computed, so that its rounding is that of its precision.
            "right": known.right.log1p().expm1() + self.wrong * torch.eye(2, 12, dtype=known.bias.dtype),
            "bias": known.bias,
            "activation": "tanh",
            "input_current": None if u is None else known.input_weights @ u,
        }


@pytest.mark.parametrize("inputs", [0, 1])
def test_a_network_that_says_so_is_proved(inputs: int, dtype: torch.dtype) -> None:
    known = network(dtype, inputs)
    u = [0.3] if inputs else None
    proved, found = known.fixed_points(u), Told(known, inputs).fixed_points(u)
    assert found.certificate.complete
    np.testing.assert_allclose(found.points, proved.points, atol=1e-6)
    assert found.stability.tolist() == proved.stability.tolist()
    held = Told(known, inputs).search_fixed_points(u, starts=found.points)
    np.testing.assert_allclose(held.points, found.points, atol=1e-5)


def test_another_network_than_the_mean_is_refused(dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match="`as_network` of Told returns another network than its `mean`: of latents"):
        Told(network(dtype), wrong=1e-3).fixed_points()
    with pytest.raises(ValueError, match="must be one number for each of 1 channels"):
        Told(network(dtype, 1), 1).fixed_points([0.1, 0.2])
    with pytest.raises(ValueError, match=r"`u` must be finite, got \[nan\]"):
        Told(network(dtype, 1), 1).fixed_points([float("nan")])
    with pytest.raises(TypeError, match="say so by a method `as_network`"):
        Rewritten(network(dtype)).fixed_points()


def test_units_that_bend_far_away_are_compared_there() -> None:
    class Far(plr.Dynamics):
        def mean(self, z: Tensor, v: Tensor | None = None) -> Tensor:
            return 0.5 * z + torch.relu(z - 2e4)

        def as_network(self, u: Tensor | None = None) -> dict[str, Any]:
            return {"decay": 0.5, "left": [[1.0]], "right": [[self.slope]], "bias": [2e4]}

        slope = 1.0

    found = Far(rank=1).fixed_points()
    np.testing.assert_allclose(found.points.ravel(), [0.0, 4e4])
    wrong = Far(rank=1)
    wrong.slope = 0.2
    with pytest.raises(ValueError, match="another network than its `mean`"):
        wrong.fixed_points()
    wrong.as_network = lambda u=None: {"decay": 0.5, "weights": [[1.0]]}  # type: ignore[method-assign,assignment]
    with pytest.raises(TypeError, match="must return arguments of `find_fixed_points`: .*'weights'"):
        wrong.fixed_points()


def test_a_network_with_a_prior_is_proved_at_every_draw() -> None:
    dynamics = Told(network(torch.float32))
    bias = dynamics.network.bias.detach()
    dynamics.network.bias = PyroSample(dist.Normal(bias, 0.1).to_event(1))
    draws = bias + 0.1 * torch.randn(3, 12)
    found = plr.posterior_fixed_points(dynamics, {"network.bias": draws})
    assert found.complete.all()
    for result, draw in zip(found.results, draws, strict=True):
        alone = network(torch.float32)
        alone.load_state_dict({**dynamics.network.state_dict(), "bias_unconstrained": draw})
        np.testing.assert_allclose(result.points, alone.fixed_points().points, atol=1e-5)


def test_a_mean_that_holds_single_numbers_is_searched_in_single_precision() -> None:
    turn = torch.tensor([[0.6, -0.2], [0.1, 0.7]])

    class Linear(plr.Dynamics):
        def mean(self, z: Tensor, v: Tensor | None = None) -> Tensor:
            return (z - 1) @ turn.mT + 1

    found = Linear(rank=2).search_fixed_points(num_starts=100)
    np.testing.assert_allclose(found.points, [[1.0, 1.0]], atol=1e-5)
    np.testing.assert_allclose(np.abs(found.eigenvalues[0]), np.abs(np.linalg.eigvals(turn.numpy())), atol=1e-5)
    assert found.is_spiral.tolist() == [True]


def test_equal_seeds_find_the_same_and_leave_random_numbers_and_parameters_alone() -> None:
    dynamics = Rewritten(network(torch.float32))
    before, values = torch.get_rng_state(), [p.clone() for p in dynamics.parameters()]
    first, second = (dynamics.search_fixed_points(num_starts=100, seed=4) for _ in range(2))
    assert np.array_equal(first.points, second.points)
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(p, value) and p.grad is None for p, value in zip(dynamics.parameters(), values, strict=True))


def test_none_are_found_where_there_are_none_and_nothing_is_where_a_map_is_not_finite() -> None:
    class Drifts(plr.Dynamics):
        def mean(self, z: Tensor, v: Tensor | None = None) -> Tensor:
            return torch.where(z > 1, z.log() / 0.0, z.exp())

    found = Drifts(rank=1).search_fixed_points(num_starts=100)
    assert found.points.shape == (0, 1)
    assert found.certificate.index_sum == 0


def test_a_least_gap_that_is_not_zero_is_no_fixed_point() -> None:
    """Newton's method with shorter steps comes to rest there."""
    own = OwnMap(1, lambda z: (z + z**2 + 1e-3, 1 + 2 * z[..., None]))
    assert len(search_own(own, np.linspace(-1, 1, 11)[:, None])) == 0


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_far_out_where_rounding_hides_what_a_map_adds_there_are_none(scale: float) -> None:
    def pulled(z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        y = z / scale - 1
        return z - 0.1 * scale * np.tanh(y), 1 - 0.1 / np.cosh(y.clip(-300, 300))[..., None] ** 2

    found = search_own(OwnMap(1, pulled), scale * np.linspace(-5, 5, 50)[:, None])
    np.testing.assert_allclose(found.points, [[scale]], rtol=1e-9)


def test_what_does_not_fit_is_named() -> None:
    dynamics = Rewritten(network(torch.float32))
    with pytest.raises(ValueError, match="`starts` must hold latents"):
        dynamics.search_fixed_points(starts=torch.zeros(4, 3))
    with pytest.raises(ValueError, match="The input `u` must be one number for each of 0 channels"):
        dynamics.search_fixed_points(torch.ones(2))
