"""`init` and `step`, the protocol of Pyro's particle filter."""

from __future__ import annotations

from typing import Any

import pyro
import pytest
import torch
from pyro import poutine
from torch import Tensor

import pyro_lowrank as plr
from tests.builders import assert_close, gaussian_model, sites
from tests.dynamics.test_trajectory import INPUTS, inputs_for


def step_by_step(model: Any, y: Tensor, u: Tensor | None, z: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The log density of given latents and a recording, per trial, bin by bin, and the last state."""
    state: dict[str, Tensor] = {}
    total = torch.zeros((), dtype=y.dtype)
    for t in range(y.shape[1]):
        method = model.step if t else model.init
        given = poutine.condition(method, {"z": z[..., t, :]})
        found = sites(given, state, y[:, t], *([] if u is None else [u[:, t]]))
        assert set(found) == {"z", "y"}
        total = total + found["z"]["log_prob"] + found["y"]["log_prob"]
    return total, state


@pytest.mark.parametrize("options", INPUTS.values(), ids=INPUTS)
@pytest.mark.parametrize("missing", [False, True], ids=["complete", "missing"])
def test_a_loop_over_steps_has_the_density_of_the_whole_program(
    options: dict[str, Any], missing: bool, dtype: torch.dtype
) -> None:
    model = gaussian_model(dtype, activation="tanh", **options)
    y, u, z = torch.randn(4, 6, 3, dtype=dtype), inputs_for(options, dtype), torch.randn(4, 6, 2, dtype=dtype)
    if missing:
        y[torch.rand(4, 6, 3) < 0.3] = torch.nan
        y[:, 3] = torch.nan
    whole = sites(poutine.condition(model, {"z": z}), y, u)
    by_step, _ = step_by_step(model, y, u, z)
    assert_close(by_step, whole["z"]["log_prob"] + whole["y"]["log_prob"], factor=20)


@pytest.mark.parametrize("options", INPUTS.values(), ids=INPUTS)
def test_particles_are_one_plate_to_the_left(options: dict[str, Any]) -> None:
    model = gaussian_model(activation="tanh", **options)
    y, u = torch.randn(4, 6, 3, dtype=torch.float64), inputs_for(options, torch.float64)
    z = torch.randn(5, 4, 6, 2, dtype=torch.float64)
    with pyro.plate("particles", 5, dim=-2):
        together, state = step_by_step(model, y, u, z)
    assert_close(together, torch.stack([step_by_step(model, y, u, z_k)[0] for z_k in z]))
    # A filter resamples every state tensor along its first dim.
    assert {value.shape[:2] for value in state.values()} == {(5, 4)}
    expected = {"none": {"z"}, "direct": {"z", "input"}, "filtered": {"z", "input", "raw_input"}}
    assert set(state) == next(names for kind, names in expected.items() if INPUTS[kind] == options)


def test_without_a_recording_it_is_sampled() -> None:
    model = gaussian_model(torch.float32)
    state: dict[str, Tensor] = {}
    with pyro.plate("trials", 4, dim=-1):
        assert model.init(state).shape == (4, 3)
        assert model.step(state).shape == (4, 3)
    assert state["z"].shape == (4, 2)


def test_draws_of_the_first_steps_have_the_law_of_the_trajectory() -> None:
    model = gaussian_model(torch.float64, activation="identity")
    state: dict[str, Tensor] = {}
    with torch.no_grad(), pyro.plate("trials", 20_000, dim=-1):
        model.init(state)
        model.step(state)
    with torch.no_grad():
        expected = model.dynamics.trajectory(2).sample((20_000,))[:, 1]
    spread = expected.std(0)
    assert ((state["z"].mean(0) - expected.mean(0)).abs() < 5 * spread * (2 / 20_000) ** 0.5).all()
    scale = spread.max().item() ** 2
    torch.testing.assert_close(torch.cov(state["z"].mT), torch.cov(expected.mT), rtol=0, atol=0.06 * scale)


def test_time_bins_that_do_not_fit_are_refused() -> None:
    alone, driven = gaussian_model(torch.float32), gaussian_model(torch.float32, inputs=2)
    state: dict[str, Tensor] = {}
    for method in (alone.init, alone.step):
        with pytest.raises(ValueError, match=r"`y_t` must have shape trials x 3 features, got \(4, 1\)"):
            method(state, torch.zeros(4, 1))
        with pytest.raises(ValueError, match=r"built with inputs=0, but `u_t` came, of shape \(4, 2\)"):
            method(state, torch.zeros(4, 3), torch.zeros(4, 2))
    with pytest.raises(ValueError, match="built with inputs=2, but none came"):
        driven.init(state, torch.zeros(4, 3))
    for u_t in (torch.zeros(4, 3), torch.zeros(1, 2)):
        with pytest.raises(ValueError, match=r"`u_t`, must have shape trials x inputs, \(4, 2\), got \("):
            driven.init(state, torch.zeros(4, 3), u_t)
    assert state == {}


def test_it_runs_in_pyros_own_filter() -> None:
    model = gaussian_model(torch.float32)
    guide = plr.BootstrapGuide(model)
    smc = pyro.infer.SMCFilter(model, guide, num_particles=200, max_plate_nesting=1)
    y = model.simulate(num_trials=1, num_steps=5).y
    smc.init(y[:, 0])
    for t in range(1, 5):
        smc.step(y[:, t])
    assert smc.get_empirical()["z"].mean.isfinite().all()
