"""Likelihoods of one's own in the compiled loops, from one function each; and the functions that they are made of."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import special

import pyro_lowrank as plr
from pyro_lowrank.compilation import compiled
from pyro_lowrank.scalars.expression import name
from pyro_lowrank.scalars.trace import traced
from pyro_lowrank.smc.compiled.likelihoods.code import split
from tests.observations.test_scalar import GammaRates, Inflated, LaplaceNoise, Rewritten, Shares
from tests.smc.compiled.test_equals_plain import assert_equal


@pytest.mark.parametrize(
    "kind", [Inflated, *(pytest.param(kind, marks=pytest.mark.slow) for kind in (GammaRates, Shares, LaplaceNoise))]
)
@pytest.mark.parametrize("guide_of", [plr.BootstrapGuide, plr.LaplaceGuide])
def test_it_is_compiled_and_gives_the_numbers_of_the_plain_loop(guide_of: Any, kind: Any) -> None:
    torch.manual_seed(3)
    model = plr.StateSpaceModel(
        plr.LowRankRNN(rank=2, units=21, noise_scale=0.4, dtype=torch.float64),
        kind(rank=2, features=5, dtype=torch.float64),
    )
    y = model.simulate(num_trials=3, num_steps=12).y.clone()
    y[0, 3, 1] = y[1, 5] = torch.nan
    assert_equal(model, guide_of(model), y)


@pytest.mark.parametrize("guide_of", [plr.BootstrapGuide, plr.LaplaceGuide])
@pytest.mark.parametrize("gradient", [plr.FisherGradient(), plr.PathwiseGradient()])
def test_a_built_in_likelihood_written_again_gives_its_numbers(guide_of: Any, gradient: Any) -> None:
    found = []
    built_in: Any = lambda **options: plr.PoissonObservation(link="softplus", **options)  # noqa: E731
    for kind in (built_in, Rewritten):
        torch.manual_seed(3)
        dynamics = plr.LowRankRNN(rank=2, units=21, noise_scale=0.4, dtype=torch.float64)
        model = plr.StateSpaceModel(dynamics, kind(rank=2, features=5, dtype=torch.float64))
        y = torch.poisson(torch.rand(3, 12, 5, dtype=torch.float64))
        loss = plr.SMC_ELBO(8, gradient=gradient).differentiable_loss(model, guide_of(model), y)
        found.append([loss.detach(), *torch.autograd.grad(loss, list(model.parameters()))])
    for own, theirs in zip(*found, strict=True):
        torch.testing.assert_close(own, theirs, rtol=1e-9, atol=1e-9)


def test_encoders_and_the_gaussian_filter_serve_it_too() -> None:
    torch.manual_seed(3)
    model = plr.StateSpaceModel(plr.LowRankRNN(rank=1, units=9, noise_scale=0.3), Inflated(rank=1, features=20))
    y = model.simulate(num_trials=3, num_steps=12).y.clone()
    y[0, 3, 1] = y[1, 5] = torch.nan
    reference = plr.SMCFilter(model, plr.LaplaceGuide(model), 20_000).run(y)
    encoder = plr.EncoderGuide(model, plr.ConvEncoder(features=20, rank=1, kernel_sizes=(3, 1), channels=(8,)))
    by_encoder = plr.SMCFilter(model, encoder, 20_000).run(y).log_evidence
    torch.testing.assert_close(by_encoder, reference.log_evidence, rtol=0, atol=0.3)
    gaussian = plr.ExtendedKalmanFilter(model).run(y)
    torch.testing.assert_close(gaussian.log_evidence, reference.log_evidence, rtol=0, atol=1.0)
    torch.testing.assert_close(gaussian.filtered_mean, reference.mean(), rtol=0, atol=0.15)


FUNCTIONS = {
    "digamma": (special.digamma, [-3.7, -0.5, 1e-3, 0.3, 1.0, 9.9, 10.1, 1e4]),
    "polygamma": (lambda x: special.polygamma(1, x), [-3.7, -0.5, 1e-3, 0.3, 1.0, 9.9, 10.1, 1e4]),
    "log": (np.log, [0.0, 1e-300, 1e-40, 1e-20, 0.3, 1.0, 1e20]),
    "log1p": (np.log1p, [-0.999, -1e-9, 0.0, 1e-9, 1e-3, 0.4, 1.0, 7.0, 1e20]),
    "sqrt": (np.sqrt, [0.0, 0.3, 4.0]),
    "expm1": (np.expm1, [-30.0, -1e-9, 0.0, 1e-9, 3.0]),
    "sign": (np.sign, [-2.0, 0.0, 3.0]),
}


@pytest.mark.parametrize("called", FUNCTIONS)
def test_functions_of_compiled_loops_equal_scipys(called: str, dtype: torch.dtype) -> None:
    reference, points = FUNCTIONS[called]
    of_numpy = {torch.float32: np.float32, torch.float64: np.float64}[dtype]
    expression = {
        "digamma": lambda y, eta: special.psi(eta),
        "polygamma": lambda y, eta: eta.trigamma(),
        "sign": lambda y, eta: np.sign(eta),
    }.get(called, lambda y, eta: getattr(math, called)(eta) if hasattr(math, called) else getattr(np, called)(eta))
    functions = split(traced(expression, ["y", "eta"]), [])
    finish, prepare = functions.finish, functions.prepare

    @compiled()
    def run(values: Any, found: Any) -> None:
        for i in range(len(values)):
            found[i] = finish(values[i], *prepare(values[i]))[0]

    values = np.array(points, of_numpy)
    found = np.empty_like(values)
    run(values, found)
    with np.errstate(all="ignore"):
        expected = reference(values.astype(np.float64))
    tolerance = 4 * np.finfo(of_numpy).eps if of_numpy is np.float32 else 1e-12
    if called == "log" and of_numpy is np.float32:
        # Below the smallest normal number: as there.
        assert found[0] == expected[0] == -np.inf
        found, expected = found[3:], expected[3:]
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=1e-30)


def test_what_is_computed_once_is_told_from_the_rest() -> None:
    (expression,) = traced(lambda y, eta, a: math.lgamma(y + a) - eta * math.exp(a), ["y", "eta", "a"])
    functions = split([expression], ["a"])
    assert [float(each) for each in functions.prepare(2.0, 0.5)] == [math.lgamma(2.5), math.exp(0.5)]
    assert name("eta").content == "eta"
