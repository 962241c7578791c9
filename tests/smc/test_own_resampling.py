"""Resampling schemes of the user's own: by index, with weights of their own, and such that move the particles."""

from __future__ import annotations

from typing import Any

import pyro
import pytest
import torch
from torch import Tensor

import pyro_lowrank as plr
from tests.builders import assert_close, gaussian_model
from tests.oracles.linear import kalman_filter, linear_model


class ByIndex(plr.Resampler):
    """Systematic resampling that says nothing of its positions."""

    def draw(self, num_steps: int, num_particles: int, batch: torch.Size, **factory: Any) -> Tensor:
        return plr.SystematicResampling().draw(num_steps, num_particles, batch, **factory)

    def ancestors(self, log_weights: Tensor, random: Tensor) -> Tensor | None:
        return plr.SystematicResampling().ancestors(log_weights, random)


class SquareRoots(ByIndex):
    """Draws by the square roots of the weights, and lets descendants carry what that leaves of them."""

    def resample(self, log_weights: Tensor, random: Tensor, state: Any) -> plr.Resampled:
        tempered = (0.5 * log_weights).log_softmax(0)
        drawn = self.ancestors(tempered, random)
        assert drawn is not None
        return plr.Resampled(drawn, (log_weights - tempered).gather(0, drawn) - torch.tensor(len(drawn)).log())


class Continuous(ByIndex):
    """Draws from the weighted particles' distribution function, straight lines between its steps; one latent."""

    def resample(self, log_weights: Tensor, random: Tensor, state: Any) -> plr.Resampled:
        z, order = state["z"].squeeze(-1).sort(0)
        shares = log_weights.gather(0, order).exp().movedim(0, -1)
        heights = (shares.cumsum(-1) - 0.5 * shares).contiguous()
        where = plr.SystematicResampling().positions(random, len(z)).contiguous()
        right = torch.searchsorted(heights, where).clamp(1, len(z) - 1)
        left = right - 1
        low, high = (heights.gather(-1, side) for side in (left, right))
        part = ((where - low) / (high - low)).clamp(0, 1)
        points = z.movedim(0, -1)
        moved = points.gather(-1, left) * (1 - part) + points.gather(-1, right) * part
        ancestors = order.movedim(0, -1).gather(-1, left)
        return plr.Resampled(ancestors.movedim(-1, 0), state={"z": moved.movedim(-1, 0).unsqueeze(-1)})


@pytest.mark.parametrize("threshold", [0.6, 1.0])
@pytest.mark.parametrize("resampler", [ByIndex(), SquareRoots()], ids=["by index", "with weights"])
def test_compiled_weighing_equals_plain_tensors(resampler: plr.Resampler, threshold: float) -> None:
    model = gaussian_model()
    y = model.simulate(4, 15).y
    guide = plr.BootstrapGuide(model)
    found = []
    for backend in ("plain", "compiled"):
        pyro.set_rng_seed(1)
        smc = plr.SMCFilter(model, guide, 30, ess_threshold=threshold, resampler=resampler, backend=backend)
        posterior = smc.run(y)
        pyro.set_rng_seed(2)
        elbo = plr.SMC_ELBO(30, ess_threshold=threshold, resampler=resampler, backend=backend)
        model.zero_grad()
        elbo(model, guide)(y).backward()
        gradients = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
        found.append((posterior.log_evidence, posterior.ess, posterior.smooth(3), *gradients))
    for ours, theirs in zip(*found, strict=True):
        assert_close(ours, theirs, factor=200)


def test_by_index_is_the_scheme_by_positions() -> None:
    model = gaussian_model()
    y = model.simulate(4, 15).y
    found = []
    for resampler in (ByIndex(), plr.SystematicResampling()):
        pyro.set_rng_seed(1)
        posterior = plr.SMCFilter(model, plr.OptimalGuide(model), 30, resampler=resampler).run(y)
        found.append((posterior.log_evidence, posterior.ancestors.double()))
    for ours, theirs in zip(*found, strict=True):
        assert_close(ours, theirs, factor=20)


@pytest.mark.parametrize("backend", ["plain", "auto"])
@pytest.mark.parametrize("resampler", [SquareRoots(), Continuous()], ids=["with weights", "moved"])
def test_evidence_converges_to_the_exact_one(resampler: plr.Resampler, backend: str) -> None:
    model = linear_model(rank=1, noise_scale=1.0)
    y = model.simulate(4, 12).y
    smc = plr.SMCFilter(model, plr.BootstrapGuide(model), 20_000, resampler=resampler, backend=backend)
    exact = kalman_filter(model, y)
    posterior = smc.run(y)
    assert posterior.resampled.any(0).all()
    torch.testing.assert_close(posterior.log_evidence, exact.increments.sum(0), rtol=0, atol=0.06)


def test_moved_particles_carry_gradients() -> None:
    """Where resampling is continuous in the weights, the pathwise gradient leaves nothing out."""
    model = linear_model(rank=1, noise_scale=1.0)
    y = model.simulate(2, 6).y

    def value_and_gradient(gradient: bool) -> tuple[Tensor, Tensor]:
        pyro.set_rng_seed(5)
        model.zero_grad()
        elbo = plr.SMC_ELBO(2000, resampler=Continuous(), ess_threshold=1.0, gradient=plr.PathwiseGradient())
        loss = elbo(model, plr.BootstrapGuide(model))(y)
        if gradient:
            loss.backward()
        slope = model.dynamics.right.unconstrained()
        return loss.detach(), torch.zeros(()) if slope.grad is None else slope.grad.clone()

    _, slope = value_and_gradient(True)
    width = 1e-4
    differences = torch.zeros_like(slope)
    right = model.dynamics.right.unconstrained()
    for unit in range(2):
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                right[0, unit] += sign * width
            values.append(value_and_gradient(False)[0])
            with torch.no_grad():
                right[0, unit] -= sign * width
        differences[0, unit] = (values[0] - values[1]) / (2 * width)
    torch.testing.assert_close(slope[0, :2], differences[0, :2], rtol=0.05, atol=0.02)
