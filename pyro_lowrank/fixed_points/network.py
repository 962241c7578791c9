"""A network as the analyzer sees it: an affine map plus units, each a function of one linear form of the latents."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pyro_lowrank.errors import check_choice
from pyro_lowrank.fixed_points.rounding import TINY, rounding
from pyro_lowrank.piecewise import PiecewiseLinear, named_piecewise

Array = NDArray[np.float64]

LARGEST = 1e75
"""Numbers of larger size, and weights smaller than one over it, are refused: squares of products must be finite."""

PIECEWISE, TANH, SOFTPLUS = 0, 1, 2
_SMOOTH = {"tanh": TANH, "softplus": SOFTPLUS}
_NAMES = ("relu", "clipped_relu", "identity", "tanh", "softplus")


class Source(NamedTuple):
    """What knots, slopes and intercepts were computed from, without the rounding."""

    shape: PiecewiseLinear
    bias: Array
    """`units`."""
    current: Array
    """`units`."""


class Reduced(NamedTuple):
    """Where a network comes from that has fewer units and scaled latents."""

    network: LatentMap
    """The whole one."""
    kept: NDArray[np.int64]
    """Which of its units are left."""
    scale: Array
    """Its latents are these times the latents here, powers of two, `rank`."""


class LatentMap(NamedTuple):
    r"""The map whose zeros are sought.

    .. math::

        G(z) = A z + c + \sum_j v_j f_j(w_j^\top z)

    For a fixed point of F it is :math:`G(z) = F(z) - z`. A piecewise-linear :math:`f_j(x)` equals
    :math:`s_{jk} x + t_{jk}` between its knots k - 1 and k; a smooth one is the activation of :math:`x + t_{j0}`.
    """

    affine: Array
    """A, `rank x rank`."""
    constant: Array
    """c, `rank`."""
    weights: Array
    """w, `units x rank`."""
    outputs: Array
    """v, `units x rank`."""
    kind: int
    """0 for piecewise-linear units, 1 for tanh, 2 for softplus."""
    knots: Array
    """`units x knots`, increasing along each row."""
    slopes: Array
    """s, `units x (knots + 1)`."""
    intercepts: Array
    """t, `units x (knots + 1)`."""
    error_slope: Array
    """Sums of absolute terms of G per unit of abs(z), `rank x rank`, times the rounding of one operation."""
    error_constant: Array
    """The same for the terms that do not depend on z, `rank`."""
    knot_sizes: Array
    """The largest number that a knot of each unit is a sum of, `units`."""
    rest: Array
    """What rounding left out of A, `rank x rank`."""
    source: Source | None = None
    """What the units were declared as; None if the arrays above are exact."""
    reduced: Reduced | None = None
    """What it was made from, or None if it is whole."""

    @property
    def origin(self) -> Reduced:
        """What it was made from, itself if it is whole."""
        return self.reduced or Reduced(self, np.arange(self.units), np.ones(self.rank))

    @property
    def scale(self) -> Array:
        """The latents of the network that it was made from are these times its own, `rank`."""
        return self.origin.scale

    @property
    def rank(self) -> int:
        """Number of latents."""
        return int(self.constant.shape[0])

    @property
    def units(self) -> int:
        """Number of units."""
        return int(self.weights.shape[0])

    @property
    def is_bounded(self) -> bool:
        """Whether every unit's output stays between bounds."""
        if self.kind != PIECEWISE:
            return self.kind == TANH
        return not (self.slopes[:, 0].any() or self.slopes[:, -1].any())

    def plus(self, value: Array) -> LatentMap:
        """Return the network of the map G + value, up to the rounding of its constant."""
        error = rounding(self.units + 3 * self.rank + 16) * np.abs(value)
        return self._replace(constant=self.constant + value, error_constant=self.error_constant + error, reduced=None)

    def rates(self, z: Array) -> tuple[Array, Array, Array]:
        """Return the units' outputs f, the slopes there and the pieces they are on, each `... x units`."""
        x = z @ self.weights.T
        if self.kind == TANH:
            f = np.tanh(x + self.intercepts[:, 0])
            return f, 1 - f * f, np.zeros(x.shape, dtype=np.int64)
        if self.kind == SOFTPLUS:
            x = x + self.intercepts[:, 0]
            return np.logaddexp(0, x), np.exp(-np.logaddexp(0, -x)), np.zeros(x.shape, dtype=np.int64)
        piece = (x[..., None] > self.knots).sum(-1)
        unit = np.arange(self.units)
        slopes = self.slopes[unit, piece]
        return slopes * x + self.intercepts[unit, piece], slopes, piece

    def value(self, z: Array) -> Array:
        """Return G(z), `... x rank`."""
        return z @ self.affine.T + self.constant + self.rates(z)[0] @ self.outputs

    def jacobian(self, z: Array) -> Array:
        """Return the Jacobian of G at one z, `rank x rank`; at a knot, that of the piece to its left."""
        return self.affine + (self.outputs.T * self.rates(z)[1]) @ self.weights

    def error(self, z: Array) -> Array:
        """Return a bound on the rounding error of G(z), `... x rank`."""
        return np.abs(z) @ self.error_slope.T + self.error_constant


