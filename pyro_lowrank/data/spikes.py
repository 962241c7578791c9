"""Spike times into counts per time bin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pyro_lowrank.arrays import distinct, missing_labels
from pyro_lowrank.data.recording import Recording
from pyro_lowrank.errors import check_positive, warn_user

Times = NDArray[np.float64]

# Beyond these, in spikes per second or per bin of the unit that fires most, a unit of time was mixed up.
_FASTEST, _SLOWEST, _FULLEST = 2000.0, 0.2, 100.0
_LARGEST_BYTES = 16 * 2**30


def bin_spikes(
    times: Any,
    units: ArrayLike | None = None,
    *,
    bin_size: float,
    epochs: Any,
    unit_ids: Sequence[Any] | None = None,
    inputs: Sequence[ArrayLike] | None = None,
    input_names: Sequence[str] = (),
    trial_names: Sequence[str] = (),
    conditions: ArrayLike | None = None,
) -> Recording:
    r"""Count the spikes of every unit in the time bins of every epoch, each epoch a trial.

    Bin k of an epoch that begins at s counts the spikes in

    .. math:: s + k \Delta \le t < s + (k + 1) \Delta

    and an epoch has as many bins as fit in it whole: what is left over at its end is dropped. A spike within rounding
    error of an edge stands on it. Epochs may overlap and differ in length; their counts are padded with NaN. Spikes
    need not be sorted; those outside every epoch are left out, and `Recording.orientation` tells how many.

    Shapes: `Recording.data` is `trials x time x units`, float32.

    Args:
        times: spike times in seconds: of all units together, with `units`; or one array per unit, as a sequence or as
            a mapping from names.
        units: the unit of each spike; for one array per unit, the names of the units, or None.
        bin_size: seconds per bin.
        epochs: begin and end of each epoch in seconds on the clock of the spikes, `epochs x 2`; a pair for a single
            one; or any object with `start` and `end`, such as pynapple's `IntervalSet`.
        unit_ids: with the unit of each spike, all units in the order wanted, those that are silent included; those
            that fire, sorted, if None.
        inputs: one array per epoch, `time x inputs`, at these bins.
        input_names: one name per input.
        trial_names: one name per epoch.
        conditions: one label per epoch.

    Raises:
        ValueError: if a time is not finite, ids do not match, an epoch is shorter than a bin or holds none of the
            spikes that there are, or the counts would not fit into memory.

    Warns:
        UserWarning: if rates or counts are absurd, as with milliseconds for seconds.

    Example:
        >>> recording = bin_spikes([[0.0, 0.1, 0.31], [0.19]], bin_size=0.1, epochs=[(0.0, 0.25), (0.1, 0.4)])
        >>> recording.trials()[0]
        array([[1., 0.],
               [1., 1.]], dtype=float32)
        >>> recording.trial_lengths, recording.start_times
        (array([2, 3]), array([0. , 0.1]))
    """
    bin_size = check_positive("bin_size", bin_size)
    intervals = check_epochs(epochs)
    spikes, unit, names = _flatten(times, units, unit_ids)
    if not names:
        raise ValueError("`times` hold no unit: there is nothing to bin.")
    _warn_of_restarts(spikes, unit, names)
    order = np.argsort(spikes, kind="stable")
    spikes, unit = spikes[order], unit[order]
    counter = _Counter(intervals, names, bin_size, _resolution(times))
    inside = np.zeros(len(spikes), dtype=bool)
    for trial, (start, stop) in enumerate(intervals):
        low, high = np.searchsorted(spikes, [start - bin_size, stop + bin_size])
        inside[low:high] |= counter.count(trial, spikes[low:high], unit[low:high])
    outside = int((~inside).sum())
    _check_inside(spikes, outside, intervals)
    return counter.recording(
        f"{outside} of {len(spikes)} spikes lie outside of them" if outside else "",
        inputs=inputs,
        input_names=input_names,
        trial_names=trial_names,
        conditions=conditions,
        start_times=intervals[:, 0],
    )


def bin_trials(
    trials: Sequence[Sequence[NDArray[Any]]],
    names: tuple[str, ...],
    *,
    bin_size: float,
    epochs: Times,
    start_times: Times | None = None,
    conditions: ArrayLike | None = None,
) -> Recording:
    """Count the spikes of trials that each have a clock of their own, as `bin_spikes` does on one clock.

    Args:
        trials: of each trial, of each unit, spike times in seconds.
        names: of the units.
        bin_size: seconds per bin.
        epochs: begin and end of each trial on its own clock, `trials x 2`.
        start_times: seconds at which each trial begins on the clock of the session, or None.
        conditions: one label per trial.

    Example:
        >>> bin_trials([[[0.1, 0.2]], [[0.7]]], ("a",), bin_size=0.5, epochs=np.array([[0, 1], [0, 1]])).data[..., 0]
        array([[2., 0.],
               [0., 1.]], dtype=float32)
    """
    counter = _Counter(epochs, names, check_positive("bin_size", bin_size), _resolution(trials[0]))
    outside = total = 0
    for trial, times in enumerate(trials):
        spikes, unit, _ = _flatten(times, [f"{name} in trial {trial}" for name in names], None)
        within = counter.count(trial, spikes, unit)
        outside, total = outside + int((~within).sum()), total + len(within)
    left_out = f"{outside} of {total} spikes lie outside of them" if outside else ""
    return counter.recording(left_out, conditions=conditions, start_times=start_times)


class _Counter:
    """Counts of units in the bins of epochs, filled epoch by epoch."""

    def __init__(self, intervals: Times, names: tuple[str, ...], bin_size: float, resolution: float) -> None:
        self.intervals, self.names, self.bin_size, self.resolution = intervals, names, bin_size, resolution
        self.lengths = _lengths(intervals, bin_size)
        _check_size(self.lengths, len(names), bin_size, intervals)
        shape = (len(intervals), int(self.lengths.max()), len(names))
        self.counts = np.full(shape, np.nan, dtype=np.float32)

    def count(self, trial: int, spikes: Times, unit: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Count the spikes of an epoch; return which of them lie in it."""
        length, number = int(self.lengths[trial]), len(self.names)
        bins = _whole_bins(spikes, self.intervals[trial, 0], self.bin_size, self.resolution)
        within = (bins >= 0) & (bins < length)
        cells = bins[within] * number + unit[within]
        self.counts[trial, :length] = np.bincount(cells, minlength=length * number).reshape(length, number)
        return within

    def recording(
        self,
        left_out: str,
        *,
        inputs: Sequence[ArrayLike] | None = None,
        input_names: Sequence[str] = (),
        trial_names: Sequence[str] = (),
        conditions: ArrayLike | None = None,
        start_times: Times | None = None,
    ) -> Recording:
        """Return the counts, epochs as trials."""
        _warn_of_absurd(self.counts, self.lengths, self.bin_size, self.names)
        told = f"Spikes of {_count(len(self.names), 'unit')} in {_count(len(self.intervals), 'epoch')}"
        return Recording.from_trials(
            [trial[:length] for trial, length in zip(self.counts, self.lengths, strict=True)],
            inputs,
            bin_size=self.bin_size,
            feature_names=self.names,
            feature_units=("counts",) * len(self.names),
            input_names=input_names,
            trial_names=trial_names,
            conditions=conditions,
            start_times=start_times,
            orientation=f"{told}{'; ' * bool(left_out)}{left_out}.",
        )


