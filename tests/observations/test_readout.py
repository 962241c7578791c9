from __future__ import annotations

import pytest
import torch

import pyro_lowrank as plr
from pyro_lowrank.observations.readout import Readout
from tests.builders import assert_close, network, shaken
from tests.dynamics.test_activations import FORMULAS


def test_affine_readout_is_the_formula_feature_by_feature(dtype: torch.dtype) -> None:
    readout = shaken(plr.AffineReadout(rank=2, features=3, inputs=2, dtype=dtype))
    z, v = torch.randn(5, 4, 2, dtype=dtype), torch.randn(4, 2, dtype=dtype)
    for i in range(3):
        expected = readout.bias[i] + sum(readout.weight[i, r] * z[..., r] for r in range(2))
        expected = expected + sum(readout.input_weight[i, k] * v[:, k] for k in range(2))
        assert_close(readout.bind(None)(z, v)[..., i], expected)


@pytest.mark.parametrize("full", [False, True], ids=["low_rank", "full_rank"])
@pytest.mark.parametrize("source", ["currents", "rates"])
def test_unit_readout_scales_and_shifts_each_unit(source: str, full: bool, dtype: torch.dtype) -> None:
    activation = "clipped_relu"
    dynamics = (
        shaken(plr.FullRankRNN(units=4, inputs=2, activation=activation, dtype=dtype))
        if full
        else network(dtype, units=4, inputs=2, activation=activation)
    )
    observation = shaken(plr.GaussianObservation(readout=plr.UnitReadout(units=4, source=source, dtype=dtype)))
    plr.StateSpaceModel(dynamics, observation)
    z, v = torch.randn(3, dynamics.rank, dtype=dtype), torch.randn(3, 2, dtype=dtype)
    currents = z @ dynamics.left.mT + v @ dynamics.input_weights.mT
    units = currents.tolist()
    if source == "rates":
        formula = FORMULAS[activation]
        units = [[formula(x, h) for x, h in zip(row, dynamics.bias.tolist(), strict=True)] for row in units]
    expected = observation.readout.scale * torch.tensor(units, dtype=dtype) + observation.readout.bias
    assert_close(observation.mean(z, v), expected)


def test_only_currents_are_affine_in_the_latents() -> None:
    for source, is_affine in (("currents", True), ("rates", False)):
        dynamics = network(torch.float64, units=4, inputs=2)
        observation = plr.GaussianObservation(readout=plr.UnitReadout(units=4, source=source, dtype=torch.float64))
        plr.StateSpaceModel(dynamics, observation)
        form = observation.affine_gaussian(dynamics.transition().drift)
        assert (form is not None) == is_affine
        if form is not None:
            z, v = torch.randn(3, 2, dtype=torch.float64), torch.randn(3, 2, dtype=torch.float64)
            assert_close(form.readout(z, v), observation.mean(z, v))


@pytest.mark.parametrize("trained", [False, True])
def test_what_is_not_trained_is_no_parameter_but_is_saved(trained: bool) -> None:
    affine = plr.AffineReadout(rank=2, features=3, inputs=1, train_weight=trained, train_bias=not trained)
    unit = plr.UnitReadout(units=3, train_scale=trained, train_bias=not trained, scale=2.0, bias=-1.0)
    assert {name for name, _ in affine.named_pyro_params()} == ({"weight", "input_weight"} if trained else {"bias"})
    assert {name for name, _ in unit.named_pyro_params()} == ({"scale"} if trained else {"bias"})
    assert len(affine.state_dict()) == 3
    assert len(unit.state_dict()) == 2
    assert torch.equal(unit.scale, torch.full((3,), 2.0))
    assert torch.equal(unit.bias, torch.full((3,), -1.0))


def test_affine_weights_start_with_variance_two_over_their_columns() -> None:
    readout = plr.AffineReadout(rank=3, features=4000, inputs=2)
    weights = torch.cat([readout.weight, readout.input_weight], 1)
    # The standard error of the variance is 1 % of it.
    assert abs(weights.var().item() / (2 / 5) - 1) < 0.05
    assert not readout.bias.any()


@pytest.mark.parametrize(
    "readout",
    [plr.AffineReadout(rank=2, features=3, inputs=1, train_bias=False), plr.UnitReadout(units=3, source="rates")],
    ids=["affine", "unit"],
)
def test_settings_build_a_readout_that_loads_the_state(readout: Readout) -> None:
    again = type(readout)(**readout.settings())
    again.load_state_dict(readout.state_dict())
    assert again.settings() == readout.settings()


def test_a_readout_from_units_needs_its_network() -> None:
    observation = plr.GaussianObservation(readout=plr.UnitReadout(units=4))
    with pytest.raises(RuntimeError, match="reads a network: put it in a StateSpaceModel first"):
        observation.mean(torch.zeros(2))


def test_readouts_that_do_not_fit_the_network_are_refused() -> None:
    dynamics = plr.LowRankRNN(rank=2, units=5)
    with pytest.raises(ValueError, match="one feature per unit, got 4 features and 5 units"):
        plr.StateSpaceModel(dynamics, plr.GaussianObservation(readout=plr.UnitReadout(units=4)))
    with pytest.raises(ValueError, match="reads rank=3 latents, the dynamics have rank=2"):
        plr.StateSpaceModel(dynamics, plr.GaussianObservation(rank=3, features=4))
    with pytest.raises(ValueError, match="reads inputs=1, the dynamics have inputs=0"):
        plr.StateSpaceModel(dynamics, plr.PoissonObservation(rank=2, features=4, inputs=1))


def test_a_misspelt_source_is_refused() -> None:
    with pytest.raises(ValueError, match="`source` must be one of 'currents', 'rates', got 'rate'"):
        plr.UnitReadout(units=4, source="rate")
