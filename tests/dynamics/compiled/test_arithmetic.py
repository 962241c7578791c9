"""The vectorisable exponentials and logarithms against the C library's."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

pytest.importorskip("numba")

from pyro_lowrank.compilation import compiled
from pyro_lowrank.dynamics.compiled.arithmetic import exp, log, log1p_of_share, softplus_and_slope, tanh

SPREAD = np.concatenate([-np.logspace(-6, 1.9, 2000), np.zeros(1), np.logspace(-6, 1.9, 2000)])
SHARES = np.concatenate([np.logspace(-30, 0, 2000), np.linspace(1e-3, 1, 2000)])


def over(function: Any) -> Callable[[Any], Any]:
    """Return the function as a compiled loop over an array."""

    @compiled()
    def loop(values: Any) -> Any:
        out = np.empty_like(values)
        for i in range(values.size):
            out[i] = function(values[i])
        return out

    return loop


@compiled()
def _softplus(x: Any) -> Any:
    return softplus_and_slope(x)[0]


@compiled()
def _logistic(x: Any) -> Any:
    return softplus_and_slope(x)[1]


@compiled()
def _exp(x: Any) -> Any:
    return exp(x)


@compiled()
def _log(x: Any) -> Any:
    return log(x)


@compiled()
def _log1p(x: Any) -> Any:
    return log1p_of_share(x)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("function", "exact", "values"),
    [
        (_exp, math.exp, SPREAD),
        (_log, math.log, np.logspace(-37, 37, 4001)),
        (_log1p, math.log1p, SHARES),
        (_softplus, lambda x: max(x, 0.0) + math.log1p(math.exp(-abs(x))), SPREAD),
        (_logistic, lambda x: math.exp(min(x, 0.0)) / (1 + math.exp(-abs(x))), SPREAD),
    ],
)
def test_relative_error_is_a_few_units_in_the_last_place(
    function: Any, exact: Callable[[float], float], values: Any, dtype: Any
) -> None:
    values = values.astype(dtype)
    expected = np.array([exact(float(value)) for value in values])
    np.testing.assert_allclose(over(function)(values), expected, rtol=4 * np.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_tanh_has_a_small_absolute_error(dtype: Any) -> None:
    values = SPREAD.astype(dtype)
    np.testing.assert_allclose(over(tanh)(values), np.tanh(values), rtol=0, atol=4 * np.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_nan_stays_nan(dtype: Any) -> None:
    values = np.array([np.nan], dtype)
    assert all(np.isnan(over(function)(values)) for function in (_exp, _softplus, _logistic, tanh))
