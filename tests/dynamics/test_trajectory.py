from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.distributions import biject_to

import pyro_lowrank as plr
from tests.builders import assert_close, network

INPUTS = {"none": {}, "direct": {"inputs": 2}, "filtered": {"inputs": 2, "input_filter": True}}


def inputs_for(options: dict[str, Any], dtype: torch.dtype, trials: int = 4, steps: int = 6) -> Tensor | None:
    return torch.randn(trials, steps, 2, dtype=dtype) if options else None


def log_prob_by_loop(dynamics: Any, z: Tensor, u: Tensor | None) -> Tensor:
    """The sum over time of the log densities of each step, `... x trials`."""
    v = None if u is None else dynamics.transition().drift.effective_inputs(u)
    first = dist.MultivariateNormal(
        dynamics.transition().first_mean(None if v is None else v[..., 0, :]), dynamics.initial_covariance
    )
    total = first.log_prob(z[..., 0, :])
    for t in range(1, z.shape[-2]):
        mean = dynamics(z[..., t - 1, :], None if v is None else v[..., t - 1, :])
        total = total + dist.MultivariateNormal(mean, dynamics.noise_covariance).log_prob(z[..., t, :])
    return total


@pytest.mark.parametrize("noise", ["scalar", "diagonal", "full"])
@pytest.mark.parametrize("options", INPUTS.values(), ids=INPUTS)
def test_log_density_is_the_sum_over_steps(options: dict[str, Any], noise: str, dtype: torch.dtype) -> None:
    dynamics = network(dtype, activation="tanh", noise=noise, **options)
    u = inputs_for(options, dtype)
    z = torch.randn(3, 4, 6, 2, dtype=dtype)
    assert_close(dynamics.trajectory(6, u).log_prob(z), log_prob_by_loop(dynamics, z, u), factor=20)


def test_log_density_and_its_gradient_match_the_loop_for_the_full_rank_network() -> None:
    dynamics = plr.FullRankRNN(units=4, activation="tanh", noise="full", dtype=torch.float64)
    z = torch.randn(3, 6, 4, dtype=torch.float64)
    actual, expected = dynamics.trajectory(6).log_prob(z), log_prob_by_loop(dynamics, z, None)
    assert_close(actual, expected)
    gradients = [
        torch.autograd.grad(value.sum(), list(dynamics.parameters()), retain_graph=True) for value in (actual, expected)
    ]
    for left, right in zip(*gradients, strict=True):
        assert_close(left, right)


@pytest.mark.parametrize("options", INPUTS.values(), ids=INPUTS)
def test_gradients_of_the_log_density_are_those_of_the_loop(options: dict[str, Any]) -> None:
    dynamics = network(activation="softplus", **options)
    u = inputs_for(options, torch.float64)
    z = torch.randn(4, 6, 2, dtype=torch.float64, requires_grad=True)
    at = [z, *dynamics.parameters()]
    actual = torch.autograd.grad(dynamics.trajectory(6, u).log_prob(z).sum(), at)
    expected = torch.autograd.grad(log_prob_by_loop(dynamics, z, u).sum(), at)
    for left, right in zip(actual, expected, strict=True):
        assert_close(left, right)
    assert torch.autograd.gradcheck(dynamics.trajectory(6, u).log_prob, z)


def test_a_value_without_batch_dims_meets_the_inputs_of_every_trial() -> None:
    # As many trials as transitions: a wrong alignment of the two would broadcast silently.
    dynamics, u = network(inputs=2), torch.randn(5, 6, 2, dtype=torch.float64)
    z = torch.randn(6, 2, dtype=torch.float64)
    trajectory = dynamics.trajectory(6, u)
    assert_close(trajectory.log_prob(z), trajectory.log_prob(z.expand(5, 6, 2)))


@pytest.mark.parametrize("name", ["left", "right", "bias", "input_weights", "initial_mean", "decay", "noise_scale"])
def test_batch_dims_of_any_sampled_parameter_are_particles_not_time(name: str, dtype: torch.dtype) -> None:
    # As many particles as transitions: a wrong alignment of the two would broadcast silently.
    dynamics = network(dtype, activation="tanh", inputs=2, input_filter=True, noise="diagonal")
    original = getattr(dynamics, name).detach()
    values = original * (0.5 + 0.4 * torch.rand(5, 1, *original.shape, dtype=dtype))
    u, z = torch.randn(4, 6, 2, dtype=dtype), torch.randn(5, 4, 6, 2, dtype=dtype)
    apart = []
    for k in range(5):
        setattr(dynamics, name, torch.nn.Parameter(values[k, 0]))
        apart.append(log_prob_by_loop(dynamics, z[k], u))
    setattr(dynamics, name, torch.nn.Parameter(values))
    trajectory = dynamics.trajectory(6, u)
    assert trajectory.batch_shape == (5, 4)
    assert trajectory.rsample().shape == (5, 4, 6, 2)
    assert trajectory.rsample((3,)).shape == (3, 5, 4, 6, 2)
    assert_close(trajectory.log_prob(z), torch.stack(apart), factor=20)


