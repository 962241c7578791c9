"""What the filter found reaches ArviZ as it is."""

from __future__ import annotations

from typing import Any

import arviz as az
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import pyro_lowrank as plr
from pyro_lowrank.data.recording import Recording
from pyro_lowrank.errors import NoMean
from tests.builders import gaussian_model, network, shaken


def run_of(model: Any, y: Tensor, u: Tensor | None = None, num_particles: int = 60) -> plr.SMCPosterior:
    """A run of the filter."""
    guide = plr.OptimalGuide(model) if isinstance(model.observation, plr.GaussianObservation) else None
    smc = plr.SMCFilter(model, guide or plr.BootstrapGuide(model), num_particles=num_particles)
    return smc.run(y) if u is None else smc.run(y, u)


def test_evidence_sizes_and_data_are_those_of_the_run(dtype: torch.dtype) -> None:
    model = gaussian_model(dtype, inputs=2)
    u = torch.randn(3, 8, 2, dtype=dtype)
    y = model.simulate(num_trials=3, num_steps=8, u=u).y.clone()
    y[1, 4] = y[0, 2, 1] = torch.nan
    posterior = run_of(model, y, u)
    data = plr.to_arviz(posterior, draws=10)
    np.testing.assert_array_equal(data["sample_stats"]["log_evidence"][0], posterior.log_evidence)
    np.testing.assert_array_equal(data["sample_stats"]["ess"][0], posterior.ess)
    np.testing.assert_array_equal(data["sample_stats"]["resampled"][0], posterior.resampled)
    np.testing.assert_array_equal(data["observed_data"]["y"], y)
    np.testing.assert_array_equal(data["constant_data"]["mask"], ~y.isnan())
    np.testing.assert_array_equal(data["constant_data"]["inputs"], u)
    total = data["log_likelihood"]["y"].sum(("trial", "time"))
    np.testing.assert_allclose(total, posterior.log_evidence.sum().item(), rtol=1e-5)
    assert data["posterior"]["z"].dtype == data["posterior"]["mean"].dtype == np.dtype(str(dtype).split(".")[1])
    # New observations are there where the recording is not.
    assert np.isfinite(data["posterior_predictive"]["y"]).all()


def test_paths_and_predictions_belong_together() -> None:
    model = gaussian_model(noise_scale=0.1)
    y = model.simulate(num_trials=2, num_steps=9).y
    posterior = run_of(model, y, num_particles=300)
    data = plr.to_arviz(posterior, draws=400)
    z = torch.as_tensor(data["posterior"]["z"].values)
    with torch.no_grad():
        expected = model.observation.mean(z)
    np.testing.assert_allclose(data["posterior"]["mean"], expected)
    residual = data["posterior_predictive"]["y"] - data["posterior"]["mean"]
    spread = residual.std(("chain", "draw", "trial", "time"))
    np.testing.assert_allclose(spread, model.observation.noise_variance.detach().sqrt(), rtol=0.05)
    smoothed = posterior.smoothed()
    error = (z[0].mean(0) - smoothed.mean()) / smoothed.variance().sqrt()
    assert error.abs().max() < 5 / 400**0.5


def test_chains_are_runs_that_agree_where_there_are_enough_particles() -> None:
    model = gaussian_model(noise_scale=0.3)
    posterior = run_of(model, model.simulate(num_trials=2, num_steps=10).y, num_particles=500)
    data = plr.to_arviz(posterior, chains=4, draws=100)
    assert len(np.unique(data["sample_stats"]["log_evidence"][:, 0])) == 4
    rhat = az.rhat(data, var_names=["z"])["z"]
    assert float(rhat.max()) < 1.05
    few = plr.to_arviz(run_of(model, posterior.recording[0], num_particles=2), chains=4, draws=100)
    assert float(az.rhat(few, var_names=["z"])["z"].max()) > 1.3


def test_a_run_is_not_repeated_at_other_parameters() -> None:
    model = gaussian_model()
    posterior = run_of(model, model.simulate(num_trials=2, num_steps=5).y)
    with torch.no_grad():
        model.dynamics.bias += 0.1
    with pytest.raises(ValueError, match="parameters of the model have changed since this run"):
        plr.to_arviz(posterior, chains=2)
    assert plr.to_arviz(posterior, draws=3)["posterior"].sizes["chain"] == 1


