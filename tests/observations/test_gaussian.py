from __future__ import annotations

import warnings
from typing import Any

import pyro.distributions as dist
import pytest
import torch

import pyro_lowrank as plr
from tests.builders import assert_close, shaken


@pytest.mark.parametrize("noise", ["scalar", "diagonal"])
def test_density_is_the_normal_around_the_affine_readout(noise: str, dtype: torch.dtype) -> None:
    observation = shaken(
        plr.GaussianObservation(rank=2, features=3, inputs=1, noise=noise, noise_scale=0.7, dtype=dtype)
    )
    z, v = torch.randn(5, 4, 2, dtype=dtype), torch.randn(4, 1, dtype=dtype)
    y = torch.randn(4, 3, dtype=dtype)
    readout = observation.readout
    mean = torch.einsum("fr,pbr->pbf", readout.weight, z) + readout.input_weight[:, 0] * v + readout.bias
    scale = observation.noise_scale.expand(3)
    expected = sum(dist.Normal(mean[..., i], scale[i]).log_prob(y[..., i]) for i in range(3))
    assert isinstance(expected, torch.Tensor)
    assert_close(observation.mean(z, v), mean)
    assert_close(observation.distribution(z, v).log_prob(y), expected, factor=5)
    assert observation.distribution(z, v).event_shape == (3,)
    assert_close(observation.noise_variance, scale.square())


@pytest.mark.parametrize("noise", ["scalar", "diagonal"])
def test_noise_starts_at_its_scale_for_every_feature(noise: str, dtype: torch.dtype) -> None:
    observation = plr.GaussianObservation(rank=2, features=3, noise=noise, noise_scale=0.3, dtype=dtype)
    assert_close(observation.noise_variance, torch.full((3,), 0.09, dtype=torch.float64))


def test_draws_have_the_mean_and_the_variance() -> None:
    observation = shaken(plr.GaussianObservation(rank=2, features=3, noise_scale=0.7, dtype=torch.float64))
    z = torch.randn(2, dtype=torch.float64)
    with torch.no_grad():
        draws = observation.distribution(z).sample((40_000,))
        variance = observation.noise_variance
        assert ((draws.mean(0) - observation.mean(z)).abs() < 5 * (variance / 40_000).sqrt()).all()
        # The standard error of a variance is 0.7 % of it.
        torch.testing.assert_close(draws.var(0), variance, rtol=0.035, atol=0)


def test_the_affine_gaussian_form_is_the_same_distribution(dtype: torch.dtype) -> None:
    observation = shaken(plr.GaussianObservation(rank=2, features=3, inputs=2, noise="scalar", dtype=dtype))
    z, v = torch.randn(5, 4, 2, dtype=dtype), torch.randn(4, 2, dtype=dtype)
    form = observation.affine_gaussian(None)
    assert form is not None
    assert_close(form.readout(z, v), observation.mean(z, v))
    assert_close(form.variance, observation.noise_variance)


def test_a_feature_that_never_changes_warns_with_its_index_and_works() -> None:
    model = plr.StateSpaceModel(plr.LowRankRNN(rank=2, units=5), plr.GaussianObservation(rank=2, features=4))
    y = torch.randn(3, 6, 4)
    y[..., 1] = 2.5
    y[:, 1:, 3] = torch.nan
    y[:, 0, 3] = 1.0
    with pytest.warns(UserWarning, match=r"Features \[1\] of `y` never change: .*; leave them out") as caught:
        model(y)
    assert caught[0].filename == __file__


@pytest.mark.parametrize("shape", [(3, 1, 4), (1, 1, 4)])
def test_one_time_bin_cannot_tell_and_does_not_warn(shape: tuple[int, ...]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plr.GaussianObservation(rank=2, features=4).check_data(torch.zeros(shape))


def test_missing_entries_are_data_and_infinities_are_not() -> None:
    observation = plr.GaussianObservation(rank=2, features=3)
    y = torch.randn(2, 5, 3)
    y[0, 1:3] = torch.nan
    observation.check_data(y)
    y[1, 4, 2] = -torch.inf
    with pytest.raises(ValueError, match=r"`y` holds 1 infinite values, the first at index \(1, 4, 2\)"):
        observation.check_data(y)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 2}, "Pass `rank` and `features` for an affine readout, or a `readout`; got rank=2, features=None"),
        ({"features": 3}, "Pass `rank` and `features` .* got rank=None, features=3"),
        ({"rank": 2, "features": 0}, "`features` must be at least 1, got features=0"),
        (
            {"rank": 2, "features": 3, "noise": "full"},
            "`noise` must be one of 'scalar', 'diagonal', 'autoregressive', got 'full'",
        ),
        ({"rank": 2, "features": 3, "noise_scale": -1.0}, "`noise_scale` must be finite and above zero"),
        (
            {"features": 3, "readout": plr.AffineReadout(rank=2, features=4)},
            "`features` must be those of the readout, 4, got 3",
        ),
    ],
)
def test_arguments_that_make_no_observation_model_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plr.GaussianObservation(**options)


def test_settings_build_an_observation_model_that_loads_the_state() -> None:
    observation = shaken(plr.GaussianObservation(rank=2, features=3, noise="scalar"))
    again = plr.GaussianObservation(
        **{**observation.settings(), "readout": plr.AffineReadout(**observation.readout.settings())}
    )
    again.load_state_dict(observation.state_dict())
    z = torch.randn(5, 2)
    assert torch.equal(again.mean(z), observation.mean(z))
    assert torch.equal(again.noise_variance, observation.noise_variance)
