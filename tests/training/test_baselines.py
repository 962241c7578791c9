"""What a recording is worth without latent dynamics, against dense Gaussians and what is known of simulated data."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from math import nan

import pytest
import torch
from torch import Tensor

import pyro_lowrank as plr
from pyro_lowrank.observations.autoregressive import AutoregressiveMemory
from pyro_lowrank.observations.memory import roll
from pyro_lowrank.observations.observed import Observed
from pyro_lowrank.training import yardsticks
from pyro_lowrank.training.baselines import Baseline, Baselines, baselines_of
from tests.training.test_progress import result_of


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


def fitted(observation: plr.Observation) -> plr.FitResult:
    """One step of a network of rank 2 on what is remembered."""
    y = remembered(steps=60).float()
    model = plr.StateSpaceModel(plr.LowRankRNN(rank=2, units=4), observation)
    elbo = plr.SMC_ELBO(2, backend="plain")
    return plr.fit(
        model,
        plr.BootstrapGuide(model),
        y[:3],
        held_out=y[3:],
        num_steps=1,
        elbo=elbo,
        check_particles=False,
        progress=False,
    )


def test_a_fit_has_them_beside_it() -> None:
    y = remembered(steps=60).float()
    result = fitted(plr.GaussianObservation(rank=2, features=4))
    found, expected = result.baselines, plr.baselines(y[:3], y[3:], order=4, factors=2)
    assert found is not None
    assert [row.name for row in found.rows] == [row.name for row in expected.rows]
    assert [row.nats for row in found.rows] == pytest.approx([row.nats for row in expected.rows])
    assert found["independent features"] == pytest.approx(result.without_dynamics, abs=1e-3)
    table = str(result).splitlines()
    head = next(line for line in table if "for scale" in line)
    assert head.endswith("without latent dynamics  nats per bin  parameters")
    last = table[table.index(head) + 5]
    assert last.split() == ["the", "network", f"{result.held_out:.3f}"]


@pytest.mark.parametrize(
    ("observation", "name"),
    [
        (partial(plr.GaussianObservation, noise="autoregressive", order=2), "AR(2), 2 static factors"),
        (partial(plr.GaussianObservation, noise_factors=1), "AR(4), 3 static factors"),
        # No more than a covariance has.
        (partial(plr.GaussianObservation, noise_factors=3), "AR(4), 3 static factors"),
        (partial(plr.ColouredNoiseObservation, order=3), "AR(3), 2 static factors"),
    ],
)
def test_they_have_the_memory_and_the_shared_noise_of_the_network(
    observation: Callable[..., plr.Observation], name: str
) -> None:
    y = remembered(steps=20).float()
    model = plr.StateSpaceModel(plr.LowRankRNN(rank=2, units=4), observation(rank=2, features=4))
    found = baselines_of(model, y[:3], y[3:])
    assert found is not None
    assert found.rows[2].name == name


def test_where_there_are_none_a_fit_goes_on_without() -> None:
    y = remembered(steps=20).float()
    counts = plr.StateSpaceModel(plr.LowRankRNN(rank=2, units=4), plr.PoissonObservation(rank=2, features=4))
    assert baselines_of(counts, y, y) is None
    real = plr.StateSpaceModel(plr.LowRankRNN(rank=2, units=4), plr.GaussianObservation(rank=2, features=4))
    assert baselines_of(real, y, torch.full_like(y, torch.nan)) is None
    assert baselines_of(real, y[:, :1], y[:, :1]) is None
    short = baselines_of(real, y[:, :3], y[:, :3])
    assert short is not None
    assert short.rows[1].name == "AR(2) features"
    assert "needs 12 bins to fit to, got 8" in str(short)
    single = plr.StateSpaceModel(plr.LowRankRNN(rank=2, units=4), plr.GaussianObservation(rank=2, features=1))
    alone = baselines_of(single, y[..., :1], y[..., :1])
    assert str(alone) == str(plr.baselines(y[..., :1], y[..., :1], order=4, factors=0))
    assert alone is not None
    assert len(alone.rows) == 3


def test_features_that_never_change_break_nothing() -> None:
    y = remembered(steps=60)
    y[..., 1] = 3.0
    found = plr.baselines(y[:3], y[3:], order=2, factors=1)
    assert all(math.isfinite(row.nats) for row in found.rows)


def test_advice_is_given_where_a_network_is_no_better() -> None:
    rows = (Baseline("independent features", -3.0, 4), Baseline("AR(4) features", -1.0, 8), Baseline("VAR(1)", nan, 9))
    result = replace(
        result_of([-9.0, -5.0, -2.0, -1.21, -1.2]), without_dynamics=-3.0, baselines=Baselines(rows), kept_step=100
    )
    assert "AR(4) features, without latent dynamics, has -1.000 nats per bin" in result.advice[0]
    assert "the network -1.200" in result.advice[0]
    assert replace(result, held_out_evidence=result.held_out_evidence + 0.3).advice == ()


def test_rows_go_through_json() -> None:
    rows = (Baseline("AR(4) features", -1.0, 8), Baseline("VAR(1)", nan, 9, "needs more"))
    told = json.loads(json.dumps(Baselines(rows).records(), allow_nan=False))
    assert str(Baselines.of_records(told)) == str(Baselines(rows))


def test_many_entries_that_are_missing_are_gone_through_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    y = remembered(steps=50)
    y[1, 20:30, 2] = nan
    whole = plr.baselines(y, y, order=2, factors=2)
    monkeypatch.setattr(yardsticks, "_AT_ONCE", 7)
    assert str(plr.baselines(y, y, order=2, factors=2)) == str(whole)


def test_the_end_of_a_shorter_trial_is_no_gap() -> None:
    y, held_out = remembered(steps=500), remembered(steps=50, seed=1)
    padded = torch.cat([held_out, torch.full((4, 20, 4), nan, dtype=torch.float64)], 1)
    one, other = plr.baselines(y, held_out), plr.baselines(y, padded)
    for a, b in zip(one.rows, other.rows, strict=True):
        assert b.nats == pytest.approx(a.nats, abs=1e-9)