def test_counts_have_rates_and_names() -> None:
    model = plr.StateSpaceModel(network(torch.float32), shaken(plr.PoissonObservation(rank=2, features=3)))
    y = model.simulate(num_trials=2, num_steps=6).y
    recording = Recording(y.numpy(), bin_size=0.01, feature_names=("u1", "u2", "u3"))
    data = plr.to_arviz(run_of(model, y), draws=5, recording=recording)
    assert (data["posterior"]["rates"] > 0).all()
    counts = data["posterior_predictive"]["y"]
    np.testing.assert_array_equal(counts, np.round(counts))
    assert counts.sel(feature="u2").sizes["time"] == 6
    assert counts.time.values[0] == pytest.approx(0.005)


def test_prior_predictive_comes_from_predictive() -> None:
    model = gaussian_model()
    y = model.simulate(num_trials=2, num_steps=6).y
    draws = pyro.infer.Predictive(model, num_samples=7)(num_trials=2, num_steps=6)
    data = plr.to_arviz(run_of(model, y), draws=5, prior=draws)
    np.testing.assert_array_equal(data["prior"]["z"][0], draws["z"])
    np.testing.assert_array_equal(data["prior_predictive"]["y"][0], draws["y"])


def test_by_default_the_filter_runs_for_each_of_many_chains() -> None:
    model = gaussian_model()
    y = model.simulate(num_trials=2, num_steps=5).y
    posterior = run_of(model, y)
    data = plr.to_arviz(posterior)
    assert (data["posterior"].sizes["chain"], data["posterior"].sizes["draw"]) == (20, 20)
    evidence = data["sample_stats"]["log_evidence"].values[:, 0]
    assert len(np.unique(evidence)) == 20
    assert evidence[0] == posterior.log_evidence[0].item()
    assert plr.to_arviz([posterior, posterior.rerun()])["posterior"].sizes["draw"] == 20
    online = plr.SMCFilter(model, plr.OptimalGuide(model), 20)
    online.init(y[:, 0])
    sizes = plr.to_arviz(online.posterior())["posterior"].sizes
    assert (sizes["chain"], sizes["draw"]) == (1, 100)


def test_the_effective_size_of_the_default_is_nearer_to_the_truth() -> None:
    """Against the spread of the means of repeated exports: draws of one run share its error."""
    model = gaussian_model(activation="identity", noise_scale=1.0)
    y = model.simulate(num_trials=1, num_steps=12).y
    smc = plr.SMCFilter(model, plr.BootstrapGuide(model), 100)
    ratios = []
    for chains, draws in ((4, 100), (20, 20)):
        said, means, variances = [], [], []
        for _ in range(30):
            # Chains side by side, as trials: cheaper than one run after the other.
            z = smc.run(y.expand(chains, -1, -1)).smooth(draws).movedim(0, 1)[:, :, 2:8].numpy()
            said.append(float(az.ess({"z": z}, method="mean")["z"].mean()))
            means.append(z.mean((0, 1)))
            variances.append(z.var((0, 1)))
        truth = (np.mean(variances, 0) / np.var(means, 0, ddof=1)).mean()
        ratios.append(np.mean(said) / truth)
    assert ratios[0] > 3
    assert ratios[1] < 3


def test_likelihoods_of_entries_are_those_along_each_path() -> None:
    model = gaussian_model()
    y = model.simulate(num_trials=2, num_steps=5).y
    gaps = y.clone()
    gaps[1, 2, 1] = torch.nan
    data = plr.to_arviz(run_of(model, gaps), draws=6, log_likelihood="entry")
    found = data["log_likelihood"]["y"]
    assert found.dims == ("chain", "draw", "trial", "time", "feature")
    z = torch.as_tensor(data["posterior"]["z"].values)
    with torch.no_grad():
        normal = dist.Normal(model.observation.mean(z), model.observation.noise_variance.sqrt())
    expected = normal.log_prob(y).masked_fill(gaps.isnan(), torch.nan)
    np.testing.assert_allclose(found, expected)


