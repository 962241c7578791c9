"""The declaration of a piecewise-linear activation, free of torch: the model and the fixed-point analyzer read it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pyro_lowrank.errors import check_choice


@dataclass(frozen=True)
class PiecewiseLinear:
    r"""A continuous piecewise-linear activation, given by its knots and the slopes between them.

    .. math::

        \phi(x; h) = s_0 (x - h) + \sum_{k=1}^{K} (s_k - s_{k-1}) \max(x - c_k - g_k h,\; 0)

    with slopes :math:`s_0 \dots s_K`, knots :math:`c_k` and bias gains :math:`g_k` (1 unless given: then
    :math:`\phi(x; h)` is a function of :math:`x - h`). It is zero far to the left where :math:`s_0 = 0`.

    Args:
        knots: where the slope changes, K increasing numbers, in units of the currents.
        slopes: the K + 1 slopes between them.
        bias_gains: how far each knot moves with the unit's bias, K numbers; all 1 if None.
        name: how the activation is called in a saved model and in error messages.

    Raises:
        ValueError: if the numbers of knots, slopes and gains do not fit, or any of them is not finite.

    Example::

        >>> leaky = PiecewiseLinear(knots=(0.0,), slopes=(0.1, 1.0))
        >>> leaky.is_bounded
        False
        >>> PiecewiseLinear(knots=(-1.0, 1.0), slopes=(0.0, 0.5, 0.0)).is_bounded
        True

    References:
        Pals et al. (2024), "Inferring stochastic low-rank recurrent neural networks from neural data", NeurIPS.
    """

    knots: tuple[float, ...]
    slopes: tuple[float, ...]
    bias_gains: tuple[float, ...] | None = None
    name: str = "piecewise_linear"

    def __post_init__(self) -> None:
        knots = tuple(float(c) for c in self.knots)
        slopes = tuple(float(s) for s in self.slopes)
        gains = (1.0,) * len(knots) if self.bias_gains is None else tuple(float(g) for g in self.bias_gains)
        if len(slopes) != len(knots) + 1 or len(gains) != len(knots):
            raise ValueError(
                f"`slopes` must be one more than `knots`, and `bias_gains` as many, got {len(knots)} knots, "
                f"{len(slopes)} slopes and {len(gains)} gains."
            )
        if not all(map(math.isfinite, knots + slopes + gains)):
            raise ValueError(f"`knots`, `slopes` and `bias_gains` must be finite, got {knots}, {slopes}, {gains}.")
        if any(a >= b for a, b, g, f in zip(knots, knots[1:], gains, gains[1:], strict=False) if g == f):
            raise ValueError(f"`knots` must increase, got {knots}.")
        object.__setattr__(self, "knots", knots)
        object.__setattr__(self, "slopes", slopes)
        object.__setattr__(self, "bias_gains", gains)

    @property
    def gains(self) -> tuple[float, ...]:
        """How far each knot moves with the bias, never None."""
        assert self.bias_gains is not None
        return self.bias_gains

    @property
    def hinges(self) -> tuple[tuple[float, float, float], ...]:
        """The terms of the sum: (change of slope, knot, bias gain) of each knot."""
        changes = tuple(b - a for a, b in zip(self.slopes, self.slopes[1:], strict=False))
        return tuple(zip(changes, self.knots, self.gains, strict=True))

    @property
    def is_bounded(self) -> bool:
        """Whether the activation is constant far to the left and far to the right."""
        return self.slopes[0] == 0 and self.slopes[-1] == 0


RELU = PiecewiseLinear(knots=(0.0,), slopes=(0.0, 1.0), name="relu")
CLIPPED_RELU = PiecewiseLinear(knots=(0.0, 0.0), slopes=(0.0, 1.0, 0.0), bias_gains=(-1.0, 0.0), name="clipped_relu")
IDENTITY = PiecewiseLinear(knots=(), slopes=(1.0,), name="identity")

_NAMED = {shape.name: shape for shape in (RELU, CLIPPED_RELU, IDENTITY)}


def named_piecewise(name: str) -> PiecewiseLinear:
    """Return the built-in piecewise-linear activation of that name.

    Example::

        >>> named_piecewise("relu").hinges
        ((1.0, 0.0, 1.0),)
    """
    return _NAMED[check_choice("activation", name, tuple(_NAMED))]
