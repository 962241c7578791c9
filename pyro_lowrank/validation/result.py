"""What a cross-validation found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyro_lowrank.metrics.estimate import Estimate, ratio_of
from pyro_lowrank.validation.beside import lines_of
from pyro_lowrank.validation.records import Record

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Scores:
    r"""Held-out evidence and co-smoothing of several points: ranks, or points of a grid.

    Every trial (or block of time) was held out of one fit per point, so that points compare trial by trial. Means are
    ratios of sums over trials, :math:`\sum_b \log \hat Z_b / \sum_b T_b`, and standard errors the jackknife's over
    trials; those of differences see what trials have in common.

    Attributes:
        trials: names of the held-out trials, in the order of the folds.
        folds: the fold of each, `trials`.
        bins: observed time bins of each, `trials`.
        evidence: log evidence in nats, `points x trials`; NaN where it was not computed.
        gains: of the prediction of hidden features over their means, `points x trials`; no columns if none were hidden.
        weights: what gains are divided by, over trials, likewise: spikes, or squares around the means.
        measure: the unit of the ratio: `"bits per spike"`, or `"R²"` of observations that are no counts.
        train_evidence: at the end of the fits, in nats per time bin, `points x folds`.
        seconds: that each fit and its scores took, `points x folds`.
        interrupted: whether Ctrl-C ended it.
        folder: where its records are, or None.
        steps: how many each point was fitted for, `points`.
        baselines: log evidence in nats without latent dynamics, by name, `trials`, as of `plr.baselines`; nothing of
            data that are no real numbers, that stay on disk, or where Ctrl-C ended it.
    """

    trials: tuple[str, ...]
    folds: NDArray[np.int64]
    bins: Array
    evidence: Array
    gains: Array
    weights: Array
    measure: str
    train_evidence: Array
    seconds: Array
    interrupted: bool
    folder: Path | None
    steps: tuple[int, ...]
    baselines: Mapping[str, Array]

    @staticmethod
    def entries(
        records: Mapping[tuple[int, int], Record],
        steps: Sequence[int],
        trials: Sequence[Sequence[str]],
        *,
        measure: str,
        hidden: bool,
        interrupted: bool,
        folder: Path | None,
    ) -> dict[str, Any]:
        """Return the attributes that these records make, by point and fold, of `trials` by fold."""

        def rows(name: str, columns: Sequence[Sequence[str]]) -> Array:
            found = np.full((len(steps), sum(map(len, columns))), np.nan)
            starts = np.cumsum([0, *map(len, columns)])
            for (place, fold), record in records.items():
                values = getattr(record, name)
                # Co-smoothing is judged at the end alone.
                if columns[fold] and values != ():
                    found[place, starts[fold] : starts[fold + 1]] = values
            return found

        per_fold = [("",)] * len(trials)
        per_hidden = trials if hidden else [()] * len(trials)
        bins = rows("bins", trials)
        return {
            "trials": tuple(name for names in trials for name in names),
            "folds": np.repeat(np.arange(len(trials)), [len(names) for names in trials]),
            # The same for all points, so of any that has them.
            "bins": np.where(np.isnan(bins).all(0), np.nan, np.nanmax(np.nan_to_num(bins, nan=-1.0), 0)),
            "evidence": rows("evidence", trials),
            "gains": rows("gains", per_hidden),
            "weights": rows("weights", per_hidden),
            "measure": measure,
            "train_evidence": rows("train_evidence", per_fold),
            "seconds": rows("seconds", per_fold),
            "interrupted": interrupted,
            "folder": folder,
            "steps": tuple(steps),
        }

    @property
    def held_out(self) -> list[Estimate]:
        """The held-out log evidence of each point, in nats per observed time bin."""
        return [_ratio(row, self.bins) for row in self.evidence]

    @property
    def without_dynamics(self) -> dict[str, Estimate]:
        """Held-out log evidence without latent dynamics, in nats per observed time bin, by name."""
        return {name: ratio_of(evidence, self.bins) for name, evidence in self.baselines.items()}

    @property
    def differences(self) -> list[Estimate]:
        """What each point has less than the best one, in nats per observed time bin, compared trial by trial."""
        best = self.best_place
        if best is None:
            return [Estimate(np.nan)] * len(self.evidence)
        return [_ratio(row - self.evidence[best], self.bins) for row in self.evidence]

    @property
    def co_smoothing(self) -> list[Estimate]:
        """How well hidden features of held-out trials are predicted from the others, in units of `measure`."""
        return [_ratio(gains, weights) for gains, weights in zip(self.gains, self.weights, strict=True)]

    @property
    def complete(self) -> list[int]:
        """Places of the points that were fitted for as long as any, and whose folds are all there."""
        longest = max(self.steps, default=0)
        whole = [not np.isnan(row).any() for row in self.evidence]
        # With halving, those that were left behind are no match.
        return [place for place, steps in enumerate(self.steps) if whole[place] and (self._alike or steps == longest)]

    @property
    def _alike(self) -> bool:
        """Whether points may be compared however long they were fitted."""
        return True

    @property
    def best_place(self) -> int | None:
        """The place of the point of highest held-out evidence among those that are complete."""
        return max(self.complete, key=lambda place: self.evidence[place].sum(), default=None)

    @property
    def _table_of_baselines(self) -> list[str]:
        best = self.best_place
        return lines_of(self.baselines, None if best is None else self.evidence[best], self.bins)

    def _elpd(self, names: Sequence[str]) -> dict[str, Any]:
        from pyro_lowrank.export.arviz import make_elpd

        number = len(np.unique(self.folds))
        return {names[place]: make_elpd(self.evidence[place], num_folds=number) for place in self.complete}


@dataclass(frozen=True, eq=False)
class CrossValidation(Scores):
    """Held-out evidence and co-smoothing by rank; its other attributes are those of `Scores`, by rank.

    Attributes:
        ranks: that were compared.
    """

    ranks: tuple[int, ...]

    @property
    def best(self) -> int | None:
        """The rank of highest held-out evidence among those whose folds are all there, or None if there is none."""
        return None if self.best_place is None else self.ranks[self.best_place]

    @property
    def simplest(self) -> int | None:
        """The lowest rank that is within one standard error of the difference from the best one."""
        near = [
            rank
            for rank, row, less in zip(self.ranks, self.evidence, self.differences, strict=True)
            if not np.isnan(row).any() and (rank == self.best or -less <= less.standard_error)
        ]
        return min(near, default=None)

    def elpd(self) -> dict[str, Any]:
        """Return the held-out log evidence of the ranks that are complete as `az.compare` takes it, by name.

        The points are the held-out trials, or blocks of time: `az.compare(found.elpd(), method="BB-pseudo-BMA")`.
        """
        return self._elpd([f"rank {rank}" for rank in self.ranks])

    def plot(self, axes: Any) -> Any:
        """Draw the held-out evidence by rank on matplotlib axes, and co-smoothing if two are given; return them.

        Args:
            axes: one, or two in an array or list.
        """
        from pyro_lowrank.plots.validation import plot_by_rank

        panels = np.atleast_1d(np.asarray(axes, dtype=object)).ravel()
        evidence = "held-out log evidence (nats per time bin)"
        plot_by_rank(panels[0], self.ranks, self.held_out, label=evidence, references=self.without_dynamics)
        if len(panels) > 1:
            plot_by_rank(panels[1], self.ranks, self.co_smoothing, label=f"co-smoothing ({self.measure})")
        return axes

    def __str__(self) -> str:
        hidden = self.gains.shape[1] > 0
        number = int(self.folds.max(initial=-1)) + 1
        titles = ["nats per time bin", "less than the best", *[self.measure] * hidden]
        state = ", interrupted" if self.interrupted else ""
        lines = [
            f"CrossValidation: {len(self.ranks)} ranks, {number} folds, {len(self.trials)} held-out trials{state}",
            "  rank" + "".join(f"  {title:>19}" for title in titles),
        ]
        for row, (rank, evidence, less) in enumerate(zip(self.ranks, self.held_out, self.differences, strict=True)):
            cells = [str(evidence), "-" if rank == self.best else str(less)]
            if hidden:
                cells.append(str(self.co_smoothing[row]))
            lines.append(f"{rank:>6}" + "".join(f"  {cell:>19}" for cell in cells) + self._remark(row, number))
        return "\n".join([*lines, *self._table_of_baselines])

    def _remark(self, row: int, number: int) -> str:
        done = len(np.unique(self.folds[~np.isnan(self.evidence[row])]))
        if done < number:
            return f"  ({done} of {number} folds)"
        if self.ranks[row] == self.best:
            return "  best"
        return "  lowest within one error" if self.ranks[row] == self.simplest else ""


def _ratio(numerators: Array, denominators: Array) -> Estimate:
    there = ~np.isnan(numerators)
    return ratio_of(numerators[there], denominators[there])
