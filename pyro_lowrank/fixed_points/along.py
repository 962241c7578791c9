"""Fixed points of many samples of one network at each of a sequence of inputs: bifurcations, with their bands."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pyro_lowrank.errors import check_share
from pyro_lowrank.fixed_points.network import Array
from pyro_lowrank.fixed_points.samples import SampledFixedPoints


@dataclass(frozen=True, eq=False)
class FixedPointsAlongInput:
    """The fixed points of each of S networks at each of several inputs.

    Attributes:
        results: at each input, of all samples.
        inputs: the inputs, `steps x inputs`.
    """

    results: tuple[SampledFixedPoints, ...]
    inputs: Array

    def probabilities(self, stability: str | None = "attractor") -> dict[int, Array]:
        """Return with which probability there are so many fixed points of a kind, any if None, at each input."""
        shares = [result.distribution(stability) for result in self.results]
        counts = sorted({count for share in shares for count in share})
        return {count: np.array([share.get(count, 0.0) for share in shares]) for count in counts}

    def changes(self, stability: str | None = "attractor") -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return between which inputs the number of a kind changes: samples, and the step before, a row per change."""
        counts = np.stack([result.counts_of(stability) for result in self.results])
        step, sample = np.nonzero(counts[1:] != counts[:-1])
        return sample, step

    def bifurcation(
        self, strengths: Array, before: int, after: int, *, stability: str | None = "attractor", level: float = 0.9
    ) -> tuple[float, float, float, float]:
        """Return where the number of a kind first goes from one to another: probability that it does, and a band.

        Args:
            strengths: one number for each input, `steps`.
            before: number of fixed points of that kind before.
            after: and after.
            stability: the kind; any if None.
            level: of the band.

        Returns:
            The share of samples in which it does; the lower end of the band, the median and the upper end, at best as
            exact as half the distance of two inputs; NaN where it happens in no sample.

        Example::

            >>> from pyro_lowrank.fixed_points import sampled_fixed_points
            >>> def at(current):
            ...     gains = np.array([2.0, 2.2])[:, None, None]
            ...     return sampled_fixed_points(0.5, [[1.0], [1.0]], gains * [[1.0, -1.0]], [1.0, 2.0],
            ...         input_current=[current] * 2, method="enumerate")
            >>> path = FixedPointsAlongInput((at(0.0), at(-4.0)), np.array([[0.0], [-4.0]]))
            >>> path.bifurcation(np.array([0.0, -4.0]), 2, 1)
            (1.0, -2.0, -2.0, -2.0)
        """
        check_share("level", level)
        counts = np.stack([result.counts_of(stability) for result in self.results])
        happens = (counts[:-1] == before) & (counts[1:] == after)
        has = happens.any(0)
        if not has.any():
            return 0.0, np.nan, np.nan, np.nan
        step = happens[:, has].argmax(0)
        places = 0.5 * (np.asarray(strengths)[step] + np.asarray(strengths)[step + 1])
        low, middle, high = np.quantile(places, [(1 - level) / 2, 0.5, (1 + level) / 2])
        return float(has.mean()), float(low), float(middle), float(high)

    def __str__(self) -> str:
        complete = np.mean([result.complete.mean() for result in self.results])
        lines = [f"FixedPointsAlongInput: {len(self.results)} inputs, {complete:.1%} of the lists complete"]
        for count, shares in self.probabilities().items():
            lines.append(f"  {count} attractors: " + " ".join(f"{share:.2f}" for share in shares))
        return "\n".join(lines)
