"""The recurrent encoder against torch's units, online, padded and saved."""

from __future__ import annotations

from pathlib import Path

import pyro
import pytest
import torch

import pyro_lowrank as plr
from pyro_lowrank.observations.observed import Observed
from tests.oracles.linear import kalman_filter, linear_model


def test_it_is_torchs_gru_and_a_linear_readout(dtype: torch.dtype) -> None:
    encoder = plr.GRUEncoder(4, 2, 7, sees_mask=True, dtype=dtype)
    units = torch.nn.GRU(8, 7, batch_first=True, dtype=dtype)
    with torch.no_grad():
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            getattr(units, f"{name}_l0").copy_(getattr(encoder, name))
    y, mask = torch.randn(3, 9, 4, dtype=dtype), torch.rand(3, 9, 4).lt(0.8).to(dtype)
    hidden, _ = units(torch.cat([y, 1 - mask], -1))
    expected = hidden @ encoder.weight.mT + encoder.bias
    torch.testing.assert_close(torch.cat(encoder(y, mask), -1), expected)


@pytest.mark.parametrize("constant", [False, True])
def test_online_it_proposes_what_it_does_offline(constant: bool) -> None:
    model = linear_model(noise_scale=1.0)
    y = model.simulate(3, 12).y
    y[0, 2] = y[1, 3:5, 1] = torch.nan
    encoder = plr.GRUEncoder(4, 2, 6, sees_mask=True, constant_variance=constant, dtype=torch.float64)
    with torch.no_grad():
        # Modest: an untrained encoder that is sure of itself misleads the particles.
        (encoder.log_variance if constant else encoder.bias[2:]).fill_(3.0)
    guide = plr.EncoderGuide(model, encoder)
    proposal = guide.bind(model.bind())
    offline = proposal.encode(Observed.of(y), None, first=True)
    for t in range(12):
        for name, value in proposal.encode_last(Observed.of(y[:, : t + 1]), first=t == 0).items():
            torch.testing.assert_close(value, offline[name][:, t])
    smc = plr.SMCFilter(model, guide, 20_000)
    smc.init(y[:, 0])
    for t in range(1, 12):
        if t == 5:
            state, smc = smc.state_dict(), plr.SMCFilter(model, guide, 20_000)
            smc.load_state_dict(state)
        smc.step(y[:, t])
    assert smc.state_dict()["memory.recording"].shape == (3, 12, 4)
    torch.testing.assert_close(smc.log_evidence, kalman_filter(model, y).increments.sum(0), rtol=0, atol=0.2)


@pytest.mark.parametrize("local", [False, True])
def test_svi_trains_every_parameter(local: bool, tmp_path: Path) -> None:
    with pyro.settings.context(module_local_params=local):
        model = linear_model()
        guide = plr.EncoderGuide(model, plr.GRUEncoder(4, 2, 5, dtype=torch.float64))
        y = model.simulate(2, 30).y
        before = {name: value.detach().clone() for name, value in guide.named_parameters()}
        pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), plr.SMC_ELBO(8)).step(y)
        assert len(before) == 6
        assert all(not torch.equal(value, before[name]) for name, value in guide.named_parameters())
    pyro.clear_param_store()
    plr.save(tmp_path / "m", model, guide)
    losses = []
    for pair in ((model, guide), plr.load(tmp_path / "m")):
        torch.manual_seed(0)
        losses.append(plr.SMC_ELBO(8).loss(*pair, y))
    assert losses[0] == losses[1]


def test_padding_changes_nothing() -> None:
    encoder = plr.GRUEncoder(4, 2, 6)
    y = torch.randn(2, 9, 4)
    short = encoder(y[:, :5])
    for padded, alone in zip(encoder(y), short, strict=True):
        torch.testing.assert_close(padded[:, :5], alone)