@pytest.mark.skipif(not az.__version__.startswith("0."), reason="ArviZ 1 has another loo_pit")
@pytest.mark.filterwarnings("ignore:Estimated shape parameter")
def test_loo_pit_is_plotted_and_uniform_where_the_model_is_right() -> None:
    model = gaussian_model(noise_scale=1.0)
    y = model.simulate(num_trials=20, num_steps=15).y
    data = plr.to_arviz(run_of(model, y, num_particles=200), log_likelihood="entry")
    pit = az.loo_pit(data, y="y")
    assert pit.shape == (20, 15, 3)
    # Mean and variance of a uniform number, within five standard errors; entries of a trial are nearly independent.
    assert abs(pit.mean() - 0.5) < 5 * (1 / 12 / 900) ** 0.5
    assert abs(pit.var() - 1 / 12) < 5 * (1 / 180 / 900) ** 0.5
    assert az.plot_loo_pit(data, y="y", backend="matplotlib") is not None


class Choices(plr.Observation):
    """Which of three symbols was shown, for each feature: numbers that are names."""

    def __init__(self) -> None:
        super().__init__(features=2)

    def distribution(self, z: Tensor, v: Tensor | None = None) -> dist.TorchDistribution:
        return dist.Categorical(logits=torch.stack([z, -z, torch.zeros_like(z)], -1)).to_event(1)


def test_what_has_no_mean_is_exported_without_one() -> None:
    model = plr.StateSpaceModel(plr.LowRankRNN(rank=2, units=6), Choices())
    simulation = model.simulate(num_trials=3, num_steps=5)
    assert simulation.mean is None
    y = simulation.y.float()
    posterior = plr.SMCFilter(model, None, 40).run(y)
    data = plr.to_arviz(posterior, draws=10)
    assert set(data["posterior"].data_vars) == {"z"}
    assert set(np.unique(data["posterior_predictive"]["y"])) <= {0, 1, 2}
    assert posterior.forecast(3).mean is None
    assert posterior.replicate(posterior.smooth(2)).mean is None
    for run in (posterior.predict, lambda: model.observation.mean(torch.zeros(2))):
        with pytest.raises(NoMean, match="A Categorical has no mean: draw observations, or define the `mean`"):
            run()
    mixed = plr.JointObservation({"choice": Choices(), "rate": plr.PoissonObservation(rank=2, features=1)})
    assert plr.StateSpaceModel(plr.LowRankRNN(rank=2, units=6), mixed).simulate(2, 3).mean is None


def test_entries_that_depend_on_each_other_have_no_likelihoods_of_their_own() -> None:
    class Correlated(plr.Observation):
        def distribution(self, z: Tensor, v: Tensor | None = None) -> dist.TorchDistribution:
            return dist.MultivariateNormal(z, torch.eye(2))

    model = plr.StateSpaceModel(plr.LowRankRNN(rank=2, units=6), Correlated(features=2))
    posterior = plr.SMCFilter(model, None, 20).run(torch.zeros(2, 3, 2))
    with pytest.raises(ValueError, match="entries of a MultivariateNormal have no likelihoods of their own"):
        plr.to_arviz(posterior, draws=5, log_likelihood="entry")


def test_a_summary_is_of_means_over_recorded_bins() -> None:
    from pyro_lowrank.export.arviz import summarise

    torch.manual_seed(0)
    model = gaussian_model(torch.float32)
    y = model.simulate(num_trials=3, num_steps=12).y
    y[1, 6:] = torch.nan
    data = plr.to_arviz(run_of(model, y), chains=4, draws=20)
    headings, rows = summarise(data, "z", over=("time",), first={"trial": 2})
    assert headings[:2] == ["", "mean"]
    assert "r_hat" in headings
    assert len(rows) == 2 * 2
    z = data["posterior"].z.values
    expected = [z[:, :, 0].mean((0, 1, 2)), z[:, :, 1, :6].mean((0, 1, 2))]
    assert [float(row[1]) for row in rows] == pytest.approx(np.concatenate(expected), abs=2e-3)
