"""What the Pyro handlers around a piece of code would do to its sites, and site names."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.util import scale_and_mask
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import _DIM_ALLOCATOR, _PYRO_STACK, am_i_wrapped
from pyro.poutine.trace_messenger import TraceMessenger
from torch import Tensor

from pyro_lowrank.observations.gaps import KnowsMarginals, WithGaps
from pyro_lowrank.observations.recording import RecordingDistribution
from pyro_lowrank.shapes import time_in_front

TRIALS = "trials"
"""Name of the plate over trials, at dim -1."""


@dataclass(frozen=True)
class Surroundings:
    """What the enclosing handlers would give to a sample site.

    Attributes:
        scale: of its log density.
        plates: sizes by name.
        mask: which entries of its log density count; None for all.
        vectorised: the frames of those plates that are dims of the site, not iterated over.
    """

    scale: float | Tensor
    plates: dict[str, int]
    mask: bool | Tensor | None = field(default=None, repr=False)
    vectorised: tuple[Any, ...] = field(default=(), repr=False)

    def applied_to(self, log_evidence: Tensor) -> Tensor:
        """Return log evidences, `(trials)`, scaled and masked as a site's log density would be.

        Raises:
            ValueError: if the mask is for something else than trials.
        """
        if isinstance(self.mask, Tensor):
            # A mask of more than the trials would count them several times.
            fits = self.mask.dim() <= log_evidence.dim() and self.mask.shape[-1:] in ((), (1,), log_evidence.shape)
            if not fits:
                raise ValueError(
                    f"A mask around a particle filter says which trials count, {tuple(log_evidence.shape)}, got shape "
                    f"{tuple(self.mask.shape)}; missing entries of the data are NaN."
                )
        unscaled = isinstance(self.scale, float) and self.scale == 1.0
        return scale_and_mask(log_evidence if unscaled else self.scale * log_evidence, mask=self.mask)


class _Probe(Messenger):
    seen: Surroundings

    def _pyro_post_sample(self, msg: Any) -> None:
        frames = msg["cond_indep_stack"]
        wide = tuple(frame for frame in frames if frame.vectorized)
        self.seen = Surroundings(msg["scale"], {frame.name: frame.size for frame in frames}, msg["mask"], wide)


class _Curtain(Messenger):
    """Keeps every message but those of parameters from the handlers around."""

    def _process_message(self, msg: Any) -> None:
        msg["stop"] = msg["type"] != "param"


@contextmanager
def invisible() -> Iterator[None]:
    """Within it, what a program samples, observes and opens plates for is seen by no handler around; parameters are.

    So handlers around a particle filter mean the same whoever has written the model: they see one log evidence.

    Example::

        >>> with pyro.poutine.trace() as recorder, invisible(), pyro.plate("trials", 3):
        ...     x = pyro.sample("x", dist.Normal(0.0, 1.0), obs=torch.zeros(3))
        >>> list(recorder.trace.nodes)
        []
    """
    # Plates around would claim their dims and names here, too.
    around, _DIM_ALLOCATOR._stack = _DIM_ALLOCATOR._stack, []
    try:
        with _Curtain():
            yield
    finally:
        _DIM_ALLOCATOR._stack = around


def is_recorded() -> bool:
    """Whether the code runs in a Pyro program whose sites are recorded, as under SVI's ELBOs, MCMC and `Predictive`.

    Example::

        >>> with pyro.poutine.trace():
        ...     is_recorded()
        True
    """
    for handler in reversed(_PYRO_STACK):
        if isinstance(handler, _Curtain):
            return False
        if isinstance(handler, TraceMessenger) and not handler.param_only:
            return True
    return False


def check_one_draw(*, summed: bool = False) -> None:
    """Raise where a particle filter in a Pyro program would meet several draws of the program at once.

    Args:
        summed: whether it returns one number for all trials, which a plate over these would count once for each.

    Raises:
        ValueError: if a vectorised plate is around.
    """
    if not is_recorded():
        return
    for frame in surroundings().vectorised:
        name, size = frame.name, frame.size
        if name != TRIALS and size > 1:
            raise ValueError(
                f"A particle filter runs for one draw of a Pyro program at a time, and the plate {name!r} of size "
                f"{size} is around it: its draws would line up with the particles or trials. Draw one by one: "
                "Trace_ELBO(vectorize_particles=False), Predictive(parallel=False), or `for i in pyro.plate(...)`."
            )
        if name == TRIALS and summed and size > 1:
            raise ValueError(
                f"The loss is a sum over trials, which a site in the plate {TRIALS!r} around it would count {size} "
                "times: take one number per trial, pyro.factor('evidence', elbo.log_evidence(model, guide, y))."
            )


def surroundings() -> Surroundings:
    """Return what the enclosing handlers would do to a sample site here, leaving no site behind.

    Example::

        >>> with pyro.poutine.scale(scale=0.5), pyro.plate("trials", 3):
        ...     surroundings()
        Surroundings(scale=0.5, plates={'trials': 3})
    """
    if not am_i_wrapped():
        return Surroundings(1.0, {})
    with _Probe() as probe:
        pyro.sample(
            "_surroundings",
            dist.Delta(torch.zeros(())),
            infer={"_do_not_trace": True, "is_auxiliary": True},
        )
    return probe.seen


def trials_plate(num_trials: int | None) -> AbstractContextManager[Any]:
    """Return the plate over trials, or nothing where one is already around (as under subsampling).

    Args:
        num_trials: number of trials, or None where nothing tells: as many as the plate around, or one.

    Raises:
        ValueError: if the plate around has another number of trials.
    """
    around = surroundings().plates.get(TRIALS)
    if around is None:
        return pyro.plate(TRIALS, 1 if num_trials is None else num_trials, dim=-1)
    if num_trials not in (None, around):
        raise ValueError(
            f"The plate {TRIALS!r} around the model has {around} trials, the data {num_trials}; pass the data of the "
            f"plate's trials: `with pyro.plate({TRIALS!r}, ...) as index: model(y[index])`."
        )
    return nullcontext()


def check_plates(name: str, batch_shape: torch.Size) -> None:
    """Raise unless the leading dims of data, `... x trials`, are those of plates around.

    Raises:
        ValueError: if there is no plate of that size at some dim.
    """
    sizes = {frame.dim: frame.size for frame in surroundings().vectorised}
    for dim, size in enumerate(reversed(batch_shape[:-1]), start=2):
        if size not in (1, sizes.get(-dim)):
            raise ValueError(
                f"`{name}` has {size} entries in the dim before trials or further ahead, {tuple(batch_shape)} in all, "
                f"and no plate of that size at dim {-dim} is around the model: with pyro.plate('animals', {size}, "
                f"dim={-dim}): model(...)."
            )


def leave_out(distribution: dist.TorchDistribution, missing: Tensor) -> dist.TorchDistribution:
    """Return the distribution with missing entries integrated out: they add nothing to its log density.

    Args:
        distribution: of independent entries (`.to_event`), or one that knows its marginals, or of time bins that are
            missing all or none.
        missing: which entries of the value are, of the value's shape.

    Raises:
        ValueError: if single entries are missing and the distribution's entries are not independent.
    """
    if isinstance(distribution, RecordingDistribution):
        return RecordingDistribution(
            leave_out(distribution.bins, time_in_front(missing, len(distribution.batch_shape)))
        )
    if isinstance(distribution, torch.distributions.Independent):
        return leave_out(distribution.base_dist, missing).to_event(distribution.reinterpreted_batch_ndims)
    if isinstance(distribution, KnowsMarginals):
        return distribution.leave_out(missing, leave_out)
    event_dim = distribution.event_dim
    if event_dim == 0:
        return distribution.mask(~missing)
    all_missing = missing.flatten(-event_dim).all(-1)
    if (missing.flatten(-event_dim).any(-1) != all_missing).any():
        raise ValueError(
            f"Single entries are missing (NaN), and the entries of a {type(distribution).__name__} cannot be left out "
            "one by one; use a distribution with independent features (`.to_event(1)`)."
        )
    return distribution.mask(~all_missing)


def observe(name: str, distribution: dist.TorchDistribution, value: Tensor | None) -> Tensor:
    """Sample a site, or observe it and leave out the NaN entries of `value`.

    The value of the site keeps them, but where only values are asked for, as by `Predictive`: there they are drawn.
    """
    if value is None:
        return pyro.sample(name, distribution)
    missing = value.isnan()
    if not missing.any():
        return pyro.sample(name, distribution, obs=value)
    # `Predictive` masks all sites: it wants no densities.
    if surroundings().mask is False:
        value = torch.where(missing, distribution.sample(), value)
    return pyro.sample(name, WithGaps(leave_out(distribution, missing), missing), obs=value)
