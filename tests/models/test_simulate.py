from __future__ import annotations

import pyro
import pytest
import torch

import pyro_lowrank as plr
from tests.builders import assert_close, gaussian_model, network


def test_a_simulation_starts_with_latents_and_recording(dtype: torch.dtype) -> None:
    simulation = gaussian_model(dtype).simulate(num_trials=4, num_steps=7)
    z, y, mean = simulation
    assert (simulation.z, simulation.y, simulation.mean) == (z, y, mean)
    assert (z.shape, y.shape, mean.shape) == ((4, 7, 2), (4, 7, 3), (4, 7, 3))
    assert {value.dtype for value in simulation} == {dtype}
    assert not any(value.requires_grad for value in simulation)


def test_the_seed_of_pyro_fixes_it() -> None:
    model = gaussian_model(torch.float32)
    draws = []
    for seed in (1, 1, 2):
        pyro.set_rng_seed(seed)
        draws.append(model.simulate(num_trials=3, num_steps=5))
    assert torch.equal(draws[0].z, draws[1].z)
    assert torch.equal(draws[0].y, draws[1].y)
    assert not torch.equal(draws[0].z, draws[2].z)


@pytest.mark.parametrize("input_filter", [False, True], ids=["direct", "filtered"])
def test_both_noises_have_their_covariance(input_filter: bool) -> None:
    model = gaussian_model(inputs=2, input_filter=input_filter, activation="tanh", noise="full")
    u = torch.randn(200, 40, 2, dtype=torch.float64)
    z, y, mean = model.simulate(u=u)
    assert z.shape == (200, 40, 2)
    v = model.dynamics.transition().drift.effective_inputs(u)
    with torch.no_grad():
        assert_close(mean, model.observation.mean(z, v))
        residual = z[:, 1:] - model.dynamics(z[:, :-1], v[:, :-1])
        covariance, variance = model.dynamics.noise_covariance, model.observation.noise_variance
    # Standard errors are 1.6 % of a variance.
    sample = torch.cov(residual.reshape(-1, 2).mT)
    torch.testing.assert_close(sample, covariance, rtol=0, atol=0.08 * covariance.max().item())
    torch.testing.assert_close((y - mean).reshape(-1, 3).var(0), variance, rtol=0.08, atol=0)
    assert (residual.mean((0, 1)).abs() < 5 * (covariance.diagonal() / 7800).sqrt()).all()


def test_counts_are_simulated_around_their_rates() -> None:
    model = plr.StateSpaceModel(network(torch.float32), plr.PoissonObservation(rank=2, features=3))
    _, y, mean = model.simulate(num_trials=50, num_steps=40)
    assert torch.equal(y, y.round())
    assert (y >= 0).all()
    assert ((y - mean).mean((0, 1)).abs() < 5 * (mean.mean((0, 1)) / 2000).sqrt()).all()


def test_an_observation_model_with_a_mean_of_its_own_is_asked_for_it() -> None:
    class Shifted(plr.Observation):
        def distribution(self, z: torch.Tensor, v: torch.Tensor | None = None) -> pyro.distributions.TorchDistribution:
            return pyro.distributions.StudentT(1.0, z).to_event(1)

        def mean(self, z: torch.Tensor, u: torch.Tensor | None = None) -> torch.Tensor:
            return z

    model = plr.StateSpaceModel(network(torch.float32), Shifted(features=2))
    z, _, mean = model.simulate(num_trials=4, num_steps=7)
    assert torch.equal(mean, z)


def test_what_cannot_be_simulated_is_refused() -> None:
    alone, driven = gaussian_model(torch.float32), gaussian_model(torch.float32, inputs=2)
    with pytest.raises(ValueError, match="`num_trials` must be at least 1, got num_trials=0"):
        alone.simulate(num_trials=0, num_steps=5)
    with pytest.raises(ValueError, match="`num_steps` must be at least 1, got num_steps=-1"):
        alone.simulate(num_steps=-1)
    with pytest.raises(ValueError, match="built with inputs=2, but no inputs came"):
        driven.simulate(num_trials=2, num_steps=5)
    with pytest.raises(ValueError, match="`u` must have 2 inputs in its last dim"):
        driven.simulate(u=torch.zeros(2, 5, 3))
    with pytest.raises(ValueError, match="Nothing tells how much to sample: pass `y`, `u`, or `num_steps`"):
        alone()
