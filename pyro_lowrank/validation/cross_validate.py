"""Fits by rank and fold, scored on what was held out of each."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

from pyro_lowrank.data.splits import Split
from pyro_lowrank.errors import check_positive_int
from pyro_lowrank.training.recipe import NUM_STEPS
from pyro_lowrank.validation.engine import scored
from pyro_lowrank.validation.executors import Executor
from pyro_lowrank.validation.job import FitOptions, Initialise
from pyro_lowrank.validation.points import Point, built_by_rank
from pyro_lowrank.validation.result import CrossValidation

Factory = Callable[[int], tuple[Any, Any]]


def cross_validate(
    factory: Factory,
    data: Any,
    u: Any = None,
    *,
    ranks: Sequence[int] = (1, 2, 3, 4),
    folds: int | Sequence[Split] = 5,
    num_steps: int = NUM_STEPS,
    batch_size: int | None = None,
    window: int | Literal["auto"] | None = "auto",
    num_particles: int | None = None,
    learning_rate: float | None = None,
    final_learning_rate: float | None = None,
    initialise: Initialise | None = None,
    hidden: float | int | Sequence[int] | Sequence[str] | None = 0.25,
    num_filter_particles: int = 500,
    num_draws: int = 100,
    folder: str | os.PathLike[str] | None = None,
    num_workers: int = 1,
    executor: Executor | None = None,
    seed: int = 0,
    progress: bool = True,
) -> CrossValidation:
    r"""Compare ranks by what models say of data that were held out of their fits.

    For every rank and fold a model is fitted to the other folds, and then scored on the fold twice: by its evidence,

    .. math:: \frac{\sum_b \log \hat p(y^b_{1:T} \mid y^{\mathrm{train}})}{\sum_b T_b}

    and by co-smoothing, the prediction of features that the filter does not see from those that it sees: in bits per
    spike for counts, as the Neural Latents Benchmark defines them, and as a coefficient of determination for others.

    Args:
        factory: called with a rank, returns a new `(model, guide)`. Torch's generator is seeded before each call.
        data: recording, as of `plr.fit`. Of an array that stays on disk (a memory-mapped file, zarr, HDF5) workers are
            told where it is, and open it themselves; what is held out of it is scored in parts, as `fit` does it.
        u: inputs, unless the recording holds them.
        ranks: to compare.
        folds: number of folds: of whole trials, at random, if there are two or more, else of blocks of time; or the
            folds themselves, as `data.trial_folds` and `data.time_folds` return them.
        num_steps: of each fit; the next five as of `plr.fit`: what of them is not given is chosen as there.
        batch_size: trials, or windows, per step.
        window: time bins per window.
        num_particles: of the fit.
        learning_rate: of the first step.
        final_learning_rate: of the last step.
        initialise: called with each new model and what it is to be fitted to, such as `plr.initialise_from_data`.
        hidden: which features co-smoothing predicts: a share of them, their number, or which; None for no co-smoothing.
        num_filter_particles: of the filter that scores; too few make the evidence of all ranks too low.
        num_draws: smoothed paths that a prediction averages over.
        folder: where a small file for each rank and fold is kept. What is there already is not computed again.
        num_workers: number of processes of this machine, by loky; they end when this one does, even if it is killed.
        executor: what runs the fits in their place: anything with `submit(function, *arguments)` whose result has
            `done()` and `result()`, such as a Dask `Client` or a submitit executor; one fit at a time in a process.
            Fits write their records themselves, so that a lost worker costs what it was at; workers on other machines
            need a `folder` that they share with this one.
        seed: of the folds, models, fits and scores.
        progress: show a progress bar.

    Returns:
        A table by `print`, a figure by its method `plot`. Ctrl-C does not raise: it returns what was finished, with
        `interrupted` set.

    Raises:
        ValueError: if an argument or the data do not fit, or `folder` holds records that are damaged or of other
            settings; before any fit.
        SMCFailed: if a fit fails; RuntimeError with its traceback if it fails elsewhere.
        TypeError: if an executor cannot send models or data to its workers.
        RuntimeError: if workers are lost again and again; after all other fits are done.

    Example::

        >>> import torch, pyro_lowrank as plr
        >>> def factory(rank):
        ...     observation = plr.PoissonObservation(rank=rank, features=6)
        ...     model = plr.StateSpaceModel(plr.LowRankRNN(rank=rank, units=20), observation)
        ...     return model, plr.BootstrapGuide(model)
        >>> y = factory(1)[0].simulate(num_trials=6, num_steps=20).y
        >>> found = cross_validate(factory, y, ranks=(1, 2), folds=3, num_steps=2, num_filter_particles=50,
        ...                        progress=False)
        >>> print(found)
        CrossValidation: 2 ranks, 3 folds, 6 held-out trials
          rank    nats per time bin   less than the best       bits per spike
        ...

    References:
        Geisser (1975), J. Am. Stat. Assoc. 70:320; Pei, Ye et al. (2021), "Neural Latents Benchmark '21", NeurIPS
        Datasets and Benchmarks.
    """
    points = tuple(Point({"rank": rank}) for rank in _checked_ranks(ranks))
    found = scored(
        partial(built_by_rank, factory),
        points,
        data,
        u,
        folds=folds,
        options=FitOptions(num_steps, batch_size, window, num_particles, learning_rate, final_learning_rate),
        halving=None,
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
    return CrossValidation(**found, ranks=tuple(point.values["rank"] for point in points))


def _checked_ranks(ranks: Sequence[int]) -> tuple[int, ...]:
    checked = tuple(check_positive_int("ranks", rank) for rank in ranks)
    if not checked or len(set(checked)) < len(checked):
        raise ValueError(f"`ranks` must hold at least one rank, and none twice, got {list(ranks)}.")
    return checked
