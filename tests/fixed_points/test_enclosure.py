"""The enclosures on a box hold what they enclose, and no step loses a zero."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyro_lowrank.fixed_points.enclosure import contract, invert, new_levels, new_scratch, row_excludes, settle
from pyro_lowrank.fixed_points.network import Array, Network, build_network
from pyro_lowrank.fixed_points.root import recession, root_box
from tests.fixed_points.networks import ACTIVATIONS, random_networks
from tests.oracles.brute_force import brute_force

SMOOTH = ("tanh", "softplus")
SEEDS = st.integers(0, 2**32 - 1)


def draw(seed: int, activation: str) -> tuple[Network, Array, Array, np.random.Generator]:
    """A random network and box; boxes are from huge to tiny, and some have sides without length."""
    rng = np.random.default_rng(seed)
    rank, units = int(rng.integers(1, 4)), int(rng.integers(1, 9))
    shape = ACTIVATIONS[activation][0] if activation in ACTIVATIONS else activation
    network = build_network(
        rng.choice([0.5, 0.9, 1.2]),
        rng.normal(size=(units, rank)),
        rng.normal(size=(rank, units)),
        rng.normal(size=units),
        shape,
        rng.normal(size=units),
    )
    centre = rng.normal(size=rank) * 10.0 ** rng.integers(-3, 3)
    radius = 10.0 ** rng.uniform(-12, 2) * rng.uniform(0, 1, rank) * (rng.uniform(size=rank) > 0.1)
    return network, centre - radius, centre + radius, rng


@pytest.mark.parametrize("activation", [*ACTIVATIONS, *SMOOTH])
@settings(deadline=None, max_examples=60, derandomize=True)
@given(seed=SEEDS)
def test_the_relaxed_map_encloses_the_map(activation: str, seed: int) -> None:
    network, low, high, rng = draw(seed, activation)
    levels, s = new_levels(network, 3), new_scratch(network)
    kept = settle(network, levels, 0, 1, low, high, s)
    widths = np.abs(network.outputs[levels.open_units[1, :kept]]).T @ s.width[:kept]
    for z in low + (high - low) * rng.uniform(size=(50, network.rank)):
        gap = np.abs(network.value(z) - (s.affine @ z + s.constant))
        assert (gap <= widths + 2 * network.error(z)).all()


@pytest.mark.parametrize("activation", [*ACTIVATIONS, *SMOOTH])
@settings(deadline=None, max_examples=60, derandomize=True)
@given(seed=SEEDS)
def test_no_step_loses_a_point_that_is_made_a_zero(activation: str, seed: int) -> None:
    """The constant is chosen so that a given point of the box, often a corner, is a zero."""
    network, low, high, rng = draw(seed, activation)
    z = np.clip(low + (high - low) * np.round(rng.uniform(size=network.rank) * 4) / 4, low, high)
    network = network._replace(constant=network.constant - network.value(z))
    levels, s = new_levels(network, 3), new_scratch(network)
    for source in (0, 1, 1):
        settle(network, levels, source, 1, low, high, s)
        assert not row_excludes(network, levels, 1, s)
        assert contract(network, levels, 1, low, high, s) >= 0
        assert (low <= z).all()
        assert (z <= high).all()


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_children_inherit_what_is_settled(name: str) -> None:
    for network in random_networks(name, 20, seed=5):
        levels, s = new_levels(network, 4), new_scratch(network)
        box = np.ones(network.rank)
        settle(network, levels, 0, 1, -3 * box, 3 * box, s)
        settle(network, levels, 1, 2, 0 * box, 3 * box, s)
        inherited = s.affine.copy(), s.constant.copy()
        settle(network, levels, 0, 3, 0 * box, 3 * box, s)
        np.testing.assert_allclose(inherited[0], s.affine, atol=1e-12)
        np.testing.assert_allclose(inherited[1], s.constant, atol=1e-12)


@settings(deadline=None, max_examples=60, derandomize=True)
@given(seed=SEEDS)
def test_rounding_of_the_map_stays_within_its_bound(seed: int) -> None:
    """Against exact arithmetic with fractions, where terms of 1e8 cancel."""
    rng = np.random.default_rng(seed)
    left, right = rng.normal(size=(5, 2)), 1e8 * rng.normal(size=(2, 5))
    right[:, 4] = -right[:, :4].sum(1)
    bias, z = rng.normal(size=5), rng.normal(size=2)
    network = build_network(0.9, left, right, bias)

    def exact(values: Array) -> list[Fraction]:
        return [Fraction(float(value)) for value in values]

    currents = [sum(a * b for a, b in zip(exact(row), exact(z), strict=True)) for row in left]
    rates = [max(x - h, Fraction(0)) for x, h in zip(currents, exact(bias), strict=True)]
    drive = [sum(a * b for a, b in zip(exact(row), rates, strict=True)) for row in right]
    # The decay less 1 is what the network holds, and is itself rounded once.
    decay = Fraction(float(network.affine[0, 0]))
    value = [decay * x + y for x, y in zip(exact(z), drive, strict=True)]
    gaps = [abs(Fraction(float(v)) - e) for v, e in zip(network.value(z), value, strict=True)]
    assert all(gap <= Fraction(float(bound)) for gap, bound in zip(gaps, network.error(z), strict=True))


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_no_zero_lies_outside_of_the_root_box(name: str) -> None:
    proved = 0
    for network in random_networks(name, 60, seed=8):
        box, is_proved = root_box(network)
        proved += is_proved
        points = brute_force(network).points
        if is_proved and len(points):
            assert (points >= box[0]).all()
            assert (points <= box[1]).all()
    assert proved > 50


@pytest.mark.parametrize("activation", [*ACTIVATIONS, *SMOOTH])
@settings(deadline=None, max_examples=40, derandomize=True)
@given(seed=SEEDS)
def test_the_recession_map_differs_by_no_more_than_is_said(activation: str, seed: int) -> None:
    network, _, _, rng = draw(seed, activation)
    limit, difference = recession(network)
    for z in rng.normal(size=(50, network.rank)) * 10.0 ** rng.uniform(-2, 4, size=(50, 1)):
        assert (np.abs(network.value(z) - limit.value(z)) <= difference + 1e-9 * (1 + np.abs(z).max())).all()


def test_inverse_of_a_singular_matrix_is_refused() -> None:
    matrix, out, work = np.ones((3, 3)), np.zeros((3, 3)), np.zeros((3, 3))
    assert invert(matrix, out, work) < 1e-13
    regular = np.random.default_rng(0).normal(size=(3, 3))
    assert invert(regular, out, work) > 1e-3
    np.testing.assert_allclose(out @ regular, np.eye(3), atol=1e-12)
