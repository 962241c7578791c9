"""Products of the transition with an encoder's Gaussian, compiled, against tensor operations and autograd."""

from __future__ import annotations

import pytest
import torch

import pyro_lowrank as plr
from pyro_lowrank.guides.encoder import _combine
from pyro_lowrank.smc.compiled.products import EncoderProducts


@pytest.mark.parametrize("noise", ["full", "diagonal", "scalar"])
@pytest.mark.parametrize("rank", [1, 2, 4])
def test_values_and_gradients_equal_those_of_tensor_operations(rank: int, noise: str) -> None:
    dynamics = plr.LowRankRNN(rank=rank, units=9, noise=noise, initial_noise="full", dtype=torch.float64)
    with torch.no_grad():
        for name, parameter in dynamics.named_parameters():
            if "noise" in name:
                parameter += 0.3 * torch.randn_like(parameter)
    variance = (3 * torch.randn(3, 5, rank, dtype=torch.float64)).exp().requires_grad_()
    recorded = torch.rand(3, 5) < 0.7
    transition = dynamics.transition()
    noises = transition.initial_noise, transition.noise
    found = EncoderProducts.apply(recorded, variance, *(each.scale_tril for each in noises))
    plain = [
        _combine(each, variance[:, cut], recorded[:, cut, None])
        for each, cut in zip(noises, (slice(None, 1), slice(1, None)), strict=True)
    ]
    gain, scale = (torch.cat([part[name] for part in plain], 1) for name in ("gain", "scale_tril"))
    square = (3, 5, rank, rank)
    index = (torch.arange(5) > 0).long()
    factors = torch.stack([each.scale_tril for each in noises])
    own = scale.reshape(square).diagonal(dim1=-2, dim2=-1).log().sum(-1)
    constant = own - factors.diagonal(dim1=-2, dim2=-1).log().sum(-1)[index]
    metric = torch.cholesky_inverse(factors)[index].expand(square)
    expected = gain.reshape(square), scale.reshape(square), metric, constant
    leaves = [variance, *(p for name, p in dynamics.named_parameters() if "noise" in name)]
    upstream = [torch.randn_like(each) for each in expected]
    gradients = []
    for values in (found, expected):
        total = sum((value * grad).sum() for value, grad in zip(values, upstream, strict=True))
        gradients.append(torch.autograd.grad(total, leaves, retain_graph=True))
    torch.testing.assert_close(tuple(found), expected)
    torch.testing.assert_close(*gradients)


def test_nearly_exact_and_nearly_useless_encoders_in_single_precision() -> None:
    variance = torch.tensor([1e-8, 1e8]).expand(1, 4, 2).contiguous().requires_grad_()
    factor = torch.tensor([[1.0, 0.0], [0.999, 0.05]])
    gain, scale, _, _ = EncoderProducts.apply(torch.ones(1, 4, dtype=torch.bool), variance, factor, factor)
    torch.testing.assert_close(gain[0, 0, 0], torch.tensor([1.0, 0.0]))
    torch.testing.assert_close(scale[0, 0].diagonal(), torch.tensor([1e-4, 0.05]), rtol=1e-4, atol=0)
    (gain.sum() + scale.sum()).backward()
    assert variance.grad is not None
    assert variance.grad.isfinite().all()