def check_epochs(epochs: Any) -> Times:
    """Return epochs as an array `epochs x 2` of begins and ends, or raise.

    Example:
        >>> check_epochs((0, 2.5))
        array([[0. , 2.5]])
    """
    if hasattr(epochs, "start") and hasattr(epochs, "end"):
        epochs = np.stack([np.asarray(epochs.start), np.asarray(epochs.end)], -1)
    array = np.asarray(epochs, dtype=np.float64)
    array = array[np.newaxis] if array.shape == (2,) else array
    if array.ndim != 2 or array.shape[-1] != 2:
        raise ValueError(f"`epochs` must be begins and ends in seconds, epochs x 2, got the shape {array.shape}.")
    if len(array) == 0:
        raise ValueError("`epochs` is empty: a session without trials holds nothing to fit.")
    bad = np.flatnonzero(~(np.isfinite(array).all(-1) & (array[:, 1] > array[:, 0])))
    if len(bad):
        start, stop = array[bad[0]]
        raise ValueError(
            f"`epochs` must each end after they begin, both finite; {len(bad)} do not, the first is epoch {bad[0]}, "
            f"from {start:g} to {stop:g}."
        )
    return array


def _flatten(
    times: Any, units: ArrayLike | None, unit_ids: Sequence[Any] | None
) -> tuple[Times, NDArray[np.int64], tuple[str, ...]]:
    """Return all spike times, the index of the unit of each, and the names of the units."""
    if isinstance(times, Mapping):
        if units is not None:
            raise ValueError("`units` came with a mapping of spike times, whose keys name the units; leave it out.")
        # 1 and "1" are two keys of one name.
        units, times = distinct([str(name) for name in times]), list(times.values())
    if (isinstance(times, np.ndarray) and times.dtype != object) or all(np.ndim(part) == 0 for part in times):
        return _of_each_spike(times, units, unit_ids)
    if unit_ids is not None:
        raise ValueError("`unit_ids` go with the unit of each spike; for one array per unit pass its names as `units`.")
    names = tuple(f"unit_{index}" for index in range(len(times)))
    if units is not None:
        names = tuple(str(name) for name in np.asarray(units, dtype=object).tolist())
        if len(names) != len(times):
            raise ValueError(f"`units` must name {len(times)} units, one per array of spike times, got {len(names)}.")
    parts = [check_spikes(part, name) for part, name in zip(times, names, strict=True)]
    joined = np.concatenate(parts) if parts else np.empty(0)
    return joined, np.repeat(np.arange(len(parts)), [len(part) for part in parts]), names


