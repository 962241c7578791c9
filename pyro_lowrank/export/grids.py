"""Tables of a grid as xarray datasets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike


def make_dataset(
    settings: Mapping[str, Sequence[Any]],
    columns: Mapping[str, Sequence[float]],
    *,
    evidence: ArrayLike,
    bins: ArrayLike,
    trials: Sequence[str],
) -> Any:
    """Return what was found at the points of a grid as an `xarray.Dataset`.

    Args:
        settings: of the points, by name; they become coordinates.
        columns: what was found, by name, `points`.
        evidence: log evidence of held-out trials in nats, `points x trials`.
        bins: observed time bins, `trials`.
        trials: names of the trials.

    Example:
        >>> found = make_dataset({"rank": [1, 2]}, {"held_out": [-3.0, -2.0]}, evidence=[[-30.0], [-20.0]],
        ...                      bins=[10.0], trials=["trial_0"])
        >>> found.held_out.sel(point=found["rank"] == 2).item()
        -2.0
    """
    import xarray as xr

    return xr.Dataset(
        {
            **{name: ("point", np.asarray(values)) for name, values in columns.items()},
            "evidence": (("point", "trial"), np.asarray(evidence, dtype=np.float64)),
            "bins": ("trial", np.asarray(bins, dtype=np.float64)),
        },
        coords={
            **{name: ("point", list(values)) for name, values in settings.items()},
            # Blocks of time have one name.
            "trial_name": ("trial", list(trials)),
        },
    )
