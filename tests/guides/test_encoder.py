"""The encoder guide against dense Gaussian products and the exact evidence."""

from __future__ import annotations

from pathlib import Path

import pyro
import pytest
import torch

import pyro_lowrank as plr
from pyro_lowrank.encoders.convolutional import ConvEncoder
from pyro_lowrank.guides.base import Bin
from pyro_lowrank.guides.encoder import EncoderGuide
from tests.oracles.linear import kalman_filter, linear_model


@pytest.mark.parametrize("first", [True, False])
def test_density_and_weights_are_those_of_the_dense_product(first: bool, dtype: torch.dtype) -> None:
    model = linear_model(dtype=dtype)
    encoder = ConvEncoder(4, 2, (1,), (), dtype=dtype)
    bound = model.bind()
    proposal = EncoderGuide(model, encoder).bind(bound)
    noise = bound.transition.initial_noise if first else bound.transition.noise
    y, mean = torch.randn(3, 1, 4, dtype=dtype), torch.randn(5, 3, 2, dtype=dtype)
    encoding = {name: value[:, 0] for name, value in proposal.encode(y, None, first=first).items()}
    z, log_weights = proposal.propose(noise, mean, torch.randn_like(mean), Bin(y[:, 0], None, None, encoding))
    mu, log_variance = (part[:, 0] for part in encoder(y))
    q, s = noise.covariance, torch.diag_embed(log_variance.exp())
    p = torch.linalg.inv(torch.linalg.inv(q) + torch.linalg.inv(s))
    centre = mean @ torch.linalg.inv(q) + torch.einsum("bij,bj->bi", torch.linalg.inv(s), mu)
    dense = torch.distributions.MultivariateNormal(torch.einsum("bij,...bj->...bi", p, centre), p)
    tolerance = 1e-9 if dtype == torch.float64 else 1e-3
    likelihood = bound.emission.distribution(z).log_prob(y[:, 0])
    expected = likelihood + noise.around(mean).log_prob(z) - dense.log_prob(z)
    torch.testing.assert_close(log_weights, expected, rtol=tolerance, atol=tolerance)
    found = proposal.distribution(noise, mean, encoding).log_prob(z)
    torch.testing.assert_close(found, dense.log_prob(z), rtol=tolerance, atol=tolerance)


def test_evidence_converges_to_the_exact_one() -> None:
    model = linear_model(noise_scale=1.0)
    y = model.simulate(3, 8).y
    y[0, 2] = y[1, 3:5, 1] = y[2, 5:] = torch.nan
    encoder = ConvEncoder(4, 2, (3, 1), (5,), padding="centred", sees_mask=True, dtype=torch.float64)
    posterior = plr.SMCFilter(model, EncoderGuide(model, encoder), 20_000).run(y)
    torch.testing.assert_close(posterior.log_evidence, kalman_filter(model, y).increments.sum(0), rtol=0, atol=0.15)


@pytest.mark.parametrize("local", [False, True])
def test_svi_trains_every_parameter_of_the_encoder(local: bool) -> None:
    with pyro.settings.context(module_local_params=local):
        model = linear_model()
        guide = EncoderGuide(model, ConvEncoder(4, 2, dtype=torch.float64))
        before = {name: value.detach().clone() for name, value in guide.named_parameters()}
        svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), plr.SMC_ELBO(8))
        svi.step(model.simulate(2, 30).y)
        assert before
        assert all(not torch.equal(value, before[name]) for name, value in guide.named_parameters())


def test_a_loaded_guide_has_the_evidence_of_the_saved_one(tmp_path: Path) -> None:
    model = linear_model()
    y = model.simulate(2, 10).y
    guide = EncoderGuide(model, ConvEncoder(4, 2, (3, 1), (5,), constant_variance=True, dtype=torch.float64))
    plr.save(tmp_path / "m", model, guide)
    losses = []
    for pair in ((model, guide), plr.load(tmp_path / "m")):
        torch.manual_seed(0)
        losses.append(plr.SMC_ELBO(8).loss(*pair, y))
    assert losses[0] == losses[1]