def _of_each_spike(
    times: Any, units: ArrayLike | None, unit_ids: Sequence[Any] | None
) -> tuple[Times, NDArray[np.int64], tuple[str, ...]]:
    spikes = _finite(times, "")
    if units is None:
        raise ValueError(
            "`times` are spike times of all units together: pass `units`, the unit of each spike; "
            "for a single unit pass [times]."
        )
    each = np.asarray(units)
    if each.shape != spikes.shape:
        raise ValueError(
            f"`units` must tell the unit of each spike, {len(spikes)} of them, got an array of shape {each.shape}."
        )
    missing = missing_labels(each)
    if missing:
        raise ValueError(
            f"`units` must tell the unit of each spike, and {len(missing)} of {len(spikes)} have none, the first is "
            f"spike {missing[0]}; leave these out."
        )
    found, position = np.unique(each, return_inverse=True)
    if unit_ids is None:
        return spikes, position.astype(np.int64), tuple(str(name) for name in found)
    wanted = list(unit_ids)
    if len(set(wanted)) < len(wanted):
        raise ValueError("`unit_ids` must differ from each other, got one twice.")
    place = {name: index for index, name in enumerate(wanted)}
    unknown = [name for name in found.tolist() if name not in place]
    if unknown:
        raise ValueError(
            f"`units` hold {_count(len(unknown), 'id')} that are not in `unit_ids`, such as {unknown[0]!r}; "
            f"`unit_ids` has {len(wanted)}, such as {wanted[0]!r}. Leave the others' spikes out, or add them."
            if wanted
            else "`unit_ids` is empty."
        )
    index = np.array([place[name] for name in found.tolist()], dtype=np.int64)
    return (
        spikes,
        index[position] if len(index) else position.astype(np.int64),
        distinct([str(name) for name in wanted]),
    )


def check_spikes(times: Any, unit: str) -> Times:
    """Return the spike times of a unit in seconds, or raise with the first that is not finite.

    Example:
        >>> check_spikes([1, 2], "a")
        array([1., 2.])
    """
    return _finite(times, f" of unit {unit}")


def _finite(times: Any, whose: str) -> Times:
    array = np.asarray(times)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "fiu"):
        raise TypeError(f"Spike times{whose} must be a list of numbers, in seconds, got {array.dtype} {array.shape}.")
    array = array.astype(np.float64)
    bad = np.flatnonzero(~np.isfinite(array))
    if len(bad):
        raise ValueError(
            f"Spike times{whose} must be finite, got {array[bad[0]]} at index {bad[0]}"
            f"{f' and {len(bad) - 1} others' if len(bad) > 1 else ''}; leave such entries out."
        )
    return array


