"""Times beside a recording: which column holds them, in which unit, in which order, and how far they lie apart."""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pyro_lowrank.errors import warn_user

Floats = NDArray[np.floating]

# Seconds in one unit of time, as files name it.
SECONDS = {
    **dict.fromkeys(("s", "sec", "secs", "second", "seconds"), 1.0),
    **dict.fromkeys(("ms", "msec", "msecs", "millis", "millisecond", "milliseconds"), 1e-3),
    **dict.fromkeys(("us", "µs", "μs", "usec", "microsecond", "microseconds"), 1e-6),
    **dict.fromkeys(("ns", "nsec", "nanosecond", "nanoseconds"), 1e-9),
    **dict.fromkeys(("min", "mins", "minute", "minutes"), 60.0),
    **dict.fromkeys(("h", "hour", "hours"), 3600.0),
    **dict.fromkeys(("day", "days"), 86400.0),
}
_DATE_WORDS = {"datetime", "date"}
_TIME_WORDS = {"t", "time", "times", "timestamp", "timestamps", "ts", "clock", "elapsed", *_DATE_WORDS}
COUNTER_WORDS = {
    *("index", "idx", "bin", "bins", "sample", "samples", "frame", "frames", "row", "rows", "counter", "unnamed"),
    *("packet", "packets", "number", "no", "nr", "num", "id", "n", "i"),
}
# Without a name that tells, so many rows must rise evenly before they are a clock rather than chance.
_ENOUGH = 8
# Smaller numbers are no seconds since 1970, as far as recordings go.
_SINCE_1970 = 1e8


class Column(NamedTuple):
    """What a column is that is no feature.

    Args:
        what: a sentence that says so, with a space before it.
        times: its values in seconds, or None where they count rows or their unit is not known.
    """

    what: str
    times: Floats | None


def words_of(name: str) -> set[str]:
    """Return the words in a name, in lower case, numbers left out; T7 is a word, and no T.

    Example:
        >>> sorted(words_of("Time [ms]")), sorted(words_of("SampleIndex")), words_of("T7")
        (['ms', 'time'], ['index', 'sample'], {'t7'})
    """
    parted = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    return {word for word in re.findall(r"[a-zµμ0-9]+", parted.lower()) if not word.isdecimal()}


def names_time(name: str) -> bool:
    """Return whether all that a name says is that these are times.

    Example:
        >>> names_time("t_ms"), names_time("reaction time")
        (True, False)
    """
    words = words_of(name)
    return bool(words & _TIME_WORDS) and words <= _TIME_WORDS | set(SECONDS)


def column_of(name: str | None, values: Floats, *, first: bool) -> Column | None:
    """Return what a column of a table is if it holds times or counts rows, or None if it is a feature.

    Its name tells where it is one of the usual ones; that of the first column need not, if the values tell.

    Args:
        name: of the column; None in a table without names.
        values: of all rows.
        first: whether it is the first column.

    Example:
        >>> column_of("Time [s]", np.array([0.0, 0.5, 1.0]), first=True).times
        array([0. , 0.5, 1. ])
        >>> column_of("CH_A", np.array([0.2, 0.5, 0.1]), first=False) is None
        True
    """
    words = words_of(name or "")
    counter = bool(words) and words <= COUNTER_WORDS
    if not (first or name == "" or counter or words & _TIME_WORDS or "time" in (name or "").lower()):
        # Of thousands of columns most say so by their names.
        return None
    steps = np.diff(values)
    told = f" Column {name!r}" if name is not None else " The first column"
    one_way = _is_one_way(steps)
    timely = bool(words & (_TIME_WORDS - {"t"})) or "time" in (name or "").lower()
    if (names_time(name or "") and (one_way or words != {"t"})) or (one_way and timely):
        if words <= _DATE_WORDS and float(np.abs(values[np.isfinite(values)]).max(initial=0.0)) < _SINCE_1970:
            # 20240131, or days since some year.
            unknown = "whose unit is not known: write them as 2024-01-31T12:00:00, or as `time_s`, for them to count"
            return Column(f"{told} was taken as dates, {unknown}.", None)
        said, times = in_seconds(words, values)
        return Column(f"{told} was taken as times in {said}, not as a feature.", times)
    if counts_rows(values) and (name == "" or counter or (first and len(values) >= _ENOUGH)):
        return Column(f"{told} counts the rows and was left out.", None)
    if counter and one_way and bool((values == np.round(values)).all()):
        lost = int((np.abs(steps) != np.median(np.abs(steps))).sum())
        gaps = f", in uneven steps {lost} times, where samples may have been lost," if lost else ""
        return Column(f"{told} counts samples{gaps} and was left out.", None)
    if first and rises_evenly(values):
        unit = next((SECONDS[word] for word in words if word in SECONDS), None)
        unknown = f"; its unit is not known: call it `time_s` or `time_ms` for its step, {abs(steps[0]):g}, to count"
        return Column(
            f"{told} rises by the same step in every row, as times do, and was left out{unknown * (unit is None)}.",
            None if unit is None else values * unit,
        )
    whole = bool((values == np.round(values)).all())
    if name == "" and first and (one_way or whole) and len(set(values.tolist())) == len(values):
        return Column(f"{told} has no name and was left out, as what tells the rows apart.", None)
    return None


