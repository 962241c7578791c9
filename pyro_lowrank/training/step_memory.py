"""How much memory a step of a fit takes, told from shapes and from what tiny steps keep, before it is taken."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_lowrank.infer.elbo import SMC_ELBO
from pyro_lowrank.infer.gaussian import EKFEvidence
from pyro_lowrank.modules import own_values
from pyro_lowrank.observations.base import Emission
from pyro_lowrank.observations.driven import DrivenEmission
from pyro_lowrank.smc.gradients import FisherGradient
from pyro_lowrank.smc.kernels import bind
from pyro_lowrank.smc.pair import Pair
from pyro_lowrank.smc.runs import BuiltInRun, Paths
from pyro_lowrank.training.batches import Batch

# Lengths between which what a tiny step keeps grows as of a large one, along each axis.
_TINY = (2, 3)
# A recording is there as it came, as values and gaps, and as the loops read it.
_COPIES = 5
# What was kept for a backward pass, with what that makes on its way.
_BACKWARD = 1.35
# Arrays that tensor operations make, and let go of, for a likelihood of each feature, and compiled ones.
_BY_FEATURE, _BY_FEATURE_COMPILED = 8, 2
# Beside what is remembered, compiled arrays of paths for each feature.
_BY_REMEMBERED = 6
# Likewise for the units of a network.
_BY_UNIT = 4


class Extent(NamedTuple):
    """How large a step is: the numbers of trials, of time bins and of particles."""

    trials: int
    bins: int
    particles: int


def bytes_of_step(model: Any, guide: Any, elbo: SMC_ELBO | EKFEvidence, example: Batch, extent: Extent) -> int:
    """Return how many bytes a step takes beside the model, its data included.

    Args:
        model: that is fitted.
        guide: its guide.
        elbo: the objective; of its particles the number in `extent` counts.
        example: what the data are like; a few trials and time bins will do.
        extent: of the step.
    """
    size, rows = example.y.element_size(), extent.trials * extent.bins
    data = _COPIES * size * rows * sum(each.shape[-1] for each in example.arguments)
    run = _run(model, guide, elbo, example) if isinstance(elbo, SMC_ELBO) else None
    if not isinstance(elbo, SMC_ELBO) or run is None:
        kept = _extrapolated(partial(_of_step, model, guide, elbo, example), extent)
        return math.ceil(data + 2 * kept.history + _BACKWARD * kept.saved)
    rank, units = run.pair.transition.rank, getattr(model.dynamics, "units", 0)
    features = 0 if run.pair.affine_gaussian is not None else example.y.shape[-1]
    gradient = elbo.scheme.gradient
    particles = rows * extent.particles
    now = size * extent.trials * extent.particles * _BY_UNIT * (units + features)
    if not isinstance(gradient, FisherGradient):
        kept = _extrapolated(partial(_of_step, model, guide, elbo, example), extent)
        return math.ceil(data + _BACKWARD * kept.saved + size * particles * rank + now)
    along = partial(_along_paths, model, guide, elbo, example, gradient.num_paths)
    saved = _BACKWARD * _extrapolated(along, extent[:2]).saved
    on_paths = size * rows * gradient.num_paths
    if run.is_compiled:
        # Latents and means, weights, ancestors; beside them random numbers, twice, and those of the resampling.
        history = particles * (size * (2 * rank + 1) + 8)
        filtering = particles * size * (2 * rank + 3)
        order = _order(run.pair.emission)
        if order:
            # What particles remember before each bin and after the last, and how each bin is taken in.
            remembered = extent.trials * (extent.bins + 1) * extent.particles * order
            history += size * features * (remembered + rows * (2 + order + 3 * order * order))
        arrays = _BY_FEATURE_COMPILED + (order + _BY_REMEMBERED if order else 0)
        return math.ceil(data + history + max(filtering, saved + on_paths * arrays * features))
    kept = _extrapolated(partial(_of_step, model, guide, elbo, example), extent)
    # The allocator gives back a part only of what bins make and let go of: what stays lies between.
    left = size * particles * features
    later = saved + on_paths * (units + _BY_FEATURE * features)
    return math.ceil(data + 2 * kept.history + now + max(left, later))


def _order(emission: Emission) -> int:
    """Return how many numbers a particle remembers of each feature."""
    return emission.memory.drive.shape[-1] if isinstance(emission, DrivenEmission) else 0


class _Kept(NamedTuple):
    """Bytes that a step keeps for its backward pass, and bytes of what a filter keeps of its particles."""

    saved: float
    history: float


def _run(model: Any, guide: Any, elbo: SMC_ELBO, batch: Batch) -> BuiltInRun | None:
    """Return a run that is not begun, or None of a pair that the user has written."""
    with own_values(model, guide):
        through = elbo.scheme.gradient.along_particles
        bound = bind(model, guide, elbo.num_particles, elbo.max_plate_nesting, through_proposal=through)
        if not isinstance(bound, Pair):
            return None
        return BuiltInRun(bound, bound.read(*batch.arguments), elbo.num_particles, elbo.scheme, elbo.backend)


def _along_paths(
    model: Any, guide: Any, elbo: SMC_ELBO, example: Batch, num_paths: int, trials: int, bins: int
) -> _Kept:
    """Return what the density along paths keeps, told without a run of the filter."""
    saved = _Saved()
    with saved:
        run = _run(model, guide, elbo, _cut(example, trials, bins))
        assert run is not None
        z = example.y.new_zeros(num_paths, trials, bins, run.pair.transition.rank)
        run.log_density(Paths(z, torch.zeros_like(z)))
    return _Kept(saved.bytes, 0.0)


def _of_step(
    model: Any, guide: Any, elbo: SMC_ELBO | EKFEvidence, example: Batch, trials: int, bins: int, particles: int
) -> _Kept:
    """Return what a tiny step keeps."""
    tiny, batch = _with_particles(elbo, particles), _cut(example, trials, bins)
    saved = _Saved()
    with saved:
        _, history = tiny.loss_and_history(model, guide, *batch.arguments)
    states = getattr(history, "states", None) or {}
    held = [*states.values(), getattr(history, "log_weights", None), getattr(history, "ancestors", None)]
    return _Kept(saved.bytes, float(sum(each.nbytes for each in held if each is not None)))


def _with_particles(elbo: SMC_ELBO | EKFEvidence, number: int) -> SMC_ELBO | EKFEvidence:
    """Return an objective with another number of particles, which may die: the model need not suit the data yet."""
    if not isinstance(elbo, SMC_ELBO):
        return elbo
    tiny = copy.copy(elbo)
    tiny.num_particles, tiny.scheme = number, replace(elbo.scheme, allow_dead=True)
    return tiny


class _Saved(torch.autograd.graph.saved_tensors_hooks):
    """Within it, what is kept for a backward pass is added up, each piece of memory once."""

    def __init__(self) -> None:
        self._seen: dict[int, Tensor] = {}
        super().__init__(self._note, lambda value: value)

    def _note(self, value: Tensor) -> Tensor:
        # Held, so that no other takes its place.
        self._seen.setdefault(value.untyped_storage().data_ptr(), value)
        return value

    @property
    def bytes(self) -> float:
        """How much there is."""
        return float(sum(value.untyped_storage().nbytes() for value in self._seen.values()))


def _cut(example: Batch, trials: int, bins: int) -> Batch:
    """Return a batch of so many trials and time bins that is like another one."""
    rows = torch.arange(trials) % len(example.y)
    times = torch.arange(bins) % example.y.shape[1]
    y = example.y[rows][:, times]
    if example.y.isnan().any() and not y.isnan().any():
        y[0, 0, 0] = torch.nan
    return Batch(y, None if example.u is None else example.u[rows][:, times], rows, torch.zeros_like(rows))


def _extrapolated(measure: Callable[..., _Kept], sizes: Sequence[int]) -> _Kept:
    """Return what grows linearly along each axis, from what is measured at its two tiny lengths.

    Example::

        >>> _extrapolated(lambda trials, bins: _Kept(trials * (1.0 + 10 * bins), 0.0), (100, 1000)).saved
        1000100.0
    """
    low, high = _TINY
    axes = [((size, 1),) if size <= high else ((low, high - size), (high, size - low)) for size in sizes]
    saved = history = 0.0
    for corner in itertools.product(*axes):
        share, found = math.prod(weight for _, weight in corner), measure(*(length for length, _ in corner))
        saved, history = saved + share * found.saved, history + share * found.history
    return _Kept(saved, history)
