"""Log densities of independent normal numbers, of many particles, in one pass."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from pyro_lowrank.compilation import compiled
from pyro_lowrank.dynamics.compiled.arithmetic import HALF, ZERO
from pyro_lowrank.dynamics.compiled.units import FAST


@compiled(fastmath=FAST, allocates=False)
def _standardise(scale: Any, precision: Any, log_scale: Any) -> None:
    for i in range(scale.shape[0]):
        total = 0.0
        for j in range(scale.shape[1]):
            precision[i, j] = 1 / scale[i, j]
            total += math.log(scale[i, j])
        log_scale[i] = total


@compiled(fastmath=FAST, allocates=False)
def _add_up(value: Any, location: Any, precision: Any, log_scale: Any, result: Any) -> None:
    for i in range(result.shape[0]):
        v, m, s = i % value.shape[0], i % location.shape[0], i % precision.shape[0]
        total = ZERO * value[v, 0]
        for j in range(value.shape[1]):
            residual = (value[v, j] - location[m, j]) * precision[s, j]
            total += residual * residual
        result[i] = -HALF * total - log_scale[s]


def normal_log_prob(arrays: Sequence[Any], rows: int) -> Any:
    """Return the log density in nats of each of `rows` rows.

    Args:
        arrays: (values, locations, scales), each `some rows x numbers`; where they are fewer than `rows`, they are
            taken again from the first on.
        rows: a multiple of the rows of each.
    """
    value, location, scale = arrays
    precision, log_scale, result = np.empty_like(scale), np.empty(len(scale), scale.dtype), np.empty(rows, scale.dtype)
    _standardise(scale, precision, log_scale)
    log_scale += 0.5 * scale.shape[1] * math.log(2 * math.pi)
    _add_up(value, location, precision, log_scale, result)
    return result
