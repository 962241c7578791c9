"""Fits over a grid of settings, scored on what was held out of each."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np

from pyro_lowrank.data.splits import Split
from pyro_lowrank.training.recipe import NUM_STEPS
from pyro_lowrank.validation.engine import scored
from pyro_lowrank.validation.executors import Executor
from pyro_lowrank.validation.halving import Halving
from pyro_lowrank.validation.job import FitOptions, Initialise
from pyro_lowrank.validation.points import built_by_name, points_of
from pyro_lowrank.validation.result import Scores


@dataclass(frozen=True, eq=False)
class Sweep(Scores):
    """Held-out evidence by point of a grid; its other attributes are those of `Scores`.

    Attributes:
        points: the settings of each.
        halved: whether points that promised little were left behind.
    """

    points: tuple[dict[str, Any], ...]
    halved: bool

    @property
    def _alike(self) -> bool:
        return not self.halved

    @property
    def best(self) -> dict[str, Any] | None:
        """The settings of highest held-out evidence among the points that are complete, or None if there is none."""
        return None if self.best_place is None else self.points[self.best_place]

    def columns(self) -> dict[str, list[Any]]:
        """Return a table, a row per point: its settings, and what was found; `pandas.DataFrame` takes it."""
        table: dict[str, list[Any]] = {name: [point[name] for point in self.points] for name in self.points[0]}
        table["steps"] = list(self.steps)
        held_out, less = self.held_out, self.differences
        table["held_out"] = [float(value) for value in held_out]
        table["standard_error"] = [value.standard_error for value in held_out]
        table["less_than_best"] = [float(value) for value in less]
        table["error_of_difference"] = [value.standard_error for value in less]
        if self.gains.shape[1]:
            table["co_smoothing"] = [float(value) for value in self.co_smoothing]
        table["train_evidence"] = [float(np.mean(row)) for row in self.train_evidence]
        table["seconds"] = [float(np.nansum(row)) for row in self.seconds]
        table["folds_done"] = [int((~np.isnan(row)).sum()) for row in self.seconds]
        return table

    def to_xarray(self) -> Any:
        """Return an `xarray.Dataset`: columns along `point`, and the evidence of every trial, `point x trial`."""
        from pyro_lowrank.export.grids import make_dataset

        settings = {name: [point[name] for point in self.points] for name in self.points[0]}
        columns = {name: values for name, values in self.columns().items() if name not in settings}
        return make_dataset(settings, columns, evidence=self.evidence, bins=self.bins, trials=self.trials)

    def elpd(self) -> dict[str, Any]:
        """Return the held-out log evidence of the points that are complete as `az.compare` takes it, by name."""
        return self._elpd([", ".join(f"{name} {value}" for name, value in point.items()) for point in self.points])

    def plot(self, axes: Any, *, by: str) -> Any:
        """Draw the held-out evidence against one setting on matplotlib axes, a line for each choice of the others.

        Args:
            axes: to draw on.
            by: the name of the setting.
        """
        from pyro_lowrank.plots.validation import plot_by_setting

        if by not in self.points[0]:
            raise ValueError(f"`by` must be one of {', '.join(map(repr, self.points[0]))}, got {by!r}.")
        return plot_by_setting(axes, self.points, self.held_out, by, label="held-out log evidence (nats per time bin)")

    def __str__(self) -> str:
        best, state = self.best_place, ", interrupted" if self.interrupted else ""
        number = int(self.folds.max(initial=-1)) + 1
        names = list(self.points[0])
        widths = [max(len(name), *(len(str(point[name])) for point in self.points)) for name in names]
        head = "".join(f"  {name:>{width}}" for name, width in zip(names, widths, strict=True))
        lines = [
            f"Sweep: {len(self.points)} points, {number} folds, {len(self.trials)} held-out trials{state}",
            f"{head}  {'steps':>6}  {'nats per time bin':>19}  {'less than the best':>19}",
        ]
        for place, (point, evidence, less) in enumerate(zip(self.points, self.held_out, self.differences, strict=True)):
            cells = "".join(f"  {point[name]!s:>{width}}" for name, width in zip(names, widths, strict=True))
            told = "-" if place == best else str(less)
            lines.append(f"{cells}  {self.steps[place]:>6}  {evidence!s:>19}  {told:>19}{'  best' * (place == best)}")
        return "\n".join([*lines, *self._table_of_baselines])


def sweep(
    factory: Callable[..., tuple[Any, Any]],
    data: Any,
    u: Any = None,
    *,
    grid: Mapping[str, Sequence[Any]],
    folds: int | Sequence[Split] = 5,
    num_steps: int = NUM_STEPS,
    halving: Halving | None = None,
    batch_size: int | None = None,
    window: int | Literal["auto"] | None = "auto",
    num_particles: int | None = None,
    learning_rate: float | None = None,
    final_learning_rate: float | None = None,
    initialise: Initialise | None = None,
    hidden: float | int | Sequence[int] | Sequence[str] | None = None,
    num_filter_particles: int = 500,
    num_draws: int = 100,
    folder: str | os.PathLike[str] | None = None,
    num_workers: int = 1,
    executor: Executor | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Sweep:
    r"""Compare all points of a grid of settings by what models say of data that were held out of their fits.

    .. math:: \frac{\sum_b \log \hat p(y^b_{1:T} \mid y^{\mathrm{train}})}{\sum_b T_b}

    as `cross_validate` has it, for every point and fold. Models with the same arguments start alike, and see the same
    data in the same order, so that their settings compare.

    Args:
        factory: called with the names of the grid that are no settings of a fit, returns a new `(model, guide)`.
        data: recording, as of `cross_validate`.
        u: inputs, unless the recording holds them.
        grid: values by name. `num_steps`, `batch_size`, `window`, `num_particles`, `learning_rate`,
            `final_learning_rate` and `seed` are of the fit, and every other name is the factory's.
        folds: as of `cross_validate`.
        num_steps: of each fit; the next five as of `plr.fit`; where the grid does not have them.
        halving: leave points behind that promise little after some steps; None to fit all to the end.
        batch_size: trials, or windows, per step.
        window: time bins per window.
        num_particles: of the fit.
        learning_rate: of the first step.
        final_learning_rate: of the last step.
        initialise: as of `cross_validate`, as are all that follow.
        hidden: which features co-smoothing predicts; None for no co-smoothing.
        num_filter_particles: of the filter that scores.
        num_draws: smoothed paths that a prediction averages over.
        folder: where a small file for each point and fold is kept. What is there already is not computed again.
        num_workers: number of processes of this machine.
        executor: what runs the fits in their place.
        seed: of the folds, models, fits and scores.
        progress: show a progress bar.

    Raises:
        ValueError: if an argument or the data do not fit, or `folder` holds records of other settings.
        TypeError: if the grid is none, or an executor cannot send models or data to its workers.
        RuntimeError: if a fit fails elsewhere, or workers are lost again and again.

    Example::

        >>> import torch, pyro_lowrank as plr
        >>> def factory(rank, units):
        ...     observation = plr.PoissonObservation(rank=rank, features=6)
        ...     model = plr.StateSpaceModel(plr.LowRankRNN(rank=rank, units=units), observation)
        ...     return model, plr.BootstrapGuide(model)
        >>> y = factory(1, 20)[0].simulate(num_trials=6, num_steps=20).y
        >>> grid = {"rank": [1, 2], "units": [20], "learning_rate": [0.01, 0.1]}
        >>> found = sweep(factory, y, grid=grid, folds=3, num_steps=2, num_filter_particles=50, progress=False)
        >>> print(found)
        Sweep: 4 points, 3 folds, 6 held-out trials
          rank  units  learning_rate   steps    nats per time bin   less than the best
        ...
        >>> found.columns()["learning_rate"]
        [0.01, 0.1, 0.01, 0.1]

    References:
        Jamieson and Talwalkar (2016), AISTATS, on successive halving.
    """
    points = points_of(grid)
    if halving is not None and "num_steps" in grid:
        raise ValueError("With `halving` all points are on the way to the same `num_steps`: leave it out of the grid.")
    found = scored(
        partial(built_by_name, factory),
        points,
        data,
        u,
        folds=folds,
        options=FitOptions(num_steps, batch_size, window, num_particles, learning_rate, final_learning_rate),
        halving=halving,
        initialise=initialise,
        hidden=hidden,
        num_filter_particles=num_filter_particles,
        num_draws=num_draws,
        folder=folder,
        num_workers=num_workers,
        executor=executor,
        seed=seed,
        progress=progress,
    )
    return Sweep(**found, points=tuple(dict(point.values) for point in points), halved=halving is not None)
