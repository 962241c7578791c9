"""The density along a pinned path is that of Pyro's own trace; right vectors are integrated out, and drawn, exactly."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.nn import PyroSample
from torch import Tensor

import pyro_lowrank as plr
from pyro_lowrank.infer.mcmc.marginal import RightVectors, without
from pyro_lowrank.infer.mcmc.potential import Potential
from pyro_lowrank.infer.mcmc.sampled import Sampled, own_store
from pyro_lowrank.models.priors import with_priors


def sampled_of(model: plr.StateSpaceModel) -> Sampled:
    return Sampled(model, plr.BootstrapGuide(model), pyro_init)


def pyro_init(site: Any) -> Any:
    return site["fn"].sample()


def gaussian(**options: Any) -> plr.StateSpaceModel:
    dynamics = plr.LowRankRNN(rank=2, units=5, inputs=1, dtype=torch.float64, **options)
    observation = plr.GaussianObservation(rank=2, features=3, inputs=1, dtype=torch.float64)
    return with_priors(plr.StateSpaceModel(dynamics, observation))


def depends() -> plr.StateSpaceModel:
    model = gaussian(noise="diagonal")
    model.dynamics.bias = PyroSample(
        lambda self: dist.Normal(self.right.sum(-2), torch.tensor(0.3, dtype=torch.float64)).to_event(1)
    )
    return model


def draws_more() -> plr.StateSpaceModel:
    """A prior that draws from another one, in a function of the user's."""
    model = gaussian(noise="scalar")

    def prior(self: Any) -> Any:
        import pyro

        spread = pyro.sample("spread", dist.LogNormal(torch.zeros((), dtype=torch.float64), 0.1))
        return dist.Normal(torch.zeros(5, dtype=torch.float64), spread).to_event(1)

    model.dynamics.bias = PyroSample(prior)
    return model


def remembers() -> plr.StateSpaceModel:
    dynamics = plr.LowRankRNN(rank=2, units=5, inputs=1, input_filter=True, dtype=torch.float64)
    observation = plr.GaussianObservation(rank=2, features=3, noise="autoregressive", order=2, dtype=torch.float64)
    model = plr.StateSpaceModel(dynamics, observation)
    return with_priors(model, only=["dynamics.decay", "dynamics.left", "observation.readout.bias"])


def counts() -> plr.StateSpaceModel:
    dynamics = plr.LowRankRNN(rank=2, units=5, inputs=1, noise_freedom=4.0, dtype=torch.float64)
    return with_priors(plr.StateSpaceModel(dynamics, plr.PoissonObservation(rank=2, features=3, dtype=torch.float64)))


MODELS = {"gaussian": gaussian, "depends": depends, "more": draws_more, "memory": remembers, "counts": counts}


def data(name: str) -> tuple[Tensor, Tensor, Tensor]:
    z, u = torch.randn(3, 6, 2).double(), torch.randn(3, 6, 1).double()
    y = torch.poisson(torch.ones(3, 6, 3)).double() if name == "counts" else torch.randn(3, 6, 3).double()
    y[0, 2] = y[1, 3, 1] = torch.nan
    y[2, -2:] = torch.nan
    return y, u, z


def by_pyro(sampled: Sampled, theta: dict[str, Tensor], y: Tensor, u: Tensor, z: Tensor) -> Tensor:
    """Minus the log density of unconstrained values, by a trace of the program."""
    values = sampled.constrained(theta)
    trace = poutine.trace(poutine.condition(sampled.program, data={**values, "z": z})).get_trace(y, u)
    jacobian = sum(t.log_abs_det_jacobian(values[n], theta[n]).sum() for n, t in sampled.transforms.items())
    return jacobian - trace.log_prob_sum()


@pytest.mark.parametrize("name", MODELS)
def test_the_density_and_its_gradient_are_those_of_the_program(name: str) -> None:
    y, u, z = data(name)
    with own_store():
        sampled = sampled_of(MODELS[name]())
        potential = Potential(sampled, y, u)
        potential.z = z
        for _ in range(2):
            theta = {key: value.requires_grad_() for key, value in sampled.start().items()}
            values = [function(theta) for function in (potential, lambda x: by_pyro(sampled, x, y, u, z))]
            torch.testing.assert_close(values[0], values[1])
            slopes = [torch.autograd.grad(value, list(theta.values())) for value in values]
            torch.testing.assert_close(slopes[0], slopes[1])


@pytest.mark.parametrize("noise", ["scalar", "diagonal", "full"])
def test_right_vectors_are_integrated_out(noise: str) -> None:
    y, u, z = data("gaussian")
    with own_store():
        sampled = sampled_of(gaussian(noise=noise))
        block = RightVectors.of(sampled)
        assert block is not None
        potential = Potential(sampled, y, u, block)
        potential.z = z
        theta = sampled.start()
        rest = without(theta, block)
        collapsed = potential(rest)
        # The integral is the joint density over that of the right vectors given all else, at any of them.
        potential.block = None
        transition = sampled.at(theta)[1].transition
        found = block.block(transition, z[:, :-1], z[:, 1:], u[:, :-1])
        precision = found.factor @ found.factor.mT
        for _ in range(3):
            right = torch.randn(2, 5).double()
            given = dist.MultivariateNormal(found.mean, precision_matrix=precision).log_prob(right.flatten())
            whole = potential({**rest, block.name: right})
            # U of what is left counts the prior of the vectors that stay in place.
            filler = potential._filler[block.name]
            prior = dist.Normal(0.0, 5**-0.5).log_prob(filler).sum()
            torch.testing.assert_close(collapsed, whole + given - prior, rtol=1e-8, atol=1e-8)


def test_right_vectors_are_drawn_from_their_posterior() -> None:
    _, u, z = data("gaussian")
    with own_store():
        sampled = sampled_of(gaussian(noise="full"))
        block = RightVectors.of(sampled)
        assert block is not None
        transition = sampled.at(sampled.start())[1].transition
    found = block.block(transition, z[:, :-1], z[:, 1:], u[:, :-1])
    # By least squares over the noise's own units, in dense form.
    rates = transition.drift.rates(z[:, :-1], u[:, :-1]).reshape(-1, 1, 5)
    shifts = (z[:, 1:] - transition.drift.decay * z[:, :-1]).reshape(-1, 2)
    white = torch.linalg.inv(transition.noise.scale_tril)
    design = (white[None, :, :, None] * rates[:, :, None]).reshape(-1, 10)
    precision = design.mT @ design + 5 * torch.eye(10).double()
    mean, covariance = torch.linalg.solve(precision, design.mT @ (shifts @ white.mT).flatten()), precision.inverse()
    torch.testing.assert_close(found.mean, mean)
    drawn = torch.stack([block.drawn(found).flatten() for _ in range(4000)])
    off = (drawn.mean(0) - mean) / (covariance.diagonal() / len(drawn)).sqrt()
    assert off.abs().max() < 4.5
    torch.testing.assert_close(drawn.mT.cov(), covariance, rtol=0.15, atol=0.06 * covariance.max().item())


def test_vectors_that_others_depend_on_stay_parameters() -> None:
    with own_store():
        assert RightVectors.of(sampled_of(depends())) is None
        assert RightVectors.of(sampled_of(draws_more())) is None
        assert RightVectors.of(sampled_of(counts())) is None
        assert RightVectors.of(sampled_of(remembers())) is None
        assert RightVectors.of(sampled_of(gaussian())) is not None
