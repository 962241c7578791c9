"""A recording, split once into its values and what is missing."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Observed:
    """A recording, or time bins of one.

    Attributes:
        y: the values, `... x features`, zero where missing.
        missing: where they are, or None if nowhere.
        log_volume: what is to be added to the log density of the values to make it that of the recording which they
            were made of, in nats, `...`; None if they are the recording.

    Example::

        >>> Observed.of(torch.tensor([[1.0, torch.nan]]))
        Observed(y=tensor([[1., 0.]]), missing=tensor([[False,  True]]), log_volume=None)
    """

    y: Tensor
    missing: Tensor | None
    log_volume: Tensor | None = None

    @classmethod
    def of(cls, y: Tensor) -> Observed:
        """Split a recording, whose missing entries are NaN."""
        missing = y.isnan()
        # Zero lies in the support of every built-in observation model.
        return cls(y.nan_to_num(nan=0.0), missing) if missing.any() else cls(y, None)

    @cached_property
    def present(self) -> Tensor:
        """One where an entry was recorded, else zero, `... x features`."""
        return torch.ones_like(self.y) if self.missing is None else (~self.missing).to(self.y.dtype)

    @cached_property
    def recorded(self) -> Tensor:
        """Where anything was recorded, `...`."""
        if self.missing is None:
            return torch.ones(self.y.shape[:-1], dtype=torch.bool, device=self.y.device)
        return ~self.missing.all(-1)

    @property
    def with_gaps(self) -> Tensor:
        """The recording as it came, NaN where missing."""
        return self.y if self.missing is None else self.y.masked_fill(self.missing, torch.nan)

    def hidden(self, unseen: Tensor) -> Observed:
        """Return the recording without some time bins, `... x 1`."""
        missing = unseen.expand(self.y.shape)
        missing = missing if self.missing is None else missing | self.missing
        volume = None if self.log_volume is None else self.log_volume.masked_fill(unseen.squeeze(-1), 0.0)
        return Observed(self.y.masked_fill(missing, 0.0), missing, volume)

    def detached(self) -> Observed:
        """Return the same, through which no gradient passes."""
        volume = None if self.log_volume is None else self.log_volume.detach()
        return Observed(self.y.detach(), self.missing, volume)

    def as_sequence(self) -> Observed:
        """Return a time bin `... x features` as a sequence of one, `... x 1 x features`."""
        missing = None if self.missing is None else self.missing.unsqueeze(-2)
        volume = None if self.log_volume is None else self.log_volume.unsqueeze(-1)
        return Observed(self.y.unsqueeze(-2), missing, volume)

    def time_in_front(self) -> Observed:
        """Return `trials x time x features` as `time x 1 x trials x features`, for paths at dim 1."""
        missing = None if self.missing is None else self.missing.movedim(1, 0).unsqueeze(1)
        volume = None if self.log_volume is None else self.log_volume.mT.unsqueeze(1)
        return Observed(self.y.movedim(1, 0).unsqueeze(1), missing, volume)

    def bins(self) -> list[Observed]:
        """Return its time bins, cut at dim -2."""
        values = self.y.unbind(-2)
        gaps = (None,) * len(values) if self.missing is None else self.missing.unbind(-2)
        volumes = (None,) * len(values) if self.log_volume is None else self.log_volume.unbind(-1)
        return [Observed(*each) for each in zip(values, gaps, volumes, strict=True)]

    @classmethod
    def joined(cls, bins: list[Observed]) -> Observed:
        """Return time bins as one sequence: what `bins` cuts."""
        y = torch.stack([each.y for each in bins], -2)
        gaps, volumes = [each.missing for each in bins], [each.log_volume for each in bins]
        nowhere = torch.zeros_like(bins[0].y, dtype=torch.bool)
        any_missing = any(gap is not None for gap in gaps)
        missing = torch.stack([nowhere if gap is None else gap for gap in gaps], -2) if any_missing else None
        known = [volume for volume in volumes if volume is not None]
        return cls(y, missing, torch.stack(known, -1) if known else None)
