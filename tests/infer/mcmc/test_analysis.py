"""What is read off posterior draws: fixed points and where they may be, convergence, what the data determine."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroSample
from torch import Tensor

import pyro_lowrank as plr
from pyro_lowrank.fixed_points.matching import match_points


def tanh_model() -> plr.StateSpaceModel:
    """One unit: z' = 0.5 z + g tanh(z + u), with one attractor for g < 0.5 and two attractors for g > 0.5 at u = 0."""
    dynamics = plr.LowRankRNN(rank=1, units=1, inputs=1, activation="tanh", dtype=torch.float64)
    model = plr.StateSpaceModel(dynamics, plr.GaussianObservation(rank=1, features=3, dtype=torch.float64))
    with torch.no_grad():
        dynamics.decay, dynamics.bias = torch.tensor(0.5).double(), torch.zeros(1).double()
        dynamics.left, dynamics.input_weights = torch.ones(1, 1).double(), torch.ones(1, 1).double()
    dynamics.right = PyroSample(dist.Normal(torch.zeros(1, 1).double(), 1.0).to_event(2))
    return model


def finished(model: Any, samples: dict[str, Tensor]) -> Any:
    """What an `MCMC` looks like after `run`: draws `draws x ...`, of one chain."""

    def get_samples(*, group_by_chain: bool = False) -> dict[str, Tensor]:
        return {name: value.unsqueeze(0) for name, value in samples.items()} if group_by_chain else samples

    return SimpleNamespace(kernel=SimpleNamespace(model=model), _samples=samples, get_samples=get_samples)


def gains(*values: float) -> Tensor:
    return torch.tensor(values).double().reshape(-1, 1, 1)


def test_probabilities_and_regions_of_attractors() -> None:
    model = tanh_model()
    mcmc = finished(model, {"dynamics.right": gains(0.3, 0.8, 0.9, 1.0)})
    found = plr.posterior_fixed_points(mcmc, u=torch.zeros(1))
    assert found.complete.all()
    assert found.distribution("attractor") == {1: 0.25, 2: 0.75}
    assert found.probability(2, "attractor") == 0.75
    assert found.probability(3) == 0.75
    # Of chains that ran apart, the same by their draws.
    again = plr.posterior_fixed_points(model, {"dynamics.right": gains(0.3, 0.8, 0.9, 1.0)}, torch.zeros(1))
    np.testing.assert_array_equal(again.points, found.points)
    assert again.readouts is not None
    assert found.probability_of_sets == 0.0
    low, middle, high = found.matched()
    assert sorted(point.stability for point in (low, middle, high)) == ["attractor", "attractor", "repeller"]
    # In what is recorded: the readout of the latents, which solve 0.5 z = g tanh(z).
    assert found.readouts is not None
    weight = model.observation.readout.weight.detach().numpy()
    for result, seen in zip(found.results, found.readouts, strict=True):
        np.testing.assert_allclose(seen, result.points @ weight.T + 0.0, atol=1e-12)
    top = max(
        (point for point in found.matched() if point.stability == "attractor"), key=lambda p: p.mean @ weight[:, 0]
    )
    assert top.samples.tolist() == [1, 2, 3]
    ends = top.interval(0.5)
    assert ends.shape == (2, 3)
    z = np.array([result.points.max() for result in found.results[1:]])
    np.testing.assert_allclose(ends, np.quantile(z[:, None] * weight[:, 0], [0.25, 0.75], axis=0))
    np.testing.assert_allclose(top.covariance, np.outer(weight[:, 0], weight[:, 0]) * z.var(ddof=1))


def test_models_of_one_name_after_each_other_are_read_apart() -> None:
    first, second = tanh_model(), tanh_model()
    with torch.no_grad():
        second.dynamics.decay = torch.tensor(0.9).double()
    counts = [
        plr.posterior_fixed_points(finished(model, {"dynamics.right": gains(0.3)}), u=torch.zeros(1)).counts.item()
        for model in (first, second, first)
    ]
    assert counts == [1, 3, 1]
    draws = {"dynamics.right": gains(0.3, 0.4, 0.2, 0.3, 0.4, 0.2), "z": torch.randn(6, 2, 5, 1).double()}
    flows = [plr.convergence(finished(model, draws)).draws["flow"] for model in (first, second)]
    assert (flows[0] - flows[1]).abs().max() > 0.1
    assert list(pyro.get_param_store().keys()) == []


