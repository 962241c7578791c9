"""The one type that recordings have, wherever they come from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pyro_lowrank.arrays import as_labels
from pyro_lowrank.data.description import description, listed
from pyro_lowrank.errors import check_positive

Floats = NDArray[np.floating]
Integers = NDArray[np.integer]


@dataclass(frozen=True, eq=False, repr=False)
class Recording:
    """A recording of one or many trials, with the names, units and times that belong to it.

    `plr.fit` takes it as it stands, `plr.as_tensors` makes tensors of it for everything else. Trials shorter than the
    longest are padded: the data with NaN, which changes no result, the inputs with zeros.

    Shapes: `data` is `trials x time x features`, `inputs` is `trials x time x inputs`.

    Args:
        data: the recording; NaN is missing.
        inputs: the inputs, or None. They cannot be missing.
        trial_lengths: time bins of each trial before the padding, `trials`; all of them if empty.
        bin_size: seconds per time bin, or None where it is not known.
        feature_names: one name per feature; `feature_0`, `feature_1`, ... if empty. A name that several have chooses
            all of them.
        feature_units: the unit of measurement of each feature, such as `"V"`; empty where not known.
        input_names: one name per input; `input_0`, ... if empty.
        trial_names: one name per trial; `trial_0`, ... if empty. Trials of one name are parts of the same trial.
        conditions: one label per trial, NaN or None for a trial that has none; or None altogether.
        start_times: seconds at which the first bin of each trial begins, on the clock of the recording, or None.
        orientation: sentences that say how the recording was read: which axis was taken as what, what was left out.

    Raises:
        ValueError: if the shapes do not fit each other, an entry is infinite, or an input is missing.

    Example:
        >>> recording = Recording(data=np.zeros((1, 100, 2)), bin_size=0.01, feature_names=("left", "right"))
        >>> recording
        Recording: 1 trial x 100 time bins (0.01 s) x 2 features
          duration        1 s per trial
          features        left, right
        >>> recording.select(features=["right"]).data.shape
        (1, 100, 1)
    """

    data: Floats
    inputs: Floats | None = None
    _: KW_ONLY
    trial_lengths: Integers = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    bin_size: float | None = None
    feature_names: tuple[str, ...] = ()
    feature_units: tuple[str, ...] = ()
    input_names: tuple[str, ...] = ()
    trial_names: tuple[str, ...] = ()
    conditions: NDArray[np.generic] | None = None
    start_times: Floats | None = None
    orientation: str = ""

    def __post_init__(self) -> None:
        data = checked_floats("data", self.data)
        trials, time, features = data.shape
        set_field = object.__setattr__  # How a frozen dataclass completes itself.
        set_field(self, "data", data)
        lengths = np.asarray(self.trial_lengths) if np.size(self.trial_lengths) else np.full(trials, time)
        _check_lengths(lengths, data)
        set_field(self, "trial_lengths", lengths)
        if self.bin_size is not None:
            set_field(self, "bin_size", check_positive("bin_size", self.bin_size))
        set_field(self, "feature_names", _names("feature", self.feature_names, features))
        set_field(self, "trial_names", _names("trial", self.trial_names, trials))
        if self.feature_units:
            set_field(self, "feature_units", _names("feature_unit", self.feature_units, features))
        if self.inputs is not None:
            inputs = checked_floats("inputs", self.inputs)
            _check_inputs(inputs, data.shape)
            set_field(self, "inputs", inputs)
            set_field(self, "input_names", _names("input", self.input_names, inputs.shape[-1]))
        for name in ("conditions", "start_times"):
            value = getattr(self, name)
            if value is not None:
                value = as_labels(value) if name == "conditions" else _seconds(name, value)
                if value.shape != (trials,):
                    raise ValueError(f"`{name}` must have one entry for each of {trials} trials, got {value.shape}.")
                set_field(self, name, value)

    @classmethod
    def from_trials(
        cls,
        trials: Sequence[ArrayLike],
        inputs: Sequence[ArrayLike] | None = None,
        *,
        bin_size: float | None = None,
        feature_names: Sequence[str] = (),
        feature_units: Sequence[str] = (),
        input_names: Sequence[str] = (),
        trial_names: Sequence[str] = (),
        conditions: ArrayLike | None = None,
        start_times: ArrayLike | None = None,
        orientation: str = "",
    ) -> Recording:
        """Join trials of different lengths, `time x features` each, padded with NaN at their ends.

        Args:
            trials: one array per trial.
            inputs: one array per trial, `time x inputs`, or None.
            bin_size: as of `Recording`, as are all that follow.
            feature_names: one name per feature.
            feature_units: one unit per feature.
            input_names: one name per input.
            trial_names: one name per trial.
            conditions: one label per trial.
            start_times: seconds, one per trial.
            orientation: how the recording was read.

        Raises:
            ValueError: if there is no trial, or the trials do not have the same features.

        Example:
            >>> recording = Recording.from_trials([np.zeros((80, 3)), np.zeros((95, 3))])
            >>> recording.data.shape, recording.trial_lengths
            ((2, 95, 3), array([80, 95]))
        """
        data, lengths = padded("trials", trials, np.nan)
        joined = None
        if inputs is not None:
            for number, array in enumerate(inputs):
                if np.isnan(np.asarray(array, dtype=np.float64)).any():
                    raise ValueError(f"`inputs` of trial {number} hold NaN: inputs cannot be missing; fill them in.")
            joined, input_lengths = padded("inputs", inputs, 0.0)
            if not np.array_equal(lengths, input_lengths):
                raise ValueError(
                    "`inputs` must have the trials and time bins of the data, "
                    f"{lengths.tolist()}, got {input_lengths.tolist()}."
                )
        return cls(
            data=data,
            inputs=joined,
            trial_lengths=lengths,
            bin_size=bin_size,
            feature_names=tuple(feature_names),
            feature_units=tuple(feature_units),
            input_names=tuple(input_names),
            trial_names=tuple(trial_names),
            conditions=None if conditions is None else as_labels(conditions),
            start_times=None if start_times is None else np.asarray(start_times, dtype=np.float64),
            orientation=orientation,
        )

    @property
    def mask(self) -> NDArray[np.bool_]:
        """Which entries were recorded, `trials x time x features`: False where missing, padding included."""
        return ~np.isnan(self.data)

    @property
    def num_trials(self) -> int:
        """The number of trials."""
        return int(self.data.shape[0])

    @property
    def times(self) -> Floats:
        """Seconds at the middle of each time bin since the begin of its trial, `time`.

        Raises:
            ValueError: if the bin size is not known.
        """
        if self.bin_size is None:
            raise ValueError("The bin size of this recording is not known; pass `bin_size` when it is made or read.")
        return (np.arange(self.data.shape[1]) + 0.5) * self.bin_size

    def trials(self) -> list[Floats]:
        """Return each trial without its padding, `time x features`."""
        return [trial[:length] for trial, length in zip(self.data, self.trial_lengths, strict=True)]

    def select(
        self,
        trials: Sequence[int] | Integers | NDArray[np.bool_] | slice | None = None,
        features: Sequence[int] | Sequence[str] | Integers | NDArray[np.bool_] | slice | None = None,
    ) -> Recording:
        """Return some trials and some features, by index, mask or name; padding that no trial needs is cut off.

        Args:
            trials: which trials, in which order; all if None.
            features: which features; all if None.

        Raises:
            ValueError: if none is left, or a name or index does not exist.

        Example:
            >>> Recording.from_trials([np.zeros((5, 3)), np.zeros((9, 3))]).select(trials=[0]).data.shape
            (1, 5, 3)
        """
        rows = self._indices("trials", trials, self.trial_names)
        columns = self._indices("features", features, self.feature_names)
        end = int(self.trial_lengths[rows].max())
        return replace(
            self,
            data=self.data[rows, :end][..., columns],
            inputs=None if self.inputs is None else self.inputs[rows, :end],
            trial_lengths=self.trial_lengths[rows],
            trial_names=tuple(self.trial_names[row] for row in rows),
            feature_names=tuple(self.feature_names[column] for column in columns),
            feature_units=tuple(self.feature_units[column] for column in columns) if self.feature_units else (),
            conditions=None if self.conditions is None else self.conditions[rows],
            start_times=None if self.start_times is None else self.start_times[rows],
        )

    def hide(self, features: Sequence[int] | Sequence[str] | Integers | NDArray[np.bool_]) -> Recording:
        """Return the recording with some features missing throughout, as co-smoothing is scored.

        Args:
            features: which features, by index, mask or name.

        Example:
            >>> bool(Recording(data=np.zeros((1, 5, 3))).hide([2]).mask[..., 2].any())
            False
        """
        data = self.data.copy()
        data[..., self._indices("features", features, self.feature_names)] = np.nan
        return replace(self, data=data)

    def _indices(self, kind: str, chosen: object, names: tuple[str, ...]) -> Integers:
        numbers = np.arange(len(names))
        if chosen is None or isinstance(chosen, slice):
            indices = numbers[chosen or slice(None)]
        else:
            array = np.atleast_1d(np.asarray(chosen))
            if array.dtype.kind in "UO":
                array = places_of(kind, array, names)
            if array.dtype.kind not in "iub" and array.size:
                raise ValueError(f"`{kind}` must be indices, a mask or names, got an array of dtype {array.dtype}.")
            if array.dtype == bool and array.shape != numbers.shape:
                raise ValueError(f"A mask of {kind} must have {len(names)} entries, got {array.shape}.")
            if array.dtype != bool and array.size and not (-len(names) <= array.min() <= array.max() < len(names)):
                raise ValueError(f"`{kind}` must be indices below {len(names)}, got {array.min()} to {array.max()}.")
            indices = numbers[array] if array.size else numbers[:0]
        if len(indices) == 0:
            raise ValueError(f"No {kind} are left: `{kind}` chose none of {len(names)}.")
        return indices

    def __repr__(self) -> str:
        return "\n".join(description(self))


def places_of(kind: str, chosen: Iterable[object], names: tuple[str, ...]) -> Integers:
    """Return the places of all that have one of some names, in the order chosen, or raise if a name has none.

    A name that several have chooses all of them, once, however often it is given: so do the names of a recording.

    Example:
        >>> places_of("features", ["Other"], ("C3", "Other", "Other"))
        array([1, 2])
    """
    places: dict[str, list[int]] = {}
    for place, name in enumerate(names):
        places.setdefault(name, []).append(place)
    wanted = [str(name) for name in chosen]
    unknown = [name for name in wanted if name not in places]
    if unknown:
        raise ValueError(f"There are no {kind} {unknown}; the recording has {listed(names)}.")
    found = []
    for name in wanted:
        found += places[name]
        places[name] = places[name] if len(places[name]) == 1 else []
    return np.array(found, dtype=np.int64)


def _seconds(name: str, value: ArrayLike) -> Floats:
    array = np.asarray(value)
    if array.dtype.kind not in "iuf" or not np.isfinite(array).all():
        raise ValueError(f"`{name}` must be finite numbers, in seconds, got {array.tolist()[:5]}; or leave them out.")
    return array


def padded(name: str, trials: Sequence[ArrayLike], fill: float) -> tuple[Floats, Integers]:
    """Join arrays `time x features` into one, `trials x time x features`; return it and their lengths.

    Example:
        >>> array, lengths = padded("trials", [np.ones((2, 1)), np.ones((1, 1))], np.nan)
        >>> array[..., 0]
        array([[ 1.,  1.],
               [ 1., nan]])
    """
    arrays = [np.asarray(trial) for trial in trials]
    if not arrays:
        raise ValueError(f"`{name}` is empty: a recording needs at least one trial.")
    for number, array in enumerate(arrays):
        if array.ndim != 2 or array.shape[1] != arrays[0].shape[-1] or array.size == 0:
            raise ValueError(
                f"Each of `{name}` must be time x features with the same features, at least one time bin long; "
                f"number {number} has the shape {array.shape}, number 0 {arrays[0].shape}."
            )
    lengths = np.array([len(array) for array in arrays])
    dtype = np.float32 if all(array.dtype == np.float32 for array in arrays) else np.float64
    joined = np.full((len(arrays), lengths.max(), arrays[0].shape[1]), fill, dtype=dtype)
    for row, array in zip(joined, arrays, strict=True):
        row[: len(array)] = array
    return joined, lengths


def checked_floats(name: str, value: ArrayLike) -> Floats:
    """Return `value` as a finite or missing `trials x time x ...` array of floats, or raise."""
    array = np.asarray(value)
    if array.ndim != 3 or array.size == 0:
        hint = f"; for a single trial pass {name}[None]" if array.ndim == 2 else ""
        raise ValueError(f"`{name}` must be trials x time x features, none of them empty, got {array.shape}{hint}.")
    if array.dtype.kind not in "fiub":
        raise TypeError(f"`{name}` must hold real numbers, got an array of dtype {array.dtype}.")
    array = array if array.dtype in (np.float32, np.float64) else array.astype(np.float64)
    infinite = np.isinf(array)
    if infinite.any():
        trial, time, feature = (int(i) for i in np.argwhere(infinite)[0])
        raise ValueError(
            f"`{name}` must hold finite numbers, or NaN for a missing entry; got {int(infinite.sum())} infinite "
            f"entries, the first at trial {trial}, time {time}, feature {feature}. "
            "Replace them by NaN to have them left out."
        )
    return array


def _check_lengths(lengths: Integers, data: Floats) -> None:
    trials, time, _ = data.shape
    if lengths.shape != (trials,) or lengths.dtype.kind not in "iu" or lengths.min() < 1 or lengths.max() > time:
        raise ValueError(
            f"`trial_lengths` must be one integer per trial, {trials} of them from 1 to {time} time bins, got "
            f"{lengths.tolist()}."
        )
    beyond = np.arange(time) >= lengths[:, np.newaxis]
    if not np.isnan(data[beyond]).all():
        raise ValueError("`data` must be NaN beyond `trial_lengths`: what is padded cannot hold numbers.")


def _check_inputs(inputs: Floats, shape: tuple[int, ...]) -> None:
    if inputs.shape[:2] != shape[:2]:
        raise ValueError(f"`inputs` must have the trials and time bins of the data, {shape[:2]}, got {inputs.shape}.")
    missing = np.argwhere(np.isnan(inputs))
    if len(missing):
        trial, time, channel = (int(i) for i in missing[0])
        raise ValueError(
            f"`inputs` hold {len(missing)} NaN, the first at trial {trial}, time {time}, input {channel}: inputs "
            "cannot be missing; fill them in."
        )


def _names(kind: str, names: Sequence[str], number: int) -> tuple[str, ...]:
    if not names:
        return tuple(f"{kind}_{index}" for index in range(number))
    if len(names) != number:
        raise ValueError(f"`{kind}_names` must hold {number} names, got {len(names)}: {listed(tuple(names))}.")
    return tuple(str(name) for name in names)
