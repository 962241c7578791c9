"""What the Pyro handlers around a piece of code would do to its sites, and site names."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import am_i_wrapped
from torch import Tensor

from pyro_lowrank.observations.joint_distribution import JointDistribution
from pyro_lowrank.observations.recording import Recording
from pyro_lowrank.shapes import time_in_front

TRIALS = "trials"
"""Name of the plate over trials, at dim -1."""


@dataclass(frozen=True)
class Surroundings:
    """The scale and the plates, with their sizes, that the enclosing handlers would give to a sample site."""

    scale: float | Tensor
    plates: dict[str, int]


class _Probe(Messenger):
    seen: Surroundings

    def _pyro_post_sample(self, msg: Any) -> None:
        self.seen = Surroundings(msg["scale"], {frame.name: frame.size for frame in msg["cond_indep_stack"]})


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


def leave_out(distribution: dist.TorchDistribution, missing: Tensor) -> dist.TorchDistribution:
    """Return the distribution with missing entries integrated out: they add nothing to its log density.

    Args:
        distribution: of independent entries (`.to_event`), or of time bins that are missing all or none.
        missing: which entries of the value are, of the value's shape.

    Raises:
        ValueError: if single entries are missing and the distribution's entries are not independent.
    """
    if isinstance(distribution, Recording):
        return Recording(leave_out(distribution.bins, time_in_front(missing, len(distribution.batch_shape))))
    if isinstance(distribution, torch.distributions.Independent):
        return leave_out(distribution.base_dist, missing).to_event(distribution.reinterpreted_batch_ndims)
    if isinstance(distribution, JointDistribution):
        return distribution.map(leave_out, missing)
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
    """Sample a site, or observe it and leave out the NaN entries of `value`."""
    if value is None:
        return pyro.sample(name, distribution)
    missing = value.isnan()
    if not missing.any():
        return pyro.sample(name, distribution, obs=value)
    # Zero lies in the support of every built-in observation model; where it is left out its value is irrelevant.
    return pyro.sample(name, leave_out(distribution, missing), obs=value.nan_to_num(nan=0.0))
