"""Trials that share time: what one of them shows, the others show as well."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pyro_lowrank.data.recording import Recording

# A thousandth of a bin, and the rounding of clocks that count from 1970: trials that touch do not overlap.
_SLACK, _ROUNDING = 1e-3, 8 * float(np.finfo(np.float64).eps)


def trial_groups(recording: Recording) -> tuple[NDArray[np.int64], NDArray[np.str_]]:
    """Return the group of each trial, and the name of each group: trials that share data are of one group.

    These are parts of one trial, which have its name, and trials that overlap in time, by `start_times` and `bin_size`;
    directly, or by way of others. Where trials of different names begin at the same times, each has a clock of its own.

    Example:
        >>> epochs = Recording(np.zeros((3, 4, 1)), bin_size=0.5, start_times=[0.0, 1.5, 9.0])
        >>> trial_groups(epochs)
        (array([0, 0, 1]), array(['trial_0', 'trial_2'], dtype='<U7'))
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    names, name_of = np.unique(np.array(recording.trial_names), return_inverse=True)
    stretch_of = np.arange(recording.num_trials)
    if has_common_clock(recording):
        begins, ends = _spans(recording)
        order = np.argsort(begins, kind="stable")
        reached = np.maximum.accumulate(ends[order])
        stretch_of[order] = np.cumsum(np.append(0, begins[order][1:] >= reached[:-1]))
    size = len(names) + recording.num_trials
    links = coo_array((np.ones(len(name_of)), (name_of, len(names) + stretch_of)), shape=(size, size))
    component = connected_components(links, directed=False)[1][name_of]
    # Numbered by the first name of each, so that a draw from the groups is one from the names if nothing overlaps.
    _, first, group = np.unique(component, return_index=True, return_inverse=True)
    smallest = np.full(len(first), len(names))
    np.minimum.at(smallest, group, name_of)
    order = np.argsort(smallest)
    return np.argsort(order)[group], names[smallest[order]]


def has_common_clock(recording: Recording) -> bool:
    """Return whether the times at which trials begin tell which of them overlap.

    Example:
        >>> has_common_clock(Recording(np.zeros((2, 4, 1)), bin_size=0.5, start_times=[0.0, 0.0]))
        False
    """
    if recording.start_times is None or recording.bin_size is None or not np.isfinite(recording.start_times).all():
        return False
    firsts: dict[str, float] = {}
    for name, start in zip(recording.trial_names, recording.start_times.tolist(), strict=True):
        firsts[name] = min(start, firsts.get(name, np.inf))
    return len(set(firsts.values())) > len(firsts) / 2


def sharing_time(one: Recording, other: Recording, *, common_clock: bool) -> NDArray[np.int64]:
    """Return pairs of trials, of one recording and of another, that overlap in time, `pairs x 2`.

    Args:
        one: with `start_times` and `bin_size`, or else there are no such pairs.
        other: likewise.
        common_clock: whether trials of different names are on one clock.

    Example:
        >>> epochs = Recording(np.zeros((3, 4, 1)), bin_size=0.5, start_times=[0.0, 1.5, 9.0])
        >>> sharing_time(epochs.select([0]), epochs.select([1, 2]), common_clock=True)
        array([[0, 0]])
    """
    if any(part.start_times is None or part.bin_size is None for part in (one, other)):
        return np.empty((0, 2), dtype=np.int64)
    (begins, ends), names = _spans(other), np.array(other.trial_names)
    pairs = []
    for trial, (begin, end) in enumerate(zip(*_spans(one), strict=True)):
        shared = (begins < end) & (begin < ends)
        if not common_clock:
            shared &= names == one.trial_names[trial]
        pairs += [(trial, place) for place in np.flatnonzero(shared)]
    return np.array(pairs, dtype=np.int64).reshape(-1, 2)


def apart_from(recording: Recording, held_out: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the trials that are not held out and share neither time nor name with those that are.

    Example:
        >>> epochs = Recording(np.zeros((3, 4, 1)), bin_size=0.5, start_times=[0.0, 8.0, 9.0])
        >>> apart_from(epochs, np.array([False, False, True]))
        array([0])
    """
    rest = np.flatnonzero(~held_out)
    one, other = recording.select(trials=held_out), recording.select(trials=rest)
    shared = sharing_time(one, other, common_clock=has_common_clock(recording))[:, 1]
    named = np.flatnonzero(np.isin(other.trial_names, one.trial_names))
    return np.delete(rest, np.union1d(shared, named))


def check_apart(held_out: Recording, train: Recording, *, common_clock: bool, instead: str) -> None:
    """Raise if a trial that is held out and one to train on share time.

    Args:
        held_out: trials that are held out.
        train: trials to train on.
        common_clock: whether trials of different names are on one clock.
        instead: what to do about it, to end the message with.

    Raises:
        ValueError: with the names and times of the first such pair.
    """
    pairs = sharing_time(held_out, train, common_clock=common_clock)
    if len(pairs):
        raise ValueError(
            f"What is held out and what is to be trained on share time, in {len(pairs)} pairs of trials, such as "
            f"{_told(held_out, pairs[0, 0])} and {_told(train, pairs[0, 1])}: {instead} (If `start_times` are not on "
            "one clock, make the recording without them.)"
        )


def _told(recording: Recording, trial: int) -> str:
    assert recording.start_times is not None
    assert recording.bin_size is not None
    begin = float(recording.start_times[trial])
    end = begin + recording.bin_size * int(recording.trial_lengths[trial])
    return f"'{recording.trial_names[trial]}' ({begin:.6g} to {end:.6g} s)"


def _spans(recording: Recording) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    assert recording.start_times is not None
    assert recording.bin_size is not None
    begins = np.asarray(recording.start_times, dtype=np.float64)
    ends = begins + recording.bin_size * (recording.trial_lengths - _SLACK) - _ROUNDING * np.abs(begins)
    return begins, np.maximum(ends, begins)
