"""Random numbers belong to trials, whichever are run beside them; and nothing is guessed from shapes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import pyro_lowrank as plr
from pyro_lowrank.smc.draws import drawn, rows_of
from tests.training.builders import pair, recording


@pytest.mark.parametrize("backend", ["plain", "compiled"])
@pytest.mark.parametrize("resampler", [plr.SystematicResampling(), plr.MultinomialResampling()])
# As many particles, paths or time bins as rows: dims that a guess by size would take for that of the trials.
@pytest.mark.parametrize(("particles", "paths", "steps"), [(3, 3, 3), (7, 2, 5)])
def test_rows_have_the_evidence_and_the_gradient_that_they_have_in_the_batch(
    backend: str, resampler: Any, particles: int, paths: int, steps: int
) -> None:
    y, rows = recording(torch.float64, trials=8)[:, :steps], slice(2, 5)
    model, guide = pair(torch.float64)
    gradient = plr.FisherGradient(paths)
    elbo = plr.SMC_ELBO(particles, gradient=gradient, resampler=resampler, backend=backend)
    found = []
    for part in (slice(0, 8), rows):
        torch.default_generator.manual_seed(5)
        with rows_of(part, 8):
            evidence = elbo.log_evidence(model, guide, y[part])
        kept = evidence[rows] if len(evidence) == 8 else evidence
        gradients = torch.autograd.grad(kept.sum(), list(model.parameters()), allow_unused=True)
        found.append([kept.detach(), *(each for each in gradients if each is not None)])
    for whole, part in zip(*found, strict=True):
        torch.testing.assert_close(part, whole, rtol=1e-10, atol=1e-10)


def test_other_trials_than_were_told_are_refused() -> None:
    with rows_of(slice(0, 3), 8), pytest.raises(ValueError, match="random numbers of 4 trials are asked for"):
        plr.SMC_ELBO(4, backend="plain")(*pair())(recording(trials=4))
    with rows_of(slice(0, 3), 8):
        assert drawn(torch.zeros, 1, 0).shape == (1,), "all trials weighed together"
    assert drawn(torch.zeros, 4, 0).shape == (4,)
