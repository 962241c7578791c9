"""Observations that remember the latents: the compiled loops give the plain ones' numbers, and the exact density."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import pyro_lowrank as plr
from pyro_lowrank.errors import NoCompiledForm
from pyro_lowrank.observations.driven import DrivenEmission
from pyro_lowrank.observations.linear_memory import LinearMemory
from pyro_lowrank.observations.observed import Observed
from tests.builders import shaken
from tests.smc.compiled.test_equals_plain import assert_equal

pytest.importorskip("numba")

from pyro_lowrank.smc.compiled import run
from pyro_lowrank.smc.compiled.driven_density import log_densities
from pyro_lowrank.smc.compiled.likelihoods.driven import DrivenLikelihood

TRIALS, STEPS = 3, 12
BUILDERS: dict[str, Any] = {
    "calcium": lambda **options: plr.CalciumObservation(bin_size=1 / 30, **options),
    "calcium that rises and drifts": lambda **options: plr.CalciumObservation(
        bin_size=1 / 30, rise=True, drift=5.0, **options
    ),
    "second order": lambda **options: plr.HaemodynamicObservation(bin_size=1.5, **options),
    "double gamma": lambda **options: plr.HaemodynamicObservation(bin_size=2.0, response="double_gamma", **options),
    "coloured": lambda **options: plr.ColouredNoiseObservation(order=3, **options),
}


def model_of(kind: str, *, inputs: int = 0, dtype: torch.dtype = torch.float64) -> plr.StateSpaceModel:
    observation = shaken(BUILDERS[kind](rank=2, features=5, inputs=inputs, dtype=dtype))
    dynamics = plr.LowRankRNN(rank=2, units=21, noise_scale=0.4, inputs=inputs, dtype=dtype)
    return plr.StateSpaceModel(dynamics, observation)


def recording(model: plr.StateSpaceModel, inputs: int = 0, *, gaps: bool = True) -> list[Tensor]:
    """Draw trials, with single entries, whole bins and the end of a trial missing, and their inputs."""
    dtype = next(model.parameters()).dtype
    u = torch.randn(TRIALS, STEPS, inputs, dtype=dtype) if inputs else None
    y = model.simulate(TRIALS, STEPS, u).y.clone()
    if gaps:
        y[0, 3, 1] = y[1, 5] = y[2, 0] = y[0, 9:] = torch.nan
    return [y] if u is None else [y, u]


@pytest.mark.parametrize(
    ("kind", "guide", "inputs", "dtype"),
    [
        ("calcium", plr.LaplaceGuide, 1, torch.float64),
        ("calcium that rises and drifts", plr.BootstrapGuide, 0, torch.float64),
        ("second order", plr.OptimalGuide, 0, torch.float64),
        ("double gamma", plr.BootstrapGuide, 1, torch.float64),
        ("coloured", plr.BootstrapGuide, 0, torch.float64),
        pytest.param("coloured", plr.OptimalGuide, 1, torch.float64, marks=pytest.mark.slow),
        pytest.param("calcium that rises and drifts", plr.LaplaceGuide, 0, torch.float64, marks=pytest.mark.slow),
        pytest.param("calcium", plr.LaplaceGuide, 0, torch.float32, marks=pytest.mark.slow),
        pytest.param("second order", plr.OptimalGuide, 1, torch.float32, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("gaps", [False, True], ids=["complete", "gaps"])
def test_values_and_gradients_are_the_plain_ones(
    kind: str, guide: Any, inputs: int, dtype: torch.dtype, gaps: bool
) -> None:
    model = model_of(kind, inputs=inputs, dtype=dtype)
    assert_equal(model, guide(model), *recording(model, inputs, gaps=gaps))
    assert_equal(model, guide(model), *recording(model, inputs, gaps=gaps), ess_threshold=0.6)


def test_parameters_of_each_trial_run_on_tensors() -> None:
    model = model_of("calcium")
    emission = model.bind().emission
    assert isinstance(emission, DrivenEmission)
    for name, dims in (("baseline", 1), ("variance", 1), ("before_covariance", 3), ("readout", 2)):
        value = getattr(emission.memory, name)
        batched = replace(emission.memory, **{name: value.expand(TRIALS, *value.shape)})
        assert value.dim() == dims
        with pytest.raises(NoCompiledForm, match="have batch dims"):
            DrivenLikelihood.of(replace(emission, memory=batched))


def test_second_derivatives_are_refused() -> None:
    model = model_of("calcium")
    loss = plr.SMC_ELBO(10)(model, plr.BootstrapGuide(model))(*recording(model))
    with pytest.raises(RuntimeError, match='pass backend="plain"'):
        torch.autograd.grad(loss, list(model.parameters()), create_graph=True)


@pytest.mark.parametrize("kind", ["calcium", "second order"])
def test_particles_carry_what_the_plain_ones_do(kind: str) -> None:
    model = model_of(kind)
    (y,) = recording(model)
    guide = plr.BootstrapGuide(model)
    found = []
    for backend in ("plain", "compiled"):
        torch.manual_seed(5)
        posterior = plr.SMCFilter(model, guide, 20, backend=backend).run(y)
        found.append([*posterior.particles.values(), posterior.smooth(10), posterior.forecast(3, num_draws=5).y])
    assert found[0][1].dim() == 5
    for plain, compiled in zip(*found, strict=True):
        torch.testing.assert_close(compiled, plain, rtol=1e-10, atol=1e-10)


def dense_memory(features: int = 3, order: int = 3) -> LinearMemory:
    """Return a linear system in general position: nothing of it is zero, its covariances are of full rank."""

    def draw(*shape: int) -> Tensor:
        return torch.randn(features, *shape, dtype=torch.float64)

    first, second = draw(order, order), draw(order, order)
    transition = 0.3 * draw(order, order)
    parts = {
        "transition": transition,
        "drive": draw(order),
        "noise": first @ first.mT,
        "readout": draw(order),
        "through": draw(),
        "variance": draw().square() + 0.1,
        "baseline": draw(),
        "before_mean": draw(order),
        "before_covariance": second @ second.mT,
    }
    return LinearMemory(**{name: part.requires_grad_() for name, part in parts.items()})


@pytest.mark.parametrize("gaps", [False, True], ids=["complete", "gaps"])
def test_density_and_its_adjoint_are_those_of_tensors(gaps: bool) -> None:
    """In general position, and weighed differently for each path and time bin."""
    memory, emission = dense_memory(), model_of("calcium").bind().emission
    assert isinstance(emission, DrivenEmission)
    emission = replace(emission, memory=memory)
    y = torch.randn(2, 6, 3, dtype=torch.float64)
    if gaps:
        y[0, 2, 1] = y[1, 0] = y[1, 4:, 2] = torch.nan
    seen = Observed.of(y)
    read = torch.randn(4, 2, 6, 3, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(4, 2, 6, dtype=torch.float64)
    plain = memory.log_densities(seen, torch.nn.functional.softplus(read)).sum(-1)
    compiled = log_densities(emission, seen, read)
    torch.testing.assert_close(compiled, plain, rtol=1e-12, atol=1e-12)
    names = ("transition", "drive", "noise", "readout", "through", "variance", "baseline", "before_mean")
    asked = [read, *(getattr(memory, name) for name in (*names, "before_covariance"))]
    found, expected = (torch.autograd.grad((each * weights).sum(), asked) for each in (compiled, plain))
    for name, own, theirs in zip(("read", *names, "before_covariance"), found, expected, strict=True):
        if name in ("noise", "before_covariance"):
            # Of a symmetric matrix only the symmetric part of a gradient says anything.
            own, theirs = 0.5 * (own + own.mT), 0.5 * (theirs + theirs.mT)
        torch.testing.assert_close(own, theirs, rtol=1e-10, atol=1e-10, msg=name)


@pytest.mark.parametrize("gaps", [False, True], ids=["complete", "gaps"])
def test_trials_that_are_run_side_by_side_are_those_of_one_call(gaps: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("second order")
    (y,) = recording(model, gaps=gaps)
    found = []
    for cut in ([slice(0, 3)], [slice(0, 1), slice(1, 3)]):
        monkeypatch.setattr(run, "chunks", lambda size, work, cut=cut: cut)
        torch.manual_seed(1)
        posterior = plr.SMCFilter(model, plr.BootstrapGuide(model), 9, backend="compiled").run(y)
        found.append([posterior.log_evidence, *posterior.particles.values()])
    for whole, parts in zip(*found, strict=True):
        assert torch.equal(parts, whole)


class Moving(plr.SystematicResampling):
    """Resampling of a user's own, that says itself who goes on."""

    def resample(self, log_weights: Tensor, random: Tensor, state: Any) -> Any:
        return super().resample(log_weights, random, state)


@pytest.mark.parametrize(
    ("guide_of", "options", "why"),
    [
        (plr.BootstrapGuide, {"resampler": Moving()}, "moves what they remember"),
        (lambda m: plr.ForwardPrediction(plr.LaplaceGuide(m), horizon=2), {}, "ForwardPrediction"),
    ],
    ids=["own resampling", "forward prediction"],
)
def test_what_is_left_to_tensors(guide_of: Any, options: dict[str, Any], why: str) -> None:
    model = model_of("calcium")
    (y,) = recording(model)
    with pytest.raises(plr.NoCompiledForm, match=why):
        plr.SMC_ELBO(5, backend="compiled", **options).loss(model, guide_of(model), y)
    assert plr.SMC_ELBO(5, **options).loss(model, guide_of(model), y) > -torch.inf
