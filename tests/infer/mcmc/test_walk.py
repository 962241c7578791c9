"""Steps uphill have the density that they are drawn with, and find the top of a hill that blind ones take long to."""

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch

import pyro_lowrank as plr
from pyro_lowrank.infer.mcmc.pmmh import LangevinSteps
from pyro_lowrank.infer.mcmc.walk import AdaptiveLangevin, AdaptiveWalk
from tests.infer.mcmc.test_kernels import model_with_priors
from tests.oracles.linear import exact_log_evidence
from tests.oracles.posterior_grid import model_and_data, put_priors

Values = dict[str, torch.Tensor]


def a_walk(kind: type[AdaptiveWalk]) -> AdaptiveWalk:
    """One that has learnt a covariance."""
    walk = kind({"a": torch.zeros(2), "b": torch.zeros(())}, 0.3, 0.4)
    for _ in range(50):
        walk.adapt({"a": torch.randn(2) * torch.tensor([1.0, 3.0]), "b": torch.randn(())}, 0.4)
    return walk


def here(*values: float) -> Values:
    return {"a": torch.tensor(values[:2]), "b": torch.tensor(values[2])}


@pytest.mark.parametrize("slope", [0.3, 300.0])
def test_the_way_back_is_weighed_against_the_way_there(slope: float) -> None:
    walk = a_walk(AdaptiveLangevin)
    one, other = here(0.1, -0.4, 0.5), here(0.6, 0.3, -0.2)
    up, up_there = here(slope, -slope, 0.5 * slope), here(-0.2 * slope, slope, slope)
    root = walk.scale * walk._root()

    def density(start: Values, uphill: Values, end: Values) -> torch.Tensor:
        flat = {name: torch.cat([x["a"], x["b"].reshape(1)]).double() for name, x in (("start", start), ("end", end))}
        mean = flat["start"] + root @ walk._white_drift(uphill)
        return dist.MultivariateNormal(mean, scale_tril=root).log_prob(flat["end"])

    expected = density(other, up_there, one) - density(one, up, other)
    assert walk.log_ratio(one, up, other, up_there) == pytest.approx(expected.item(), rel=1e-6)
    # Draws have that mean.
    drawn = torch.stack([torch.cat([x["a"], x["b"].reshape(1)]) for x in (walk.propose(one, up) for _ in range(4000))])
    mean = torch.tensor([0.1, -0.4, 0.5]) + (root @ walk._white_drift(up)).float()
    error = (root @ root.mT).diagonal().sqrt() / 4000**0.5
    assert ((drawn.mean(0) - mean).abs() / error).max() < 4.5
    assert walk._white_drift(up).norm() <= 2.0 + 1e-6


def test_blind_steps_are_as_likely_back_as_there() -> None:
    walk = a_walk(AdaptiveWalk)
    assert walk.log_ratio(here(0.0, 0.0, 0.0), {}, here(1.0, 2.0, 3.0), {}) == 0.0


def test_slopes_are_those_of_the_exact_evidence() -> None:
    model, y = model_and_data(3, 6)
    y = y.nan_to_num(nan=0.3)
    put_priors(model)
    kernel = plr.PMMH(model, plr.OptimalGuide(model), 400, steps=LangevinSteps(300))
    kernel.setup(0, y)
    theta = {name: value for name, value in kernel.initial_params.items() if name != "z"}
    kernel._sampled.assign(theta)
    found = kernel._slope(theta, kernel._smc.run(y))
    leaves = {name: value.clone().requires_grad_() for name, value in theta.items()}
    exact = kernel._sampled.at(leaves)[0] + exact_log_evidence(kernel._sampled.model, y).sum()
    for name, slope in zip(leaves, torch.autograd.grad(exact, list(leaves.values())), strict=True):
        torch.testing.assert_close(found[name], slope, rtol=0.1, atol=0.4)


def test_steps_of_another_kind_are_told() -> None:
    with pytest.raises(TypeError, match=r"`steps` must be LangevinSteps\(...\) or None"):
        plr.PMMH(model_with_priors(), steps=0.1)
    with pytest.raises(ValueError, match="num_paths"):
        LangevinSteps(0)