def _finite(name: str, value: ArrayLike, shape: tuple[int | None, ...]) -> Array:
    array = _numbers(name, value)
    if array.ndim != len(shape) or any(w is not None and w != s for w, s in zip(shape, array.shape, strict=True)):
        wanted = " x ".join("any" if s is None else str(s) for s in shape)
        raise ValueError(f"`{name}` must have shape {wanted}, got {array.shape}.")
    if not np.isfinite(array).all():
        raise ValueError(f"`{name}` holds NaN or infinite values; weights must be finite.")
    sizes = np.abs(array[array != 0])
    if sizes.max(initial=0) > LARGEST or (name in ("left", "right") and sizes.min(initial=LARGEST) < 1 / LARGEST):
        raise ValueError(
            f"`{name}` holds {sizes.min():.3g} to {sizes.max():.3g} in size, too much or little to multiply; what is "
            f"not zero must lie between {1 / LARGEST:.0g} and {LARGEST:.0g}: change its units."
        )
    return array


def _numbers(name: str, value: ArrayLike) -> Array:
    """Return a copy in double precision."""
    try:
        array = np.asarray(value)
        if np.iscomplexobj(array):
            raise TypeError(f"`{name}` must be an array of real numbers, got {array.dtype}.")
        return array.astype(np.float64)
    except (RuntimeError, TypeError, ValueError) as error:
        raise TypeError(f"`{name}` must be an array of numbers, got {type(value).__name__}: {error}") from error


def build_network(
    decay: ArrayLike,
    left: ArrayLike,
    right: ArrayLike,
    bias: ArrayLike,
    activation: str | PiecewiseLinear = "relu",
    input_current: ArrayLike | None = None,
    constant: ArrayLike | None = None,
) -> LatentMap:
    r"""Check the weights of a low-rank network and return the map :math:`G(z) = F(z) - z` of its fixed points.

    Args:
        decay: a, a number, one per latent, or a matrix `rank x rank`.
        left: M, `units x rank`.
        right: N transposed, `rank x units`.
        bias: h, `units`.
        activation: its name, or its knots and slopes.
        input_current: added to the units' currents, `units`.
        constant: added to the latents, `rank`.

    Raises:
        ValueError: if shapes do not fit, weights are not finite or so large that their products are not, or no
            activation has that name.
        TypeError: if an array is not one of real numbers, or the activation is neither a name nor knots and slopes.

    Example::

        >>> network = build_network(0.5, [[1.0]], [[2.0]], [1.0])
        >>> network.value(np.array([4.0]))
        array([4.])
    """
    left = _finite("left", left, (None, None))
    units, rank = left.shape
    if not rank:
        raise ValueError("`left` must have at least one column, one per latent, got none.")
    right = _finite("right", right, (rank, units))
    bias = _finite("bias", bias, (units,))
    current = np.zeros(units) if input_current is None else _finite("input_current", input_current, (units,))
    constant = np.zeros(rank) if constant is None else _finite("constant", constant, (rank,))
    a = _numbers("decay", decay)
    a = _finite("decay", a, ((), (rank,), (rank, rank))[min(a.ndim, 2)])
    affine, rest = exact_difference(a if a.ndim == 2 else np.diag(np.broadcast_to(a, rank)), np.eye(rank))
    if not isinstance(activation, PiecewiseLinear):
        if not isinstance(activation, str):
            raise TypeError(
                "`activation` must be a name or a PiecewiseLinear, whose bounds on an interval are known, got "
                f"{type(activation).__name__} {activation!r}."
            )
        check_choice("activation", activation, _NAMES)
        if activation in _SMOOTH:
            offset = (current - bias)[:, None]
            return from_units(affine, constant, left, right.T, kind=_SMOOTH[activation], intercepts=offset, rest=rest)
        activation = named_piecewise(activation)
    return from_units(affine, constant, left, right.T, rest=rest, **_pieces(activation, bias, current))


def exact_difference(a: Array, b: Array) -> tuple[Array, Array]:
    """Return a - b, rounded, and what rounding left out, each as `a`.

    References:
        Knuth (1969), "The art of computer programming", volume 2, 4.2.2, theorem B.
    """
    difference = a - b
    part = difference - a
    return difference, (a - (difference - part)) - (b + part)


