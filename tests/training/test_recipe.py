"""What a fit does where nothing is asked for: numbers, start, and units that do not matter."""

from __future__ import annotations

import itertools
import logging
from typing import Any

import pytest
import torch
from torch import Tensor

import pyro_lowrank as plr
from pyro_lowrank.training.batches import Batch, observed_bins
from pyro_lowrank.training.recipe import Recipe
from pyro_lowrank.training.scales import scales_of
from pyro_lowrank.training.standardise import Standardisation
from tests.training.builders import pair, recording, small_fit, state

NAN = float("nan")


def recipe(y: Tensor, guide: Any = None, **asked: Any) -> Recipe:
    names = ("num_steps", "batch_size", "num_particles", "learning_rate", "final_learning_rate")
    return Recipe.of(observed_bins(y), guide, **{"window": "auto", **dict.fromkeys(names), **asked})


@pytest.mark.parametrize(
    ("shape", "window", "batch_size"),
    [
        ((100, 100, 2), None, 10),
        ((100, 300, 2), None, 3),
        ((3, 100, 2), None, None),
        ((10, 100, 2), None, None),
        ((1, 301, 2), 100, 10),
        ((5000, 1, 2), None, 1000),
    ],
)
def test_batches_hold_some_thousand_time_bins(
    shape: tuple[int, ...], window: int | None, batch_size: int | None
) -> None:
    found = recipe(torch.zeros(shape))
    assert (found.window, found.batch_size) == (window, batch_size)


def test_padding_does_not_count() -> None:
    y = torch.full((50, 1000, 2), NAN)
    y[:, 400:450] = 0.0
    found = recipe(y)
    assert (found.window, found.batch_size) == (None, 20)


def test_what_is_asked_for_is_taken_and_not_told() -> None:
    asked: dict[str, Any] = {
        "num_steps": 3,
        "window": 40,
        "batch_size": 7,
        "num_particles": 5,
        "learning_rate": 0.5,
        "final_learning_rate": 0.25,
    }
    found = recipe(torch.zeros(2, 1000, 2), **asked)
    assert {name: getattr(found, name) for name in asked} == asked
    assert found.chosen == ()
    assert recipe(torch.zeros(2, 1000, 2), window=None).window is None
    assert recipe(torch.zeros(2, 1000, 2), learning_rate=0.5).final_learning_rate == pytest.approx(0.05)
    with pytest.raises(ValueError, match="a number of time bins, 'auto' or None, got 'trials'"):
        recipe(torch.zeros(2, 1000, 2), window="trials")


def test_particles_suit_the_guide() -> None:
    model, guide = pair()
    y = recording()
    guides = {16: (guide, plr.LaplaceGuide(model)), 64: (plr.BootstrapGuide(model), None, object())}
    for expected, some in guides.items():
        assert all(recipe(y, each).num_particles == expected for each in some)


def test_what_was_chosen_is_said(caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]) -> None:
    model, guide = pair()
    with caplog.at_level(logging.INFO, logger="pyro_lowrank"):
        plr.fit(model, guide, recording(), num_steps=2, progress=True)
    shown = capsys.readouterr().err
    for line in (
        "batch_size=None: all 5 trials",
        "num_particles=16: of OptimalGuide",
        "learning_rate=0.01",
        "start at",
    ):
        assert line in caplog.text
        assert f"fit: {line}" in shown or line == "start at"
    assert "num_steps" not in caplog.text


def test_a_readout_as_drawn_starts_at_the_data_and_no_other() -> None:
    y = 100 + 3 * recording(trials=20)
    model, guide = pair()
    small_fit(model, guide, y, num_steps=1, start_at_data=True, learning_rate=1e-9, final_learning_rate=1e-9)
    expected, _ = pair()
    units = Standardisation.of(y)
    plr.initialise_from_data(expected, units.apply(y))
    units.fold_into(expected.observation)
    for name, value in state(expected).items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=1e-5, atol=1e-5)
    changed, guide = pair()
    with torch.no_grad():
        changed.observation.readout.weight[0, 0] += 0.1
    before = state(changed)
    small_fit(changed, guide, y, num_steps=1, start_at_data=True, learning_rate=1e-9, final_learning_rate=1e-9)
    for name, value in before.items():
        torch.testing.assert_close(changed.state_dict()[name], value, rtol=1e-4, atol=1e-4)


def test_too_few_components_start_at_the_means(caplog: pytest.LogCaptureFixture) -> None:
    model, guide = pair()
    y = 5 + recording()[..., :1].expand(-1, -1, 3).clone()
    with caplog.at_level(logging.INFO, logger="pyro_lowrank"):
        small_fit(model, guide, y, num_steps=1, start_at_data=True, learning_rate=1e-9, final_learning_rate=1e-9)
    assert "at the data's means alone: The recording has 1 principal components" in caplog.text
    torch.testing.assert_close(model.observation.readout.bias, y.mean((0, 1)), rtol=1e-4, atol=0)


