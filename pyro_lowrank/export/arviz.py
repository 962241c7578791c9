"""The seam to ArviZ, whichever of its generations is installed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import arviz as az
import numpy as np
import xarray as xr
from numpy.typing import ArrayLike


def make_container(groups: Mapping[str, xr.Dataset]) -> Any:
    """Return datasets by group as an `arviz.InferenceData` (ArviZ 0.x) or an `xarray.DataTree` (from 1.0 on).

    Example:
        >>> found = make_container({"posterior": xr.Dataset({"z": (("chain", "draw"), [[1.0, 2.0]])})})
        >>> found["posterior"].z.dims
        ('chain', 'draw')
    """
    if _is_old():
        container: Any = az.InferenceData
        return container(**groups)
    return xr.DataTree.from_dict(dict(groups))


def make_elpd(evidence: ArrayLike, *, num_folds: int) -> Any:
    """Return held-out log densities as what `az.compare` and `az.plot_compare` take, an `ELPDData`.

    Compare whole trials with `method="BB-pseudo-BMA"`: the stacking of ArviZ 0.x exponentiates their log densities,
    which underflows below -700 nats.

    Args:
        evidence: log density of each held-out trial in nats, `trials`.
        num_folds: number of folds.

    Example:
        >>> found = make_elpd([-10.0, -12.0, -11.0], num_folds=3)
        >>> table = az.compare({"better": found, "worse": make_elpd([-13.0, -14.0, -15.0], num_folds=3)})
        >>> table.index.tolist()
        ['better', 'worse']
    """
    values = np.asarray(evidence, dtype=np.float64)
    each = xr.DataArray(values, dims="trial", name="elpd_i")
    total, error = float(values.sum()), float(np.sqrt(len(values) * values.var()))
    if _is_old():
        entries = {
            "elpd_loo": total,
            "se": error,
            "p_loo": np.nan,
            "n_samples": 1,
            "n_data_points": len(values),
            "warning": False,
            "loo_i": each,
            "scale": "log",
        }
        return az.ELPDData(list(entries.values()), index=list(entries))
    # A class that ArviZ 0.x lacks.
    new: Any = az
    return new.ELPDDataLOOKFold(
        elpd=total,
        se=error,
        p=np.nan,
        n_samples=1,
        n_data_points=len(values),
        scale="log",
        warning=False,
        good_k=None,
        elpd_i=each,
        n_folds=num_folds,
    )


def summarise(
    container: Any, name: str, *, over: Sequence[str] = (), first: Mapping[str, int] | None = None
) -> tuple[list[str], list[list[str]]]:
    """Return the headings and rows of `az.summary` of one variable, as words.

    Args:
        container: what `make_container` returned.
        name: of the variable in the group `posterior`.
        over: dims whose mean is summarised, over the bins in which something was recorded.
        first: how many entries of a dim to keep.

    Example:
        >>> draws = xr.Dataset({"z": (("chain", "draw"), np.random.default_rng(0).normal(size=(4, 50)))})
        >>> headings, rows = summarise(make_container({"posterior": draws}), "z")
        >>> headings[:2], rows[0][0]
        (['', 'mean'], 'z')
    """
    values = container["posterior"][name].isel({dim: slice(0, number) for dim, number in (first or {}).items()})
    if over:
        mask = container["constant_data"]["mask"].any("feature")
        values = values.where(mask.isel({dim: slice(0, n) for dim, n in (first or {}).items()})).mean(over)
    table = az.summary(values.to_dataset(name=name))
    words = [
        [str(label), *(f"{value:.4g}" if isinstance(value, float) else str(value) for value in row)]
        for label, row in zip(table.index, table.itertuples(index=False), strict=True)
    ]
    return ["", *map(str, table.columns)], words


def _is_old() -> bool:
    # Not by `hasattr`: ArviZ 1.x answers to the old names, with a warning.
    return str(az.__version__).startswith("0.")
