"""Non-centred trajectories: the same model, in coordinates that are independent before the data come."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoNormal, init_to_value
from pyro.nn import PyroSample

import pyro_lowrank as plr
from tests.builders import assert_close
from tests.oracles.linear import linear_model


def non_centred(program: Any) -> Any:
    return poutine.reparam(program, config={"z": plr.TrajectoryReparam()})


@pytest.mark.parametrize("noise", ["scalar", "diagonal", "full"])
@pytest.mark.parametrize("inputs", [0, 2])
def test_white_noise_and_trajectories_are_functions_of_each_other(noise: str, inputs: int, dtype: torch.dtype) -> None:
    dynamics = plr.LowRankRNN(rank=2, units=7, activation="tanh", noise=noise, inputs=inputs, dtype=dtype)
    u = torch.randn(3, 6, inputs, dtype=dtype) if inputs else None
    trajectory = dynamics.trajectory(6, u).expand((3,))
    white = torch.randn(4, 3, 6, 2, dtype=dtype)
    z = trajectory.from_white(white)
    assert_close(trajectory.to_white(z), white, factor=200)
    # A change of variables: the densities differ by the volume, which does not depend on the trajectory.
    volume = sum(
        number * covariance.logdet() / 2
        for number, covariance in ((1, dynamics.initial_covariance), (5, dynamics.noise_covariance))
    )
    log_white = dist.Normal(0.0, 1.0).log_prob(white).sum((-1, -2))
    assert_close(trajectory.log_prob(z), log_white - volume, factor=200)


def test_the_program_has_the_joint_density_of_noise_and_data() -> None:
    model = linear_model(dtype=torch.float64)
    y = model.simulate(3, 6).y
    trace = poutine.trace(non_centred(model)).get_trace(y)
    z, white = trace.nodes["z"]["value"], trace.nodes["z_white"]["value"]
    expected = dist.Normal(0.0, 1.0).log_prob(white).sum() + model.observation.distribution(z).log_prob(y).sum()
    torch.testing.assert_close(trace.log_prob_sum(), expected)
    # Gradients pass to the dynamics through the latents.
    assert torch.autograd.grad(trace.log_prob_sum(), model.dynamics.right)[0].abs().sum() > 0


def test_draws_of_both_forms_are_of_one_law() -> None:
    model = linear_model(dtype=torch.float64, noise_scale=0.8)
    draws = [
        Predictive(program, num_samples=1, return_sites=("z",))(num_trials=4000, num_steps=4)["z"][0].flatten(1)
        for program in (model, non_centred(model))
    ]
    first, second = (each.mean(0) for each in draws)
    error = (first - second) / ((draws[0].var(0) + draws[1].var(0)) / 4000).sqrt()
    assert error.abs().max() < 4.5
    ratio = torch.linalg.eigvals(torch.linalg.solve(torch.cov(draws[0].mT), torch.cov(draws[1].mT))).real
    assert ((ratio - 1).abs() < 0.2).all()


def test_mean_field_guides_take_it() -> None:
    model = linear_model()
    y = model.simulate(3, 6)
    guide = AutoNormal(non_centred(model), init_loc_fn=init_to_value(values={"z_white": torch.zeros(3, 6, 2)}))
    svi = SVI(non_centred(model), guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())
    assert all(torch.isfinite(torch.tensor(svi.step(y.y))) for _ in range(3))


def test_nuts_samples_noise_that_few_data_tell_little_of() -> None:
    dynamics = plr.LowRankRNN(rank=2, units=7, noise="diagonal")
    model = plr.StateSpaceModel(dynamics, plr.GaussianObservation(rank=2, features=3))
    dynamics.noise_scale = PyroSample(dist.LogNormal(-torch.ones(2), 0.5).to_event(1))
    y = torch.randn(1, 5, 3)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    mcmc = MCMC(NUTS(non_centred(model), max_tree_depth=3), num_samples=5, warmup_steps=5, disable_progbar=True)
    mcmc.run(y)
    draws = mcmc.get_samples()
    assert set(draws) == {"dynamics.noise_scale", "z_white"}
    assert draws["z_white"].isfinite().all()


def test_what_has_no_non_centred_form_is_told() -> None:
    heavy = plr.StateSpaceModel(
        plr.LowRankRNN(rank=2, units=5, noise_freedom=4.0), plr.GaussianObservation(rank=2, features=3)
    )
    with pytest.raises(ValueError, match="Heavy-tailed noise"):
        poutine.trace(non_centred(heavy)).get_trace(torch.randn(2, 4, 3))
    pyro.clear_param_store()
    model = linear_model()
    y = model.simulate(2, 4)
    with pytest.raises(ValueError, match="'z' is observed"):
        poutine.trace(non_centred(poutine.condition(model, data={"z": y.z}))).get_trace(y.y)
    wrong = poutine.reparam(model, config={"y": plr.TrajectoryReparam()})
    with pytest.raises(TypeError, match="is for trajectories of latents"):
        poutine.trace(wrong).get_trace(y.y)
