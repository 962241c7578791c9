"""Priors by default: every trained parameter has one of its own shape and support, and kernels take them."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import MCMC, Predictive

import pyro_lowrank as plr
from tests.builders import gaussian_model


def some_model(dtype: torch.dtype = torch.float32, **options: Any) -> plr.StateSpaceModel:
    return gaussian_model(dtype, inputs=2, noise="full", initial_noise="diagonal", activation="tanh", **options)


def test_every_parameter_has_a_prior(dtype: torch.dtype) -> None:
    model = some_model(dtype)
    sampled = plr.with_priors(model)
    before = dict(model.named_parameters())
    assert list(sampled.parameters()) == []
    draws = Predictive(sampled, num_samples=30)(None, torch.randn(2, 5, 2, dtype=dtype))
    for name, value in before.items():
        plain = name.removesuffix("_unconstrained")
        found = draws[plain].reshape(30, *value.shape)
        assert found.dtype == dtype
        assert found.isfinite().all()
        if plain.endswith("noise_scale") and plain != "dynamics.noise_scale":
            assert (found > 0).all()
    assert ((draws["dynamics.decay"] > 0) & (draws["dynamics.decay"] < 1)).all()
    factors = draws["dynamics.noise_scale"].reshape(30, 2, 2)
    assert (factors.diagonal(dim1=-2, dim2=-1) > 0).all()
    assert (factors[:, 0, 1] == 0).all()
    assert draws["dynamics.left"].std() == pytest.approx(2**-0.5, rel=0.15)
    assert draws["dynamics.right"].std() == pytest.approx(6**-0.5, rel=0.15)
    # The model itself is as it was.
    assert all((dict(model.named_parameters())[name] == value).all() for name, value in before.items())


def test_the_noise_is_centred_on_its_present_scale() -> None:
    model = some_model(torch.float64, rank=1)
    sampled = plr.with_priors(model, only=["dynamics.noise_scale"])
    draws = Predictive(sampled, num_samples=400)(None, torch.randn(1, 2, 2, dtype=torch.float64))
    scale = draws["dynamics.noise_scale"].flatten().log()
    assert scale.mean() == pytest.approx(0.5 * model.dynamics.noise_covariance.log().item(), abs=0.15)
    assert scale.std() == pytest.approx(1.0, abs=0.12)


def test_only_some_and_given_ones() -> None:
    model = some_model()
    given = {"dynamics.decay": dist.Beta(torch.tensor(9.0), torch.tensor(1.0)), "dynamics.bias": None}
    sampled = plr.with_priors(model, only=["dynamics.bias", "dynamics.left"], **given)
    table = plr.prior_table(sampled).splitlines()
    assert [row.split()[0] for row in table] == ["parameter", "dynamics.decay", "dynamics.left"]
    assert table[1].split(maxsplit=2)[2] == "Beta(9, 1)"
    assert (sampled.dynamics.bias == model.dynamics.bias).all()


def test_the_table_says_what_follows_from_others() -> None:
    table = plr.prior_table(plr.with_priors(some_model(), only=["dynamics.noise_scale"]))
    assert "dynamics.noise_scale_correlations  (2, 2)  LKJCholesky(2)" in table
    assert "given those of the others" in table


@pytest.mark.parametrize("kernel", [plr.ParticleGibbs, plr.PMMH])
def test_kernels_take_all_priors(kernel: Any) -> None:
    model = plr.with_priors(some_model())
    u = torch.randn(2, 5, 2)
    with torch.no_grad():
        y = torch.randn(2, 5, 3)
    options = {"max_tree_depth": 2} if kernel is plr.ParticleGibbs else {}
    mcmc = MCMC(kernel(model, None, 20, **options), num_samples=2, warmup_steps=1, disable_progbar=True)
    mcmc.run(y, u)
    draws = mcmc.get_samples()
    assert draws["dynamics.noise_scale_deviations"].shape == (2, 2)
    assert draws["dynamics.noise_scale_correlations"].shape == (2, 2, 2)
    assert list(pyro.get_param_store().keys()) == []


def test_bad_priors_are_told() -> None:
    model = some_model()
    with pytest.raises(ValueError, match=r"no trained parameters \['dynamics.lef'\].*'dynamics.left'"):
        plr.with_priors(model, only=["dynamics.lef"])
    with pytest.raises(ValueError, match=r"shape \(\), the parameter has \(6, 2\): prior.expand\(\[6, 2\]\).to_event"):
        plr.with_priors(model, **{"dynamics.left": dist.Normal(0.0, 1.0)})
    with pytest.raises(ValueError, match="batch dims"):
        plr.with_priors(model, **{"dynamics.left": dist.Normal(torch.zeros(6, 2), 1.0)})
    with pytest.raises(ValueError, match=r"'dynamics.decay' has draws that it cannot be"):
        plr.with_priors(model, **{"dynamics.decay": dist.Normal(5.0, 0.1)})
    with pytest.raises(TypeError, match="must be a distribution"):
        plr.with_priors(model, **{"dynamics.decay": 0.3})
    with pytest.raises(TypeError, match="float64"):
        plr.with_priors(model, **{"dynamics.decay": dist.Beta(torch.tensor(9.0, dtype=torch.float64), 1.0)})
    with pytest.raises(TypeError, match="StateSpaceModel"):
        plr.with_priors(model.dynamics)


def test_columns_may_be_switched_off() -> None:
    model = some_model(torch.float64)
    sampled = plr.with_priors(model, only=[], **{"dynamics.left": plr.ColumnShrinkage(scale=0.2)})
    draws = Predictive(sampled, num_samples=350)(None, torch.randn(1, 2, 2, dtype=torch.float64))
    columns = draws["dynamics.left_columns"].reshape(-1, 2)
    assert columns.median() == pytest.approx(0.2, rel=0.15)
    left, raw = draws["dynamics.left"].reshape(-1, 6, 2), draws["dynamics.left_raw"].reshape(-1, 6, 2)
    torch.testing.assert_close(left, raw * columns.unsqueeze(-2))
    assert raw.std() == pytest.approx(2**-0.5, rel=0.05)
    # Columns go by themselves, some near zero, some beyond what the default allows.
    assert abs(torch.corrcoef(columns.log().mT)[0, 1].item()) < 0.15
    assert (columns < 0.02).double().mean() == pytest.approx(0.0635, abs=0.03)
    assert (columns > 2).double().mean() == pytest.approx(0.0635, abs=0.03)
    with pytest.raises(ValueError, match=r"matrices of real numbers.*'dynamics.bias' has shape \(6,\)"):
        plr.with_priors(model, **{"dynamics.bias": plr.ColumnShrinkage()})
