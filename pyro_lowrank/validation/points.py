"""The points of a grid: what a factory is called with, and how what it returns is fitted."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from pyro_lowrank.errors import check_positive_int
from pyro_lowrank.models.state_space import StateSpaceModel
from pyro_lowrank.validation.job import FitOptions

_OF_FIT = {field.name for field in fields(FitOptions)}
_MOST_LETTERS = 100


@dataclass(frozen=True)
class Point:
    """One point of a grid.

    Args:
        values: by name; those that `FitOptions` has, and the seed, are of the fit, all others of the factory.

    Example::

        >>> point = Point({"rank": 2, "learning_rate": 0.01})
        >>> point.arguments, point.name
        ({'rank': 2}, 'rank_2_learning_rate_0.01')
    """

    values: Mapping[str, Any]

    @property
    def arguments(self) -> dict[str, Any]:
        """What the factory is called with."""
        return {name: value for name, value in self.values.items() if name not in _OF_FIT and name != "seed"}

    @property
    def label(self) -> str:
        """What random numbers depend on: models that are fitted in several ways start alike, and see the same data."""
        return "/".join(str(value) for value in self.arguments.values())

    @property
    def name(self) -> str:
        """How its files begin."""
        told = "_".join(f"{name}_{value}" for name, value in self.values.items())
        short = re.sub(r"[^\w.+-]", "-", told)
        if short == told and len(told) <= _MOST_LETTERS:
            return told
        return f"{short[:_MOST_LETTERS]}_{hashlib.sha256(told.encode()).hexdigest()[:12]}"

    def __str__(self) -> str:
        return ", ".join(f"{name} {value}" for name, value in self.values.items())

    def options(self, common: FitOptions) -> FitOptions:
        """Return how it is fitted, where others are fitted so."""
        return replace(common, **{name: value for name, value in self.values.items() if name in _OF_FIT})

    def seed(self, common: int) -> int:
        """Return its seed, where others have this one."""
        return check_positive_int("seed", self.values.get("seed", common), minimum=0)


def points_of(grid: Mapping[str, Sequence[Any]]) -> tuple[Point, ...]:
    """Return all points of a grid, the last name changing fastest.

    Raises:
        ValueError: if a name has no values, or one of them twice.
        TypeError: if it is no mapping of names to several values each.
    """
    if not isinstance(grid, Mapping) or not grid:
        raise TypeError(f"`grid` must map names to the values that each takes, got {grid!r}.")
    for name, values in grid.items():
        if isinstance(values, str | bytes) or not isinstance(values, Sequence):
            raise TypeError(f"`grid[{name!r}]` must be a list of values, got {values!r}.")
        if not values or any(value in values[:place] for place, value in enumerate(values)):
            raise ValueError(f"`grid[{name!r}]` must hold at least one value, and none twice, got {list(values)}.")
        for value in values:
            if value is not None and not isinstance(value, bool | int | float | str):
                raise TypeError(
                    f"`grid[{name!r}]` must hold numbers, words, booleans or None, of which files can be named, got "
                    f"{value!r}: let the factory make of these what it needs."
                )
    return tuple(Point(dict(zip(grid, values, strict=True))) for values in itertools.product(*grid.values()))


def built_by_rank(factory: Callable[[int], Any], arguments: Mapping[str, Any]) -> tuple[Any, Any]:
    """Return what a factory makes of a rank."""
    rank = arguments["rank"]
    model, guide = _checked(factory(rank), f"factory({rank})")
    if isinstance(model, StateSpaceModel) and model.dynamics.rank != rank:
        raise ValueError(f"`factory({rank})` returned a model of rank {model.dynamics.rank}.")
    return model, guide


def built_by_name(factory: Callable[..., Any], arguments: Mapping[str, Any]) -> tuple[Any, Any]:
    """Return what a factory makes of arguments by name."""
    told = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
    return _checked(factory(**arguments), f"factory({told})")


def _checked(built: Any, call: str) -> tuple[Any, Any]:
    if not isinstance(built, tuple) or len(built) != 2:
        raise TypeError(f"`{call}` must return (model, guide), got {type(built).__name__}.")
    return built
