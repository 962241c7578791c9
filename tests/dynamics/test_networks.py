from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import pyro_lowrank as plr
from pyro_lowrank.dynamics.activations import activation
from pyro_lowrank.dynamics.initial_weights import contracting, uniform_weights
from pyro_lowrank.dynamics.transition import Transition
from tests.builders import assert_close, network, shaken
from tests.dynamics.test_activations import FORMULAS


def _with(bound: Transition, values: dict[str, Tensor]) -> Transition:
    """Return a network's transition with other parameter values."""
    drift = {name: value for name, value in values.items() if hasattr(bound.drift, name)}
    return replace(bound, drift=replace(bound.drift, **drift), initial_mean=values["initial_mean"])


def mean_by_loop(dynamics: Any, activation: str, z: Tensor, u: Tensor | None) -> list[float]:
    """The mean of the next latent of one particle and trial, unit by unit, from the equation."""
    left, right, weights = dynamics.left.tolist(), dynamics.right.tolist(), dynamics.input_weights.tolist()
    bias, state = dynamics.bias.tolist(), z.tolist()
    inputs = [] if u is None else u.tolist()
    decay = dynamics.decay.expand(dynamics.rank).tolist()
    following = [a * z_r for a, z_r in zip(decay, state, strict=True)]
    for unit in range(dynamics.units):
        current = sum(m * z_r for m, z_r in zip(left[unit], state, strict=True))
        current += sum(w * u_k for w, u_k in zip(weights[unit], inputs, strict=bool(inputs)))
        rate = FORMULAS[activation](current, bias[unit])
        following = [f + right[r][unit] * rate for r, f in enumerate(following)]
    return following


@pytest.mark.parametrize("inputs", [0, 3])
@pytest.mark.parametrize("decay", [0.8, (0.9, 0.3)], ids=["one_decay", "decay_per_latent"])
@pytest.mark.parametrize("activation", FORMULAS)
def test_the_mean_of_the_next_latent_follows_the_equation_unit_by_unit(
    activation: str, decay: float | tuple[float, ...], inputs: int, dtype: torch.dtype
) -> None:
    dynamics = network(dtype, activation=activation, decay=decay, inputs=inputs)
    z = torch.randn(3, 4, 2, dtype=dtype)
    u = torch.randn(4, inputs, dtype=dtype) if inputs else None
    expected = [
        [mean_by_loop(dynamics, activation, z[k, b], None if u is None else u[b]) for b in range(4)] for k in range(3)
    ]
    assert_close(dynamics(z, u), torch.tensor(expected, dtype=dtype))


def test_a_full_rank_network_is_a_low_rank_one_whose_left_vectors_are_the_identity(dtype: torch.dtype) -> None:
    full = shaken(plr.FullRankRNN(units=5, inputs=2, activation="tanh", noise="full", dtype=dtype))
    low = plr.LowRankRNN(rank=5, units=5, inputs=2, activation="tanh", initial_noise="diagonal", dtype=dtype)
    with torch.no_grad():
        low.left.copy_(torch.eye(5, dtype=dtype))
        for name in ("right", "bias", "input_weights", "initial_mean"):
            getattr(low, name).copy_(getattr(full, name))
        for name in ("decay", "noise_scale", "initial_noise_scale"):
            setattr(low, name, getattr(full, name).detach())
    z, u = torch.randn(3, 4, 5, dtype=dtype), torch.randn(4, 2, dtype=dtype)
    assert_close(full(z, u), low(z, u))
    assert_close(full.transition().first_mean(u), low.transition().first_mean(u))
    assert_close(full.left, torch.eye(5, dtype=dtype))
    assert_close(full.recurrent_weights, low.recurrent_weights)
    sequence = torch.randn(4, 6, 5, dtype=dtype)
    inputs = torch.randn(4, 6, 2, dtype=dtype)
    assert_close(full.trajectory(6, inputs).log_prob(sequence), low.trajectory(6, inputs).log_prob(sequence), factor=5)


def test_recurrent_weights_are_the_product_of_the_factors(dtype: torch.dtype) -> None:
    dynamics = network(dtype)
    expected = sum(torch.outer(dynamics.left[:, r], dynamics.right[r]) for r in range(2))
    assert_close(dynamics.recurrent_weights, expected)


def test_the_first_input_is_projected_on_the_left_vectors_by_least_squares(dtype: torch.dtype) -> None:
    dynamics = network(dtype, inputs=3, units=9)
    v = torch.randn(4, 3, dtype=dtype)
    left, weights = dynamics.left.detach().double().numpy(), dynamics.input_weights.detach().double().numpy()
    projection = np.linalg.lstsq(left, weights @ v.double().numpy().T, rcond=None)[0].T
    expected = dynamics.initial_mean + torch.as_tensor(projection, dtype=dtype)
    assert_close(dynamics.transition().first_mean(v), expected, factor=5)


