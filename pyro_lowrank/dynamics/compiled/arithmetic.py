"""Exponentials and logarithms that a compiler can vectorise: in float32 polynomials, in float64 the C library's.

The polynomials are Chebyshev interpolants; their relative error is at most four times the spacing of float32 at 1.
These functions keep the order of their operations, which the loops around them do not, or the sums that split an
argument would be rounded away.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import types
from numba.extending import intrinsic, overload, register_jitable

from pyro_lowrank.compilation import compiled

_KEEP_ORDER = {"contract"}

scalar = register_jitable(
    fastmath={"reassoc", "nsz", "contract", "arcp"}, error_model="numpy", forceinline=True, _nrt=False
)
"""Decorates a function of numbers, of a module, that becomes part of the compiled loops which it is handed to.

It stays a plain function, known by its name: so a loop's result on disk is told from that of another function.
"""
_LOG2_E = np.float32(math.log2(math.e))
# ln 2 in two parts: products of the first with small integers are exact.
_LN2_HIGH, _LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
_LARGEST, _SMALLEST = np.float32(88.3), np.float32(-87.3)
ZERO, HALF, ONE = np.float32(0.0), np.float32(0.5), np.float32(1.0)
"""Numbers that both float types hold exactly: a literal would turn float32 into float64."""
_TINY, _LOG_TINY, _INFINITY, _NOTHING = (np.float32(c) for c in (1.1754944e-38, -87.33655, math.inf, math.nan))
_SQRT_HALF_BITS, _ONE_BITS, _MANTISSA_BITS = np.int32(0x3F3504F3), np.int32(0x3F800000), np.int32(0x007FFFFF)

E0, E1, E2, E3, E4 = (
    np.float32(c)
    for c in (0.5000000013475776, 0.16666576967250146, 0.04166646487713786, 0.00836318154441951, 0.0013933653700946432)
)
L0, L1, L2, L3, L4, L5, L6, L7 = (
    np.float32(c)
    for c in (
        *(0.3333332860229619, -0.25000296833665486, 0.20001467085601363, -0.16642227553894232),
        *(0.14202223670674308, -0.1297259486687912, 0.12711928209641418, -0.08099693179765587),
    )
)
P0, P1, P2, P3, P4, P5, P6, P7, P8, P9 = (
    np.float32(c)
    for c in (
        *(0.9999999953848526, -0.49999903992761163, 0.33330004035167027, -0.2495455887063382, 0.19678117254394317),
        *(-0.15311863097250478, 0.10614264679510149, -0.05706420069343233, 0.019907160892580704, -0.003256378465980376),
    )
)


@intrinsic
def _float_of_bits(typing_context: Any, bits: Any) -> Any:
    """Return the float32 of a 32-bit pattern."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], context.get_value_type(types.float32))

    return types.float32(types.int32), generate


