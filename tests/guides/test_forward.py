"""The last time bins rolled forward: what is seen of them, the evidence, ragged trials, and the wrapped guide."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyro
import pytest
import torch

import pyro_lowrank as plr
from pyro_lowrank.observations.observed import Observed
from tests.builders import assert_close
from tests.oracles.linear import exact_log_evidence, kalman_filter, linear_model


def guides_of(model: plr.StateSpaceModel) -> dict[str, Any]:
    encoder = plr.ConvEncoder(
        4, 2, (3, 3), (5,), padding="centred", sees_mask=True, constant_variance=True, dtype=torch.float64
    )
    with torch.no_grad():
        # Modest: an untrained encoder that is sure of itself misleads the particles.
        encoder.log_variance.fill_(3.0)
    return {
        "optimal": plr.OptimalGuide(model),
        "laplace": plr.LaplaceGuide(model),
        "encoder": plr.EncoderGuide(model, encoder),
    }


@pytest.mark.parametrize("kind", ["optimal", "laplace", "encoder"])
def test_the_evidence_is_unbiased(kind: str) -> None:
    model = linear_model(noise_scale=1.0)
    y = model.simulate(1, 5).y
    exact = exact_log_evidence(model, y)
    guide = plr.ForwardPrediction(guides_of(model)[kind], horizon=2)
    replicates = 20_000
    ratio = (plr.SMCFilter(model, guide, 5).run(y.expand(replicates, -1, -1)).log_evidence - exact).exp()
    assert (ratio.mean() - 1).abs() < 3.5 * ratio.std() / replicates**0.5


@pytest.mark.parametrize("kind", ["optimal", "laplace", "encoder"])
def test_it_sees_nothing_of_the_last_bins_and_proposes_from_the_transition(kind: str) -> None:
    model = linear_model(noise_scale=1.0)
    y = model.simulate(3, 9).y
    y[1, 7:] = torch.nan  # a shorter trial, whose last bins are 5 and 6
    y[2, 8, 1] = torch.nan
    guide = plr.ForwardPrediction(guides_of(model)[kind], horizon=2)
    other = y.clone()
    for trial, end in ((0, 9), (1, 7), (2, 9)):
        other[trial, end - 2 : end] += 5.0
    bound = model.bind()
    codes = [guide.bind(bound).encode(Observed.of(data), None, first=True) for data in (y, other)]
    for name in codes[0]:
        assert torch.equal(*(code[name] for code in codes)), name
    assert codes[0]["blind"].squeeze(-1).bool().tolist() == [
        [False] * 7 + [True] * 2,
        [False] * 5 + [True] * 4,
        [False] * 7 + [True] * 2,
    ]
    mean, noise = torch.randn(50, 3, 2, dtype=torch.float64), bound.transition.noise
    z = torch.randn_like(mean)
    found = guide.bind(bound).distribution(noise, mean, {name: value[:, 6] for name, value in codes[0].items()})
    inner = guide.guide.bind(bound)
    alone = inner.distribution(noise, mean, {name: value[:, 6] for name, value in codes[0].items()})
    torch.testing.assert_close(found.log_prob(z)[:, 1], noise.around(mean).log_prob(z)[:, 1])
    torch.testing.assert_close(found.log_prob(z)[:, 0], alone.log_prob(z)[:, 0])
    posterior = plr.SMCFilter(model, guide, 20_000).run(y)
    torch.testing.assert_close(posterior.log_evidence, kalman_filter(model, y).increments.sum(0), rtol=0, atol=0.3)


def test_compiled_loops_give_the_same_numbers(dtype: torch.dtype) -> None:
    model = linear_model(noise_scale=1.0, dtype=dtype)
    y = model.simulate(3, 9).y
    y[1, 7:] = y[2, 8, 1] = y[0, 3] = torch.nan
    encoder = plr.ConvEncoder(4, 2, (3, 3), (5,), padding="centred", dtype=dtype)
    guide = plr.ForwardPrediction(plr.EncoderGuide(model, encoder), horizon=2)
    found = []
    for backend in ("plain", "compiled"):
        torch.manual_seed(1)
        elbo = plr.SMC_ELBO(16, backend=backend)
        loss = elbo.differentiable_loss(model, guide, y)
        parameters = [*model.parameters(), *guide.parameters()]
        gradients = torch.autograd.grad(loss, parameters)
        found.append(torch.cat([loss.reshape(1), *(gradient.flatten() for gradient in gradients)]).detach())
    assert_close(found[1], found[0], factor=200)
    optimal = plr.ForwardPrediction(plr.OptimalGuide(model), horizon=2)
    with pytest.raises(ValueError, match="ForwardPrediction of a OptimalProposal has no compiled form"):
        plr.SMCFilter(model, optimal, 5, backend="compiled").run(y)


def test_effects_give_the_same_evidence_as_plain_tensors() -> None:
    """Any subclass that overrides `step` runs under Pyro's effects."""
    model = linear_model(noise_scale=1.0)
    y = model.simulate(2, 5).y

    class Traced(plr.ForwardPrediction):
        def step(self, *args: Any, **kwargs: Any) -> None:
            super().step(*args, **kwargs)

    guide = Traced(plr.OptimalGuide(model), horizon=2)
    found = plr.SMCFilter(model, guide, 20_000).run(y).log_evidence
    torch.testing.assert_close(found, kalman_filter(model, y).increments.sum(0), rtol=0, atol=0.15)


def test_it_trains_the_encoder_and_is_saved(tmp_path: Path) -> None:
    model = linear_model()
    guide = plr.ForwardPrediction(guides_of(model)["encoder"], horizon=3)
    y = model.simulate(3, 8).y
    before = {name: value.detach().clone() for name, value in guide.named_parameters()}
    pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), plr.SMC_ELBO(8)).step(y)
    assert before
    assert all(not torch.equal(value, before[name]) for name, value in guide.named_parameters())
    plr.save(tmp_path / "m", model, guide)
    again, guide_again = plr.load(tmp_path / "m")
    assert guide_again.model is guide_again.guide.model is again
    losses = []
    for pair in ((model, guide), (again, guide_again)):
        torch.manual_seed(0)
        losses.append(plr.SMC_ELBO(8).loss(*pair, y))
    assert losses[0] == losses[1]


def test_bad_horizons_and_guides_are_refused() -> None:
    model = linear_model()
    with pytest.raises(TypeError, match="`guide` must be a guide of this library, got StateSpaceModel"):
        plr.ForwardPrediction(model, horizon=3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="`horizon` must be at least 1"):
        plr.ForwardPrediction(plr.OptimalGuide(model), horizon=0)
    guide = plr.ForwardPrediction(plr.OptimalGuide(model), horizon=3)
    y = model.simulate(2, 3).y
    with pytest.raises(ValueError, match="`horizon` must be less than the number of time bins, 3, got 3"):
        plr.SMCFilter(model, guide, 5).run(y)
    with pytest.raises(ValueError, match="Online, where none is known to be the last, use the guide inside"):
        plr.SMCFilter(model, guide, 5).init(y[:, 0])
