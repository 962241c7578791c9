"""Fixed points of many samples of one network, matched with each other: which is which, and where it may be."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyro_lowrank.errors import check_share
from pyro_lowrank.fixed_points.network import Array

_ROUNDS = 5


@dataclass(frozen=True, eq=False)
class MatchedPoint:
    """One fixed point over the samples that have it.

    Attributes:
        stability: its label.
        places: where it is in each, `samples x dim`.
        samples: which samples these are, `samples`.
    """

    stability: str
    places: Array
    samples: NDArray[np.int64]

    @property
    def mean(self) -> Array:
        """Where it is on average, `dim`."""
        return np.asarray(self.places.mean(0))

    def interval(self, level: float = 0.9) -> Array:
        """Return where each coordinate lies with that probability, lower and upper ends, `2 x dim`."""
        check_share("level", level)
        return np.asarray(np.quantile(self.places, [(1 - level) / 2, (1 + level) / 2], axis=0))

    @property
    def covariance(self) -> Array:
        """The covariance of its coordinates, `dim x dim`; zero of a single sample."""
        if len(self.places) < 2:
            return np.zeros((self.places.shape[1],) * 2)
        return np.atleast_2d(np.cov(self.places.T))


def match_points(places: Sequence[Array], stability: Sequence[NDArray[Any]]) -> tuple[MatchedPoint, ...]:
    """Match the fixed points of those samples that have the most frequent number of each kind.

    Points are matched within their kind, to the means of those matched before, nearest pairs first, until nothing
    changes.

    Args:
        places: of each sample, `points x dim`, in coordinates that mean the same in all.
        stability: of each sample, their labels, `points`.

    Example::

        >>> places = [np.array([[0.0], [1.0]]), np.array([[1.1], [0.1]])]
        >>> found = match_points(places, [np.array(["attractor"] * 2)] * 2)
        >>> [point.places.ravel().tolist() for point in found]
        [[0.0, 0.1], [1.0, 1.1]]
    """
    kinds = [tuple(sorted(labels.tolist())) for labels in stability]
    (common, _), *_ = Counter(kinds).most_common(1)
    chosen = np.array([i for i, kind in enumerate(kinds) if kind == common], dtype=np.int64)
    matched: list[MatchedPoint] = []
    for label in dict.fromkeys(common):
        clouds = np.stack([places[i][stability[i] == label] for i in chosen])
        centres = clouds[0]
        for _ in range(_ROUNDS):
            clouds = np.stack([cloud[_assigned(cloud, centres)] for cloud in clouds])
            before, centres = centres, clouds.mean(0)
            if np.array_equal(before, centres):
                break
        matched += [MatchedPoint(label, clouds[:, k], chosen) for k in range(clouds.shape[1])]
    return tuple(matched)


def _assigned(cloud: Array, centres: Array) -> list[int]:
    """Return which point of a cloud belongs to each centre."""
    distances = np.square(cloud[:, None] - centres[None]).sum(-1)
    found = [-1] * len(centres)
    for _ in centres:
        point, centre = np.unravel_index(np.argmin(distances), distances.shape)
        found[int(centre)] = int(point)
        distances[point], distances[:, centre] = np.inf, np.inf
    return found
