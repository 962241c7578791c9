"""Which axis of an array is time, which trials, which features."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

ROLES = ("trials", "time", "features")

# What files call the dimensions, in lower case.
DIM_NAMES = {
    "trials": {"trial", "trials", "epoch", "epochs", "sweep", "sweeps", "repeat", "repeats"},
    "time": {"time", "times", "t", "time_bin", "time_bins", "bin", "bins", "sample", "samples"},
    "features": {
        *("feature", "features", "channel", "channels", "ch", "electrode", "electrodes", "sensor", "sensors"),
        *("unit", "units", "neuron", "neurons", "cell", "cells"),
    },
}


@dataclass(frozen=True)
class Orientation:
    """The axis that holds each role, and the sentence that says so.

    A role no axis holds is None: there is one trial, or one feature.
    """

    time: int
    trials: int | None
    features: int | None
    sentence: str

    def arrange(self, array: NDArray[np.generic]) -> NDArray[np.generic]:
        """Return the array as `trials x time x features`."""
        present = [axis for axis in (self.trials, self.time, self.features) if axis is not None]
        arranged = array.transpose(present)
        if self.trials is None:
            arranged = arranged[np.newaxis]
        return arranged if self.features is not None else arranged[..., np.newaxis]


def role_of(dim: str) -> str | None:
    """Return the role that the name of a dimension stands for, or None where it stands for none, or for two.

    Example:
        >>> role_of("Channel"), role_of("t"), role_of("unit_id"), role_of("dim_0")
        ('features', 'time', 'features', None)
    """
    exact = next((role for role in ROLES if dim.lower() in DIM_NAMES[role]), None)
    words = set(re.findall(r"[a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", dim).lower()))
    found = [role for role in ROLES if words & DIM_NAMES[role]]
    return exact or (found[0] if len(found) == 1 else None)


def orient(
    shape: tuple[int, ...],
    *,
    dims: tuple[str, ...] = (),
    num_names: int = 0,
    num_times: int = 0,
    time_axis: int | None = None,
    trials_axis: int | None = None,
) -> Orientation:
    """Decide which axis of an array of one to three dimensions is time, which trials, which features.

    The caller's word counts first, then the names of the dimensions, then the number of times and of features that the
    file tells, then the shape: of two axes the longer is time, three axes are `trials x time x features`.

    Args:
        shape: lengths of the axes.
        dims: names of the axes, or nothing where they have none.
        num_names: number of names that the file gives its features; 0 where it gives none.
        num_times: number of times that the file tells; 0 where it tells none.
        time_axis: axis of time, if known.
        trials_axis: axis of trials, if known.

    Raises:
        ValueError: if an axis does not exist, is given two roles, or no axis is left for time.

    Example:
        >>> orient((9640, 64)).time
        0
        >>> orient((200, 20, 75), time_axis=2).sentence
        '3-d array (200, 20, 75): took axis 2 as time as asked, axis 0 as trials, axis 1 as features.'
    """
    taken: dict[str, int] = {}
    reasons: dict[str, str] = {}
    for role, axis in (("time", time_axis), ("trials", trials_axis)):
        if axis is not None:
            taken[role], reasons[role] = _checked_axis(axis, shape, role, taken), " as asked"
    _take_named(dims, taken, reasons)
    _take_counted("time", shape, num_times, f" because the file holds {num_times} times", taken, reasons)
    _take_counted("features", shape, num_names, f" because the file names {num_names} features", taken, reasons)
    if "time" not in taken:
        taken["time"], reasons["time"] = _choose_time(shape, taken)
    # With two axes the one that is left holds features; with three the first one left holds trials.
    order = ("features", "trials") if len(shape) == 2 else ("trials", "features")
    for axis, role in zip(_free(shape, taken), [role for role in order if role not in taken], strict=False):
        taken[role] = axis
    sentence = _sentence(shape, dims, taken, reasons)
    return Orientation(taken["time"], taken.get("trials"), taken.get("features"), sentence)


def _checked_axis(axis: int, shape: tuple[int, ...], role: str, taken: dict[str, int]) -> int:
    if not -len(shape) <= axis < len(shape):
        raise ValueError(
            f"`{role}_axis` must be an axis of the array, from {-len(shape)} to {len(shape) - 1}, "
            f"got {role}_axis={axis} for an array of shape {shape}."
        )
    axis %= len(shape)
    if axis in taken.values():
        raise ValueError(f"`time_axis` and `trials_axis` must differ, both are axis {axis} of the shape {shape}.")
    return axis


def _take_named(dims: tuple[str, ...], taken: dict[str, int], reasons: dict[str, str]) -> None:
    asked = dict(taken)
    for axis, dim in enumerate(dims):
        role = role_of(dim)
        if role is None or role in asked or axis in asked.values():
            continue
        if role in taken:
            raise ValueError(
                f"The dimensions {dims} name {role} twice, as axis {taken[role]} and as axis {axis}; "
                "pass `time_axis` and `trials_axis` to say which is which."
            )
        taken[role], reasons[role] = axis, " by its name"


def _take_counted(
    role: str, shape: tuple[int, ...], number: int, reason: str, taken: dict[str, int], reasons: dict[str, str]
) -> None:
    free = _free(shape, taken)
    fitting = [axis for axis in free if shape[axis] == number]
    if role not in taken and len(free) > 1 and len(fitting) == 1:
        taken[role], reasons[role] = fitting[0], reason


def _free(shape: tuple[int, ...], taken: dict[str, int]) -> list[int]:
    return [axis for axis in range(len(shape)) if axis not in taken.values()]


def _choose_time(shape: tuple[int, ...], taken: dict[str, int]) -> tuple[int, str]:
    free = _free(shape, taken)
    if not free:
        raise ValueError(
            f"A recording needs an axis of time, but the axes of the shape {shape} hold {' and '.join(taken)} alone; "
            "pass `time_axis` to say which one is time."
        )
    if len(free) == 1:
        return free[0], "" if len(shape) == 1 else " because it is the one left"
    if len(shape) == 3:
        # What is left keeps the order trials x time x features.
        return free[0 if "trials" in taken else 1], " because the usual order is trials x time x features"
    if shape[0] == shape[1]:
        return 0, " because it comes first and both axes are equally long"
    return int(np.argmax(shape)), " because it is the longer axis"


def _sentence(shape: tuple[int, ...], dims: tuple[str, ...], taken: dict[str, int], reasons: dict[str, str]) -> str:
    def name(axis: int) -> str:
        return f"axis {axis} ({dims[axis]!r})" if dims and dims[axis] else f"axis {axis}"

    roles = ("time", "trials", "features")
    parts = [f"{name(taken[role])} as {role}{reasons.get(role, '')}" for role in roles if role in taken]
    # A guess is told with the way to correct it.
    hint = "; pass `time_axis` to override." if len(shape) > 1 and "because" in reasons["time"] else "."
    return f"{len(shape)}-d array {shape}: took {', '.join(parts)}{hint}"