def test_a_bifurcation_has_its_band() -> None:
    mcmc = finished(tanh_model(), {"dynamics.right": gains(0.3, 0.8, 1.0, 1.2)})
    strengths = np.linspace(0.0, 1.0, 41)
    path = plr.fixed_points_along_input(mcmc, strengths[:, None])
    shares = path.probabilities("attractor")
    assert shares[2][0] == 0.75
    assert shares[1][-1] == 1.0
    share, low, middle, high = path.bifurcation(strengths, 2, 1, level=0.9)
    assert share == 0.75
    # Where the fold is: 0.5 z = g tanh(z + u) with equal slopes, 0.5 = g / cosh(z + u)^2.
    folds = [np.arccosh(np.sqrt(2 * g)) - 2 * g * np.tanh(np.arccosh(np.sqrt(2 * g))) for g in (0.8, 1.0, 1.2)]
    folds = sorted(abs(fold) for fold in folds)
    np.testing.assert_allclose([low, middle, high], np.quantile(folds, [0.05, 0.5, 0.95]), atol=0.03)
    assert "2 attractors: 0.75" in str(path)


def test_points_are_matched_whatever_their_order() -> None:
    rng = np.random.default_rng(0)
    centres = np.array([[0.0, 0.0], [3.0, 0.0], [0.0, 3.0]])
    labels = np.array(["attractor", "attractor", "saddle"])
    orders = [rng.permutation(3) for _ in range(50)]
    places = [(centres + 0.2 * rng.normal(size=(3, 2)))[order] for order in orders]
    found = match_points([*places, centres[:1]], [*(labels[order] for order in orders), labels[:1]])
    assert all(len(point.samples) == 50 for point in found)
    means = np.array([point.mean for point in found])
    assert {tuple(mean) for mean in means.round()} == {(0.0, 0.0), (3.0, 0.0), (0.0, 3.0)}
    assert max(np.abs(point.covariance - 0.04 * np.eye(2)).max() for point in found) < 0.03


def test_convergence_is_told_by_what_does_not_depend_on_the_basis() -> None:
    model = plr.with_priors(
        plr.StateSpaceModel(plr.LowRankRNN(rank=2, units=4), plr.GaussianObservation(rank=2, features=3))
    )
    from pyro.infer import Predictive

    drawn = Predictive(model, num_samples=1)(None, num_trials=1, num_steps=10)
    one = {name: value.reshape(value.shape[1:]) for name, value in drawn.items() if name != "y"}
    one = {name: value.squeeze(0) if value.dim() > 1 and name != "z" else value for name, value in one.items()}
    sites = {name: value for name, value in one.items() if not name.endswith("noise_scale") or "obs" in name}
    chains = {name: value.expand(2, 8, *value.shape).clone() for name, value in sites.items()}
    chains["dynamics.decay"] = chains["dynamics.decay"].reshape(2, 8) * (1 + 0.01 * torch.randn(2, 8))
    # One chain has other units first, which nobody can see.
    for name, dim in (("left", -2), ("right", -1), ("bias", -1)):
        chains[f"dynamics.{name}"][1] = chains[f"dynamics.{name}"][1].flip(dim)
    found = plr.convergence(model, chains)
    assert set(found.rhat) == {"decay", "flow"}
    assert found.worst_rhat < 2.0
    chains["dynamics.decay"][1] += 0.5
    assert plr.convergence(model, chains).worst_rhat > 5.0


def test_what_only_the_prior_tells() -> None:
    model = plr.StateSpaceModel(plr.LowRankRNN(rank=1, units=4), plr.GaussianObservation(rank=1, features=3))
    sampled = plr.with_priors(model, only=["dynamics.bias", "dynamics.decay"])
    sum_known = torch.randn(1000, 4)
    sum_known = sum_known - sum_known.mean(1, keepdim=True) + 0.01 * torch.randn(1000, 1)
    draws = {"dynamics.bias": sum_known, "dynamics.decay": dist.Beta(8.0, 2.0).sample((1000,))}
    found = plr.determined(sampled, draws)
    assert found.number_below(0.5) == 1
    assert found.ratios[0] < 0.05
    assert found.shares_of(0)["dynamics.bias"] > 0.98
    assert found.directions[:, 0].abs().sort().values[1:].allclose(torch.tensor(0.5).double(), atol=0.05)
    assert (found.ratios[1:] - 1).abs().max() < 0.15
    assert found.entries["dynamics.bias"].shape == (4,)
    assert "1 of 5 directions" in str(found)


def test_what_is_no_posterior_is_told() -> None:
    for function in (plr.posterior_fixed_points, plr.convergence, plr.determined):
        with pytest.raises(TypeError, match=r"pyro.infer.MCMC after `run`"):
            function(object())
        with pytest.raises(ValueError, match="no draws yet"):
            function(SimpleNamespace(kernel=SimpleNamespace(model=tanh_model())))
    with pytest.raises(ValueError, match="pass draws of its parameters"):
        plr.posterior_fixed_points(tanh_model().dynamics)
    with pytest.raises(ValueError, match="two or more inputs"):
        plr.fixed_points_along_input(finished(tanh_model(), {"dynamics.right": gains(1.0)}), [[0.0]])
    with pytest.raises(ValueError, match="at least 4 draws per chain, got 2"):
        plr.convergence(finished(tanh_model(), {"dynamics.right": gains(0.1, 0.2)}))
