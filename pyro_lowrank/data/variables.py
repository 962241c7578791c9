"""Variables by name, as archives and MATLAB files hold them: which is the recording, and what stands beside it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pyro_lowrank.data.clocks import agree, in_seconds, names_time, words_of
from pyro_lowrank.data.contents import Contents, is_numeric
from pyro_lowrank.data.opening import Refused
from pyro_lowrank.errors import warn_user

Array = NDArray[Any]

# Scalars that state the bin size, in small letters and no others, and the bin size in seconds they stand for.
_SECONDS = {"binsize", "bins", "binwidth", "dt"}
_HERTZ = {
    "fs",
    "sfreq",
    "srate",
    "samplingrate",
    "samplerate",
    "samplingfrequency",
    "samplefrequency",
    "samplingfreq",
    "fsample",
}
_NAMES = {"chnames", "channelnames", "channellabels", "featurenames", "unitnames"}
# More of them are no names and no scalars, but something else of that name.
_MOST_NAMES = 100_000
# The kind of a variable of dates, or of times between them.
DATES = "dates"


class Variable(NamedTuple):
    """One variable of a file, not read yet.

    Args:
        kind: `numbers`, `words`, `dates` or `cell`, which can be read; anything else says what it is.
        shape: lengths of its axes.
        read: reads it.
    """

    kind: str
    shape: tuple[int, ...]
    read: Callable[[], Any]


def listing(variables: Mapping[str, Variable]) -> str:
    """Return what a file holds, for messages.

    Example:
        >>> listing({"y": Variable("numbers", (3, 4), list), "s": Variable("struct", (1,), list)})
        'y (3, 4), s struct (1,)'
    """
    return ", ".join(
        f"{name} {'' if one.kind == 'numbers' else one.kind + ' '}{one.shape}" for name, one in variables.items()
    )


def choose(path: Path, key: str | None, dims_by_name: Mapping[str, int], told: str) -> str:
    """Return the name of the array to read: `key`, or the only one that could be meant.

    Args:
        path: the file.
        key: as of `read_recording`.
        dims_by_name: the number of axes of each array of numbers.
        told: what the file holds, for messages.

    Raises:
        ValueError: if there is no such array, or several could be meant.
    """
    if key is not None:
        if key not in dims_by_name:
            raise Refused(f"`key` must name an array of numbers in {path}, got key={key!r}; it holds: {told}.")
        return key
    candidates = [name for name, ndim in dims_by_name.items() if ndim >= 2]
    candidates = candidates or [name for name, ndim in dims_by_name.items() if ndim == 1]
    if len(candidates) != 1:
        found = f"{len(candidates)} arrays could be the recording" if candidates else "no array could be the recording"
        raise Refused(f"In {path} {found}; pass `key` to choose one. It holds: {told or 'nothing'}.")
    return candidates[0]


def is_beside(name: str) -> bool:
    """Return whether a variable of this name tells something of the recording rather than being it.

    Example:
        >>> is_beside("ch_names"), is_beside("eeg")
        (True, False)
    """
    return _plain(name) in _NAMES


def beside(path: Path, variables: Mapping[str, Variable], chosen: str) -> Contents:
    """Return what stands beside an array of numbers, and the array itself.

    Names of features, the bin size, and times with as many entries as one of the array's axes.
    """
    array = variables[chosen].read()
    remark, times = "", None
    dims = _eeglab_dims(variables, array.shape)
    for name, one in variables.items():
        alone = one.kind in ("numbers", DATES) and len(one.shape) == 1 and name != chosen
        if times is None and alone and names_time(name) and one.shape[0] in array.shape and one.shape[0] > 1:
            ticks = np.asarray(one.read())
            if one.kind == DATES:
                unit, times = "seconds since the first", (ticks - ticks.min()) / np.timedelta64(1, "s")
            else:
                # EEGLAB's are in milliseconds, which it does not say.
                unit, times = in_seconds(words_of(name) | ({"ms"} if dims else set()), ticks.astype(np.float64))
            remark = f" {name} was taken as times in {unit}."
    scalars = {name: one.read() for name, one in variables.items() if states_bin_size(name) and is_small(one)}
    return Contents(
        array,
        dims=dims,
        feature_names=names_beside(path, variables),
        bin_size=stated_bin_size(path, scalars),
        times=times,
        remark=remark,
        # Which axis is that of trials is not known yet.
        labels={
            name: one
            for length in set(array.shape)
            for name, one in labels_beside({n: v for n, v in variables.items() if n != chosen}, length).items()
        },
    )


def labels_beside(variables: Mapping[str, Variable], number: int) -> dict[str, NDArray[np.generic]]:
    """Return the lists of `number` words or numbers in a file, by name; one called `conditions` as `condition`.

    Example:
        >>> labels_beside({"condition": Variable("numbers", (3,), lambda: np.array([1, 2, 1]))}, 3)
        {'condition': array([1, 2, 1])}
    """
    found: dict[str, NDArray[np.generic]] = {}
    for name, one in variables.items():
        told_elsewhere = is_beside(name) or states_bin_size(name) or names_time(name)
        if one.shape != (number,) or told_elsewhere or one.kind not in ("numbers", "words", "cell"):
            continue
        if not is_small(one):
            continue
        if one.kind == "numbers":
            values: NDArray[np.generic] = np.asarray(one.read())
        else:
            words = read_words(one)
            values = np.array(words if words is not None else (), dtype=object)
        if values.shape == (number,):
            found["condition" if _plain(name) in ("condition", "conditions") else name] = values
    return found


def _eeglab_dims(variables: Mapping[str, Variable], shape: tuple[int, ...]) -> tuple[str, ...]:
    """Return the dims of the data of EEGLAB, or nothing if the lengths that it keeps beside them are not there."""
    lengths = []
    for name in ("nbchan", "pnts", "trials"):
        one = variables.get(name)
        if one is None or one.kind != "numbers" or math.prod(one.shape) != 1:
            return ()
        lengths.append(float(np.ravel(one.read())[0]))
    dims = ("channel", "time", "trial")[: len(shape)]
    return dims if list(shape) == lengths[: len(shape)] and lengths[len(shape) :] in ([], [1.0]) else ()


def names_beside(path: Path, variables: Mapping[str, Variable]) -> tuple[str, ...]:
    """Return the names that a file gives its features, or nothing.

    Warns:
        UserWarning: if there are such names, which cannot be read.
    """
    for name, one in variables.items():
        if _plain(name) not in _NAMES:
            continue
        words = read_words(one) if is_small(one) else None
        if words is not None:
            return words
        warn_user(f"{name} in {path}, {one.kind} {one.shape}, cannot be read as names, and was left out.")
    return ()


def read_words(variable: Variable) -> tuple[str, ...] | None:
    """Return the words in a list or a cell array, numbers written as words, or None if it holds others."""
    if variable.kind not in ("numbers", "words", "cell"):
        return None
    words = []
    for one in np.asarray(variable.read(), dtype=object).ravel().tolist():
        while isinstance(one, np.ndarray) and one.size == 1:
            one = one.item()
        if not isinstance(one, str | bytes | int | float | np.number):
            return None
        words.append(as_word(one))
    return tuple(words)


def as_word(value: Any) -> str:
    """Return a name as text, whether it is stored as text, as bytes or as a number.

    Example:
        >>> as_word(b"Fz "), as_word(7.0)
        ('Fz', '7')
    """
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    return f"{value:g}" if isinstance(value, float) and abs(value) < 1e6 else str(value).strip()


def is_small(variable: Variable) -> bool:
    """Return whether a variable is small enough to be a list of names or a scalar."""
    return math.prod(variable.shape) <= _MOST_NAMES


def states_bin_size(name: Any) -> bool:
    """Return whether a variable of this name states the bin size or the sampling rate.

    Example:
        >>> states_bin_size("SamplingRate"), states_bin_size("rate")
        (True, False)
    """
    return _plain(str(name)) in _SECONDS | _HERTZ


def stated_bin_size(source: Path | str, scalars: Mapping[Any, Any]) -> float | None:
    """Return the seconds per bin that one of a file's scalars states, or None.

    Raises:
        ValueError: if the scalar is not a positive number.

    Warns:
        UserWarning: if it is no number, or two of them contradict each other.

    Example:
        >>> stated_bin_size(Path("eeg.npz"), {"fs": 160.0})
        0.00625
    """
    taken: tuple[Any, float] | None = None
    for name, value in scalars.items():
        if not states_bin_size(name):
            continue
        numbers = np.asarray(value)
        if not is_numeric(numbers) or not numbers.size or (numbers != numbers.flat[0]).any() != np.isnan(numbers).any():
            warn_user(f"`{name}` in {source} is not one number, and was left out: the bin size is not known from it.")
            continue
        number = float(numbers.flat[0])
        if not (math.isfinite(number) and number > 0):
            raise Refused(f"`{name}` in {source} must be positive and finite, got {number}.")
        seconds = number if _plain(str(name)) in _SECONDS else 1.0 / number
        if taken is None:
            taken = name, seconds
        elif not agree(taken[1], seconds):
            warn_user(
                f"{source} contradicts itself: by `{taken[0]}` a bin has {taken[1]:g} s, by `{name}` {seconds:g} s. "
                "The first was taken; correct one of them."
            )
    return None if taken is None else taken[1]


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())
