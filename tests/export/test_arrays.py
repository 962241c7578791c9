"""Groups from arrays alone, in the containers of whichever ArviZ is installed; runs without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest

mpl.use("Agg")

import arviz as az
import xarray as xr

from pyro_lowrank.data.recording import Recording
from pyro_lowrank.export.arviz import make_elpd
from pyro_lowrank.export.groups import Variable, build_groups, named
from pyro_lowrank.export.posterior import to_arviz
from tests.export.runs import FakeRun

IS_TREE = not az.__version__.startswith("0.")


def names(data: Any) -> set[str]:
    """Names of the groups."""
    return set(data.children) if IS_TREE else set(data.groups())


@pytest.fixture
def exported() -> Any:
    """Four chains of white noise, with names and seconds."""
    recording = Recording(
        FakeRun().y,
        FakeRun().u,
        bin_size=0.02,
        feature_names=("a", "b", "c", "d"),
        input_names=("cue",),
        trial_names=("first", "second", "third"),
        conditions=np.array([0, 1, 1]),
    )
    return to_arviz([FakeRun(seed) for seed in range(4)], draws=50, recording=recording, attrs={"subject": "S001"})


def test_the_container_is_that_of_the_installed_arviz(exported: Any) -> None:
    assert type(exported) is (xr.DataTree if IS_TREE else az.InferenceData)
    expected = {"posterior", "posterior_predictive", "sample_stats", "log_likelihood", "observed_data", "constant_data"}
    assert names(exported) == expected


def test_every_variable_has_the_dims_that_its_name_says(exported: Any) -> None:
    draws = ("chain", "draw", "trial", "time")
    dims = {
        ("posterior", "z"): (*draws, "latent"),
        ("posterior", "rates"): (*draws, "feature"),
        ("posterior_predictive", "y"): (*draws, "feature"),
        ("sample_stats", "log_evidence"): ("chain", "trial"),
        ("sample_stats", "ess"): ("chain", "time", "trial"),
        ("sample_stats", "resampled"): ("chain", "time", "trial"),
        ("log_likelihood", "y"): draws,
        ("observed_data", "y"): ("trial", "time", "feature"),
        ("constant_data", "mask"): ("trial", "time", "feature"),
        ("constant_data", "inputs"): ("trial", "time", "input"),
    }
    assert {(g, v): exported[g][v].dims for g in names(exported) for v in exported[g].data_vars} == dims


def test_coordinates_carry_names_and_seconds(exported: Any) -> None:
    z, y = exported["posterior"]["z"], exported["observed_data"]["y"]
    np.testing.assert_allclose(z.time, (np.arange(7) + 0.5) * 0.02)
    assert z.time.attrs["units"] == "s"
    assert z.trial.values.tolist() == ["first", "second", "third"]
    assert z.condition.values.tolist() == [0, 1, 1]
    assert y.feature.values.tolist() == ["a", "b", "c", "d"]
    assert exported["constant_data"]["inputs"].input.values.tolist() == ["cue"]
    assert z.latent.values.tolist() == [0, 1]
    for group in names(exported):
        assert exported[group].attrs["subject"] == "S001"
        assert exported[group].attrs["inference_library"] == "pyro_lowrank"
        assert exported[group].attrs["num_particles"] == 50


def test_values_and_types_are_those_of_the_runs() -> None:
    runs = [FakeRun(seed) for seed in range(3)]
    data = to_arviz(runs, draws=20)
    for chain, run in enumerate(runs):
        np.testing.assert_array_equal(data["posterior"]["z"][chain], run.smoothed[0])
        np.testing.assert_array_equal(data["posterior_predictive"]["y"][chain], run.replicate(run.smoothed[0]).y)
        np.testing.assert_array_equal(data["sample_stats"]["ess"][chain], run.ess)
        np.testing.assert_array_equal(data["sample_stats"]["log_evidence"][chain], run.log_evidence)
        for draw in (0, 19):
            total = data["log_likelihood"]["y"][chain, draw].sum("time")
            np.testing.assert_allclose(total, run.log_evidence, rtol=1e-5)
    assert data["posterior"]["z"].dtype == np.float32
    assert data["sample_stats"]["resampled"].dtype == bool
    assert np.shares_memory(data["observed_data"]["y"].values, runs[0].y)


def test_each_draw_may_have_parameters_and_a_run_of_its_own() -> None:
    runs = [[FakeRun(10 * chain + draw) for draw in range(6)] for chain in range(2)]
    decay = np.random.default_rng(0).uniform(size=(2, 6, 2))
    data = to_arviz(runs, params={"decay": decay}, dims={"decay": ["latent"]}, log_likelihood="trial")
    np.testing.assert_array_equal(data["posterior"]["decay"], decay)
    assert data["posterior"]["decay"].dims == ("chain", "draw", "latent")
    assert data["posterior"]["z"].shape == (2, 6, 3, 7, 2)
    assert data["log_likelihood"]["y"].dims == data["sample_stats"]["log_evidence"].dims == ("chain", "draw", "trial")
    for chain in range(2):
        for draw in range(6):
            np.testing.assert_array_equal(data["posterior"]["z"][chain, draw], runs[chain][draw].smoothed[0][0])
            np.testing.assert_array_equal(data["log_likelihood"]["y"][chain, draw], runs[chain][draw].log_evidence)


def test_missing_chains_are_run() -> None:
    data = to_arviz(FakeRun(), chains=3, draws=5)
    assert data["posterior"].sizes["chain"] == 3
    evidence = data["sample_stats"]["log_evidence"].values
    assert len(np.unique(evidence[:, 0])) == 3


def test_thinned_bins_keep_their_times_and_their_evidence() -> None:
    run = FakeRun()
    data = to_arviz(run, draws=5, thin=3, bin_size=0.1, predictive=False)
    np.testing.assert_allclose(data["posterior"].time, [0.05, 0.35, 0.65])
    np.testing.assert_array_equal(data["posterior"]["z"][0], run.smoothed[0][:, :, ::3])
    np.testing.assert_array_equal(data["sample_stats"]["ess"][0], run.ess[::3])
    np.testing.assert_allclose(data["log_likelihood"]["y"][0, 0].sum("time"), run.log_evidence, rtol=1e-5)
    assert "posterior_predictive" not in names(data)
    assert to_arviz(run, draws=2, thin=3)["posterior"].time.values.tolist() == [0, 3, 6]


def test_a_prior_has_draws_of_its_own() -> None:
    rng = np.random.default_rng(0)
    prior = {"z": rng.normal(size=(9, 3, 7, 2)), "y": rng.normal(size=(9, 3, 7, 4)), "decay": rng.uniform(size=(9, 2))}
    data = to_arviz(FakeRun(), draws=5, prior=prior, dims={"decay": ["latent"]})
    assert data["prior"]["z"].dims == ("chain", "draw", "trial", "time", "latent")
    assert data["prior"]["decay"].dims == ("chain", "draw", "latent")
    np.testing.assert_array_equal(data["prior_predictive"]["y"][0], prior["y"])
    assert data["prior"].sizes["draw"] == 9


def test_users_coordinates_go_first() -> None:
    data = to_arviz(FakeRun(), draws=5, coords={"latent": ["x", "v"], "area": ("feature", ["V1", "V1", "V4", "V4"])})
    assert data["posterior"].latent.values.tolist() == ["x", "v"]
    assert data["posterior"].sel(latent="x")["z"].ndim == 4
    assert data["observed_data"].area.values.tolist() == ["V1", "V1", "V4", "V4"]


def test_statistics_of_arviz(exported: Any) -> None:
    summary = az.summary(exported, var_names=["z"])
    assert len(summary) == 3 * 7 * 2
    rhat = az.rhat(exported, var_names=["z"])
    assert float((rhat.posterior if "posterior" in rhat else rhat)["z"].max()) < 1.2
    ess = az.ess(exported, var_names=["z"])
    assert float((ess.posterior if "posterior" in ess else ess)["z"].min()) > 20


def each_draw(points: str, better: float = 0.0) -> Any:
    """Two chains of draws that each have a run of its own, whose evidence varies a little."""
    truth = np.random.default_rng(1).normal(size=(7, 3)) + better
    runs = [[FakeRun(40 * chain + draw) for draw in range(40)] for chain in range(2)]
    for run in (run for chain in runs for run in chain):
        run.log_evidence_increments = truth + 0.05 * run.rng.normal(size=truth.shape)
        run.log_evidence = run.log_evidence_increments.sum(0)
    return to_arviz(runs, log_likelihood=points, predictive=False), truth.sum()


@pytest.mark.filterwarnings("ignore:Estimated shape parameter of Pareto")
@pytest.mark.parametrize("points", ["bin", "trial"])
def test_loo_is_near_the_log_evidence_and_compare_ranks_by_it(points: str) -> None:
    data, evidence = each_draw(points)
    found = az.loo(data)
    assert float(found.elpd if IS_TREE else found.elpd_loo) == pytest.approx(evidence, abs=0.3)
    assert found.n_data_points == (21 if points == "bin" else 3)
    table = az.compare({"worse": data, "better": each_draw(points, better=1.0)[0]})
    assert table.index.tolist() == ["better", "worse"]


@pytest.mark.skipif(IS_TREE, reason="ArviZ 1.x refuses a likelihood that all draws share")
@pytest.mark.filterwarnings("ignore:Estimated shape parameter of Pareto")
def test_loo_at_fixed_parameters_is_the_log_evidence() -> None:
    run = FakeRun()
    found = az.loo(to_arviz(run, draws=30, predictive=False))
    assert found.elpd_loo == pytest.approx(float(run.log_evidence.sum()), rel=1e-5)


def test_held_out_evidence_is_compared_trial_by_trial() -> None:
    rng = np.random.default_rng(0)
    common = 100 * rng.normal(size=40)
    evidence = {"better": common, "worse": common - 1 + 0.1 * rng.normal(size=40)}
    elpds = {name: make_elpd(values, num_folds=4) for name, values in evidence.items()}
    table = az.compare(elpds, method="BB-pseudo-BMA")
    assert table.index.tolist() == ["better", "worse"]
    for name, values in evidence.items():
        assert (elpds[name].elpd if IS_TREE else elpds[name].elpd_loo) == pytest.approx(values.sum())
        assert elpds[name].se == pytest.approx(np.sqrt(40 * values.var()))
    difference = evidence["better"] - evidence["worse"]
    assert table.loc["worse", "dse"] == pytest.approx(np.sqrt(40 * difference.var()), rel=0.1)
    assert table.weight["better"] > 0.9
    assert "elpd" in str(elpds["better"])


def test_plots_of_arviz(exported: Any) -> None:
    some = {"trial": ["first"], "latent": [0], "time": exported["posterior"].time.values[:2]}
    plots = {
        "trace": lambda: az.plot_trace(exported, var_names=["z"], coords=some),
        "forest": lambda: az.plot_forest(exported, var_names=["z"], coords=some),
        "predictive": lambda: (
            az.plot_ppc_dist(exported, num_samples=10) if IS_TREE else az.plot_ppc(exported, num_pp_samples=10)
        ),
    }
    for name, plot in plots.items():
        mpl.pyplot.close("all")
        plot()
        drawn = [axes for number in mpl.pyplot.get_fignums() for axes in mpl.pyplot.figure(number).axes]
        # ArviZ leaves axes out without a word where it finds no numbers.
        lines = [line.get_xydata() for axes in drawn for line in axes.lines]
        assert lines, name
        assert any(len(each) and np.isfinite(each).any() for each in lines), name
    mpl.pyplot.close("all")


@pytest.mark.parametrize("kind", ["netcdf", "zarr"])
def test_round_trips(kind: str, exported: Any, tmp_path: Path) -> None:
    if kind == "zarr":
        zarr = pytest.importorskip("zarr")
        if not IS_TREE and int(zarr.__version__.split(".")[0]) > 2:
            pytest.skip("ArviZ 0.x writes zarr with zarr 2 only")
    path = tmp_path / f"data.{kind}"
    if IS_TREE:
        getattr(exported, f"to_{kind}")(path)
        back = xr.open_datatree(path, engine="h5netcdf" if kind == "netcdf" else "zarr")
    else:
        getattr(exported, f"to_{kind}")(str(path))
        back = getattr(az, f"from_{kind}")(str(path))
    for group in names(exported):
        for name, variable in exported[group].data_vars.items():
            found = back[group][name]
            assert found.dims == variable.dims
            assert found.dtype == variable.dtype
            np.testing.assert_array_equal(found, variable)
            assert set(found.coords) == set(variable.coords)
        assert back[group].attrs["subject"] == "S001"


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(TypeError, match="must be an SMCPosterior, a list"):
        to_arviz([1, 2])
    with pytest.raises(TypeError, match="must be an SMCPosterior, a list"):
        to_arviz([])
    with pytest.raises(ValueError, match="holds 2 chains, but chains=3"):
        to_arviz([FakeRun(), FakeRun(1)], chains=3)
    with pytest.raises(ValueError, match="All chains must have as many runs, of the same recording"):
        to_arviz([FakeRun(), FakeRun(time=8)])
    with pytest.raises(ValueError, match=r"'decay' must start with 1 chains x 5 draws, got shape \(1, 4\)"):
        to_arviz(FakeRun(), draws=5, params={"decay": np.zeros((1, 4))})
    with pytest.raises(ValueError, match="must name the 1 dims after chain x draw"):
        to_arviz(FakeRun(), draws=5, params={"decay": np.zeros((1, 5, 2))}, dims={"decay": ["a", "b"]})
    with pytest.raises(ValueError, match="Coordinate 'latent' needs one label for each entry"):
        to_arviz(FakeRun(), draws=5, coords={"latent": ["only one"]})
    with pytest.raises(ValueError, match="`recording` has 3 x 8 x 4 trials"):
        to_arviz(FakeRun(), draws=5, recording=Recording(np.zeros((3, 8, 4))))
    with pytest.raises(ValueError, match="log_likelihood"):
        to_arviz(FakeRun(), draws=5, log_likelihood="feature")


def test_groups_need_dims_that_agree() -> None:
    with pytest.raises(ValueError, match="one name is needed for each dim, and none twice"):
        build_groups({"posterior": {"z": Variable(np.zeros((2, 3)), ("chain",))}})
    with pytest.raises(ValueError, match=r"Dim 'latent' of posterior.b has length 3, elsewhere 2"):
        build_groups({"posterior": {"a": Variable(np.zeros(2), ("latent",)), "b": Variable(np.zeros(3), ("latent",))}})
    with pytest.raises(ValueError, match="must have the dims chain x draw"):
        named({"z": np.zeros(3)})
    assert named({"z": np.zeros((1, 2, 3))})["z"].dims == ("chain", "draw", "z_dim_0")
    assert build_groups({"posterior": {}}) == {}
