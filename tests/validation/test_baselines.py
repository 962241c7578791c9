"""What a recording is worth without latent dynamics, against dense Gaussians and what is known of simulated data."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import pyro_lowrank as plr
from pyro_lowrank.observations.autoregressive import AutoregressiveMemory
from pyro_lowrank.observations.memory import roll
from pyro_lowrank.observations.observed import Observed


def remembered(*, trials: int = 4, steps: int = 3000, factors: float = 0.0, seed: int = 0) -> Tensor:
    """Draw features that are AR(2), with an innovation that they share."""
    generator = torch.Generator().manual_seed(seed)
    partial = torch.tensor([[0.9, -0.3], [0.5, 0.2], [-0.4, 0.1], [0.7, 0.0]], dtype=torch.float64)
    memory = AutoregressiveMemory(torch.tensor([100.0, -3.0, 0.0, 0.1], dtype=torch.float64), partial)
    own = torch.randn(trials, steps, 4, dtype=torch.float64, generator=generator)
    shared = torch.randn(trials, steps, 1, dtype=torch.float64, generator=generator)
    loadings = torch.tensor([1.0, 1.0, -1.0, 0.5], dtype=torch.float64)
    return roll(memory, memory.center + own + factors * loadings * shared)


ENTROPY = 0.5 * math.log(2 * math.pi * math.e)


def test_each_is_worth_minus_the_entropy_of_its_innovations() -> None:
    y, held_out = remembered(factors=1.5), remembered(factors=1.5, seed=1)
    found = plr.baselines(y, held_out, order=2, factors=1)
    loadings = torch.tensor([1.0, 1.0, -1.0, 0.5], dtype=torch.float64)
    covariance = torch.eye(4, dtype=torch.float64) + 2.25 * loadings.outer(loadings)
    alone = -float((ENTROPY + 0.5 * covariance.diagonal().log()).sum())
    together = -4 * ENTROPY - 0.5 * float(torch.logdet(covariance))
    spread = -float((ENTROPY + held_out.flatten(0, 1).std(0).log()).sum())
    # 12,000 bins: an error of 1.4 / sqrt(12,000) nats, and somewhat more, as features covary.
    assert found["independent features"] == pytest.approx(spread, abs=0.1)
    assert found["AR(2) features"] == pytest.approx(alone, abs=0.06)
    assert found["AR(2), 1 static factor"] == pytest.approx(together, abs=0.06)
    assert found["VAR(1)"] < together
    assert found.best.name == "AR(2), 1 static factor"


def test_static_factors_are_the_network_without_dynamics() -> None:
    """The same density as a model whose latents say nothing, at the parameters that the start finds."""
    y, held_out = remembered(), remembered(seed=1, steps=50)
    units = (y.mean((0, 1)), y.flatten(0, 1).std(0, correction=0))
    observation = plr.GaussianObservation(rank=1, features=4, noise="autoregressive", order=2, dtype=torch.float64)
    model = plr.StateSpaceModel(plr.LowRankRNN(rank=1, units=4, dtype=torch.float64), observation)
    plr.initialise_from_data(model, (y - units[0]) / units[1])
    with torch.no_grad():
        innovations = plr.ExtendedKalmanFilter(model)
        observation.readout.weight.zero_()
        memory = observation.bind_memory()
        assert memory is not None
        shift, scale = memory.outlooks(Observed((y - units[0]) / units[1], None))
        residual = ((y - units[0]) / units[1] - observation.readout.bias - shift) / scale
        observation.noise_scale = residual.square().mean((0, 1)).sqrt()
    found = innovations.run((held_out - units[0]) / units[1]).log_evidence.sum() / 200 - units[1].log().sum()
    assert plr.baselines(y, held_out, order=2, factors=1)["AR(2) features"] == pytest.approx(float(found), abs=1e-3)


def test_units_shift_all_of_them_by_the_same() -> None:
    y, held_out = remembered(steps=500), remembered(steps=500, seed=1)
    scale = torch.tensor([1e3, 1e-3, 2.0, 1.0], dtype=torch.float64)
    one, other = plr.baselines(y, held_out), plr.baselines(scale * y + 7, scale * held_out + 7)
    for a, b in zip(one.rows, other.rows, strict=True):
        assert b.nats == pytest.approx(a.nats - float(scale.log().sum()), abs=1e-4)


def test_missing_entries_are_left_out_and_padding_changes_nothing() -> None:
    y, held_out = remembered(steps=500), remembered(steps=500, seed=1)
    held_out[0, 10:12, 1] = torch.nan
    padded = torch.cat([held_out, torch.full((4, 20, 4), torch.nan, dtype=torch.float64)], 1)
    one, other = plr.baselines(y, held_out, order=2, factors=1), plr.baselines(y, padded, order=2, factors=1)
    for a, b in zip(one.rows[:3], other.rows[:3], strict=True):
        assert b.nats == pytest.approx(a.nats, abs=1e-9)
    assert math.isnan(one["VAR(1)"])
    assert "complete" in str(one)


def test_the_table_is_read_by_people() -> None:
    y = remembered(steps=200)
    lines = str(plr.baselines(y, y, order=2, factors=2)).splitlines()
    assert len(lines) == 5
    assert lines[0].startswith("without latent dynamics")
    assert len({len(line) for line in lines}) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": 9}, "`order` must be at most 8"),
        ({"factors": 4}, "fewer than the 4 features"),
        ({"held_out": torch.zeros(1, 5, 3)}, "the 4 features of `y`, got 3"),
        ({"y": torch.zeros(1, 3, 4)}, "below the 3 time bins"),
    ],
)
def test_bad_input_is_refused(options: dict[str, object], message: str) -> None:
    arguments = {"y": torch.randn(2, 30, 4), "held_out": torch.randn(2, 30, 4)} | options
    with pytest.raises(ValueError, match=message):
        plr.baselines(**arguments)  # type: ignore[arg-type]