def test_dependent_left_vectors_have_a_projection_too(dtype: torch.dtype) -> None:
    dynamics = network(dtype, inputs=3, units=9)
    with torch.no_grad():
        dynamics.left[:, 1] = 2 * dynamics.left[:, 0]
    v = torch.randn(4, 3, dtype=dtype)
    first = dynamics.transition().first_mean(v)
    # The smallest of the least-squares solutions.
    projection = torch.linalg.pinv(dynamics.left.double()) @ dynamics.input_weights.double()
    assert_close(first, dynamics.initial_mean.double() + v.double() @ projection.mT, factor=100)
    gradients = torch.autograd.grad(first.sum(), [dynamics.initial_mean, dynamics.input_weights])
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_without_inputs_the_first_mean_is_the_initial_mean() -> None:
    dynamics = network()
    assert torch.equal(dynamics.transition().first_mean(), dynamics.initial_mean)


def test_filtered_inputs_follow_the_leak_bin_by_bin(dtype: torch.dtype) -> None:
    dynamics = network(dtype, inputs=2, input_filter=True, decay=0.7)
    u = torch.randn(3, 6, 2, dtype=dtype)
    a = dynamics.decay.item()
    expected = torch.zeros_like(u)
    for t in range(1, 6):
        expected[:, t] = a * expected[:, t - 1] + (1 - a) * u[:, t - 1]
    assert_close(dynamics.transition().drift.effective_inputs(u), expected)


def test_unfiltered_inputs_reach_the_units_as_they_are() -> None:
    u = torch.randn(3, 6, 2)
    assert torch.equal(network(torch.float32, inputs=2).transition().drift.effective_inputs(u), u)


def test_decay_starts_at_its_argument_for_all_latents_or_each(dtype: torch.dtype) -> None:
    assert_close(
        plr.LowRankRNN(rank=3, units=5, decay=0.35, dtype=dtype).decay, torch.tensor(0.35, dtype=torch.float64)
    )
    each = plr.LowRankRNN(rank=3, units=5, decay=[0.1, 0.5, 0.95], dtype=dtype).decay
    assert_close(each, torch.tensor([0.1, 0.5, 0.95], dtype=torch.float64))


def test_sampled_weights_act_on_their_own_particle_only(dtype: torch.dtype) -> None:
    dynamics = network(dtype, inputs=2, activation="tanh", noise="full")
    z, u = torch.randn(5, 4, 2, dtype=dtype), torch.randn(4, 2, dtype=dtype)
    names = ("left", "right", "bias", "input_weights", "initial_mean")
    base = {name: getattr(dynamics, name).detach() for name in names}
    batched, single = {}, []
    for name, value in base.items():
        batched[name] = value + 0.2 * torch.randn(5, 1, *value.shape, dtype=dtype)
    bound = dynamics.transition()
    for k in range(5):
        single.append(_with(bound, {name: value[k, 0] for name, value in batched.items()}))
    together = _with(bound, batched)
    assert together.batch_shape == (5, 1)
    assert_close(together.mean(z, u), torch.stack([t.mean(z[k], u) for k, t in enumerate(single)]))
    assert_close(together.first_mean(u), torch.stack([t.first_mean(u) for t in single]), factor=5)


def test_uniform_weights_fill_their_ranges(dtype: torch.dtype) -> None:
    dynamics = plr.LowRankRNN(rank=4, units=3000, inputs=5, activation="tanh", weights="uniform", dtype=dtype)
    for weights, edge in ((dynamics.left, 4**-0.5), (dynamics.right, 3000**-0.5), (dynamics.input_weights, 5**-0.5)):
        assert 0.995 * edge < weights.max().item() <= edge
        assert -0.995 * edge > weights.min().item() >= -edge
        # A uniform distribution's standard deviation; its standard error here is below 1 %.
        assert abs(weights.std().item() / (edge / 3**0.5) - 1) < 0.03


@pytest.mark.parametrize("overlap", [0.6, -0.3])
def test_gaussian_weights_have_the_standard_deviations_of_uniform_ones_and_the_overlap(overlap: float) -> None:
    dynamics = plr.LowRankRNN(rank=2, units=20_000, weights="gaussian", activation="tanh", overlap=overlap)
    left, right = dynamics.left.detach(), dynamics.right.detach().mT
    assert abs(float(left.std()) * 6**0.5 - 1) < 0.02
    assert abs(float(right.std()) * 60_000**0.5 - 1) < 0.02
    correlation = torch.corrcoef(torch.cat([left, right], 1).mT)
    # Standard error of a correlation: below 0.007.
    expected = torch.eye(4)
    expected[0, 2] = expected[2, 0] = expected[1, 3] = expected[3, 1] = overlap
    torch.testing.assert_close(correlation, expected, atol=0.03, rtol=0)


def farthest(dynamics: plr.LowRankRNN, num_steps: int = 100) -> float:
    """Return how far the network takes any of 100 states at a distance of 1000 from the origin, in units of that."""
    z = torch.nn.functional.normalize(torch.randn(100, dynamics.rank, dtype=dynamics.left.dtype), dim=-1) * 1000
    with torch.no_grad():
        for _ in range(num_steps):
            z = dynamics(z)
    return float(z.norm(dim=-1).max()) / 1000


