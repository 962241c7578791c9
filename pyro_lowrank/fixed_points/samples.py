"""Fixed points over posterior samples of a network's parameters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pyro_lowrank.fixed_points.find import analyse
from pyro_lowrank.fixed_points.matching import MatchedPoint, match_points
from pyro_lowrank.fixed_points.network import Array, build_network
from pyro_lowrank.fixed_points.options import Options
from pyro_lowrank.fixed_points.result import FixedPoints
from pyro_lowrank.fixed_points.stability import LABELS
from pyro_lowrank.piecewise import PiecewiseLinear


@dataclass(frozen=True, eq=False)
class SampledFixedPoints:
    """The fixed points of each of S networks.

    Attributes:
        results: of each sample.
        readouts: what is expected to be recorded at the points of each sample, `points x features`; None where that is
            not known.
    """

    results: tuple[FixedPoints, ...]
    readouts: tuple[Array, ...] | None = None

    def seen_as(self, readouts: Sequence[Array]) -> SampledFixedPoints:
        """Return the same with what is recorded at the points of each sample."""
        return replace(self, readouts=tuple(readouts))

    @property
    def counts(self) -> NDArray[np.int64]:
        """Number of isolated fixed points, `samples`."""
        return np.array([len(result) for result in self.results], dtype=np.int64)

    def counts_of(self, stability: str | None) -> NDArray[np.int64]:
        """Return the number of fixed points with that label, `samples`; of all if None."""
        if stability is None:
            return self.counts
        return np.array([(result.stability == stability).sum() for result in self.results], dtype=np.int64)

    @property
    def complete(self) -> NDArray[np.bool_]:
        """Whether each list is proved to be complete, `samples`."""
        return np.array([result.certificate.complete for result in self.results], dtype=bool)

    @property
    def points(self) -> Array:
        """All fixed points of all samples, one after the other, `points x rank`."""
        return np.concatenate([result.points for result in self.results])

    @property
    def sample(self) -> NDArray[np.int64]:
        """Which sample each of `points` is of."""
        return np.repeat(np.arange(len(self.results)), self.counts)

    @property
    def stability(self) -> NDArray[np.str_]:
        """The label of each of `points`."""
        return np.concatenate([result.stability for result in self.results])

    def distribution(self, stability: str | None = None) -> dict[int, float]:
        """Return the share of samples that have so many fixed points, of one kind if it is named, fewest first."""
        counts = Counter(self.counts_of(stability).tolist())
        return {count: counts[count] / len(self.results) for count in sorted(counts)}

    def probability(self, number: int, stability: str | None = None) -> float:
        """Return the share of samples that have that number of fixed points, of one kind if it is named."""
        return self.distribution(stability).get(number, 0.0)

    @property
    def probability_of_sets(self) -> float:
        """The share of samples that have lines or planes of fixed points."""
        return float(np.mean([len(result.sets) > 0 for result in self.results]))

    def matched(self) -> tuple[MatchedPoint, ...]:
        """Return which point is which, in those samples that have the most frequent number of each kind.

        By what is recorded at them, where that is known, as latents may have another basis in each sample; otherwise by
        their latents. Each has its mean, covariance and intervals.
        """
        places = [result.points for result in self.results] if self.readouts is None else self.readouts
        return match_points(places, [result.stability for result in self.results])

    def to_dict(self) -> dict[str, NDArray[np.generic]]:
        """Return one column per quantity, over all fixed points of all samples, as `pandas.DataFrame` takes them."""
        tables = [result.to_dict() for result in self.results]
        columns: dict[str, NDArray[np.generic]] = {"sample": self.sample}
        return columns | {name: np.concatenate([table[name] for table in tables]) for name in tables[0]}

    def __str__(self) -> str:
        lines = [f"SampledFixedPoints: {len(self.results)} samples, {int(self.complete.sum())} lists complete"]
        lines += [f"  {share:6.1%} have {count} fixed points" for count, share in self.distribution().items()]
        lines += [f"  {share:6.1%} have {count} attractors" for count, share in self.distribution("attractor").items()]
        means = ", ".join(
            f"{self.counts_of(label).mean():.2f} {label}" for label in LABELS if self.counts_of(label).any()
        )
        return "\n".join(lines + ([f"  on average {means}"] if means else []))


def sampled_fixed_points(
    decay: ArrayLike,
    left: ArrayLike,
    right: ArrayLike,
    bias: ArrayLike,
    activation: str | PiecewiseLinear = "relu",
    input_current: ArrayLike | None = None,
    constant: ArrayLike | None = None,
    *,
    method: str = "certified",
    max_boxes: int | None = None,
    max_seconds: float | None = None,
    threads: int | None = None,
    num_starts: int = 10_000,
    constrained: bool = True,
    seed: int = 0,
) -> SampledFixedPoints:
    """Find the fixed points of every sample of a network's parameters: the posterior of their number and position.

    Args:
        decay: a number, `samples` or `samples x rank`.
        left: `units x rank` or `samples x units x rank`.
        right: `rank x units` or `samples x rank x units`.
        bias: `units` or `samples x units`.
        activation: as of `find_fixed_points`.
        input_current: `units` or `samples x units`.
        constant: `rank` or `samples x rank`.
        method: as of `find_fixed_points`; it and the budgets are for each sample.
        max_boxes: as of `find_fixed_points`.
        max_seconds: as of `find_fixed_points`.
        threads: as of `find_fixed_points`.
        num_starts: as of `find_fixed_points`.
        constrained: as of `find_fixed_points`.
        seed: as of `find_fixed_points`.

    Raises:
        ValueError: if numbers of samples differ, no array has samples, or as of `find_fixed_points`.

    Example::

        >>> gains = np.array([0.3, 2.0])[:, None, None]
        >>> posterior = sampled_fixed_points(0.5, [[1.0], [1.0]], gains * [[1.0, -1.0]], [1.0, 2.0], method="enumerate")
        >>> posterior.counts.tolist(), posterior.distribution()
        ([1, 3], {1: 0.5, 3: 0.5})
    """
    dims = {"decay": 0, "left": 2, "right": 2, "bias": 1, "input_current": 1, "constant": 1}
    given: dict[str, Any] = {"decay": decay, "left": left, "right": right, "bias": bias}
    given |= {"input_current": input_current, "constant": constant}
    # A decay per latent that is not sampled would look like one per sample: its samples come first, always.
    arrays = {name: np.asarray(value, dtype=np.float64) for name, value in given.items() if value is not None}
    sampled = {name: len(array) for name, array in arrays.items() if array.ndim > dims[name]}
    sizes = set(sampled.values())
    if len(sizes) != 1 or 0 in sizes:
        raise ValueError(
            f"Arrays must have a leading dim of samples, the same in each that has one, got {sampled or 'none'}; "
            "for one network use find_fixed_points."
        )
    options = Options(method, max_boxes, max_seconds, threads, num_starts, constrained, seed)
    results = []
    for index in range(sizes.pop()):
        one = {name: array[index] if name in sampled else array for name, array in arrays.items()}
        results.append(analyse(build_network(**one, activation=activation), options))
    return SampledFixedPoints(tuple(results))