@pytest.mark.parametrize("noise", ["scalar", "full"])
def test_draws_of_a_linear_network_have_the_moments_of_the_closed_form(noise: str) -> None:
    dynamics = network(torch.float64, activation="identity", noise=noise, inputs=1, decay=0.6)
    u = torch.randn(1, 5, 1, dtype=torch.float64)
    with torch.no_grad():
        draws = dynamics.trajectory(5, u).rsample((40_000,))[:, 0]
        matrix = dynamics.decay * torch.eye(2) + dynamics.right @ dynamics.left
        mean, covariance = dynamics.transition().first_mean(u[0, 0]), dynamics.initial_covariance
        for t in range(5):
            if t:
                drive = dynamics.right @ (dynamics.input_weights @ u[0, t - 1] - dynamics.bias)
                mean = matrix @ mean + drive
                lagged = matrix @ covariance
                covariance = matrix @ covariance @ matrix.mT + dynamics.noise_covariance
                both = torch.cov(torch.cat([draws[:, t], draws[:, t - 1]], -1).mT)[:2, 2:]
                torch.testing.assert_close(both, lagged, rtol=0, atol=0.03 * float(covariance.diagonal().max()))
            spread = covariance.diagonal().sqrt()
            # Five standard errors of the mean; the covariance's are below 1 % of its scale.
            assert ((draws[:, t].mean(0) - mean).abs() < 5 * spread / 200).all()
            torch.testing.assert_close(
                torch.cov(draws[:, t].mT), covariance, rtol=0, atol=0.03 * float(covariance.diagonal().max())
            )


def test_draws_are_differentiable_in_the_parameters() -> None:
    dynamics = network(activation="tanh", inputs=2, noise="full")
    u = torch.randn(3, 4, 2, dtype=torch.float64)
    weight = torch.randn(3, 4, 2, dtype=torch.float64)
    assert dynamics.trajectory(4, u).has_rsample

    def value() -> Tensor:
        torch.manual_seed(1)
        return (weight * dynamics.trajectory(4, u).rsample()).sum()

    for parameter in dynamics.parameters():
        (gradient,) = torch.autograd.grad(value(), parameter)
        direction = torch.randn_like(parameter)
        step = 1e-6 * direction
        with torch.no_grad():
            parameter.add_(step)
            above = value()
            parameter.sub_(2 * step)
            below = value()
            parameter.add_(step)
        assert_close((gradient * direction).sum(), (above - below) / 2e-6, factor=1e4)


def test_expanding_adds_independent_trials(dtype: torch.dtype) -> None:
    dynamics = network(dtype, inputs=2)
    trajectory = dynamics.trajectory(6, torch.randn(4, 6, 2, dtype=dtype))
    larger = trajectory.expand(torch.Size((3, 4)))
    assert (larger.batch_shape, larger.event_shape) == ((3, 4), (6, 2))
    z = larger.rsample()
    assert z.shape == (3, 4, 6, 2)
    assert z.dtype == dtype
    assert not torch.equal(z[0], z[1])
    assert torch.equal(larger.log_prob(z), trajectory.log_prob(z))
    alone = network(dtype).trajectory(6)
    assert alone.batch_shape == ()
    assert alone.sample((3, 4)).shape == (3, 4, 6, 2)
    assert not alone.sample((3,)).requires_grad
    assert torch.equal(biject_to(alone.support)(z), z)


def test_a_trajectory_of_one_time_bin_is_the_first_latent(dtype: torch.dtype) -> None:
    for options in INPUTS.values():
        dynamics = network(dtype, **options)
        u = inputs_for(options, dtype, steps=1)
        z = dynamics.trajectory(1, u).sample(() if options else (4,))
        assert z.shape == (4, 1, 2)
        assert_close(dynamics.trajectory(1, u).log_prob(z), log_prob_by_loop(dynamics, z, u), factor=20)


