"""Every phase looks at the clock, compiling is not counted, and Ctrl-C leaves what is known."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest

from pyro_lowrank.fixed_points import certified as module
from pyro_lowrank.fixed_points import find_fixed_points
from pyro_lowrank.fixed_points.explore import prepare
from pyro_lowrank.fixed_points.network import LatentMap


def drawn(units: int, rank: int, gain: float, activation: str, *, has_bias: bool = True) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    left, right = rng.normal(size=(units, rank)), gain * rng.normal(size=(rank, units))
    return {"decay": 0.9, "left": left, "right": right, "bias": rng.normal(size=units) * has_bias} | {
        "activation": activation
    }


@pytest.mark.parametrize(
    ("weights", "method"),
    [
        # The bound on where fixed points lie takes long.
        (drawn(300, 6, 0.02, "relu"), "certified"),
        (drawn(200, 5, 0.1, "relu"), "enumerate"),
        # All hyperplanes meet in one point.
        (drawn(200, 4, 0.1, "relu", has_bias=False), "enumerate"),
        (drawn(200, 4, 0.1, "relu", has_bias=False), "certified"),
        # Each unit has two parallel knots: most sets of hyperplanes meet nowhere.
        (drawn(60, 12, 0.1, "clipped_relu"), "enumerate"),
        (drawn(400, 5, 0.05, "softplus"), "certified"),
        (drawn(2000, 6, 0.1, "tanh"), "search"),
        (drawn(2000, 6, 0.1, "relu"), "search"),
    ],
)
def test_time_is_kept(weights: dict[str, Any], method: str) -> None:
    prepare()
    # Of this process: what others on the machine take is not ours to keep.
    start = time.process_time()
    result = find_fixed_points(**weights, method=method, max_seconds=0.3, threads=1)
    assert time.process_time() - start < 1.3
    assert not result.certificate.complete
    assert method != "certified" or len(result.certificate.open_boxes)


def test_compiling_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    def slowly() -> None:
        time.sleep(0.5)

    monkeypatch.setattr(module, "prepare", lambda: None)
    monkeypatch.setattr("pyro_lowrank.fixed_points.find.prepare", slowly)
    result = find_fixed_points(0.5, [[1.0], [1.0]], [[2.0, -2.0]], [1.0, 2.0], max_seconds=0.4)
    assert result.certificate.complete
    assert result.certificate.seconds < 0.4


@pytest.mark.parametrize("phase", ["root_box", "recession"])
def test_an_interrupt_of_any_phase_leaves_what_is_known(phase: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(network: LatentMap, *rest: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, phase, stop)
    try:
        result = find_fixed_points(0.5, [[1.0], [1.0]], [[2.0, -2.0]], [1.0, 2.0])
    except KeyboardInterrupt:
        pytest.fail("nothing is left of what was found")
    assert result.certificate.interrupted or result.certificate.expected_index_sum is None
    if phase == "root_box":
        assert not result.certificate.complete
        assert len(result.certificate.open_boxes) == 1