@pytest.mark.parametrize("weights", ["uniform", "gaussian"])
@pytest.mark.parametrize("name", ["relu", "softplus", "identity"])
@pytest.mark.parametrize(("rank", "decay"), [(2, 0.9), (3, 0.7), (5, [0.5, 0.6, 0.7, 0.8, 0.99])])
def test_untrained_networks_do_not_run_away(name: str, weights: str, rank: int, decay: float | list[float]) -> None:
    ran_away = 0
    for dtype in 2 * [torch.float32, torch.float64]:
        options = {"rank": rank, "units": 60, "activation": name, "weights": weights, "decay": decay}
        dynamics = plr.LowRankRNN(**options, dtype=dtype)  # type: ignore[arg-type]
        assert farthest(dynamics) < 1.1
        with torch.no_grad():
            dynamics.right *= 6
        ran_away += not farthest(dynamics) < 10  # NaN after an overflow
    assert ran_away > 1  # so that the test sees it when they do


@pytest.mark.parametrize("name", ["clipped_relu", "tanh"])
def test_bounded_units_keep_the_weights_drawn(name: str) -> None:
    left, right = uniform_weights(3, 60)
    assert torch.equal(contracting(torch.tensor(0.9), left, 10 * right, activation(name)), 10 * right)


def test_full_rank_weights_start_with_the_gain() -> None:
    dynamics = plr.FullRankRNN(units=200, gain=1.5, decay=0.8)
    assert abs(dynamics.right.std().item() / (0.2 * 1.5 / 200**0.5) - 1) < 0.03


def test_settings_build_a_network_that_loads_the_state() -> None:
    dynamics = network(inputs=2, activation="relu", noise="diagonal", decay=(0.4, 0.8), initial_noise="scalar")
    again = plr.LowRankRNN(**dynamics.settings(), dtype=torch.float64)
    again.load_state_dict(dynamics.state_dict())
    z, u = torch.randn(4, 2, dtype=torch.float64), torch.randn(4, 2, dtype=torch.float64)
    assert torch.equal(again(z, u), dynamics(z, u))
    assert torch.equal(again.noise_covariance, dynamics.noise_covariance)
    full = shaken(plr.FullRankRNN(units=4))
    again = plr.FullRankRNN(**full.settings())
    again.load_state_dict(full.state_dict())
    assert torch.equal(again(torch.ones(4)), full(torch.ones(4)))


def test_nothing_of_the_process_changes_when_a_network_is_built() -> None:
    before = torch.get_default_dtype(), torch.is_grad_enabled()
    plr.LowRankRNN(rank=2, units=5, dtype=torch.float64)
    assert (torch.get_default_dtype(), torch.is_grad_enabled()) == before


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"rank": 6}, ValueError, "`rank` must be at most `units`, got rank=6, units=5"),
        ({"rank": 0}, ValueError, "`rank` must be at least 1, got rank=0"),
        ({"rank": 2.0}, TypeError, "`rank` must be an integer, got float 2.0"),
        ({"units": -1}, ValueError, "`units` must be at least 1, got units=-1"),
        ({"inputs": -1}, ValueError, "`inputs` must be at least 0, got inputs=-1"),
        ({"decay": 1.0}, ValueError, r"`decay` must lie strictly between 0 and 1 .* got 1.0"),
        ({"decay": 0.0}, ValueError, r"`decay` must lie strictly between 0 and 1 .* got 0.0"),
        ({"decay": -0.5}, ValueError, r"`decay` must lie strictly between 0 and 1 .* got -0.5"),
        ({"decay": float("nan")}, ValueError, r"`decay` must lie strictly between 0 and 1 .* got nan"),
        ({"decay": [0.5, 1.5]}, ValueError, r"`decay` must lie strictly between 0 and 1 .* got \[0.5, 1.5\]"),
        ({"decay": [0.5, 0.5, 0.5]}, ValueError, r"`decay` must be a number or one per latent \(2\), got \[0.5, "),
        ({"noise": "ful"}, ValueError, "`noise` must be one of 'scalar', 'diagonal', 'full', got 'ful'"),
        ({"initial_noise": "none"}, ValueError, "`initial_noise` must be one of .* got 'none'"),
        ({"noise_scale": 0.0}, ValueError, "`noise_scale` must be finite and above zero, got noise_scale=0.0"),
        ({"initial_scale": -1.0}, ValueError, "`initial_scale` must be finite and above zero"),
        ({"activation": "gelu"}, ValueError, "`activation` must be one of .* got 'gelu'"),
        ({"weights": "normal"}, ValueError, "`weights` must be one of 'uniform', 'gaussian', got 'normal'"),
        ({"overlap": 1.5}, ValueError, "`overlap` is a correlation between -1 and 1, got 1.5"),
        ({"input_filter": True}, ValueError, "`input_filter` needs `inputs` .* got inputs=0"),
        ({"input_filter": True, "inputs": 1, "decay": [0.5, 0.6]}, ValueError, "`input_filter` needs .* one decay"),
    ],
)
def test_an_argument_that_makes_no_network_is_refused(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        plr.LowRankRNN(**{"rank": 2, "units": 5, **options})
