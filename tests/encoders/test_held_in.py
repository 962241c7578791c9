"""An encoder of some neurons, under a likelihood of all: what it sees, and what it predicts of the others."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

import pyro_lowrank as plr
from pyro_lowrank.metrics import bits_per_spike
from tests.builders import network, shaken


@pytest.mark.parametrize("sees_mask", [False, True])
def test_it_sees_the_held_in_features_only(sees_mask: bool) -> None:
    inner = plr.ConvEncoder(3, 2, (3, 1), (4,), sees_mask=sees_mask)
    encoder = plr.HeldIn(inner, (4, 0, 2))
    y, mask = torch.randn(2, 7, 5), torch.ones(2, 7, 5)
    mask[0, 2, 4] = 0.0
    expected = inner(y[..., [4, 0, 2]], mask[..., [4, 0, 2]])
    y[..., [1, 3]] = mask[..., [1, 3]] = 0.0
    for found, direct in zip(encoder(y, mask), expected, strict=True):
        assert torch.equal(found, direct)
    assert (encoder.lookback, encoder.lookahead, encoder.rank) == (2, 0, 2)


def test_hiding_the_others_changes_no_proposal_online_or_offline(tmp_path: Path) -> None:
    model = plr.StateSpaceModel(network(torch.float32), shaken(plr.PoissonObservation(rank=2, features=5), 0.1))
    guide = plr.EncoderGuide(model, plr.HeldIn(plr.ConvEncoder(3, 2, (3, 1), (4,), sees_mask=True), (4, 0, 2)))
    y = model.simulate(3, 8).y
    hidden = y.clone()
    hidden[..., [1, 3]] = torch.nan
    codes = [guide.encode(data) for data in (y, hidden)]
    assert all(torch.equal(codes[0][name], codes[1][name]) for name in codes[0])
    smc = plr.SMCFilter(model, guide, 20)
    smc.init(y[:, 0])
    smc.step(y[:, 1])
    plr.save(tmp_path / "m", model, guide)
    again, guide_again = plr.load(tmp_path / "m")
    torch.manual_seed(0)
    first = plr.SMCFilter(model, guide, 20).run(y).log_evidence
    torch.manual_seed(0)
    assert torch.equal(plr.SMCFilter(again, guide_again, 20).run(y).log_evidence, first)


def test_bad_indices_are_refused() -> None:
    with pytest.raises(ValueError, match="as many features as the encoder has, 3, got 2"):
        plr.HeldIn(plr.ConvEncoder(3, 2), (0, 1))
    with pytest.raises(ValueError, match="distinct"):
        plr.HeldIn(plr.ConvEncoder(2, 2), (1, 1))
    with pytest.raises(TypeError, match="`encoder` must be a torch.nn.Module, got int"):
        plr.HeldIn(3, (0, 1))  # type: ignore[arg-type]
    model = plr.StateSpaceModel(network(torch.float32), plr.PoissonObservation(rank=2, features=3))
    guide = plr.EncoderGuide(model, plr.HeldIn(plr.ConvEncoder(2, 2), (1, 3)))
    with pytest.raises(ValueError, match="indices of the 3 features of the recording, got 3"):
        plr.SMCFilter(model, guide, 5).run(torch.zeros(1, 4, 3))


HELD_IN, HELD_OUT = list(range(24)), list(range(24, 30))


def rotation() -> plr.StateSpaceModel:
    """A noisy rotation seen through the spikes of 30 neurons."""
    dynamics = plr.LowRankRNN(rank=2, units=2, activation="identity", noise_scale=0.15, decay=0.9)
    teacher = plr.StateSpaceModel(dynamics, plr.PoissonObservation(rank=2, features=30))
    cosine, sine = 0.98 * math.cos(0.25), 0.98 * math.sin(0.25)
    with torch.no_grad():
        dynamics.left.copy_(torch.eye(2))
        dynamics.right.copy_(torch.tensor([[cosine - 0.9, -sine], [sine, cosine - 0.9]]))
        teacher.observation.readout.weight.copy_(1.5 * torch.randn(30, 2))
        teacher.observation.readout.bias.fill_(-1.0)
    return teacher


def bits(model: plr.StateSpaceModel, guide: Any, y: torch.Tensor) -> float:
    """Bits per spike of the held-out neurons, whose spikes the filter does not see."""
    seen = y.clone()
    seen[..., HELD_OUT] = torch.nan
    posterior = plr.SMCFilter(model, guide, 200).run(seen)
    rates = posterior.predict(posterior.smooth(50))[..., HELD_OUT]
    return float(bits_per_spike(y[..., HELD_OUT].numpy(), rates.numpy()))


def test_a_trained_encoder_of_some_neurons_predicts_the_others() -> None:
    teacher = rotation()
    y = teacher.simulate(num_trials=30, num_steps=30).y
    encoder = plr.ConvEncoder(24, 2, (5, 1), (16,), padding="centred", sees_mask=True)
    guide = plr.EncoderGuide(teacher, plr.HeldIn(encoder, HELD_IN))
    for parameter in teacher.parameters():
        parameter.requires_grad_(False)
    options = {"num_particles": 16, "learning_rate": 0.02, "final_learning_rate": 0.01, "progress": False}
    plr.fit(teacher, guide, y[:20], num_steps=60, **options)
    rolled = plr.ForwardPrediction(guide, horizon=5)
    plr.fit(teacher, rolled, y[:20], num_steps=5, **options)
    found, best = (bits(teacher, each, y[20:]) for each in (guide, plr.LaplaceGuide(teacher)))
    assert found > 0.8 * best > 0.3


@pytest.mark.slow
def test_a_fitted_model_predicts_held_out_neurons_nearly_as_the_true_one() -> None:
    """From random weights: all neurons are fitted under an encoder of 24, six are predicted on new trials."""
    teacher = rotation()
    y = teacher.simulate(num_trials=60, num_steps=50).y
    dynamics = plr.LowRankRNN(rank=2, units=40, activation="tanh")
    model = plr.StateSpaceModel(dynamics, plr.PoissonObservation(rank=2, features=30))
    plr.initialise_from_data(model, y[:50])
    encoder = plr.ConvEncoder(24, 2, (7, 1), (24,), padding="centred", sees_mask=True)
    guide = plr.EncoderGuide(model, plr.HeldIn(encoder, HELD_IN))
    options = {"num_particles": 16, "batch_size": 10, "learning_rate": 0.02, "final_learning_rate": 0.005}
    plr.fit(model, guide, y[:50], num_steps=500, progress=False, **options)
    found, best = bits(model, guide, y[50:]), bits(teacher, plr.LaplaceGuide(teacher), y[50:])
    assert found > 0.7 * best > 0.15
