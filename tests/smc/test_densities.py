"""Log densities of many normal numbers are torch's, however their parameters broadcast."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import pyro_lowrank.smc.densities as densities
from tests.builders import assert_close

pytest.importorskip("numba")

# Shapes of value, location and scale: particles x trials x features.
BROADCAST = [
    ((200, 3, 20), (200, 3, 20), (200, 3, 20)),
    ((3, 20), (200, 3, 20), ()),
    ((20,), (200, 3, 20), (20,)),
    ((3, 1), (200, 3, 20), (3, 1)),
    ((200, 3, 20), (20,), (200, 1, 1)),
    ((1, 3, 20), (200, 1, 20), (3, 20)),
]


@pytest.fixture
def torchs(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Collects the calls of torch's own log density."""
    calls: list[Any] = []
    own = dist.Normal.log_prob

    def log_prob(self: Any, value: Tensor) -> Tensor:
        calls.append(value)
        return own(self, value)

    monkeypatch.setattr(dist.Normal, "log_prob", log_prob)
    return calls


@pytest.mark.parametrize("events", [1, 2])
@pytest.mark.parametrize("shapes", BROADCAST)
def test_they_are_those_of_torch(shapes: Any, events: int, dtype: torch.dtype, torchs: list[Any]) -> None:
    value, location, scale = (torch.randn(shape, dtype=dtype) for shape in shapes)
    density = dist.Normal(location, 0.5 + scale.square()).to_event(events)
    if value.dim() < events:
        value = value.unsqueeze(0)
    with torch.no_grad():
        found = densities.log_prob(density, value)
    # Repeated along particles, the parameters are as many numbers as the value must be broadcast to.
    assert bool(torchs) == (density.base_dist.batch_shape != (200, 3, 20))
    expected = density.log_prob(value)
    assert found.shape == expected.shape
    assert_close(found, expected, factor=100)


def test_gradients_are_left_to_torch(torchs: list[Any]) -> None:
    location = torch.randn(200, 3, 20, requires_grad=True)
    density = dist.Normal(location, 1.0).to_event(1)
    densities.log_prob(density, torch.zeros(20)).sum().backward()
    assert torchs
    torch.testing.assert_close(location.grad, -location.detach())


@torch.no_grad()
def test_what_is_no_number_is_left_to_torch_which_says_so() -> None:
    value = torch.zeros(200, 3, 20)
    value[5, 1, 2] = torch.nan
    with pytest.raises(ValueError, match="support"):
        densities.log_prob(dist.Normal(torch.zeros(200, 3, 20), 1.0, validate_args=True).to_event(1), value)


@torch.no_grad()
@pytest.mark.parametrize(
    "density",
    [
        dist.Laplace(torch.zeros(200, 3, 20), 1.0).to_event(1),
        dist.Normal(torch.zeros(200, 3, 20), 1.0),
        dist.Normal(torch.zeros(200, 3, 20), 1.0).to_event(1).mask(torch.tensor(False)),
        dist.Normal(torch.zeros(200, 3, 20), 1.0).mask(torch.arange(20) > 3).to_event(1),
    ],
    ids=["laplace", "no event", "masked", "masked features"],
)
def test_other_densities_are_left_alone(density: Any) -> None:
    value = torch.randn(200, 3, 20)
    torch.testing.assert_close(densities.log_prob(density, value), density.log_prob(value))


@torch.no_grad()
def test_inside_a_transform_of_torch() -> None:
    location = torch.randn(4, 200, 3, 20)

    def log_prob(m: Tensor) -> Tensor:
        return densities.log_prob(dist.Normal(m, 1.0, validate_args=False).to_event(1), torch.zeros(20))

    assert_close(torch.vmap(log_prob)(location), log_prob(location), factor=100)


@pytest.mark.parametrize("events", [1, 2])
@pytest.mark.parametrize("shapes", [((3, 20), (7, 3, 20)), ((7, 3, 20), (7, 3, 20)), ((20,), (3, 20))])
def test_poisson_counts_have_the_density_and_gradient_of_torch(shapes: Any, events: int, dtype: torch.dtype) -> None:
    rate = (0.1 + torch.randn(shapes[1], dtype=dtype).square()).requires_grad_()
    value = torch.poisson(2 * torch.ones(shapes[0], dtype=dtype))
    density = dist.Poisson(rate).to_event(events)
    found, expected = densities.log_prob(density, value), density.log_prob(value)
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected)
    gradients = [torch.autograd.grad(each.sum(), rate)[0] for each in (found, expected)]
    torch.testing.assert_close(*gradients)


def test_counts_that_are_none_are_refused_as_by_torch() -> None:
    density = dist.Poisson(torch.ones(5, 3), validate_args=True).to_event(1)
    with pytest.raises(ValueError, match="support"):
        densities.log_prob(density, torch.full((3,), -1.0))


@pytest.mark.parametrize(
    "family",
    [
        lambda x: dist.Bernoulli(logits=x),
        lambda x: dist.Binomial(5, probs=x.sigmoid()),
        lambda x: dist.Exponential(x.exp()),
        lambda x: dist.Gamma(x.exp(), 2.0),
        lambda x: dist.Laplace(x, x.exp()),
        lambda x: dist.NegativeBinomial(3, logits=x),
        lambda x: dist.Normal(x, 0.5),
        lambda x: dist.Poisson(x.exp()),
        lambda x: dist.StudentT(4.0, x, 0.5),
        lambda x: dist.MultivariateNormal(x, torch.eye(4)),
    ],
)
@pytest.mark.parametrize("events", [0, 1])
def test_what_plates_have_repeated_has_the_density_and_gradient_of_torch(family: Any, events: int) -> None:
    x = torch.randn(3, 4, requires_grad=True)
    own = family(x)
    own = own.to_event(min(events, len(own.batch_shape) - 1)) if len(own.batch_shape) > 1 else own
    repeated = own.expand((5, 2, *own.batch_shape))
    for value in (own.sample(), repeated.sample()):
        found, expected = densities.log_prob(repeated, value), repeated.log_prob(value)
        assert found.shape == expected.shape
        torch.testing.assert_close(found, expected)
        gradients = [torch.autograd.grad(each.sum(), x, retain_graph=True)[0] for each in (found, expected)]
        torch.testing.assert_close(*gradients)