def test_it_is_one_site_in_a_plate() -> None:
    dynamics = network(torch.float32)

    def program() -> None:
        with pyro.plate("trials", 20, subsample_size=4, dim=-1):
            pyro.sample("z", dynamics.trajectory(6))

    trace = pyro.poutine.trace(program).get_trace()
    trace.compute_log_prob()
    site = trace.nodes["z"]
    assert site["value"].shape == (4, 6, 2)
    assert_close(site["unscaled_log_prob"], log_prob_by_loop(dynamics, site["value"], None), factor=20)
    assert_close(site["log_prob_sum"], 5 * site["unscaled_log_prob"].sum(), factor=20)


@pytest.mark.parametrize("shape", [(4, 5, 2), (4, 6, 3), (6,)])
def test_a_value_of_another_length_or_rank_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"A trajectory has 6 time bins x 2 latents in its last dims, got shape \("):
        network(torch.float32).trajectory(6).log_prob(torch.zeros(shape))


@pytest.mark.parametrize(
    ("num_steps", "u", "error", "message"),
    [
        (6, None, ValueError, "built with inputs=2, but no inputs came; pass `u`"),
        (6, torch.zeros(4, 5, 2), ValueError, "`u` must be as long as the data, 6 time bins, got 5"),
        (6, torch.zeros(4, 7, 2), ValueError, "`u` must be as long as the data, 6 time bins, got 7"),
        (6, torch.zeros(6, 2), ValueError, r"`u` must have 3 dims, .* pass u\[None\]"),
        (6, torch.zeros(4, 6, 3), ValueError, "`u` must have 2 inputs in its last dim, .* got 3"),
        (6, torch.full((4, 6, 2), torch.inf), ValueError, "`u` holds 48 infinite values"),
        (6, torch.full((4, 6, 2), torch.nan), ValueError, "`u` holds NaN: inputs cannot be missing"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(
    num_steps: int, u: Tensor | None, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        network(torch.float32, inputs=2).trajectory(num_steps, u)


def test_a_trajectory_of_no_time_bins_is_refused() -> None:
    with pytest.raises(ValueError, match="`num_steps` must be at least 1, got num_steps=0"):
        network(torch.float32).trajectory(0)


def test_inputs_to_a_network_without_any_are_refused() -> None:
    with pytest.raises(ValueError, match="Inputs `u` came, but the dynamics were built with inputs=0"):
        network(torch.float32).trajectory(6, torch.zeros(4, 6, 2))


def test_batched_inputs_give_a_trajectory_for_each() -> None:
    dynamics = network(torch.float64, inputs=2)
    u, z = torch.randn(3, 4, 6, 2, dtype=torch.float64), torch.randn(3, 4, 6, 2, dtype=torch.float64)
    together = dynamics.trajectory(6, u)
    assert together.batch_shape == (3, 4)
    assert together.sample().shape == (3, 4, 6, 2)
    for animal in range(3):
        assert_close(together.log_prob(z)[animal], dynamics.trajectory(6, u[animal]).log_prob(z[animal]))
    with pytest.raises(ValueError, match="as long as the data, 5 time bins, got 6"):
        dynamics.trajectory(5, u)


@pytest.mark.parametrize("options", INPUTS.values(), ids=INPUTS)
def test_it_goes_on_from_latents_as_the_whole_does(options: dict[str, Any], dtype: torch.dtype) -> None:
    dynamics = network(dtype, activation="tanh", **options)
    u = inputs_for(options, dtype, steps=9)
    z = torch.randn(3, 4, 9, 2, dtype=dtype)
    whole = dynamics.trajectory(9, u).log_prob(z)
    begun = dynamics.trajectory(5, None if u is None else u[:, :5]).log_prob(z[..., :5, :])
    later = dynamics.trajectory(4, u, start=z[..., 4, :])
    assert later.batch_shape == (3, 4)
    assert_close(begun + later.log_prob(z[..., 5:, :]), whole, factor=50)
    # Draws are those of the density: whitened they are the numbers that they were made of.
    white = torch.randn(3, 4, 4, 2, dtype=dtype)
    assert_close(later.to_white(later.from_white(white)), white, factor=200)
    assert later.expand((2, 3, 4)).sample().shape == (2, 3, 4, 4, 2)


def test_starts_that_do_not_fit_are_told() -> None:
    dynamics = network(inputs=2)
    with pytest.raises(ValueError, match=r"`start` must hold latents, ... x rank with rank=2, got \(3, 5\)"):
        dynamics.trajectory(4, torch.zeros(3, 9, 2), start=torch.zeros(3, 5))
    with pytest.raises(ValueError, match="more than its 4 time bins, got 4"):
        dynamics.trajectory(4, torch.zeros(3, 4, 2), start=torch.zeros(3, 2))
    with pytest.raises(ValueError, match="no inputs came"):
        dynamics.trajectory(4, start=torch.zeros(3, 2))
