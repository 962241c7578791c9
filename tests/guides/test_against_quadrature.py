"""Counts and zeros and ones under an encoder: the evidence by quadrature, its bias, and padded trials."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import pyro_lowrank as plr
from tests.guides.test_laplace import evidence
from tests.observations.test_families import model_of
from tests.oracles.quadrature import log_evidence_on_a_grid

COUNTS = ["poisson softplus", "poisson exp", "negative binomial softplus", "negative binomial exp", "bernoulli"]


def guide_of(kind: str, model: plr.StateSpaceModel) -> Any:
    like = model.dynamics.right.dtype
    encoders = {
        "causal": lambda: plr.ConvEncoder(3, 1, (2, 1), (4,), constant_variance=True, dtype=like),
        "centred": lambda: plr.ConvEncoder(
            3, 1, (3, 3), (4,), padding="centred", sees_mask=True, constant_variance=True, dtype=like
        ),
        "recurrent": lambda: plr.GRUEncoder(3, 1, 4, constant_variance=True, dtype=like),
        "held in": lambda: plr.HeldIn(plr.ConvEncoder(2, 1, (2, 1), (4,), constant_variance=True, dtype=like), (0, 2)),
    }
    encoder = encoders[kind]()
    with torch.no_grad():
        # Modest: an untrained encoder that is sure of itself misleads the particles.
        getattr(encoder, "encoder", encoder).log_variance.fill_(1.0)
    return plr.EncoderGuide(model, encoder)


@pytest.mark.parametrize("family", COUNTS)
@pytest.mark.parametrize("kind", ["causal", "centred", "recurrent", "held in"])
def test_evidence_equals_quadrature(kind: str, family: str) -> None:
    """Within three standard errors of 100,000 particles under an untrained encoder, 0.8 % of the evidence each."""
    model = model_of(family, rank=1)
    # Without outliers: a hundred thousand particles of an untrained encoder miss the places that they ask for.
    y = model.simulate(num_trials=3, num_steps=3).y.clamp(max=3.0)
    y[1, 1, 0] = y[2, 2] = torch.nan
    exact = log_evidence_on_a_grid(model, y)
    found = evidence(model, guide_of(kind, model), y, particles=10_000)
    torch.testing.assert_close(found, exact, rtol=0, atol=0.025)


@pytest.mark.parametrize("family", ["poisson softplus", "negative binomial softplus", "bernoulli"])
@pytest.mark.parametrize("kind", ["centred", "recurrent", "held in"])
def test_the_evidence_is_unbiased(kind: str, family: str) -> None:
    model = model_of(family, rank=1)
    y = model.simulate(num_trials=1, num_steps=3).y
    exact = log_evidence_on_a_grid(model, y, points=1001)
    replicates = 20_000
    smc = plr.SMCFilter(model, guide_of(kind, model), 4)
    ratio = (smc.run(y.expand(replicates, -1, -1)).log_evidence - exact).exp()
    assert (ratio.mean() - 1).abs() < 3.5 * ratio.std() / replicates**0.5


@pytest.mark.parametrize("kind", ["causal", "centred", "recurrent", "held in"])
def test_padded_trials_have_the_evidence_of_each_alone(kind: str) -> None:
    """The same white noise gives the same particles, padded or not."""
    model = model_of("poisson softplus", rank=1)
    y = model.simulate(num_trials=3, num_steps=9).y.clone()
    lengths = (9, 5, 7)
    for trial, length in enumerate(lengths):
        y[trial, length:] = torch.nan
    guide = guide_of(kind, model)
    white = torch.randn(9, 200, 3, 1, dtype=torch.float64)

    def run(data: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("pyro_lowrank.smc.plain.PlainKernel.draw_white", lambda *_: numbers)
            smc = plr.SMCFilter(model, guide, 200, resampler=plr.NoResampling(), backend="plain")
            return smc.run(data).log_evidence

    together = run(y, white)
    for trial, length in enumerate(lengths):
        alone = run(y[trial : trial + 1, :length], white[:length, :, trial : trial + 1])
        torch.testing.assert_close(together[trial : trial + 1], alone)
