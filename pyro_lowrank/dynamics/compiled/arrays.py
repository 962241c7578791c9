"""Tensors as the arrays that compiled loops take, and ranges cut for threads."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

# Units are padded to a whole number of vector registers.
_LANES = 16
# Below this many evaluations of a unit per thread, about half a millisecond, fewer threads are used.
_WORTH_A_THREAD = 2_000_000


def array(tensor: Tensor) -> Any:
    """Return the values of a tensor as a contiguous array."""
    # Copied by numpy, in this thread: torch's other threads would go on spinning for milliseconds after their share of
    # a copy, on the cores that the loops are about to use.
    return np.ascontiguousarray(tensor.detach().numpy())


def padded(tensor: Tensor) -> Any:
    """Return an array `... x units`, padded with zeros, which no other unit notices."""
    lacking = -tensor.shape[-1] % _LANES
    return array(pad(tensor.detach(), (0, lacking)) if lacking else tensor)


def chunks(size: int, work: int) -> list[slice]:
    """Cut a range into as many slices as there are threads that it keeps busy, `work` evaluations of a unit in all."""
    number = max(1, min(torch.get_num_threads(), size, work // _WORTH_A_THREAD))
    if number == 1:
        return [slice(0, size)]
    edges = np.linspace(0, size, number + 1).round().astype(int).tolist()
    return [slice(a, b) for a, b in pairwise(edges)]
