"""Taking in one time bin whose likelihood is not Gaussian: Laplace's approximation around the mode."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_lowrank.guides.base import Bin
from pyro_lowrank.kalman.roots import apply, cholesky, solve
from pyro_lowrank.kalman.updates import Conditioned
from pyro_lowrank.observations.curvature import Curved
from pyro_lowrank.observations.observed import Observed

# Steps by the curvature on the way to what the data ask for, which never overshoot, before Newton's own.
_CAREFUL_STEPS = 2
_MOST_STEPS = 50
_MOST_HALVINGS = 20


@dataclass(frozen=True)
class _Slope:
    """The gradient of log p(y | z) - |eta|^2 / 2 along eta, `trials x rank`, and minus its Hessian there."""

    uphill: Tensor
    precision: Tensor


@dataclass(frozen=True)
class _Predicted:
    """A time bin and its prediction N(m, L L^T), in whose units, z = m + L eta, the mode is sought."""

    emission: Curved
    bin: Bin
    mean: Tensor
    root: Tensor

    def at(self, eta: Tensor) -> Tensor:
        """Return the latents."""
        return self.mean + apply(self.root, eta)

    def objective(self, eta: Tensor) -> Tensor:
        """Return log p(y | z) - |eta|^2 / 2, `trials`."""
        return self.bin.log_likelihood(self.emission, self.at(eta)) - 0.5 * eta.square().sum(-1)

    def uphill(self, eta: Tensor) -> Tensor:
        """Return the gradient of the objective, `trials x rank`."""
        seen = self.emission.curvature(self.at(eta), self.bin.v, self.bin.seen.y)
        return apply(self.root.mT, (seen.score * self.bin.seen.present) @ seen.weight) - eta

    def careful(self, eta: Tensor) -> _Slope:
        """Return the slope with a precision by which a step neither overshoots nor creeps."""
        seen = self.emission.curvature(self.at(eta), self.bin.v, self.bin.seen.y)
        present = self.bin.seen.present
        stiffness = seen.information if seen.stiffness is None else seen.stiffness
        uphill = apply(self.root.mT, (seen.score * present) @ seen.weight) - eta
        return _Slope(uphill, self._precision(stiffness * present, seen.weight))

    def exact(self, eta: Tensor) -> _Slope:
        """Return the slope with its Hessian, or where that is no maximum's with the expected information."""
        z, v, y, present = self.at(eta), self.bin.v, self.bin.seen.y, self.bin.seen.present
        rank = z.shape[-1]
        # All directions at once, as `rank` particles: one pass over the features.
        ways = torch.eye(rank, dtype=z.dtype, device=z.device).unsqueeze(1).expand(rank, *z.shape).contiguous()

        def score(points: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
            seen = self.emission.curvature(points, v, y)
            scores = seen.score * present
            return scores, (scores[0], (seen.information * present).expand_as(scores)[0], seen.weight)

        found: Any = torch.func.jvp(score, (z.repeat(rank, 1, 1),), (ways,), has_aux=True)
        _, change, (value, information, weight) = found
        # change: of each feature's score, by direction.
        hessian = (change @ weight).movedim(0, -1)
        observed = torch.eye(rank, dtype=z.dtype, device=z.device) - self.root.mT @ hessian @ self.root
        observed = 0.5 * (observed + observed.mT)
        uphill = apply(self.root.mT, value @ weight) - eta
        with torch.no_grad():
            is_maximum = (torch.linalg.cholesky_ex(observed).info == 0)[..., None, None]
        if bool(is_maximum.all()):
            return _Slope(uphill, observed)
        return _Slope(uphill, torch.where(is_maximum, observed, self._precision(information, weight)))

    def _precision(self, information: Tensor, weight: Tensor) -> Tensor:
        rank = weight.shape[-1]
        outer = (weight.unsqueeze(-1) * weight.unsqueeze(-2)).flatten(-2)
        gram = (information @ outer).unflatten(-1, (rank, rank))
        eye = torch.eye(rank, dtype=weight.dtype, device=weight.device)
        return eye + self.root.mT @ gram @ self.root

    @torch.no_grad()
    def mode(self) -> tuple[Tensor, Tensor]:
        """Return the eta of the mode, with an error that one more step squares, and the factor P of that step."""
        eta = torch.zeros_like(self.mean)
        for _ in range(_CAREFUL_STEPS):
            slope = self.careful(eta)
            eta = eta + solve(cholesky(slope.precision), slope.uphill)
        tolerance = torch.finfo(eta.dtype).eps ** 0.5
        for _ in range(_MOST_STEPS):
            slope = self.exact(eta)
            factor = cholesky(slope.precision)
            step = solve(factor, slope.uphill)
            # Where it is NaN no step helps; the filter tells of it.
            if not bool((step.abs() > tolerance).any()):
                break
            eta = self._uphill_of(eta, step)
        return eta, factor

    def _uphill_of(self, eta: Tensor, step: Tensor) -> Tensor:
        """Return where the step leads, cut in half for trials that it would take downhill."""
        small = step.abs().amax(-1) < 1e-2
        if bool(small.all()):
            return eta + step
        before = self.objective(eta)
        for _ in range(_MOST_HALVINGS):
            downhill = (self.objective(eta + step) < before) & ~small
            if not bool(downhill.any()):
                break
            step = torch.where(downhill.unsqueeze(-1), 0.5 * step, step)
        return eta + step


class LaplaceUpdate:
    r"""Conditioning on any observations with a curvature, by Laplace's approximation.

    .. math::

        \eta = \arg\max \log p(y \mid m + L \eta) - \tfrac{1}{2} \eta^T \eta, \qquad
        P = I - L^T\, \nabla^2_z \log p(y \mid z)\, L

    The mode is found without gradients, by damped Newton steps; one more step from there, whose Hessian is held fixed,
    has the mode's gradient by the implicit function theorem.

    Args:
        emission: the observation model.
        seen: the recording, `trials x time x features`.
        v: effective inputs, `trials x time x inputs`, or None.

    References:
        Fahrmeir (1992), J. Am. Stat. Assoc. 87:501; Smith and Brown (2003), Neural Comput. 15:965.
    """

    def __init__(self, emission: Curved, seen: Observed, v: Tensor | None) -> None:
        self.emission, self.seen, self.v = emission, seen, v

    def bins(self) -> Sequence[Bin]:
        """Return what is needed of each time bin."""
        seen = self.seen.bins()
        inputs: Sequence[Any] = (None,) * len(seen) if self.v is None else self.v.unbind(-2)
        return [Bin(seen_t, v_t, {}) for seen_t, v_t in zip(seen, inputs, strict=True)]

    def condition(self, mean: Tensor, root: Tensor, bin_t: Bin) -> Conditioned:
        """Return the Gaussian given the data of a bin."""
        predicted = _Predicted(self.emission, bin_t, mean, root)
        eta, factor = predicted.mode()
        eta = eta + solve(factor, predicted.uphill(eta))
        return Conditioned.of(mean, root, eta, cholesky(predicted.exact(eta).precision))

    def log_likelihood(self, z: Tensor) -> Tensor:
        """Return the log likelihood of all time bins, `trials x time`, at latents `trials x time x rank`."""
        return Bin(self.seen, self.v, {}).log_likelihood(self.emission, z)
