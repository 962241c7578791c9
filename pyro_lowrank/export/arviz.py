"""The seam to ArviZ, whichever of its generations is installed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import arviz as az
import xarray as xr


def make_container(groups: Mapping[str, xr.Dataset]) -> Any:
    """Return datasets by group as an `arviz.InferenceData` (ArviZ 0.x) or an `xarray.DataTree` (from 1.0 on).

    Example:
        >>> found = make_container({"posterior": xr.Dataset({"z": (("chain", "draw"), [[1.0, 2.0]])})})
        >>> found["posterior"].z.dims
        ('chain', 'draw')
    """
    # Not by `hasattr`: ArviZ 1.x answers to the old name, with a warning.
    if az.__version__.startswith("0."):
        container: Any = az.InferenceData
        return container(**groups)
    return xr.DataTree.from_dict(dict(groups))