def _is_one_way(steps: Floats) -> bool:
    """Whether numbers rise, or fall, from row to row, but for a few places where recordings were joined."""
    rising, falling = int((steps > 0).sum()), int((steps < 0).sum())
    return max(rising, falling) > 0 and 20 * min(rising, falling) <= len(steps) and not np.isnan(steps).any()


def counts_rows(values: Floats) -> bool:
    """Return whether numbers rise by one from row to row, or start again at their smallest after their largest.

    Example:
        >>> counts_rows(np.array([3.0, 4.0, 5.0])), counts_rows(np.arange(20.0) % 8), counts_rows(np.ones(3))
        (True, True, False)
    """
    steps = np.diff(values)
    if not len(steps) or not bool((values == np.round(values)).all()):
        return False
    drops = np.flatnonzero(steps != 1)
    if not len(drops):
        return True
    low, high = values.min(), values.max()
    wraps = bool((values[drops] == high).all() and (values[drops + 1] == low).all())
    return wraps and len(values) >= _ENOUGH and bool(high - low > 1)


def rises_evenly(values: Floats) -> bool:
    """Return whether numbers, enough of them, rise or fall by the same step, but for rounding.

    Example:
        >>> rises_evenly(0.01 * np.arange(50)), rises_evenly(np.sin(np.arange(50)))
        (True, False)
    """
    steps = np.diff(values)
    if len(values) < _ENOUGH or steps[0] == 0 or not np.allclose(steps[: _ENOUGH - 1], steps[0], rtol=0.01, atol=0.0):
        return False
    if not np.isfinite(values).all():
        return False
    return bool(np.allclose(steps, np.median(steps), rtol=1e-3, atol=1e-9 * np.abs(values).max()))


def in_seconds(words: set[str], values: Floats) -> tuple[str, Floats]:
    """Return the unit of times, by a word in their name or by their size, and the times in seconds.

    Example:
        >>> in_seconds({"time", "ms"}, np.array([0.0, 20.0]))
        ('ms', array([0.  , 0.02]))
    """
    for word in sorted(words & set(SECONDS)):
        return ("seconds" if SECONDS[word] == 1 else word), values * SECONDS[word]
    # Clocks that count from 1970 tell their unit by their size.
    size = float(np.abs(values[np.isfinite(values)]).max(initial=0.0))
    for least, scale, unit in ((1e17, 1e-9, "nanoseconds"), (1e14, 1e-6, "microseconds"), (1e11, 1e-3, "milliseconds")):
        if size > least:
            return unit, values * scale
    return "seconds", values


def time_order(source: str, times: Floats) -> tuple[NDArray[np.intp] | None, str]:
    """Return the order that makes times rise and a sentence on it, or None where they rise as they are.

    Args:
        source: what holds them, to begin a warning with.
        times: in the order of the file.

    Warns:
        UserWarning: if they go back here and there, as in recordings that were joined.

    Example:
        >>> time_order("The file", np.array([0.3, 0.2, 0.1]))[0]
        array([2, 1, 0])
    """
    steps = np.diff(times)
    back = np.flatnonzero(steps < 0)
    if not len(back) or np.isnan(steps).any():
        return None, ""
    order = np.argsort(times, kind="stable")
    ordered = np.diff(times[order])
    if len(back) == len(steps):
        return order, " Time ran backwards, from the newest row to the oldest, and was turned round."
    if _is_even(ordered):
        return order, " The rows were not in the order of time, and were sorted."
    warn_user(
        f"The times in {source} go back {len(back)} times, first after row {back[0]} (from {times[back[0]]:g} to "
        f"{times[back[0] + 1]:g} s): were recordings joined? Read them one by one, or as trials."
    )
    return None, ""


def even_step(source: str, steps: Floats) -> float | None:
    """Return the one step from each time to the next, or None, with a warning, where steps differ.

    Example:
        >>> even_step("The file", np.array([0.5, 0.5]))
        0.5
    """
    if not len(steps):
        return None
    if _is_even(steps):
        return float(np.mean(steps))
    warn_user(
        f"The times in {source} are not evenly spaced, so that the bin size is not known; every row is taken as one "
        "bin. Resample the recording if that is not what you want."
    )
    return None


def _is_even(steps: Floats) -> bool:
    # Times are often rounded, to milliseconds say: within a tenth of a bin they are still even.
    middle = float(np.median(steps))
    return middle > 0 and np.allclose(steps, middle, rtol=0.1, atol=0.0)


def agree(stated: float | None, measured: float | None) -> bool:
    """Return whether two lengths of a bin are the same, as far as both are known.

    Example:
        >>> agree(0.01, 0.0100001), agree(0.01, 10.0), agree(0.01, None)
        (True, False, True)
    """
    return stated is None or measured is None or abs(measured - stated) <= 0.01 * stated


def agreed_step(source: str, stated: float | None, measured: float | None) -> float | None:
    """Return the seconds per bin that a file states, or else those between its times.

    Warns:
        UserWarning: if both are there and contradict each other.

    Example:
        >>> agreed_step("The file", None, 0.5)
        0.5
    """
    if stated is None or measured is None:
        return measured if stated is None else stated
    if not agree(stated, measured):
        hint = " Are the times in milliseconds?" if abs(measured - 1000 * stated) < 10 * stated else ""
        warn_user(
            f"{source} contradicts itself: it states {stated:g} s per bin ({1 / stated:g} Hz), and its times are "
            f"{measured:g} s apart. The first was taken; correct one of them.{hint}"
        )
    return stated
