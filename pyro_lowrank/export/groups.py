"""ArviZ's groups as `xarray.Dataset`s of named dims and coordinates, from plain arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import xarray as xr

SAMPLE_DIMS = ("chain", "draw")


@dataclass(frozen=True)
class Variable:
    """An array and the names of its dims.

    Args:
        values: the array; it is not copied.
        dims: one name per dim.
        attrs: such as `{"units": "nats"}`.
    """

    values: NDArray[Any]
    dims: tuple[str, ...]
    attrs: Mapping[str, Any] = field(default_factory=dict)


def build_groups(
    groups: Mapping[str, Mapping[str, Variable]],
    *,
    coords: Mapping[str, Any] | None = None,
    attrs: Mapping[str, Any] | None = None,
) -> dict[str, xr.Dataset]:
    """Return one dataset per group that has variables.

    Args:
        groups: variables by name, by group.
        coords: labels of dims, or `(dim, labels)` or `(dim, labels, attrs)` of other coordinates along one. Dims
            without labels are numbered.
        attrs: of every dataset.

    Raises:
        ValueError: if dims do not fit an array, or labels do not fit a dim.

    Example:
        >>> z = Variable(np.zeros((2, 50, 3)), ("chain", "draw", "latent"))
        >>> build_groups({"posterior": {"z": z}}, coords={"latent": ["a", "b", "c"]})["posterior"].z.dims
        ('chain', 'draw', 'latent')
    """
    # Deferred: only an export needs it.
    import xarray as xr

    found = {group: variables for group, variables in groups.items() if variables}
    sizes = {group: _sizes(group, variables) for group, variables in found.items()}
    given = {name: _coordinate(name, value, sizes) for name, value in (coords or {}).items()}
    built = {}
    for group, variables in found.items():
        labels = {dim: Variable(np.arange(size), (dim,)) for dim, size in sizes[group].items()}
        labels |= {name: v for name, v in given.items() if sizes[group].get(v.dims[0]) == len(v.values)}
        built[group] = xr.Dataset(
            {name: (v.dims, v.values, dict(v.attrs)) for name, v in variables.items()},
            coords={name: (v.dims, v.values, dict(v.attrs)) for name, v in labels.items()},
            attrs=dict(attrs or {}),
        )
    return built


def _sizes(group: str, variables: Mapping[str, Variable]) -> dict[str, int]:
    """Length of each dim, the same for all variables of a group; other groups may have other trials and samples."""
    sizes: dict[str, int] = {}
    for name, variable in variables.items():
        if variable.values.ndim != len(variable.dims) or len(set(variable.dims)) != len(variable.dims):
            raise ValueError(
                f"{group}.{name} has shape {variable.values.shape}, but the dims {variable.dims}: one name is needed "
                "for each dim, and none twice."
            )
        for dim, size in zip(variable.dims, variable.values.shape, strict=True):
            if sizes.setdefault(dim, size) != size:
                raise ValueError(f"Dim {dim!r} of {group}.{name} has length {size}, elsewhere {sizes[dim]}.")
    return sizes


def _coordinate(name: str, given: Any, sizes: Mapping[str, Mapping[str, int]]) -> Variable:
    """Labels along one dim, which has to be that long in some group."""
    dim, labels = name, given
    attrs: Mapping[str, Any] = {}
    if isinstance(given, tuple) and len(given) in (2, 3) and isinstance(given[0], str) and np.ndim(given[1]) == 1:
        dim, labels, *rest = given
        attrs = rest[0] if rest else {}
    values = np.asarray(labels)
    known = {(other, size) for group in sizes.values() for other, size in group.items()}
    if values.ndim != 1 or (dim, len(values)) not in known:
        listed = ", ".join(f"{other} ({size})" for other, size in sorted(known))
        raise ValueError(
            f"Coordinate {name!r} needs one label for each entry of dim {dim!r}, got shape {values.shape}; the dims "
            f"are {listed}."
        )
    return Variable(values, (dim,), attrs)


def as_array(value: Any) -> NDArray[Any]:
    """Return a tensor or array as an array, without a copy where there need be none."""
    return np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)


def named(
    arrays: Mapping[str, Any],
    dims: Mapping[str, Sequence[str]] | None = None,
    *,
    leading: tuple[str, ...] = SAMPLE_DIMS,
) -> dict[str, Variable]:
    """Return arrays as variables whose first dims are the `leading` ones; the others are named as ArviZ does.

    Args:
        arrays: by name.
        dims: names of the dims after the leading ones; `name_dim_0`, ... where none are given.
        leading: names of the first dims.

    Raises:
        ValueError: if an array lacks the leading dims, or has another number of dims than names.

    Example:
        >>> named({"decay": np.zeros((4, 100, 2))}, {"decay": ["latent"]})["decay"].dims
        ('chain', 'draw', 'latent')
    """
    variables = {}
    for name, array in arrays.items():
        values = as_array(array)
        if values.ndim < len(leading):
            raise ValueError(f"{name!r} must have the dims {' x '.join(leading)} x ..., got shape {values.shape}.")
        rest = tuple((dims or {}).get(name, [f"{name}_dim_{i}" for i in range(values.ndim - len(leading))]))
        if len(rest) != values.ndim - len(leading):
            raise ValueError(
                f"`dims` of {name!r} must name the {values.ndim - len(leading)} dims after {' x '.join(leading)}, got "
                f"{list(rest)}."
            )
        variables[name] = Variable(values, (*leading, *rest))
    return variables
