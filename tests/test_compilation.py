"""Threads for compiled loops: order, errors, and forked processes."""

from __future__ import annotations

import multiprocessing
import sys
import threading

import pytest

from pyro_lowrank.compilation import run_side_by_side


def test_results_come_in_order_from_different_threads() -> None:
    meeting = threading.Barrier(3, timeout=20)

    def task(number: int) -> tuple[int, int]:
        meeting.wait()
        return number, threading.get_ident()

    found = run_side_by_side([lambda n=n: task(n) for n in range(3)])  # type: ignore[misc]
    assert [number for number, _ in found] == [0, 1, 2]
    assert len({thread for _, thread in found}) == 3


@pytest.mark.parametrize("bad", [0, 1])
def test_an_error_is_raised_after_all_have_ended(bad: int) -> None:
    ended = []

    def task(number: int) -> None:
        if number == bad:
            raise ValueError(f"task {number}")
        ended.append(number)

    with pytest.raises(ValueError, match=f"task {bad}"):
        run_side_by_side([lambda: task(0), lambda: task(1)])
    assert ended == [1 - bad]


@pytest.mark.skipif(sys.platform == "win32", reason="no fork there")
def test_a_forked_process_has_threads_of_its_own() -> None:
    assert run_side_by_side([lambda: 1, lambda: 2]) == [1, 2]
    child = multiprocessing.get_context("fork").Process(target=run_side_by_side, args=([lambda: 1, lambda: 2],))
    child.start()
    child.join(20)
    exitcode = child.exitcode
    child.kill()
    assert exitcode == 0


@pytest.mark.parametrize("others", [0, 1])
def test_an_interrupt_in_the_dispatch_is_an_interrupt(others: int) -> None:
    def interrupted() -> None:
        raise SystemError("returned a result with an exception set") from KeyboardInterrupt()

    def broken() -> None:
        raise SystemError("a bug")

    with pytest.raises(KeyboardInterrupt):
        run_side_by_side([interrupted, *[int] * others])
    with pytest.raises(SystemError, match="a bug"):
        run_side_by_side([broken, *[int] * others])
