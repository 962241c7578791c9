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
from pyro_lowrank.observations.observed import Observed
from tests.oracles.linear import kalman_filter, linear_model


@pytest.mark.parametrize("first", [True, False])
def test_density_and_weights_are_those_of_the_dense_product(first: bool, dtype: torch.dtype) -> None:
    model = linear_model(dtype=dtype)
    encoder = ConvEncoder(4, 2, (1,), (), dtype=dtype)
    bound = model.bind()
    proposal = EncoderGuide(model, encoder).bind(bound)
    noise = bound.transition.initial_noise if first else bound.transition.noise
    y, mean = torch.randn(3, 1, 4, dtype=dtype), torch.randn(5, 3, 2, dtype=dtype)
    encoding = {name: value[:, 0] for name, value in proposal.encode(Observed.of(y), None, first=first).items()}
    z, log_weights = proposal.propose(noise, mean, torch.randn_like(mean), Bin(Observed.of(y[:, 0]), None, encoding))
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


@pytest.mark.parametrize("padding_mode", ["zeros", "replicate"])
def test_a_causal_encoder_proposes_online_what_it_does_offline(padding_mode: str) -> None:
    model = linear_model(noise_scale=1.0)
    y = model.simulate(3, 12).y
    y[0, 2] = y[1, 3:5, 1] = torch.nan
    encoder = ConvEncoder(4, 2, (4, 3, 1), (5, 6), padding_mode=padding_mode, sees_mask=True, dtype=torch.float64)
    guide = EncoderGuide(model, encoder)
    bound = model.bind()
    proposal = guide.bind(bound)
    offline = proposal.encode(Observed.of(y), None, first=True)
    back = proposal.online_lookback()
    assert back == 5
    for t in range(12):
        online = proposal.encode_last(Observed.of(y[:, max(0, t - back) : t + 1]), first=t == 0)
        for name, value in online.items():
            torch.testing.assert_close(value, offline[name][:, t])


def test_the_online_filter_remembers_what_the_encoder_reads() -> None:
    """Evidence by online steps and by a run, each without resampling: the same particles from the same numbers."""
    model = linear_model(noise_scale=1.0)
    y = model.simulate(3, 9).y
    guide = EncoderGuide(model, ConvEncoder(4, 2, (3, 2), (5,), dtype=torch.float64))
    white = torch.randn(9, 400, 3, 2, dtype=torch.float64)
    found = []
    for online in (False, True):
        draws = iter(white.unbind(0)) if online else None

        def draw(kernel: object, steps: int, trials: int, draws: object = draws) -> torch.Tensor:
            return white if draws is None else next(draws).unsqueeze(0)  # type: ignore[call-overload, no-any-return]

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("pyro_lowrank.smc.plain.PlainKernel.draw_white", draw)
            smc = plr.SMCFilter(model, guide, 400, resampler=plr.NoResampling(), backend="plain")
            if not online:
                found.append(smc.run(y).log_evidence)
                continue
            smc.init(y[:, 0])
            for t in range(1, 9):
                if t == 4:
                    state, smc = smc.state_dict(), plr.SMCFilter(model, guide, 400, resampler=plr.NoResampling())
                    smc.load_state_dict(state)
                smc.step(y[:, t])
            found.append(smc.log_evidence)
    torch.testing.assert_close(found[1], found[0])


def test_an_encoder_that_looks_ahead_or_does_not_say_is_refused_online() -> None:
    model = linear_model()
    y_t = torch.zeros(2, 4, dtype=torch.float64)
    ahead = EncoderGuide(model, ConvEncoder(4, 2, (3,), (), padding="centred", dtype=torch.float64))
    with pytest.raises(ValueError, match="looks 1 time bins ahead"):
        plr.SMCFilter(model, ahead, 5).init(y_t)

    class Own(torch.nn.Module):
        def forward(self, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return y[..., :2], y[..., 2:]

    with pytest.raises(ValueError, match=r"Own cannot be used online.*`lookback`"):
        plr.SMCFilter(model, EncoderGuide(model, Own()), 5).init(y_t)
