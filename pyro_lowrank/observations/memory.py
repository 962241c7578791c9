"""What features remember of their own past: the one seam at which a recording is turned into innovations and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from pyro_lowrank.observations.observed import Observed
from pyro_lowrank.observations.recording import RecordingDistribution


class Lags(NamedTuple):
    """What is known of the last bins of each feature, the latest first, given what was recorded of them.

    Attributes:
        mean: less the feature's mean, `... x features x order`.
        covariance: in units of the variance of an innovation, `... x features x order x order`.
    """

    mean: Tensor
    covariance: Tensor


class Outlook(NamedTuple):
    """What is expected of a time bin, or of all, before the latents have their say.

    An innovation x is the observation :math:`y = d + l + s (x - d)`, with d the feature's mean.

    Attributes:
        shift: l, `... x features`.
        scale: s, `... x features`; above 1 where past bins are not known, as at the beginning.
    """

    shift: Tensor
    scale: Tensor


class Memory(Protocol):
    """What features remember, at fixed parameter values."""

    @property
    def center(self) -> Tensor:
        """The mean of each feature where latents are zero, d, `features`."""

    @property
    def order(self) -> int:
        """How many bins are remembered."""

    def beginning(self, batch_shape: Sequence[int]) -> Lags:
        """Return what is known before anything was recorded: the stationary law."""

    def outlook(self, lags: Lags) -> Outlook:
        """Return what is expected of the next time bin."""

    def advance(self, lags: Lags, y: Tensor, missing: Tensor | None) -> Lags:
        """Return what is known after one more time bin, `... x features`."""

    def outlooks(self, seen: Observed) -> Outlook:
        """Return what is expected of each time bin of trials, `... x time x features`, given those before."""

    def lags_after(self, seen: Observed, last: Tensor) -> Lags:
        """Return what is known after time bin `last`, `trials`, of trials `trials x time x features`."""


def innovation(center: Tensor, outlook: Outlook, y: Tensor) -> Tensor:
    """Return the innovations of observations `... x features`; where nothing is remembered these, to the last digit."""
    shift, scale = outlook
    return y + (y - center) * (1 / scale - 1) - shift / scale


def observation(center: Tensor, outlook: Outlook, x: Tensor) -> Tensor:
    """Return the observations whose innovations are `... x features`."""
    shift, scale = outlook
    return x + (x - center) * (scale - 1) + shift


def innovations(memory: Memory, outlook: Outlook, seen: Observed) -> Observed:
    """Return the innovations of a recording, with the volume of the map to them."""
    found, log_scale = innovation(memory.center, outlook, seen.y), outlook.scale.log()
    if seen.missing is None:
        return Observed(found, None, -log_scale.sum(-1).expand(seen.y.shape[:-1]))
    log_volume = -log_scale.expand(seen.y.shape).masked_fill(seen.missing, 0.0).sum(-1)
    return Observed(found.masked_fill(seen.missing, 0.0), seen.missing, log_volume)


@dataclass(frozen=True)
class Past:
    """A recording of features that remember, and what was expected of it.

    Attributes:
        memory: what they remember.
        recording: as it came, `trials x time x features`.
        outlook: what was expected of each of its bins.
        before: what was known before the first bin; None for nothing.
    """

    memory: Memory
    recording: Observed
    outlook: Outlook
    before: Lags | None = None

    @classmethod
    def of(cls, memory: Memory, recording: Observed) -> Past:
        """Return the past of trials from their beginning."""
        return cls(memory, recording, memory.outlooks(recording))

    @classmethod
    def after(cls, memory: Memory, recording: Observed, before: Lags) -> Past:
        """Return the past of trials whose recording begins after bins that are remembered."""
        lags, found = before, []
        for bin_t in recording.bins():
            found.append(memory.outlook(lags))
            lags = memory.advance(lags, bin_t.y, bin_t.missing)
        shift, scale = (torch.stack(each, -2) for each in zip(*found, strict=True))
        return cls(memory, recording, Outlook(shift, scale), before)

    @property
    def innovations(self) -> Observed:
        """What the latents account for, `trials x time x features`."""
        return innovations(self.memory, self.outlook, self.recording)

    def at(self, time: int) -> Outlook:
        """Return what was expected of a time bin, `trials x features`."""
        shift, scale = (each.expand(self.recording.y.shape)[..., time, :] for each in self.outlook)
        return Outlook(shift, scale)

    def expected(self, x: Tensor, time: int) -> Tensor:
        """Return the observations of a time bin whose innovations are `... x trials x features`."""
        return observation(self.memory.center, self.at(time), x)

    def lags_after(self, last: Tensor) -> Lags:
        """Return what is known after time bin `last` of each trial, `trials`."""
        if self.before is None:
            return self.memory.lags_after(self.recording, last)
        lags, found = self.before, self.before
        for t, bin_t in enumerate(self.recording.bins()):
            lags = self.memory.advance(lags, bin_t.y, bin_t.missing)
            after = (last >= t).reshape(-1, 1, 1)
            found = Lags(
                torch.where(after, lags.mean, found.mean),
                torch.where(after.unsqueeze(-1), lags.covariance, found.covariance),
            )
        return found


def read(memory: Memory | None, y: Tensor) -> tuple[Observed, Past | None]:
    """Return what a filter sees of a recording `trials x time x features`, and the past of features that remember."""
    recording = Observed.of(y)
    if memory is None:
        return recording, None
    past = Past.of(memory, recording)
    return past.innovations, past


def roll(memory: Memory, x: Tensor, lags: Lags | None = None) -> Tensor:
    """Return the observations that innovations `... x time x features` lead to, after what is known, or from nothing.

    They are linear in the innovations, so that mean innovations lead to mean observations.
    """
    lags = memory.beginning(()) if lags is None else lags
    found = []
    for x_t in x.unbind(-2):
        found.append(observation(memory.center, memory.outlook(lags), x_t))
        lags = memory.advance(lags, found[-1], None)
    return torch.stack(found, -2)


class RememberedBin(TorchDistribution):
    """The distribution of a time bin, from that of its innovation.

    Shapes: those of the innovation's distribution.

    Args:
        white: of the innovation, event `features`.
        center: mean of each feature.
        outlook: what is expected of the bin.
        missing: entries that are integrated out, which `white` leaves out already; None for none.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012 (torch declares it so)
    support = constraints.real_vector

    def __init__(self, white: Any, center: Tensor, outlook: Outlook, missing: Tensor | None = None) -> None:
        self.white, self.center, self.outlook, self.missing = white, center, outlook, missing
        self.has_rsample = white.has_rsample
        batch = torch.broadcast_shapes(white.batch_shape, outlook.shift.shape[:-1])
        super().__init__(batch, white.event_shape, validate_args=False)

    def leave_out(self, missing: Tensor, marginal: Any) -> RememberedBin:
        """Return the distribution of the entries that are not missing; `marginal` leaves them out of the innovation."""
        return RememberedBin(marginal(self.white, missing), self.center, self.outlook, missing)

    def expand(
        self, batch_shape: torch.Size | list[int] | tuple[int, ...], _instance: RememberedBin | None = None
    ) -> RememberedBin:
        """Return the same distribution for a larger batch."""
        return RememberedBin(self.white.expand(torch.Size(batch_shape)), self.center, self.outlook, self.missing)

    @property
    def mean(self) -> Tensor:
        """The mean, `... x features`."""
        return observation(self.center, self.outlook, self.white.mean)

    @property
    def variance(self) -> Tensor:
        """The variance, `... x features`."""
        variance: Tensor = self.white.variance * self.outlook.scale.square()
        return variance

    def sample(self, sample_shape: torch.Size | list[int] | tuple[int, ...] = torch.Size()) -> Tensor:
        """Draw time bins."""
        with torch.no_grad():
            return observation(self.center, self.outlook, self.white.sample(torch.Size(sample_shape)))

    def rsample(self, sample_shape: torch.Size | list[int] | tuple[int, ...] = torch.Size()) -> Tensor:
        """Draw time bins, differentiable in the parameters."""
        return observation(self.center, self.outlook, self.white.rsample(torch.Size(sample_shape)))

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density of the entries that are there, in nats, `...`."""
        x, log_scale = innovation(self.center, self.outlook, value), self.outlook.scale.log()
        if self.missing is not None:
            x, log_scale = x.masked_fill(self.missing, 0.0), log_scale.masked_fill(self.missing, 0.0)
        found: Tensor = self.white.log_prob(x) - log_scale.sum(-1)
        return found


class RememberedRecording(TorchDistribution):
    """Distribution over recordings of features that remember their past, given the latents.

    Shapes: batch `... x trials`, event `time x features`.

    Args:
        white: distribution of the innovations, as if they were the recording.
        memory: what features remember.
        missing: entries that are integrated out, which `white` leaves out already; None for none.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012 (torch declares it so)

    def __init__(self, white: Any, memory: Memory, missing: Tensor | None = None) -> None:
        self.white, self.memory, self.missing = white, memory, missing
        self.has_rsample = white.has_rsample
        super().__init__(white.batch_shape, white.event_shape, validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        """Where recordings lie."""
        found: constraints.Constraint = self.white.support
        return found

    def leave_out(self, missing: Tensor, marginal: Any) -> RememberedRecording:
        """Return the distribution of the entries that are not missing; `marginal` leaves out innovations."""
        return RememberedRecording(marginal(self.white, missing), self.memory, missing)

    def expand(
        self, batch_shape: torch.Size | list[int] | tuple[int, ...], _instance: RememberedRecording | None = None
    ) -> RememberedRecording:
        """Return the same distribution for a larger batch."""
        return RememberedRecording(self.white.expand(torch.Size(batch_shape)), self.memory, self.missing)

    @property
    def mean(self) -> Tensor:
        """The mean, `... x trials x time x features`."""
        return roll(self.memory, self.white.mean)

    def sample(self, sample_shape: torch.Size | list[int] | tuple[int, ...] = torch.Size()) -> Tensor:
        """Draw recordings, `sample_shape x ... x trials x time x features`."""
        with torch.no_grad():
            return roll(self.memory, self.white.sample(torch.Size(sample_shape)))

    def rsample(self, sample_shape: torch.Size | list[int] | tuple[int, ...] = torch.Size()) -> Tensor:
        """Draw recordings, differentiable in the parameters."""
        return roll(self.memory, self.white.rsample(torch.Size(sample_shape)))

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density of recordings `... x time x features` in nats, `... x trials`."""
        missing = None if self.missing is None else self.missing.expand(value.shape)
        found = Past.of(self.memory, Observed(value, missing)).innovations
        assert found.log_volume is not None
        density: Tensor = self.white.log_prob(found.y) + found.log_volume.sum(-1)
        return density


def recording_of(bins: Any, memory: Memory | None) -> TorchDistribution:
    """Return the distribution of whole recordings, from that of time bins as of `RecordingDistribution`."""
    white = RecordingDistribution(bins)
    return white if memory is None else RememberedRecording(white, memory)
