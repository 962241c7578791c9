"""SMCFilter online: the calls of Pyro's own, several trials, state that can be saved."""

from __future__ import annotations

import pytest
import torch
from pyro.infer.smcfilter import SMCFailed

import pyro_lowrank as plr
from tests.oracles.linear import kalman_filter, linear_model
from tests.smc.test_effects import Delegate


@pytest.fixture(params=["plain", "effects"])
def through(request: pytest.FixtureRequest) -> type:
    """How a model is run: as it is, or wrapped so that it goes through Pyro's effects."""
    return Delegate if request.param == "effects" else lambda thing: thing  # type: ignore[return-value]


def test_online_filtering_matches_the_kalman_filter(through: type, dtype: torch.dtype) -> None:
    model = linear_model(inputs=1, noise_scale=1.0, dtype=dtype)
    u = torch.randn(3, 5, 1, dtype=dtype)
    y = model.simulate(3, 5, u).y
    y[1, 2] = torch.nan
    exact = kalman_filter(model, y, u)
    smc = plr.SMCFilter(through(model), through(plr.OptimalGuide(model)), 20_000)
    smc.init(y[:, 0], u[:, 0])
    for t in range(1, 5):
        smc.step(y[:, t], u[:, t])
    torch.testing.assert_close(smc.log_evidence, exact.increments.sum(0), rtol=0, atol=0.12)
    empirical = smc.get_empirical()["z"]
    spread = exact.covariance[:, -1].diagonal(dim1=-2, dim2=-1)
    assert ((empirical.mean - exact.mean[:, -1]).abs() < 0.05 * spread.sqrt()).all()
    torch.testing.assert_close(empirical.variance / spread, torch.ones_like(spread), rtol=0, atol=0.07)
    assert empirical.mean.dtype == dtype
    assert smc.ess.shape == (3,)
    assert smc.ancestors.shape == (20_000, 3)


def test_online_and_whole_sequences_give_the_same_numbers_for_filtered_inputs(through: type) -> None:
    """One particle, no noise: only the handling of inputs is left."""
    dynamics = plr.LowRankRNN(
        rank=2, units=9, inputs=2, input_filter=True, noise_scale=1e-8, initial_scale=1e-8, dtype=torch.float64
    )
    model = plr.StateSpaceModel(dynamics, plr.GaussianObservation(rank=2, features=3, inputs=2, dtype=torch.float64))
    u = torch.randn(2, 6, 2, dtype=torch.float64)
    y = torch.randn(2, 6, 3, dtype=torch.float64)
    guide = plr.BootstrapGuide(model)
    whole = plr.SMCFilter(model, guide, 1).run(y, u)
    smc = plr.SMCFilter(through(model), through(guide), 1)
    smc.init(y[:, 0], u[:, 0])
    for t in range(1, 6):
        smc.step(y[:, t], u[:, t])
        torch.testing.assert_close(smc.state["z"], whole.particles["z"][..., t, :], rtol=0, atol=1e-6)
    torch.testing.assert_close(smc.log_evidence, whole.log_evidence)


def test_a_second_init_starts_anew(through: type) -> None:
    model = linear_model()
    y = model.simulate(2, 4).y
    smc = plr.SMCFilter(through(model), through(plr.OptimalGuide(model)), 50)
    results = []
    for _ in range(2):
        torch.manual_seed(3)
        smc.init(y[:, 0])
        smc.step(y[:, 1])
        results.append((smc.log_evidence, smc.state["z"]))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


def test_a_saved_state_goes_on_with_the_same_numbers(through: type) -> None:
    model = linear_model(inputs=1)
    u = torch.randn(2, 5, 1, dtype=torch.float64)
    y = model.simulate(2, 5, u).y
    guide = plr.OptimalGuide(model)
    first = plr.SMCFilter(through(model), through(guide), 50)
    first.init(y[:, 0], u[:, 0])
    first.step(y[:, 1], u[:, 1])
    state = first.state_dict()
    assert all(isinstance(value, torch.Tensor) for value in state.values())
    second = plr.SMCFilter(through(model), through(guide), 50)
    second.load_state_dict(state)
    for smc in (first, second):
        torch.manual_seed(4)
        for t in range(2, 5):
            smc.step(y[:, t], u[:, t])
    assert torch.equal(first.log_evidence, second.log_evidence)
    assert torch.equal(first.state["z"], second.state["z"])
    with pytest.raises(ValueError, match="50 particles, the filter num_particles=20"):
        plr.SMCFilter(model, guide, 20).load_state_dict(state)
    with pytest.raises(ValueError, match=r"entries \['ess'\] are missing, \['other'\] are unknown"):
        second.load_state_dict({("other" if name == "ess" else name): value for name, value in state.items()})


def test_calls_out_of_order_and_of_the_wrong_shape_are_refused() -> None:
    model = linear_model()
    smc = plr.SMCFilter(model, plr.OptimalGuide(model), 10)
    y = torch.randn(2, 4, dtype=torch.float64)
    with pytest.raises(RuntimeError, match="Call `init` with the first time bin"):
        smc.step(y)
    with pytest.raises(RuntimeError, match="Nothing was filtered yet"):
        smc.get_empirical()
    with pytest.raises(ValueError, match=r"`y_t` has shape trials x features, got \(2, 3, 4\).*`run`"):
        smc.init(torch.randn(2, 3, 4, dtype=torch.float64))
    with pytest.raises(ValueError, match="4 features .* got 3"):
        smc.init(y[:, :3])


def test_dead_particles_are_reported_with_trial_and_time(through: type) -> None:
    model = linear_model(dtype=torch.float32)
    smc = plr.SMCFilter(through(model), through(plr.BootstrapGuide(model)), 10)
    smc.init(torch.randn(3, 4))
    smc.step(torch.randn(3, 4))
    with pytest.raises(SMCFailed, match="trial 2 are dead at time 2"):
        smc.step(torch.tensor([[0.0], [0.0], [1e30]]) + torch.randn(3, 4))


def test_the_posterior_reads_well() -> None:
    model = linear_model()
    posterior = plr.SMCFilter(model, plr.OptimalGuide(model), 100).run(model.simulate(3, 10).y)
    text = str(posterior)
    assert "3 trials x 10 time bins, 100 particles" in text
    assert f"{posterior.log_evidence.sum().item():.2f} nats" in text
    with pytest.raises(KeyError, match="No state 'x'; there are"):
        posterior.mean("x")


def test_filtering_keeps_no_graph_and_leaves_grad_mode_alone() -> None:
    model = linear_model()
    posterior = plr.SMCFilter(model, plr.OptimalGuide(model), 10).run(model.simulate(2, 3).y)
    assert not posterior.log_evidence.requires_grad
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("backend", ["auto", "plain"])
def test_a_running_filter_keeps_the_parameters_that_it_began_with(backend: str) -> None:
    model = plr.StateSpaceModel(plr.LowRankRNN(rank=2, units=9), plr.GaussianObservation(rank=2, features=3))
    y, found = torch.randn(4, 3, 3), []
    for move in (0.0, 0.3):
        smc = plr.SMCFilter(model, plr.OptimalGuide(model), 20, backend=backend)
        torch.manual_seed(1)
        smc.init(y[:, 0])
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(move)
        smc.step(y[:, 1])
        smc.step(y[:, 2])
        found.append(smc.log_evidence)
    assert torch.equal(*found)
