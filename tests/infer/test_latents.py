"""Smoothed latents with bands: exact ones of a linear model, quantiles of paths, and what is shown of them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import pyro_lowrank as plr
from pyro_lowrank.infer.latents import Latents
from tests.oracles.linear import linear_model

NAN = float("nan")


@pytest.fixture
def ragged() -> tuple[plr.StateSpaceModel, Tensor]:
    """A linear model, and trials of 12 and 7 time bins of it."""
    torch.manual_seed(3)
    model = linear_model(features=3)
    y = model.simulate(num_trials=2, num_steps=12).y
    y[1, 7:] = NAN
    return model, y


def test_bands_are_those_of_the_exact_smoother(ragged: tuple[plr.StateSpaceModel, Tensor]) -> None:
    model, y = ragged
    exact = plr.ExtendedKalmanFilter(model).run(y)
    normal = torch.distributions.Normal(
        exact.smoothed_mean, exact.smoothed_covariance.diagonal(dim1=-2, dim2=-1).sqrt()
    )
    found = exact.latents(0.8)
    torch.testing.assert_close(normal.cdf(found.lower), torch.full_like(found.lower, 0.1))
    torch.testing.assert_close(normal.cdf(found.upper), torch.full_like(found.upper, 0.9))
    drawn = plr.SMCFilter(model, plr.OptimalGuide(model), 3000).run(y).latents(0.8, num_draws=2000)
    within = found.within
    scale = normal.scale[within]
    assert ((drawn.mean - found.mean)[within] / scale).abs().max() < 0.35
    assert ((drawn.lower - found.lower)[within] / scale).abs().max() < 0.5
    assert ((drawn.upper - found.upper)[within] / scale).abs().max() < 0.5
    # Smoothed and not filtered: what comes later has its say.
    assert (found.mean - exact.mean())[:, 0].abs().max() > 0.1


def test_draws_give_their_mean_and_quantiles(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    draws = torch.randn(50, 5, 4, 2, dtype=torch.float64)
    lengths = torch.full((5,), 4)
    found = Latents.of_draws(draws, 0.9, lengths)
    monkeypatch.setattr("pyro_lowrank.infer.latents._AT_ONCE", 1)
    by_trial = Latents.of_draws(draws, 0.9, lengths)
    torch.testing.assert_close(found.mean, draws.mean(0))
    torch.testing.assert_close(found.lower, draws.quantile(0.05, dim=0))
    torch.testing.assert_close(found.upper, draws.quantile(0.95, dim=0))
    torch.testing.assert_close(by_trial.lower, found.lower)
    with pytest.raises(ValueError, match="`level` must be a share, above 0 and below 1, got 95"):
        Latents.of_draws(draws, 95.0, lengths)


def test_what_is_shown_leaves_padding_out(ragged: tuple[plr.StateSpaceModel, Tensor]) -> None:
    model, y = ragged
    padded = torch.cat([y, torch.full((2, 30, 3), NAN, dtype=y.dtype)], 1)
    for filtering in (plr.ExtendedKalmanFilter(model), plr.SMCFilter(model, plr.OptimalGuide(model), 200)):
        torch.manual_seed(1)
        posterior = filtering.run(padded)
        per_bin = float(posterior.log_evidence.sum()) / 19
        assert f"{per_bin:.4f} per bin and trial" in str(posterior)
        assert "latents()" in str(posterior)
        assert posterior.latents().lengths.tolist() == [12, 7]
    latents = plr.ExtendedKalmanFilter(model).run(padded).latents()
    assert str(latents).startswith("Latents: 2 trials x 7 to 42 time bins x 2 latents, smoothed, with 95 % bands\n")
    low, high = latents.mean[..., 0][latents.within].aminmax()
    assert f"from {low:.3g} to {high:.3g}" in repr(latents)
