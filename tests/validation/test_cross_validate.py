"""Cross-validation: exact scores where these are known, the right rank, and fits that stop and go on."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import pyro_lowrank as plr
from pyro_lowrank.data import Recording, split_features, time_folds, trial_folds
from pyro_lowrank.metrics import bits_per_spike
from tests.builders import shaken
from tests.oracles.linear import exact_log_evidence, linear_model
from tests.smc.test_smoothing import rts_smoother

# So slow that nothing is learned: the models that are scored are those of the factory.
STANDING = {"num_steps": 1, "learning_rate": 1e-12, "progress": False}


def linear(rank: int) -> tuple[Any, Any]:
    """A linear model and its guide."""
    model = linear_model(rank=rank, features=5)
    return model, plr.OptimalGuide(model)


def counting(rank: int) -> tuple[Any, Any]:
    """A model of counts and its guide."""
    observation = shaken(plr.PoissonObservation(rank=rank, features=6, dtype=torch.float64))
    model = plr.StateSpaceModel(plr.LowRankRNN(rank=rank, units=8, dtype=torch.float64), observation)
    return model, plr.BootstrapGuide(model)


def fixed(factory: Any) -> tuple[Any, Any]:
    """A factory of rank 2 that always returns the same pair, and its model."""
    pair = factory(2)
    return (lambda _: pair), pair[0]


def test_scores_of_linear_models_are_exact() -> None:
    factory, model = fixed(linear)
    y = model.simulate(6, 25).y
    y[1, 5:9] = torch.nan
    found = plr.cross_validate(
        factory, y, ranks=(2,), folds=3, num_filter_particles=2000, num_draws=400, hidden=2, **STANDING
    )
    trials = [int(name.removeprefix("trial_")) for name in found.trials]
    assert sorted(trials) == list(range(6))
    exact = exact_log_evidence(model, torch.where(y.isnan(), 0.0, y)).detach()
    complete = [place for place, trial in enumerate(trials) if trial != 1]
    np.testing.assert_allclose(found.evidence[0, complete], exact[[t for t in trials if t != 1]], atol=0.3)
    assert found.bins.sum() == 6 * 25 - 4

    hidden = split_features(Recording(y.numpy()), 2).held_out
    seen = y.clone()
    seen[..., hidden] = torch.nan
    predicted = model.observation.mean(rts_smoother(model, seen).mean)[..., hidden].detach()
    target = y[..., hidden]
    total = (target - target.nanmean((0, 1))).square().nansum()
    r2 = 1 - (target - predicted).square().nansum() / total
    assert found.measure == "R²"
    assert float(found.co_smoothing[0]) == pytest.approx(float(r2), abs=0.01)


def test_co_smoothing_of_counts_is_bits_per_spike_over_all_folds() -> None:
    factory, model = fixed(counting)
    y = model.simulate(8, 20).y
    found = plr.cross_validate(
        factory, y, ranks=(2,), folds=4, num_filter_particles=2000, num_draws=500, hidden=0.5, **STANDING
    )
    hidden = split_features(Recording(y.numpy()), 0.5).held_out
    seen = y.clone()
    seen[..., hidden] = torch.nan
    posterior = plr.SMCFilter(model, plr.BootstrapGuide(model), 2000).run(seen)
    rates = posterior.predict(posterior.smooth(500))[..., hidden].numpy()
    expected = bits_per_spike(y[..., hidden].numpy(), rates)
    assert found.measure == "bits per spike"
    assert float(found.co_smoothing[0]) == pytest.approx(expected, abs=0.01)
    assert found.co_smoothing[0].standard_error == pytest.approx(expected.standard_error, rel=0.2)


def rotating() -> Tensor:
    """Recordings of two latents that turn, which one cannot do."""
    model = linear_model(rank=2, features=8, noise_scale=0.3)
    turn = 0.95 * torch.tensor([[0.8, -0.6], [0.6, 0.8]], dtype=torch.float64)
    with torch.no_grad():
        dynamics = model.dynamics
        dynamics.right.copy_((turn - dynamics.decay * torch.eye(2)) @ torch.linalg.pinv(dynamics.left))
    return model.simulate(8, 40).y.float()


def gaussian(rank: int) -> tuple[Any, Any]:
    """A linear network to be fitted."""
    dynamics = plr.LowRankRNN(rank=rank, units=8, activation="identity")
    model = plr.StateSpaceModel(dynamics, plr.GaussianObservation(rank=rank, features=8))
    return model, plr.OptimalGuide(model)


def test_the_rank_that_made_the_data_is_better_than_a_lower_one() -> None:
    found = plr.cross_validate(
        gaussian,
        rotating(),
        ranks=(1, 2),
        folds=2,
        num_steps=30,
        num_particles=16,
        learning_rate=4e-2,
        initialise=plr.initialise_from_data,
        progress=False,
    )
    assert found.best == found.simplest == 2
    less = found.differences[0]
    assert -less > 3 * less.standard_error > 0
    assert found.co_smoothing[1] > found.co_smoothing[0]
    assert "best" in str(found).splitlines()[3]


def records(folder: Path) -> dict[str, Any]:
    """Contents of the files of a cross-validation."""
    return {path.name: json.loads(path.read_text(encoding="utf-8")) for path in folder.iterdir()}


def small(folder: Path | None, **options: Any) -> plr.CrossValidation:
    """Cross-validate small models of rank 1 and 2 in two folds."""
    y = linear_model(rank=2, features=8).simulate(4, 10).y.float()
    defaults = {"ranks": (1, 2), "folds": 2, "num_steps": 2, "num_particles": 4, "num_filter_particles": 20}
    return plr.cross_validate(gaussian, y, folder=folder, progress=False, **(defaults | options))


def test_what_is_there_is_not_computed_again(tmp_path: Path) -> None:
    first = small(tmp_path)
    assert sorted(records(tmp_path)) == [f"rank_{rank}_fold_{fold}.json" for rank in (1, 2) for fold in (0, 1)]
    (tmp_path / "rank_2_fold_1.json").unlink()
    changed = tmp_path / "rank_1_fold_0.json"
    content = json.loads(changed.read_text(encoding="utf-8"))
    content["record"]["evidence"] = [-1.0, -2.0]
    del content["digest"]  # As records of earlier releases, which can be changed without its being noticed.
    changed.write_text(json.dumps(content), encoding="utf-8")
    torch.manual_seed(20240624)
    again = small(tmp_path)
    assert again.evidence[0, :2].tolist() == [-1.0, -2.0]
    np.testing.assert_array_equal(again.evidence[1], first.evidence[1])
    assert again.folder == tmp_path


def test_records_of_other_settings_or_data_are_refused(tmp_path: Path) -> None:
    small(tmp_path)
    torch.manual_seed(20240624)
    with pytest.raises(ValueError, match="of another cross-validation: num_steps was 2, is 3"):
        small(tmp_path, num_steps=3)
    with pytest.raises(ValueError, match="of another cross-validation: data was"):
        small(tmp_path)
    (tmp_path / "rank_1_fold_0.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ValueError, match="is no record of a cross-validation"):
        small(tmp_path)


class Hidden(plr.Observation):
    """A user's observation model, with a layer of any width."""

    def __init__(self, width: int) -> None:
        super().__init__(features=8)
        self.inner, self.outer = torch.nn.Linear(1, width), torch.nn.Linear(width, 8)

    def distribution(self, z: Tensor, v: Tensor | None = None) -> Any:
        return torch.distributions.Independent(torch.distributions.Normal(self.outer(self.inner(z).tanh()), 1.0), 1)


