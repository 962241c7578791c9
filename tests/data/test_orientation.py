"""Which axis of a recording is taken as time, as trials and as features, and what is said about it."""

from __future__ import annotations

import numpy as np
import pytest

from pyro_lowrank.data.orientation import orient


@pytest.mark.parametrize(
    ("shape", "axes", "transpose", "result", "said"),
    [
        ((30,), {}, (0,), (1, 30, 1), "axis 0 as time"),
        ((30, 4), {}, (0, 1), (1, 30, 4), "axis 0 as time because it is the longer axis, axis 1 as features"),
        ((4, 30), {}, (1, 0), (1, 30, 4), "axis 1 as time because it is the longer axis, axis 0 as features"),
        ((5, 5), {}, (0, 1), (1, 5, 5), "axis 0 as time because it comes first and both axes are equally long"),
        ((30, 4), {"time_axis": 1}, (1, 0), (1, 4, 30), "axis 1 as time as asked, axis 0 as features"),
        ((4, 30), {"time_axis": -1}, (1, 0), (1, 30, 4), "axis 1 as time as asked, axis 0 as features"),
        ((4, 30), {"trials_axis": 0}, (0, 1), (4, 30, 1), "axis 0 as trials as asked"),
        ((4, 30), {"trials_axis": 1, "time_axis": 0}, (1, 0), (30, 4, 1), "axis 0 as time as asked"),
        ((3, 20, 7), {}, (0, 1, 2), (3, 20, 7), "the usual order is trials x time x features"),
        ((3, 7, 20), {"time_axis": 2}, (0, 2, 1), (3, 20, 7), "axis 2 as time as asked, axis 0 as trials"),
        ((20, 3, 7), {"time_axis": 0}, (1, 0, 2), (3, 20, 7), "axis 0 as time as asked, axis 1 as trials"),
        ((20, 7, 3), {"trials_axis": 2}, (2, 0, 1), (3, 20, 7), "axis 2 as trials as asked, axis 1 as features"),
        ((7, 20, 3), {"trials_axis": -1, "time_axis": 1}, (2, 1, 0), (3, 20, 7), "axis 0 as features"),
    ],
)
def test_axes_of_arrays_without_names(
    shape: tuple[int, ...],
    axes: dict[str, int],
    transpose: tuple[int, ...],
    result: tuple[int, ...],
    said: str,
) -> None:
    array = np.arange(np.prod(shape)).reshape(shape)
    orientation = orient(shape, **axes)
    np.testing.assert_array_equal(orientation.arrange(array), array.transpose(transpose).reshape(result))
    assert said in orientation.sentence
    assert orientation.sentence.startswith(f"{len(shape)}-d array {shape}: took")


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"time_axis": 2}, r"`time_axis` must be an axis of the array, from -2 to 1, got time_axis=2 .*\(30, 4\)"),
        ({"trials_axis": -3}, r"`trials_axis` must be an axis of the array"),
        ({"time_axis": 1, "trials_axis": -1}, r"`time_axis` and `trials_axis` must differ, both are axis 1"),
    ],
)
def test_axes_that_do_not_fit(axes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        orient((30, 4), **axes)


def test_trials_leave_no_axis_for_time() -> None:
    with pytest.raises(ValueError, match=r"needs an axis of time, but the axes of the shape \(30,\) hold trials alone"):
        orient((30,), trials_axis=0)


@pytest.mark.parametrize(
    ("dims", "roles"),
    [
        (("unit", "trial", "time"), (1, 2, 0)),
        (("t", "channels", "epoch"), (2, 0, 1)),
        (("trial", "x", "y"), (0, 1, 2)),
        (("neuron", "x", "y"), (1, 2, 0)),
        (("x", "y", "Time"), (0, 2, 1)),
    ],
)
def test_dimensions_with_names(dims: tuple[str, ...], roles: tuple[int, ...]) -> None:
    orientation = orient((3, 20, 7), dims=dims)
    assert (orientation.trials, orientation.time, orientation.features) == roles


def test_axes_asked_for_win_over_names_and_names_over_counts() -> None:
    asked = orient((3, 20, 7), dims=("time", "trial", "unit"), time_axis=1)
    assert (asked.trials, asked.time, asked.features) == (0, 1, 2)
    named = orient((4, 30), dims=("time", "unit"), num_names=4)
    assert (named.trials, named.time, named.features) == (None, 0, 1)


def test_the_number_of_names_tells_the_features() -> None:
    counted = orient((2, 3), num_names=3)
    assert (counted.time, counted.features) == (0, 1)
    assert "axis 1 as features because the file names 3 features" in counted.sentence


def test_names_that_contradict_each_other() -> None:
    with pytest.raises(ValueError, match="name time twice, as axis 0 and as axis 1"):
        orient((3, 20), dims=("time", "t"))
    with pytest.raises(ValueError, match="hold trials and features alone; pass `time_axis`"):
        orient((3, 20), dims=("trial", "unit"))
