"""Adapters give the maps they say, and files of weights are read without unpickling."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyro_lowrank.fixed_points import cycles_of, find_fixed_points, fixed_points_of
from pyro_lowrank.fixed_points.adapters import from_full_rank, from_shallow_plrnn, read_weights

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("clipped", [False, True])
def test_a_shallow_plrnn_is_its_own_map(clipped: bool) -> None:
    a, w1, w2 = RNG.uniform(0.2, 0.9, 3), RNG.normal(size=(3, 8)), RNG.normal(size=(8, 3))
    h1, h2 = RNG.normal(size=3), RNG.normal(size=8)
    network = from_shallow_plrnn(a, w1, w2, h1, h2, clipped=clipped)
    z = RNG.normal(size=(50, 3))
    hidden = np.maximum(z @ w2.T + h2, 0) - (np.maximum(z @ w2.T, 0) if clipped else 0)
    np.testing.assert_allclose(z + network.value(z), a * z + hidden @ w1.T + h1, atol=1e-12)
    result = fixed_points_of(network, method="enumerate")
    assert result.certificate.complete
    np.testing.assert_allclose(network.value(result.points), 0, atol=1e-10)


def test_cycles_of_a_shallow_plrnn() -> None:
    # z' = 3 - 2 max(z, 0) steps from 3 to -3 and back.
    network = from_shallow_plrnn([0.0], [[-2.0]], [[1.0]], [3.0], [0.0])
    cycles = cycles_of(network, order=2, method="enumerate")
    np.testing.assert_allclose(cycles.points.ravel(), [-3.0, 3.0])
    np.testing.assert_allclose(cycles.multipliers, [[0.0]], atol=1e-12)


@pytest.mark.parametrize("inside", [False, True])
def test_a_full_rank_network_is_its_own_map(inside: bool) -> None:
    w, h, current, c = RNG.normal(size=(4, 4)), RNG.normal(size=4), RNG.normal(size=4), RNG.normal(size=4)
    network = from_full_rank(0.5, w, h, "relu", inside=inside, input_current=current, constant=c)
    z = RNG.normal(size=(50, 4))
    drive = np.maximum(z @ w.T + current - h, 0) if inside else np.maximum(z + current - h, 0) @ w.T
    np.testing.assert_allclose(z + network.value(z), 0.5 * z + drive + c, atol=1e-12)


def test_inside_and_outside_have_the_same_number_of_fixed_points() -> None:
    # Without decay, x = phi(W x) and z = W x are the same dynamics in other coordinates.
    w, h = 1.5 * RNG.normal(size=(5, 5)), RNG.normal(size=5)
    outside = fixed_points_of(from_full_rank(0.0, w, h), method="enumerate").points
    inside = fixed_points_of(from_full_rank(0.0, w, h, inside=True), method="enumerate").points
    np.testing.assert_allclose(np.sort(inside @ w.T, axis=0), np.sort(outside, axis=0), atol=1e-9)


def weights(**extra: Any) -> dict[str, Any]:
    """Arrays of a small network."""
    rng = np.random.default_rng(1)
    arrays = {"decay": 0.6, "left": rng.normal(size=(6, 2)), "right": rng.normal(size=(2, 6)), "bias": np.ones(6)}
    return {**arrays, **extra}


def test_weights_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "weights.npz"
    inputs = np.arange(12.0).reshape(6, 2)
    np.savez(path, **weights(activation="clipped_relu", input_weights=inputs, constant=[1.0, 2.0], note="anything"))
    arguments = read_weights(path)
    assert arguments["activation"] == "clipped_relu"
    result = find_fixed_points(**arguments, method="enumerate")
    expected = find_fixed_points(**weights(activation="clipped_relu", constant=[1.0, 2.0]), method="enumerate")
    np.testing.assert_array_equal(result.points, expected.points)
    np.testing.assert_allclose(read_weights(path, u=[1.0, -1.0])["input_current"], -np.ones(6))


def test_files_of_the_papers_teachers(tmp_path: Path) -> None:
    ours, path = weights(), tmp_path / "teacher.npz"
    inputs = np.arange(12.0).reshape(2, 6)
    arrays = {"U": ours["left"], "V": ours["right"], "b_rec": ours["bias"], "w_inp": inputs, "decay": 0.6}
    np.savez(path, **arrays, activation="relu", params_json="{}")
    arguments = read_weights(path, u=[0.5, -1.0])
    np.testing.assert_array_equal(arguments["bias"], -ours["bias"])
    # One step as the teacher's own code takes it.
    z = np.array([0.3, -0.2])
    drive = np.maximum(ours["left"] @ z + [0.5, -1.0] @ inputs + ours["bias"], 0)
    result = find_fixed_points(**arguments, method="search", num_starts=1)
    np.testing.assert_allclose(result.step(z), 0.6 * z + ours["right"] @ drive)
    np.savez(path, **arrays, activation="clipped_relu")
    with pytest.raises(ValueError, match="save it as `bias`"):
        read_weights(path)


def test_files_that_will_not_do_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.npz"
    with pytest.raises(FileNotFoundError, match="There is no file"):
        read_weights(path)
    path.write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="is not a readable .npz file"):
        read_weights(path)
    np.savez(path, left=np.eye(2), W=np.eye(2))
    with pytest.raises(ValueError, match="lacks decay, right, bias; it holds left, W"):
        read_weights(path)
    np.savez(path, **weights(activation="gelu"))
    with pytest.raises(ValueError, match="`activation` must be one of"):
        read_weights(path)
    np.savez(path, **weights())
    with pytest.raises(ValueError, match="holds no `input_weights`"):
        read_weights(path, u=[1.0])
    np.savez(path, **weights(input_weights=np.ones((6, 3))))
    with pytest.raises(ValueError, match=r"one entry per column of `input_weights` \(6, 3\), got \(2,\)"):
        read_weights(path, u=[1.0, 2.0])
    np.save(tmp_path / "one.npy", np.eye(2))
    with pytest.raises(ValueError, match="holds one array"):
        read_weights(tmp_path / "one.npy")


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    path, marker = tmp_path / "weights.npz", tmp_path / "ran"

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(marker),)

    np.savez(path, **weights(bias=np.array([Evil()], dtype=object)))
    with pytest.raises(ValueError, match="is not a readable .npz file"):
        read_weights(path)
    assert not marker.exists()