def _pieces(shape: PiecewiseLinear, bias: Array, current: Array) -> dict[str, Any]:
    """Knots, slopes and intercepts of phi(x + current; bias) as a function of x."""
    units, count = len(bias), len(shape.hinges)
    changes = np.array([change for change, _, _ in shape.hinges], dtype=float)
    knots = np.stack([knot + gain * bias for _, knot, gain in shape.hinges], 1) if count else np.zeros((units, 0))
    order = knot_order(shape, bias)
    knots = np.take_along_axis(knots, order, 1)
    steps = (
        np.broadcast_to(changes, (units, count))[np.arange(units)[:, None], order] if count else np.zeros_like(knots)
    )
    zero = np.zeros((units, 1))
    slopes = shape.slopes[0] + np.concatenate([zero, steps.cumsum(1)], 1)
    # Sums of the changes leave a rest: where knots are in turn, and last of all, the slope is the declared one.
    in_turn = (order == np.arange(count)).all(1)
    slopes[in_turn], slopes[:, -1] = shape.slopes, shape.slopes[-1]
    base = -shape.slopes[0] * bias[:, None]
    intercepts = base - np.concatenate([zero, (steps * knots).cumsum(1)], 1)
    intercepts = intercepts + slopes * current[:, None]
    terms = sum((abs(knot) + abs(gain) * np.abs(bias) for _, knot, gain in shape.hinges), np.abs(bias))
    return {
        "knots": knots - current[:, None],
        "slopes": slopes,
        "intercepts": intercepts,
        "knot_sizes": terms + np.abs(current),
        "source": Source(shape, bias, current),
    }


def exact_sum(*parts: Array) -> Array:
    """Return the sum of arrays, rounded once."""
    return np.vectorize(lambda *terms: math.fsum(terms), otypes=[np.float64])(*parts)


def _takes_one_operation(shape: PiecewiseLinear) -> bool:
    """Whether knots and intercepts are differences of two given numbers, and so exact up to their own last place."""
    return set(shape.slopes) <= {0.0, 1.0} and not any(shape.knots) and set(shape.gains) <= {-1.0, 0.0, 1.0}


def knot_order(shape: PiecewiseLinear, bias: Array) -> NDArray[np.int64]:
    """Return the order of each unit's knots as they lie without rounding, `units x knots`."""
    count = len(shape.hinges)
    if count < 2 or len(set(shape.gains)) == 1:
        return np.broadcast_to(np.arange(count), (len(bias), count))
    if any(shape.knots) or not set(shape.gains) <= {-1.0, 0.0, 1.0}:
        rows = [[Fraction(c) + Fraction(g) * Fraction(h) for _, c, g in shape.hinges] for h in bias.tolist()]
        return np.array([sorted(range(count), key=row.__getitem__) for row in rows]).reshape(-1, count)
    return np.argsort(np.stack([gain * bias for gain in shape.gains], 1), axis=1, kind="stable")


def distinct_knots(network: LatentMap) -> NDArray[np.bool_]:
    """Return whether each knot but the last of a unit lies before the next, without rounding, `units x (knots - 1)`."""
    distinct = np.diff(network.knots, axis=1) > 0
    if network.source is None:
        return distinct
    shape, bias, _ = network.source
    for unit in np.flatnonzero(~distinct.all(1)):
        h = Fraction(float(bias[unit]))
        exact = sorted(Fraction(knot) + Fraction(gain) * h for _, knot, gain in shape.hinges)
        distinct[unit] = [a < b for a, b in pairwise(exact)]
    return distinct


def from_units(
    affine: Array,
    constant: Array,
    weights: Array,
    outputs: Array,
    *,
    kind: int = PIECEWISE,
    intercepts: Array,
    knots: Array | None = None,
    slopes: Array | None = None,
    knot_sizes: Array | None = None,
    rest: Array | None = None,
    source: Source | None = None,
    reduced: Reduced | None = None,
) -> LatentMap:
    """Return the network of these parts, with the bounds on its rounding errors."""
    units = len(weights)
    knots = np.zeros((units, 0)) if knots is None else knots
    slopes = np.ones((units, 1)) if slopes is None else slopes
    steep = np.abs(slopes).max(1, initial=0)
    gain = np.abs(outputs).T
    # Each term of G passes through at most this many additions and products, each off by half an ulp of its size.
    relative = rounding(units + 3 * len(constant) + 16)
    error_slope = relative * (np.abs(affine) + (gain * steep) @ np.abs(weights))
    terms = np.abs(knots).max(1, initial=0)
    if knot_sizes is not None and source is not None and not _takes_one_operation(source.shape):
        # Sums of several terms may be smaller than these are.
        terms = np.maximum(terms, knot_sizes)
    size = np.abs(intercepts).max(1, initial=0) + steep * terms + (kind != PIECEWISE)
    # Numbers below the smallest normal one are rounded to multiples of another.
    error_constant = relative * (np.abs(constant) + gain @ size) + units * TINY
    return LatentMap(
        affine=np.ascontiguousarray(affine),
        constant=np.ascontiguousarray(constant),
        weights=np.ascontiguousarray(weights),
        outputs=np.ascontiguousarray(outputs),
        kind=kind,
        knots=np.ascontiguousarray(knots),
        slopes=np.ascontiguousarray(slopes),
        intercepts=np.ascontiguousarray(intercepts),
        error_slope=error_slope,
        error_constant=error_constant,
        knot_sizes=np.abs(knots).max(1, initial=0) if knot_sizes is None else knot_sizes,
        rest=np.zeros(affine.shape) if rest is None else rest,
        source=source,
        reduced=reduced,
    )
