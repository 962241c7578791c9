"""Where windows start: as trials do, or, from the middle of a trial, at a distribution of their own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from pyro_lowrank.dynamics.base import Dynamics
from pyro_lowrank.models.state_space import StateSpaceModel
from pyro_lowrank.training.batches import Batch, Batches, Data, FirstAndOtherWindows, TrialBatches, WindowBatches
from pyro_lowrank.training.recipe import Recipe, recorded_lengths
from pyro_lowrank.training.setting import noise_scale_of, set_value
from pyro_lowrank.training.team import Team

_PARAMETERS = ("initial_mean_unconstrained", "initial_noise_scale_unconstrained")
# Fewer trials do not tell how trials start.
LEAST_TRIALS = 10
_SIMULATED = 1000
# Latents have run away whose mean square in the last quarter of a window is so many times that in the first.
_RAN_AWAY = 100.0


class OneStart:
    """All rows of a batch start from the model's initial distribution."""

    parameters: tuple[nn.Parameter, ...] = ()

    @property
    def settings(self) -> dict[str, int]:
        """What determines the numbers of a fit, beside its batches."""
        return {}

    @property
    def told(self) -> str:
        """What a fit says of it, if anything."""
        return ""

    def split(self, rows: list[slice]) -> list[slice]:
        """Return rows of parts of a batch, cut further where rows that start alike end."""
        return rows

    @contextmanager
    def of(self, rows: slice) -> Iterator[None]:
        """Let the model start, within it, where these rows of a batch do."""
        yield

    def begin(self, sample: Batch) -> None:
        """Give what windows start from its first values, of a model that has its own."""


class WindowStart(OneStart):
    r"""Windows from the middle of a trial start from a Gaussian of their own.

    A trial's first latents follow the model's :math:`N(\mu_1, \Sigma_1)`, and latents in the middle of a trial do not.
    With a second Gaussian :math:`N(\mu, \Sigma)` in its place for windows from there,

    .. math:: \sum_{\text{first windows}} \log p_{\theta, \mu_1, \Sigma_1}(y_{1:W})
       + \sum_{\text{other windows}} \log p_{\theta, \mu, \Sigma}(y_{s:s+W})

    is maximised: a composite likelihood, in which the second Gaussian stands for the marginal distribution of latents.
    It is trained beside the model and no part of it.

    Args:
        dynamics: whose initial distribution it stands in for.
        num_first: how many windows of each batch, its first ones, are the first of their trials.
        window: time bins per window.

    Example::

        >>> import pyro_lowrank as plr
        >>> WindowStart(plr.LowRankRNN(rank=2, units=9), num_first=2, window=50).split([slice(0, 5)])
        [slice(0, 2, None), slice(2, 5, None)]

    References:
        Varin, Reid and Firth (2011), "An overview of composite likelihood methods", Statistica Sinica 21:5.
    """

    def __init__(self, dynamics: Dynamics, num_first: int, window: int) -> None:
        self._dynamics, self._num_first, self._window = dynamics, num_first, window
        self.parameters = tuple(nn.Parameter(_held(dynamics, name).detach().clone()) for name in _PARAMETERS)

    @property
    def settings(self) -> dict[str, int]:
        """What determines the numbers of a fit, beside its batches."""
        return {"first_windows": self._num_first}

    @property
    def told(self) -> str:
        """What a fit says of it."""
        return (
            f"windows from the middle of a trial start from a distribution of their own; {self._num_first} of each "
            "batch are the first of their trials."
        )

    def split(self, rows: list[slice]) -> list[slice]:
        """Return rows of parts of a batch, cut further where the first windows of trials end."""
        cut = [slice(part.start, min(part.stop, self._num_first)) for part in rows]
        cut += [slice(max(part.start, self._num_first), part.stop) for part in rows]
        return sorted((part for part in cut if part.start < part.stop), key=lambda part: part.start)

    @contextmanager
    def of(self, rows: slice) -> Iterator[None]:
        """Let the model start, within it, where these rows of a batch do."""
        with nullcontext() if rows.start < self._num_first else self.in_place():
            yield

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Put it, within this context, in the place of the model's initial distribution."""
        held = self._dynamics._parameters
        own = {name: held[name] for name in _PARAMETERS}
        held.update(zip(_PARAMETERS, self.parameters, strict=True))
        try:
            yield
        finally:
            held.update(own)

    @torch.no_grad()
    def begin(self, sample: Batch) -> None:
        """Let windows start where the model's own latents are, as it stands, over the length of a window.

        Where these run away they tell nothing, and windows start as trials do.

        Args:
            sample: of the recording, whose inputs drive the model.
        """
        number = max(1, _SIMULATED // self._window)
        u = None if sample.u is None else sample.u[:number, : self._window]
        trajectory = self._dynamics.trajectory(self._window if u is None else u.shape[1], u)
        z = trajectory.sample(() if u is not None else (number,)).double()
        quarter = max(1, z.shape[-2] // 4)
        early, late = (part.square().mean() for part in (z[..., :quarter, :], z[..., -quarter:, :]))
        # Where numbers are not finite this is false, too.
        if not bool(late <= _RAN_AWAY * early):
            return
        z = z.flatten(0, -2)
        covariance = torch.cov(z.mT).reshape(2 * z.shape[-1:])
        if len(z) <= z.shape[-1] or bool(torch.linalg.cholesky_ex(covariance).info):
            return
        like = self.parameters[0]
        scale = noise_scale_of(self._dynamics.initial_noise_kind, covariance)
        with self.in_place():
            set_value(self._dynamics, "initial_mean", z.mean(0).to(like))
            set_value(self._dynamics, "initial_noise_scale", scale.to(like))


def _held(dynamics: Dynamics, name: str) -> Any:
    return dynamics._parameters.get(name)


def batches_of(model: Any, data: Data, recipe: Recipe, seed: int, team: Team) -> tuple[Batches, OneStart]:
    """Return the minibatches of a fit, and where their rows start.

    Where trials are enough to tell how trials start, windows have a start of their own, and the share of first windows
    in a batch is that of trials cut into windows without gaps.
    """
    if recipe.window is None:
        return TrialBatches(data, batch_size=recipe.batch_size, seed=seed, team=team), OneStart()
    batches = WindowBatches(data, window=recipe.window, batch_size=recipe.batch_size, seed=seed, team=team)
    trials, size = len(batches.places[:, 0].unique()), batches.batch_size
    known = isinstance(model, StateSpaceModel) and all(_held(model.dynamics, name) is not None for name in _PARAMETERS)
    if not known or trials < LEAST_TRIALS or trials == len(batches.places) or size < 2:
        return batches, OneStart()
    share = trials * batches.window / int(recorded_lengths(data.observed).sum())
    num_first = min(max(1, round(share * size)), size - 1)
    parted = FirstAndOtherWindows(
        data, window=batches.window, batch_size=size, num_first=num_first, seed=seed, team=team
    )
    return parted, WindowStart(model.dynamics, num_first, batches.window)