def _resolution(times: Any) -> float:
    """Return the relative error of spike times minus an edge: of the rounding they were stored with, and of ours."""
    parts = [times] if isinstance(times, np.ndarray) else times.values() if isinstance(times, Mapping) else times
    single = any(getattr(part, "dtype", None) == np.float32 for part in parts)
    return 4 * float(np.finfo(np.float64).eps) + single * float(np.finfo(np.float32).eps) / 2


def _whole_bins(times: Times, start: float, bin_size: float, resolution: float) -> NDArray[np.int64]:
    """Return the bin of each time; a time within rounding error below an edge stands on it."""
    error = resolution * np.maximum(np.abs(times), abs(start))
    return np.floor((times - start + error) / bin_size).astype(np.int64)


def _lengths(intervals: Times, bin_size: float) -> NDArray[np.int64]:
    error = 4 * float(np.finfo(np.float64).eps) * np.abs(intervals).max(-1)
    lengths = np.floor((intervals[:, 1] - intervals[:, 0] + error) / bin_size).astype(np.int64)
    short = np.flatnonzero(lengths < 1)
    if len(short):
        start, stop = intervals[short[0]]
        raise ValueError(
            f"Every epoch must hold at least one bin of {bin_size:g} s; {_count(len(short), 'epoch')} of "
            f"{len(intervals)} are shorter, the first is epoch {short[0]}, {stop - start:g} s long. "
            "Are `bin_size` and `epochs` both in seconds?"
        )
    return lengths


def _check_size(lengths: NDArray[np.int64], units: int, bin_size: float, intervals: Times) -> None:
    size = 4 * len(lengths) * int(lengths.max()) * units
    if size > _LARGEST_BYTES:
        raise ValueError(
            f"The counts would take {size / 2**30:.0f} GiB: {len(lengths)} epochs of up to {lengths.max()} bins of "
            f"{bin_size:g} s and {units} units. Are `bin_size` and `epochs` (the longest lasts "
            f"{np.ptp(intervals, -1).max():g}) both in seconds? If so, bin a part at a time."
        )


def _check_inside(spikes: Times, outside: int, intervals: Times) -> None:
    if len(spikes) and outside == len(spikes):
        raise ValueError(
            f"None of the {len(spikes)} spikes, from {spikes[0]:g} to {spikes[-1]:g} s, falls into an epoch; the "
            f"epochs reach from {intervals.min():g} to {intervals.max():g} s. Are both in seconds, on the same clock?"
        )


def _warn_of_restarts(spikes: Times, unit: NDArray[np.int64], names: tuple[str, ...]) -> None:
    """Say so if the times of a unit rise and start again, rather than being in no order at all."""
    order = np.argsort(unit, kind="stable")
    same = np.diff(unit[order]) == 0
    back = same & (np.diff(spikes[order]) < 0)
    number = np.bincount(unit[order][1:][back], minlength=len(names))
    steps = np.bincount(unit[order][1:][same], minlength=len(names))
    again = np.flatnonzero((number > 0) & (4 * number <= steps))
    if len(again):
        most = int(again[number[again].argmax()])
        warn_user(
            f"The spike times of {_count(len(again), 'unit')} go back here and there, those of {names[most]} "
            f"{number[most]} times among {steps[most] + 1} spikes: do they start again with each trial? Then all "
            "trials were counted on top of each other; add the begin of its trial to each, or pass times that rise."
        )


def _warn_of_absurd(
    counts: NDArray[np.float32], lengths: NDArray[np.int64], bin_size: float, names: tuple[str, ...]
) -> None:
    totals: Times = np.nansum(counts, axis=(0, 1), dtype=np.float64)
    most = int(totals.argmax())
    per_bin = totals[most] / lengths.sum()
    rate = per_bin / bin_size
    if totals[most] > 0 and (rate > _FASTEST or rate < _SLOWEST or per_bin > _FULLEST):
        warn_user(
            f"The unit that fires most, {names[most]}, has {totals[most]:.0f} spikes in {lengths.sum()} bins of "
            f"{bin_size:g} s: {rate:.3g} per second and {per_bin:.3g} per bin. Spike times, `epochs` and `bin_size` "
            "must all be in seconds: is one of them in milliseconds?"
        )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