def test_records_of_a_users_model_of_other_shapes_are_refused(tmp_path: Path) -> None:
    def factory(width: int) -> Any:
        model = plr.StateSpaceModel(plr.LowRankRNN(rank=1, units=8), Hidden(width))
        return lambda _: (model, plr.BootstrapGuide(model))

    y = torch.randn(4, 10, 8)
    options: Any = {"ranks": (1,), "folds": 2, "num_particles": 4, "num_filter_particles": 20, "hidden": None}
    options |= {"folder": tmp_path, **STANDING}
    first = plr.cross_validate(factory(3), y, **options)
    np.testing.assert_array_equal(plr.cross_validate(factory(3), y, **options).evidence, first.evidence)
    with pytest.raises(ValueError, match="of another cross-validation: shapes was"):
        plr.cross_validate(factory(4), y, **options)


@pytest.mark.parametrize("folder", [True, False])
def test_ctrl_c_keeps_what_was_done(folder: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    place = tmp_path if folder else None
    expected = small(None)
    calls: list[int] = []

    def interrupt(model: Any, recording: Recording) -> None:
        calls.append(recording.num_trials)
        if len(calls) == 4:
            raise KeyboardInterrupt

    torch.manual_seed(20240624)
    stopped = small(place, initialise=interrupt)
    assert stopped.interrupted
    assert np.isnan(stopped.evidence).sum(1).tolist() == [0, 2]
    np.testing.assert_array_equal(stopped.evidence[0], expected.evidence[0])
    assert "1 of 2 folds" in str(stopped)
    assert (stopped.best, stopped.simplest) == (1, 1)
    assert "Interrupted after 3 of 4 fits" in caplog.text
    if folder:
        torch.manual_seed(20240624)
        np.testing.assert_array_equal(small(place, initialise=interrupt).evidence, expected.evidence)
        assert len(calls) == 5


def test_processes_find_the_same_and_change_nothing_here(tmp_path: Path) -> None:
    expected = small(None, ranks=(1,))
    torch.manual_seed(20240624)
    state, environment = torch.get_rng_state(), dict(os.environ)
    y = linear_model(rank=2, features=8).simulate(4, 10).y.float()
    after = torch.get_rng_state()
    assert not torch.equal(state, after)
    options = {"folds": 2, "num_steps": 2, "num_particles": 4, "num_filter_particles": 20, "progress": False}
    # A factory that no other process could import.
    found = plr.cross_validate(lambda rank: gaussian(rank), y, ranks=(1,), num_workers=2, folder=tmp_path, **options)
    np.testing.assert_allclose(found.evidence, expected.evidence, rtol=1e-4)
    assert torch.equal(torch.get_rng_state(), after)
    assert dict(os.environ) == environment


@pytest.mark.slow
def test_a_process_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"(?s)A job failed, rank 1, fold [01]:.*SMCFailed|ParticlesDied"):
        small(tmp_path, num_workers=2, ranks=(1,), learning_rate=1e30, num_steps=5)


