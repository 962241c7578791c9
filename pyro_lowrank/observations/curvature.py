"""What a Gauss-Newton step needs of an observation model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

from pyro_lowrank.observations.base import Emission
from pyro_lowrank.observations.readout import AffineMap, RatesMap


@dataclass(frozen=True)
class Curvature:
    r"""How log p(y | z) changes with z through the predictor x = C z + ..., one number per feature.

    .. math::

        \nabla_z \log p(y \mid z) = C^T s, \qquad
        E_y[-\nabla_z^2 \log p(y \mid z)] = C^T \mathrm{diag}(w)\, C

    Attributes:
        score: s, `... x features`.
        information: w, the expected (Fisher) information or another stand-in that is not negative, `... x features`.
        weight: C, `features x rank`.
        stiffness: what a step divides by in place of w: the curvature on the way to where the data would have x, so
            that a step neither overshoots nor creeps, `... x features`; w if None.
    """

    score: Tensor
    information: Tensor
    weight: Tensor
    stiffness: Tensor | None = None


@dataclass(frozen=True)
class Expansion:
    """How log p(y | z) changes with z through the predictor x, to third order.

    Attributes:
        score: as of `Curvature`.
        information: as of `Curvature`.
        observed: minus the second derivative by x, which may be negative, `... x features`.
        change: the derivative of that by x, `... x features`.
        weight: C, `features x rank`.
    """

    score: Tensor
    information: Tensor
    observed: Tensor
    change: Tensor
    weight: Tensor


@runtime_checkable
class Expanded(Protocol):
    """An emission that factorises over features, each of which depends on its own predictor."""

    def expansion(self, z: Tensor, v: Tensor | None, y: Tensor) -> Expansion | None:
        """Return it around latents `... x rank` for observations `... x features`; None where it is not known."""


@runtime_checkable
class Curved(Emission, Protocol):
    """An observation model that `LaplaceGuide` serves; a user's own one defines `curvature` beside `distribution`."""

    def curvature(self, z: Tensor, v: Tensor | None, y: Tensor) -> Curvature:
        """Return score and information at latents `... x rank` for observations `... x features`."""


def weight_of(readout: AffineMap | RatesMap) -> Tensor:
    """Return the weight of an affine readout.

    Raises:
        ValueError: if the readout is of the units' rates.
    """
    if not isinstance(readout, AffineMap):
        raise ValueError(
            "A Gauss-Newton step needs a readout that is affine in the latents (of latents, inputs or currents), got "
            "one of the units' rates; use EncoderGuide or BootstrapGuide."
        )
    return readout.weight
