"""What several parts ask of arrays: whether numbers vary at all, and what labels tell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Steps of the floating-point grid that arithmetic on equal numbers may leave between them.
_STEPS = 16


def varies(low: Any, high: Any) -> Any:
    """Return whether numbers from `low` to `high` differ by more than rounding, relative to their size.

    The mean of equal numbers is off by rounding, and so is their variance: a test such as `variance > 0` takes a
    channel that never changes for one that does.

    Args:
        low: the smallest number of each feature, an array of NumPy or a tensor; infinity where there is none.
        high: the largest, likewise; minus infinity where there is none.

    Returns:
        Truth values in the shape of `low` and `high`.

    Example:
        >>> varies(np.array([0.1, 1e9, 0.0]), np.array([0.1 + 2e-17, 1e9 + 1, 1e-30])).tolist()
        [False, True, True]
    """
    tolerance = _STEPS * (2.0**-52 if low.dtype.itemsize >= 8 else 2.0**-23)
    spread = high - low
    return (spread > tolerance * abs(low)) & (spread > tolerance * abs(high))


def varies_along(x: NDArray[np.floating], axes: int | tuple[int, ...], *, keepdims: bool = False) -> NDArray[np.bool_]:
    """Return whether the numbers along some axes vary, NaN left out.

    Example:
        >>> varies_along(np.array([[0.1, 1.0], [0.1, np.nan], [0.1, 2.0]]), 0).tolist()
        [False, True]
    """
    found = np.asarray(varies(*extremes(x, axes)))
    return found if keepdims else found.squeeze(axes)


def extremes(x: NDArray[np.floating], axes: int | tuple[int, ...]) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """Return the smallest and the largest numbers along some axes, which are kept, NaN left out.

    Example:
        >>> extremes(np.array([1.0, np.nan, 3.0]), 0)
        (array([1.]), array([3.]))
    """
    low = np.where(np.isnan(x), np.inf, x).min(axes, keepdims=True)
    return low, np.where(np.isnan(x), -np.inf, x).max(axes, keepdims=True)


def as_labels(labels: Any) -> NDArray[Any]:
    """Return labels as an array in which a missing one stays what it is: NumPy would write NaN among words as 'nan'.

    Example:
        >>> as_labels(["left", float("nan")]).tolist()
        ['left', nan]
    """
    if isinstance(labels, np.ndarray):
        return labels
    objects = np.asarray(labels, dtype=object)
    return objects if missing_labels(objects) else np.asarray(labels)


def missing_labels(labels: NDArray[Any]) -> list[int]:
    """Return the places of the labels that are None, NaN or the like.

    Example:
        >>> missing_labels(np.array([1.0, np.nan]))
        [1]
    """
    if labels.dtype.kind == "f":
        return [int(place) for place in np.flatnonzero(np.isnan(labels))]
    if labels.dtype.kind not in "OmM":
        return []
    return [place for place, label in enumerate(labels.ravel().tolist()) if _is_missing(label)]


def label_codes(name: str, labels: Any, number: int) -> NDArray[np.int64]:
    """Return the number of each trial's label among the labels that there are, in their order.

    Args:
        name: of the argument, to begin messages with.
        labels: one per trial, of any kind that can be compared for equality.
        number: of trials.

    Raises:
        ValueError: if there are not as many labels as trials, or one is missing.

    Example:
        >>> label_codes("by", ["right", "left", "right"], 3).tolist()
        [1, 0, 1]
    """
    array = as_labels(labels)
    if array.shape != (number,):
        raise ValueError(f"`{name}` must have one label for each of {number} trials, got {array.shape}.")
    missing = missing_labels(array)
    if missing:
        raise ValueError(
            f"`{name}` must have a label for every trial, and {len(missing)} of {number} have none, the first is trial "
            f"{missing[0]} ({array[missing[0]]!r}); give them one, or leave these trials out."
        )
    values = array.tolist()
    place = {label: code for code, label in enumerate(_in_order(set(values)))}
    return np.array([place[label] for label in values], dtype=np.int64)


def distinct(names: Sequence[str]) -> tuple[str, ...]:
    """Return names made different where some are equal: the second of a name gets `_2`, and so on.

    Example:
        >>> distinct(["0", "1", "0"])
        ('0', '1', '0_2')
    """
    taken, found = set(names), []
    numbers: dict[str, int] = {}
    for name in names:
        chosen = name
        while name in numbers and chosen in taken:
            numbers[name] += 1
            chosen = f"{name}_{numbers[name]}"
        numbers.setdefault(name, 1)
        taken.add(chosen)
        found.append(chosen)
    return tuple(found)


def _is_missing(label: Any) -> bool:
    # pandas' NA compares to nothing, not even to itself.
    return label is None or type(label).__name__ in ("NAType", "NaTType") or bool(label != label)


def _in_order(labels: set[Any]) -> list[Any]:
    try:
        return sorted(labels)
    except TypeError:
        return sorted(labels, key=lambda label: (type(label).__name__, str(label)))
