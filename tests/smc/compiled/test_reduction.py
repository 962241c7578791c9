"""A recording reduced in compiled loops: the plain proposal's tables, and gradients as of finite differences."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import pyro_lowrank as plr
from tests.builders import assert_close, gaussian_model

pytest.importorskip("numba")

from pyro_lowrank.guides.base import Guide
from pyro_lowrank.smc.compiled.reduction import Bins, ReducedRecording
from pyro_lowrank.smc.compiled.tables import tables_of


def recording(features: int, *, missing: bool, dtype: torch.dtype = torch.float64) -> Tensor:
    y = torch.randn(3, 5, features, dtype=dtype)
    if missing:
        y[0, 2, 1] = y[1, 0, :2] = y[2, 3] = torch.nan
    return y


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("features", [1, 2, 5, 20])
def test_tables_are_those_of_the_plain_proposal(features: int, missing: bool, dtype: torch.dtype) -> None:
    """The letters of the two differ, and so does the plain path's form where there are fewer features than latents."""
    model = gaussian_model(dtype, features=features, rank=3)
    guide: Guide = plr.OptimalGuide(model)
    bound = model.bind()
    proposal: Any = guide.bind(bound)
    y = recording(features, missing=missing and features > 1, dtype=dtype)
    tables = tables_of(proposal, bound.transition, y, None)
    assert tables is not None
    plain = {name: value.expand(3, -1, -1) for name, value in proposal.encode(y, None, first=True).items()}
    number = tables.index.reshape(-1)
    scale, metric = (part[number].unflatten(0, y.shape[:2]) for part in (tables.scale, tables.metric))
    factor = 100.0 if dtype == torch.float32 else 1000.0
    assert_close(scale.flatten(-2), plain["scale_tril"], factor=factor)
    assert_close(metric.flatten(-2), plain["curvature"], factor=factor)
    # The references may differ: what the two say of any latent m may not.
    for mean in (torch.zeros(3, dtype=dtype), torch.randn(3, dtype=dtype)):
        delta = mean - tables.reference
        curved = (metric @ delta.unsqueeze(-1)).squeeze(-1)
        log_weight = tables.constant + ((tables.linear - 0.5 * curved) * delta).sum(-1)
        loc = mean + tables.shift - (tables.gain[number].unflatten(0, y.shape[:2]) @ delta.unsqueeze(-1)).squeeze(-1)
        for t, noise in enumerate([bound.transition.initial_noise, *[bound.transition.noise] * 4]):
            at_t = {name: value[:, t] for name, value in plain.items()}
            expected = proposal._mean_and_weight(noise, mean.expand(1, 3, 3), at_t)
            assert_close(loc[:, t], expected[0][0], factor=factor)
            assert_close(log_weight[:, t], expected[1][0], factor=factor)


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("per_bin", [False, True])
def test_gradient_is_that_of_finite_differences(missing: bool, per_bin: bool) -> None:
    rank, features = 2, 4
    y = recording(features, missing=missing)
    weight, variance = torch.randn(features, rank, dtype=y.dtype), torch.rand(features, dtype=y.dtype) + 0.5
    offset = torch.randn(y.shape if per_bin else y.shape[-1:], dtype=y.dtype)
    factors = [torch.randn(rank, rank, dtype=y.dtype).tril() + 2 * torch.eye(rank, dtype=y.dtype) for _ in range(2)]
    bins, latent = Bins.of(y), torch.randn(rank, dtype=y.dtype)
    index = torch.from_numpy(bins.index)

    def said_of_a_latent(*tensors: Tensor) -> tuple[Tensor, ...]:
        """What does not depend on the reference, whose gradient is left out."""
        first, last = (factor.tril() for factor in tensors[3:])
        reference, shift, linear, constant, gain, scale, metric = ReducedRecording.apply(
            bins, *tensors[:3], first, last
        )
        delta = latent - reference
        curved, moved = ((each[index] @ delta.unsqueeze(-1)).squeeze(-1) for each in (metric, gain))
        return latent + shift - moved, constant + ((linear - 0.5 * curved) * delta).sum(-1), scale, metric, gain

    inputs = tuple(each.requires_grad_() for each in (weight, variance, offset, *factors))
    assert torch.autograd.gradcheck(said_of_a_latent, inputs, atol=1e-6, rtol=1e-5)
