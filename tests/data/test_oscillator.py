"""The oscillator is what its construction promises: orthonormal, and attracted to its circle from both sides."""

from __future__ import annotations

import numpy as np
import pytest

from pyro_lowrank.data.oscillator import noisy_oscillator


@pytest.mark.parametrize("start", [0.2, 3.5])
@pytest.mark.parametrize(("radius", "period"), [(2.0, 30.0), (1.0, 20.0)])
def test_latents_approach_the_circle_and_go_round_it(start: float, radius: float, period: float) -> None:
    teacher = noisy_oscillator(radius=radius, period=period)
    z = [np.array([0.0, start * radius / 2])]
    for _ in range(400):
        rates = np.maximum(teacher.left @ z[-1] - teacher.bias, 0)
        z.append(teacher.decay * z[-1] + teacher.right @ rates)
    orbit = np.array(z[200:])
    distance = np.hypot(*orbit.T)
    assert abs(distance - radius).max() < 0.06 * radius
    turned = np.unwrap(np.arctan2(orbit[:, 1], orbit[:, 0]))
    assert 2 * np.pi * 200 / (turned[-1] - turned[0]) == pytest.approx(period, rel=0.04)


def test_left_vectors_are_orthonormal() -> None:
    for units in (6, 20, 33):
        left = noisy_oscillator(units=units).left
        np.testing.assert_allclose(left.T @ left, np.eye(2), atol=1e-12)


def test_arguments_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="`units` must be at least 6"):
        noisy_oscillator(units=5)
    with pytest.raises(ValueError, match="`period` must be finite and above zero"):
        noisy_oscillator(period=0.0)
