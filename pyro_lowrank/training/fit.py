"""Fitting a model and its guide to a recording."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Literal

from torch import device, nn, optim
from tqdm.auto import tqdm

from pyro_lowrank.errors import (
    check_positive,
    check_positive_int,
)
from pyro_lowrank.infer.elbo import SMC_ELBO
from pyro_lowrank.infer.gaussian import EKFEvidence
from pyro_lowrank.models.state_space import StateSpaceModel
from pyro_lowrank.training.ahead import reading_ahead
from pyro_lowrank.training.baselines import references_of
from pyro_lowrank.training.batches import Data
from pyro_lowrank.training.checkpoint import CheckpointFile
from pyro_lowrank.training.checks import check_data
from pyro_lowrank.training.enough import check_particles as enough_particles
from pyro_lowrank.training.initialise import start
from pyro_lowrank.training.interrupts import Stopped, interrupts_kept
from pyro_lowrank.training.memory import check_memory
from pyro_lowrank.training.objective import Objective, objective_of, settings_of
from pyro_lowrank.training.optimizer import default_optimizer, optimizer_of
from pyro_lowrank.training.progress import ProgressBar
from pyro_lowrank.training.randomness import Seed, own_generators, plain_seed
from pyro_lowrank.training.recipe import Recipe
from pyro_lowrank.training.result import FitResult, StepReport
from pyro_lowrank.training.scales import scales_of, warn_of_units
from pyro_lowrank.training.steps import Steps, parameters_of
from pyro_lowrank.training.team import Team
from pyro_lowrank.training.window_start import batches_of

logger = logging.getLogger(__name__)

CPU = device("cpu")


def fit(
    model: Any,
    guide: Any,
    y: Any,
    u: Any = None,
    *,
    num_steps: int | None = None,
    batch_size: int | None = None,
    parts: int = 1,
    window: int | Literal["auto"] | None = "auto",
    num_particles: int | None = None,
    elbo: SMC_ELBO | EKFEvidence | None = None,
    start_at_data: bool = True,
    learning_rate: float | None = None,
    final_learning_rate: float | None = None,
    optimizer: Callable[..., optim.Optimizer] | None = None,
    max_grad_norm: float | None = 10.0,
    held_out: Any = None,
    held_out_inputs: Any = None,
    evaluate_every: int | None = None,
    keep_best: bool = True,
    check_particles: bool = True,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: int = 100,
    resume: bool = False,
    seed: Seed = 0,
    num_workers: int = 0,
    progress: bool = True,
    callback: Callable[[StepReport], None] | None = None,
) -> FitResult:
    r"""Fit a model and its guide to a recording, in place, by variational sequential Monte Carlo.

    Each step follows an estimate of the gradient of the log evidence on a minibatch, per trial and time bin: along
    smoothed paths (`FisherGradient`), along the particles where a model of your own cannot be run along paths
    (`PathwiseGradient`), or as `elbo` says:

    .. math:: \max_{\theta, \phi} \; \frac{1}{B T} \sum_{b=1}^{B} \log p_\theta(y^b_{1:T}),
       \qquad \eta_k = \eta_0 (\eta_{\mathrm{end}} / \eta_0)^{k / (K - 1)}

    with learning rate :math:`\eta_k` at step k of K. What is not asked for is chosen from the size of the recording and
    from the guide, and said: in the log, and above the progress bar. The default optimiser works in units of the
    recording's and inputs' standard deviations, so that a fit through an affine readout does not depend on the units.

    Under `torchrun`, or where torch.distributed has been started, each process takes its share of every batch, and
    gradients are summed: all end in the numbers of one process, up to rounding. The first one logs, evaluates and
    saves. A checkpoint may be gone on from with another number of processes. Drawn apart are the numbers of models of
    the user's own and of noise with heavy tails, whose fits are right but other ones.

    The parameters that require a gradient are trained. All random
    numbers come from `seed` and the number of the step: the caller's generators are left as they were, and a fit that
    was stopped and resumed ends in the same numbers as one that was not. They are drawn from torch's global generator,
    because Pyro's sample statements know no other, so that a process fits one model at a time: a second thread is
    refused, and fits side by side are processes. Pyro's parameter store is neither read nor
    written; parameters that a user's model makes with `pyro.param` statements are not trained (use `SVI` for these).

    Args:
        model: a `StateSpaceModel`, or any module with `init(state, ...)` and `step(state, ...)`.
        guide: its guide; None to propose all latents from the model.
        y: recording, `trials x time x features`, NaN where missing; or a `pyro_lowrank.data.Recording` with its inputs;
            or a list of trials, `time x features` each, of different lengths. What is too large for memory stays where
            it is and is read a batch at a time: an array of any number type (memory-mapped, zarr, HDF5, dask, xarray;
            `time x features` of one trial will do), or a map-style `Dataset` of trials.
        u: inputs, `trials x time x inputs`, or a list of them, or an array likewise; in a `Dataset` items are (y, u).
        num_steps: steps in all, those before a resumption included; if None, 3,000 of whole trials, 2,000 of windows.
        batch_size: trials, or windows, per step; if None, as many as hold the guide's `bins_to_train`, or all trials.
        parts: a batch is gone through in so many parts, one after the other, in as much less memory; gradients are
            summed, and the numbers are those of the whole up to rounding.
        window: train on windows of this many time bins, with random trials and starts; None for whole trials. Windows
            from the middle of one of ten trials or more start from a distribution of their own, which is trained beside
            the model's and dropped; of fewer trials from the model's initial one, as all do with unfiltered inputs.
            `"auto"` trains on windows of 100 time bins where trials have more than 300.
        num_particles: number of particles; what suits the guide if None, its `particles_to_train`.
        elbo: the objective with all its options, in place of `num_particles`; `EKFEvidence()` to fit without particles
            and without a guide.
        start_at_data: let readout and noise start as `initialise_from_data` does it, if the readout is affine and still
            as it was drawn; a readout that was given other values is left alone.
        learning_rate: of the first step; 0.01 if None.
        final_learning_rate: of the last step, reached by exponential decay; a tenth of the first if None.
        optimizer: a torch optimiser class, or anything called as `optimizer(parameters, lr=learning_rate)`, which is
            given the parameters and their gradients as they are; if None, RAdam in the units of the data, with betas
            0.95 and 0.98.
        max_grad_norm: longer gradients, of nats per time bin, are shortened to this norm; None leaves them. (RAdam's
            first steps are plain gradient steps: from far away they would throw the parameters further away.)
        held_out: recording that is not trained on, evaluated with all its time bins at once; one that stays on disk and
            has more than 10 million numbers in parts of 1,000 bins, each as a trial that begins there. Or a share,
            such as 0.1, of `y`: of the trials of each condition, by chance, or the end of a single recording.
        held_out_inputs: its inputs.
        evaluate_every: steps between two such evaluations, beside those at begin and end; a tenth of all if None.
        keep_best: end with the parameters that had the most held-out evidence, if there are held-out data; the
            checkpoint holds the last ones, too, to go on from.
        check_particles: at the end, look at the held-out evidence with more and more particles, until it no longer
            changes, and say where it parts from that of the training; on some 2,000 time bins.
        checkpoint: file from which the fit can be resumed and `load` can read the model; None for none.
        checkpoint_every: steps between two checkpoints, beside those at begin, end and Ctrl-C.
        resume: go on from `checkpoint` if it is there.
        seed: of minibatches and particles; or a generator, which one number is drawn from.
        num_workers: processes that read batches ahead of the steps, of data that stay where they are; the numbers do
            not depend on it. In this process if 0.
        progress: show a progress bar.
        callback: called after every step with a `StepReport`; Ctrl-C (`KeyboardInterrupt`) in it ends the fit.

    Returns:
        What the fit went through. Ctrl-C does not raise: it ends the fit with `interrupted` set and a checkpoint.

    Raises:
        SMCFailed: if the loss or its gradient is not finite, with step, trial and time; the last checkpoint is kept.
        ValueError: if an argument or the data do not fit.
        MemoryError: if a step does not fit into the memory that there is, as `memory_of` tells; before any training.
        RuntimeError: if another thread of the process is in a fit, or under `torch.inference_mode`; before training.
        OSError: if the checkpoint cannot be written, or would overwrite that of an unfinished fit; before any training.

    Example::

        >>> import pyro_lowrank as plr
        >>> model = plr.StateSpaceModel(plr.LowRankRNN(rank=2, units=50), plr.GaussianObservation(rank=2, features=8))
        >>> y = model.simulate(num_trials=10, num_steps=40).y
        >>> result = plr.fit(model, plr.OptimalGuide(model), y[:8], held_out=y[8:], num_steps=5, progress=False)
        >>> print(result)
        FitResult: 5 of 5 steps in ...

    References:
        Pals et al. (2024), "Inferring stochastic low-rank recurrent neural networks from neural data", NeurIPS.
    """
    started = time.perf_counter()
    seed, checkpoint_every = _checked(seed, checkpoint_every, evaluate_every)
    team, tell = _team(model, progress)
    data, held_out_data = check_data(model, guide, y, u, held_out, held_out_inputs, tell)
    recipe = Recipe.of(
        data.observed,
        guide,
        num_steps=num_steps,
        window=window,
        batch_size=batch_size,
        num_particles=num_particles if elbo is None else 0,
        learning_rate=learning_rate,
        final_learning_rate=final_learning_rate,
    )
    elbo = objective_of(elbo, num_particles, recipe, model, guide)
    steps = _steps(model, guide, elbo, data, held_out_data, recipe, optimizer, max_grad_norm, seed, team, parts)
    file = _open_checkpoint(checkpoint, steps, _settings(steps, data, recipe), recipe.num_steps, resume)
    tell((*recipe.chosen, *filter(None, [steps.starts.told]), *_sizes(data, held_out_data)))
    begin = partial(_begin, model, data, tell) if start_at_data else None
    interrupted = _run(steps, file, begin, recipe, evaluate_every, checkpoint_every, num_workers, progress, callback)
    return FitResult.of(
        steps.history,
        kept_step=steps.best.step if keep_best and steps.best.put_back() else len(steps.history),
        num_steps=recipe.num_steps,
        interrupted=interrupted,
        checkpoint=None if file is None else file.path,
        seconds=time.perf_counter() - started,
        references=references_of(model, data, held_out_data),
        particles=enough_particles(steps) if check_particles and not interrupted else None,
    )


def _team(model: Any, progress: bool) -> tuple[Team, Callable[[Iterable[str]], None]]:
    """Return the processes of a fit, and what says what was chosen, in one of them aloud."""
    team = Team.of_environment(next(model.parameters()).device if isinstance(model, nn.Module) else CPU)
    return team, partial(_tell, progress=progress and team.leads)


def _checked(seed: Seed, checkpoint_every: int, evaluate_every: int | None) -> tuple[int, int]:
    check_positive_int("evaluate_every", evaluate_every or 1)
    return plain_seed(seed), check_positive_int("checkpoint_every", checkpoint_every)


def _begin(model: Any, data: Data, tell: Callable[[Iterable[str]], None]) -> None:
    if isinstance(model, StateSpaceModel):
        tell(start(model, data.sample))


def _sizes(data: Data, held_out: Data | None) -> tuple[str, ...]:
    """Return what is to be said of data that are too large for memory."""
    return data.told(evaluated=False) + (() if held_out is None else held_out.told(evaluated=True))


def _steps(
    model: Any,
    guide: Any,
    objective: Objective,
    data: Data,
    held_out: Data | None,
    recipe: Recipe,
    optimizer: Callable[..., optim.Optimizer] | None,
    max_grad_norm: float | None,
    seed: int,
    team: Team,
    parts: int,
) -> Steps:
    """Return the steps of a fit, none of which is taken."""
    sample = data.sample
    warn_of_units(model, sample.y)
    batches, starts = batches_of(model, data, recipe, seed, team)
    steps = Steps(
        model,
        guide,
        objective,
        optimizer_of(optimizer or default_optimizer, model, guide, recipe.learning_rate, starts.parameters),
        batches,
        held_out,
        decay=(recipe.final_learning_rate / recipe.learning_rate) ** (1 / max(1, recipe.num_steps - 1)),
        max_grad_norm=None if max_grad_norm is None else check_positive("max_grad_norm", max_grad_norm),
        seed=seed,
        scales=scales_of(model, sample) if optimizer is None else {},
        team=team,
        parts=parts,
        starts=starts,
    )
    with team.together(steps.device):
        check_memory(model, guide, objective, steps.batches, max(rows.stop - rows.start for rows in steps.rows), parts)
    return steps


def _run(
    steps: Steps,
    file: CheckpointFile | None,
    begin: Callable[[], None] | None,
    recipe: Recipe,
    evaluate_every: int | None,
    checkpoint_every: int,
    num_workers: int,
    progress: bool,
    callback: Callable[[StepReport], None] | None,
) -> bool:
    """Take all steps that are left; return whether Ctrl-C ended them."""
    first, num_steps = len(steps.history), recipe.num_steps
    evaluate_every = evaluate_every or max(1, num_steps // 10)
    try:
        with (
            ProgressBar(num_steps, first, shown=progress and steps.team.leads) as bar,
            own_generators(steps.device),
            interrupts_kept() as noted,
            reading_ahead(steps, num_workers, num_steps),
        ):
            if first == 0:
                # Not before: another thread may be at a fit of the same model.
                if begin is not None:
                    begin()
                steps.agree()
                _write(file, steps, num_steps)
            while True:
                taken = len(steps.history)
                if taken % evaluate_every == 0 or taken == num_steps:
                    steps.evaluate()
                if taken > first and (taken % checkpoint_every == 0 or taken == num_steps):
                    _write(file, steps, num_steps)
                if taken > first:
                    report = _report(steps, num_steps)
                    bar.show(report)
                    if callback is not None:
                        callback(report)
                if taken >= num_steps:
                    return False
                steps.take()
                if noted.came:
                    raise KeyboardInterrupt
    except KeyboardInterrupt as reason:
        _write(file, steps, num_steps)
        told = "without a checkpoint" if file is None else f"go on from {file.path} with resume=True"
        level = logging.INFO if isinstance(reason, Stopped) else logging.WARNING
        logger.log(level, "Interrupted after %d of %d steps: %s.", len(steps.history), num_steps, told)
        return True
    finally:
        steps.optimizer.zero_grad(set_to_none=True)


def _write(file: CheckpointFile | None, steps: Steps, num_steps: int) -> None:
    if file is not None and steps.team.leads:
        file.write(steps.history, num_steps, steps.best)


def _report(steps: Steps, num_steps: int) -> StepReport:
    history = steps.history
    return StepReport(
        step=len(history),
        num_steps=num_steps,
        evidence=history.evidence[-1],
        ess=history.ess[-1],
        gradient_norm=history.gradient_norm[-1],
        learning_rate=history.learning_rate[-1],
        held_out=history.held_out,
    )


def _tell(lines: Iterable[str], progress: bool) -> None:
    """Say what was chosen: in the log, and above the progress bar if there is one."""
    for line in lines:
        logger.info(line)
        if progress:
            tqdm.write(f"fit: {line}", file=sys.stderr)


def _settings(steps: Steps, data: Data, recipe: Recipe) -> dict[str, Any]:
    """Return, as JSON, what determines the numbers beside `num_steps`: a fit is resumed only under the same."""
    # What is off is left out: another release of torch may know more that is off.
    options = {name: value for name, value in sorted(steps.optimizer.defaults.items()) if value not in (None, False)}
    options.pop("lr", None)
    return {
        "seed": steps.seed,
        "batch_size": recipe.batch_size,
        "window": recipe.window,
        **steps.starts.settings,
        **settings_of(steps.elbo),
        "optimizer": type(steps.optimizer).__name__,
        "optimizer_options": str(options),
        "max_grad_norm": str(steps.max_grad_norm),
        "trained": sorted(parameters_of(steps.model, steps.guide, trainable=True)),
        "data": [list(data.shape), str(data.dtype), data.digest],
        "learning_rate": recipe.learning_rate,
        "final_learning_rate": recipe.final_learning_rate,
    }


def _open_checkpoint(
    path: str | os.PathLike[str] | None, steps: Steps, settings: dict[str, Any], num_steps: int, resume: bool
) -> CheckpointFile | None:
    steps.team.check_alike({**settings, "num_steps": num_steps}, steps.device)
    # None begins to write before all have looked.
    with steps.team.together(steps.device):
        return _opened(path, steps, settings, num_steps, resume)


def _opened(
    path: str | os.PathLike[str] | None, steps: Steps, settings: dict[str, Any], num_steps: int, resume: bool
) -> CheckpointFile | None:
    if path is None:
        if resume:
            raise ValueError("`resume` needs the `checkpoint` to go on from.")
        return None
    file = CheckpointFile(path, steps.model, steps.guide, steps.optimizer, settings, steps.starts.parameters)
    if not resume:
        file.refuse_to_replace()
    elif file.path.exists():
        reached, steps.history = file.read(steps.best)
        logger.info("Resuming %s after %d of %d steps.", path, reached.step, reached.num_steps)
        if reached.num_steps != num_steps:
            logger.warning(
                "The fit was begun with num_steps=%d and goes on to %d: the learning rates of the steps to come are "
                "those of the new number.",
                reached.num_steps,
                num_steps,
            )
    else:
        logger.info("There is no checkpoint at %s yet: beginning anew.", path)
    return file