@intrinsic
def _bits_of_float(typing_context: Any, value: Any) -> Any:
    """Return the 32-bit pattern of a float32."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], context.get_value_type(types.int32))

    return types.int32(types.float32), generate


@compiled(fastmath=_KEEP_ORDER, inline=True)
def _exp32(x: Any) -> Any:
    x = _LARGEST if x > _LARGEST else x
    x = _SMALLEST if x < _SMALLEST else x
    n = np.floor(x * _LOG2_E + HALF)
    r = (x - n * _LN2_HIGH) - n * _LN2_LOW
    tail = E0 + r * (E1 + r * (E2 + r * (E3 + r * E4)))
    scale = _float_of_bits(np.int32((np.int32(n) + np.int32(127)) << np.int32(23)))
    return (ONE + (r + r * r * tail)) * scale


@compiled(fastmath=_KEEP_ORDER, inline=True)
def _log32(x: Any) -> Any:
    shifted = np.int32(_bits_of_float(x) + (_ONE_BITS - _SQRT_HALF_BITS))
    exponent = np.float32(np.int32(shifted >> np.int32(23)) - np.int32(127))
    f = _float_of_bits(np.int32((shifted & _MANTISSA_BITS) + _SQRT_HALF_BITS)) - ONE
    tail = L0 + f * (L1 + f * (L2 + f * (L3 + f * (L4 + f * (L5 + f * (L6 + f * L7))))))
    square = f * f
    return exponent * _LN2_HIGH + (f + (square * (f * tail - HALF) + exponent * _LN2_LOW))


@compiled(fastmath=_KEEP_ORDER, inline=True)
def _log1p32(e: Any) -> Any:
    high = P4 + e * (P5 + e * (P6 + e * (P7 + e * (P8 + e * P9))))
    return e * (P0 + e * (P1 + e * (P2 + e * (P3 + e * high))))


@compiled(fastmath=_KEEP_ORDER, inline=True)
def _log32_anywhere(x: Any) -> Any:
    usual = _log32(ONE if x < _TINY else x)
    edge = -_INFINITY if x == ZERO else (_NOTHING if x < ZERO else _LOG_TINY)
    return edge + ZERO * usual if x < _TINY else usual


@compiled(fastmath=_KEEP_ORDER, inline=True)
def _log1p32_anywhere(x: Any) -> Any:
    # What 1 + x rounds away, to first order.
    near = ONE + x
    return _log32(near) - ((near - ONE) - x) / near


def exp(x: Any) -> Any:
    """Return e^x, saturated in float32 at the ends of its range."""
    return math.exp(x)


def log(x: Any) -> Any:
    """Return ln x for x > 0 (in float32: not below the smallest normal number)."""
    return math.log(x)


def log1p_of_share(e: Any) -> Any:
    """Return ln(1 + e) for e in [0, 1]."""
    return math.log1p(e)


def log_anywhere(x: Any) -> Any:
    """Return ln x: minus infinity at zero (in float32 that of the smallest normal number below it), NaN below."""
    return math.log(x)


def log1p(x: Any) -> Any:
    """Return ln(1 + x) for x > -1."""
    return math.log1p(x)


def alike(number: Any, value: Any) -> Any:
    """Return a value as a number of the same type as another."""
    return type(number)(value)


@overload(log_anywhere, jit_options={"fastmath": False}, strict=False)
def _log_anywhere(x: Any) -> Any:
    return (lambda x: _log32_anywhere(x)) if x == types.float32 else (lambda x: math.log(x))


@overload(log1p, jit_options={"fastmath": False}, strict=False)
def _log1p(x: Any) -> Any:
    return (lambda x: _log1p32_anywhere(x)) if x == types.float32 else (lambda x: math.log1p(x))


@overload(alike, strict=False)
def _alike(number: Any, value: Any) -> Any:
    return (
        (lambda number, value: np.float32(value))
        if number == types.float32
        else (lambda number, value: np.float64(value))
    )


@overload(exp, jit_options={"fastmath": False}, strict=False)
def _exp(x: Any) -> Any:
    return (lambda x: _exp32(x)) if x == types.float32 else (lambda x: math.exp(x))


@overload(log, jit_options={"fastmath": False}, strict=False)
def _log(x: Any) -> Any:
    return (lambda x: _log32(x)) if x == types.float32 else (lambda x: math.log(x))


@overload(log1p_of_share, jit_options={"fastmath": False}, strict=False)
def _log1p_of_share(e: Any) -> Any:
    return (lambda e: _log1p32(e)) if e == types.float32 else (lambda e: math.log1p(e))


@compiled(fastmath=_KEEP_ORDER, inline=True)
def softplus_and_slope(x: Any) -> Any:
    """Return ln(1 + e^x) and its derivative, the logistic function."""
    e = exp(-abs(x))
    share = (e if x < ZERO else e * ZERO + ONE) / (ONE + e)
    return (x * ZERO if x < ZERO else x) + log1p_of_share(e), share


@compiled(fastmath=_KEEP_ORDER, inline=True)
def tanh(x: Any) -> Any:
    """Return the hyperbolic tangent."""
    e = exp(-(abs(x) + abs(x)))
    size = (ONE - e) / (ONE + e)
    return -size if x < ZERO else size
