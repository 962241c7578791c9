"""The enclosures on a box hold what they enclose, and no step loses a zero."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyro_lowrank.fixed_points.enclosure import CONSTANT, HIGH, LOW, Workplace, contract, invert, new_workplace, settle
from pyro_lowrank.fixed_points.network import Array, LatentMap, build_network
from pyro_lowrank.fixed_points.root import recession, root_box
from tests.fixed_points.networks import ACTIVATIONS, random_networks
from tests.oracles.brute_force import brute_force

SMOOTH = ("tanh", "softplus")
SEEDS = st.integers(0, 2**32 - 1)


def draw(seed: int, activation: str) -> tuple[LatentMap, Array, Array, np.random.Generator]:
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


def settle_on(network: LatentMap, place: Workplace, source: int, level: int, low: Array, high: Array) -> int:
    """Settle a box, and return how many units are not."""
    place.s[3 * network.rank + LOW], place.s[3 * network.rank + HIGH] = low, high
    return settle(network.kind, place, source, level)


def relaxed_map(place: Workplace) -> tuple[Array, Array]:
    """Copies of the matrix and the constant of the relaxed map."""
    rank = place.s.shape[1]
    return place.s[:rank].copy(), place.s[3 * rank + CONSTANT].copy()


@pytest.mark.parametrize("activation", [*ACTIVATIONS, *SMOOTH])
@settings(deadline=None, max_examples=60, derandomize=True)
@given(seed=SEEDS)
def test_the_relaxed_map_encloses_the_map(activation: str, seed: int) -> None:
    network, low, high, rng = draw(seed, activation)
    place = new_workplace(network, 3)
    kept = settle_on(network, place, 0, 1, low, high)
    widths = np.abs(network.outputs[place.opens[1, :kept]]).T @ place.relaxed[:kept, 1]
    matrix, constant = relaxed_map(place)
    for z in low + (high - low) * rng.uniform(size=(50, network.rank)):
        gap = np.abs(network.value(z) - (matrix @ z + constant))
        assert (gap <= widths + 2 * network.error(z)).all()


@pytest.mark.parametrize("activation", [*ACTIVATIONS, *SMOOTH])
@settings(deadline=None, max_examples=60, derandomize=True)
@given(seed=SEEDS)
def test_no_step_loses_a_point_that_is_made_a_zero(activation: str, seed: int) -> None:
    """The constant is chosen so that a given point of the box, often a corner, is a zero."""
    network, low, high, rng = draw(seed, activation)
    z = np.clip(low + (high - low) * np.round(rng.uniform(size=network.rank) * 4) / 4, low, high)
    network = network._replace(constant=network.constant - network.value(z))
    place = new_workplace(network, 3)
    for source in (0, 1, 1):
        settle_on(network, place, source, 1, low, high)
        assert contract(place, 1) >= 0
        low, high = place.s[3 * network.rank + LOW].copy(), place.s[3 * network.rank + HIGH].copy()
        assert (low <= z).all()
        assert (z <= high).all()


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_children_inherit_what_is_settled(name: str) -> None:
    for network in random_networks(name, 20, seed=5):
        place = new_workplace(network, 4)
        box = np.ones(network.rank)
        settle_on(network, place, 0, 1, -3 * box, 3 * box)
        settle_on(network, place, 1, 2, 0 * box, 3 * box)
        inherited = relaxed_map(place)
        settle_on(network, place, 0, 3, 0 * box, 3 * box)
        for part, expected in zip(inherited, relaxed_map(place), strict=True):
            np.testing.assert_allclose(part, expected, atol=1e-12)


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
    s = np.ones((9, 3))
    assert invert(s, 3) < 1e-13
    s[:3] = regular = np.random.default_rng(0).normal(size=(3, 3))
    assert invert(s, 3) > 1e-3
    np.testing.assert_allclose(s[3:6] @ regular, np.eye(3), atol=1e-12)
    # Whatever its scale.
    s[:3] = 2.0**-1000 * regular
    assert invert(s, 3) > 1e-3