def test_what_is_frozen_keeps_its_value() -> None:
    y = 100 + 3 * recording(trials=20)
    readout = plr.AffineReadout(rank=2, features=3, train_bias=False)
    for kept in ("bias", "noise"):
        part = plr.GaussianObservation(**({"readout": readout} if kept == "bias" else {"rank": 2, "features": 3}))
        model = plr.StateSpaceModel(plr.LowRankRNN(rank=2, units=6), part)
        if kept == "noise":
            part.noise_scale.unconstrained().requires_grad_(False)
        before = (part.readout.bias if kept == "bias" else part.noise_scale).detach().clone()
        small_fit(model, plr.OptimalGuide(model), y, num_steps=1, start_at_data=True)
        assert torch.equal(part.readout.bias if kept == "bias" else part.noise_scale, before)


def test_an_observation_model_of_ones_own_is_left_alone_with_inputs() -> None:
    class Own(plr.Observation):
        def distribution(self, z: Tensor, v: Tensor | None = None) -> Any:
            return torch.distributions.Independent(torch.distributions.Normal(z, 1.0), 1)

    model = plr.StateSpaceModel(pair(inputs=1)[0].dynamics, Own(features=2))
    y, u = torch.randn(3, 6, 2), torch.ones(3, 6, 1)
    assert small_fit(model, None, y, u, num_steps=1, start_at_data=True).steps == 1


def models(kind: str) -> tuple[plr.StateSpaceModel, Any, Tensor, Tensor]:
    """A model as it was drawn, its guide, and data in plain units."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        dynamics = plr.LowRankRNN(rank=2, units=12, inputs=2, activation="tanh", dtype=torch.float64)
        options: dict[str, Any] = {"rank": 2, "inputs": 2, "dtype": torch.float64}
        if kind == "joint":
            parts = {"spikes": plr.PoissonObservation(features=2, **options)}
            parts["lfp"] = plr.GaussianObservation(features=3, **options)
            observation: Any = plr.JointObservation(parts)
        else:
            family = plr.GaussianObservation if kind == "gaussian" else plr.StudentTObservation
            observation = family(features=5, **options)
        model = plr.StateSpaceModel(dynamics, observation)
        u = torch.randn(8, 30, 2, dtype=torch.float64)
        y = model.simulate(u=u).y
    return model, (plr.OptimalGuide if kind == "gaussian" else plr.BootstrapGuide)(model), y, u


@pytest.mark.parametrize(
    ("kind", "units"),
    [
        pytest.param(
            kind, units, marks=[] if units == "mixed" or (kind, units) == ("gaussian", "small") else pytest.mark.slow
        )
        for kind, units in itertools.product(("gaussian", "student-t", "joint"), ("small", "large", "mixed"))
    ],
)
def test_units_do_not_matter(kind: str, units: str) -> None:
    """The same networks, and the same evidence but for the units, whatever the data are measured in."""
    factors = {"small": [1e-5] * 5, "large": [1e5] * 5, "mixed": [1e-3, 1.0, 1e3, 1e-3, 1e3]}[units]
    factor = torch.tensor(factors, dtype=torch.float64)
    offset = 1e3 * factor
    if kind == "joint":
        factor[:2], offset[:2] = 1.0, 0.0
    of_inputs = {"small": 1e-5, "large": 1e5, "mixed": 1.0}[units]
    found = []
    for scale, shift, size in ((1.0, 0.0, 1.0), (factor, offset, of_inputs)):
        model, guide, y, u = models(kind)
        y = y * scale + shift
        torch.manual_seed(4)
        result = plr.fit(model, guide, y, size * u, num_steps=15, num_particles=8, learning_rate=0.03, progress=False)
        log_scale = torch.as_tensor(scale, dtype=torch.float64).log().expand(5).sum()
        moved = {name: value for name, value in state(model.dynamics).items() if "input_weights" not in name}
        found.append((torch.as_tensor(result.evidence) + log_scale, moved, size * model.dynamics.input_weights))
    torch.testing.assert_close(found[1][0], found[0][0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found[1][2], found[0][2], rtol=1e-5, atol=1e-6)
    for name, value in found[0][1].items():
        torch.testing.assert_close(found[1][1][name], value, rtol=1e-5, atol=1e-6)


def test_an_optimiser_of_ones_own_sees_the_parameters_as_they_are() -> None:
    y = 1e3 * recording()
    seen = []

    class Spy(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            seen.append([p.detach().clone() for group in self.param_groups for p in group["params"]])
            return super().step(closure)

    model, guide = pair()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    small_fit(model, guide, y, num_steps=1, optimizer=Spy)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(seen[0], before, strict=True))


def test_only_what_has_units_is_scaled() -> None:
    model, _, y, u = models("joint")
    scales = scales_of(model, Batch.whole(y, 4 * u))
    names = {name.removeprefix("model.").removesuffix("_unconstrained") for name in scales}
    assert names == {
        "dynamics.input_weights",
        "observation.parts.spikes.readout.input_weight",
        *(f"observation.parts.lfp.readout.{part}" for part in ("weight", "input_weight", "bias")),
    }
    assert names <= {name.removesuffix("_unconstrained") for name, _ in model.named_parameters()}
    assert scales_of(torch.nn.Linear(2, 2), Batch.whole(y, u)) == {}