def test_a_long_recording_is_cut_into_blocks_of_time_and_users_folds_are_taken() -> None:
    y = linear_model(rank=2, features=8).simulate(1, 60).y.float()
    options = {"ranks": (1,), "num_steps": 1, "num_filter_particles": 20, "num_particles": 4, "progress": False}
    found = plr.cross_validate(gaussian, y, folds=3, hidden=None, **options)
    assert found.bins.tolist() == [20, 20, 20]
    assert found.gains.shape == (1, 0)
    assert "R²" not in str(found)
    with_gap = plr.cross_validate(gaussian, y, folds=time_folds(Recording(y.numpy()), 3, gap=2), hidden=None, **options)
    assert with_gap.evidence.shape == (1, 3)
    trials = Recording(linear_model(rank=2, features=8).simulate(6, 10).y.float().numpy())
    assert (
        plr.cross_validate(gaussian, trials, folds=trial_folds(trials, 2), **options).folds.tolist()
        == [0] * 3 + [1] * 3
    )


def test_bad_arguments_are_refused_before_any_fit() -> None:
    y = torch.randn(4, 10, 8)
    options: Any = {"num_steps": 1, "progress": False}
    with pytest.raises(ValueError, match="`ranks` must hold at least one rank, and none twice"):
        plr.cross_validate(gaussian, y, ranks=(1, 1), **options)
    with pytest.raises(ValueError, match=r"`factory\(3\)` returned a model of rank 2"):
        plr.cross_validate(lambda _: gaussian(2), y, ranks=(3,), folds=2, **options)
    with pytest.raises(TypeError, match=r"`factory\(1\)` must return \(model, guide\)"):
        plr.cross_validate(lambda rank: gaussian(rank)[0], y, folds=2, **options)
    with pytest.raises(ValueError, match="8 features"):
        plr.cross_validate(gaussian, torch.randn(4, 10, 5), folds=2, **options)
    with pytest.raises(ValueError, match="`folds` must be at most the number of trials, 4"):
        plr.cross_validate(gaussian, y, **options)
    with pytest.raises(TypeError, match="`folds` must be a number, or at least two splits"):
        plr.cross_validate(gaussian, y, folds=trial_folds(Recording(y.numpy()), 2)[0], **options)
    with pytest.raises(TypeError, match="`data` must be a Recording"):
        plr.cross_validate(gaussian, 3.0, **options)
    with pytest.raises(ValueError, match="`held_out` must leave some of 8 features"):
        plr.cross_validate(gaussian, y, folds=2, hidden=8, **options)


def test_arviz_compares_the_ranks_in_the_same_order() -> None:
    az = pytest.importorskip("arviz")
    found = small(None)
    table = az.compare(found.elpd(), method="BB-pseudo-BMA")
    assert table.index[0] == f"rank {found.best}"
    assert table.elpd_loo.iloc[0] == pytest.approx(found.evidence.sum(1).max())
    assert table.weight.sum() == pytest.approx(1.0)


def test_the_figure_shows_the_numbers() -> None:
    found = small(None)
    figure = pytest.importorskip("pyro_lowrank.plots.figures").new_figure(1, 2, width=6, height=3)
    axes = found.plot(figure[1][0])
    np.testing.assert_allclose(axes[0].lines[0].get_ydata(), [float(value) for value in found.held_out])
    assert axes[0].get_ylabel() == "held-out log evidence (nats per time bin)"
    assert axes[1].get_ylabel() == "co-smoothing (R²)"
