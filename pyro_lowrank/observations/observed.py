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

    Example::

        >>> Observed.of(torch.tensor([[1.0, torch.nan]]))
        Observed(y=tensor([[1., 0.]]), missing=tensor([[False,  True]]))
    """

    y: Tensor
    missing: Tensor | None

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
        return Observed(self.y.masked_fill(missing, 0.0), missing)

    def bins(self) -> list[Observed]:
        """Return its time bins, cut at dim -2."""
        values = self.y.unbind(-2)
        gaps = (None,) * len(values) if self.missing is None else self.missing.unbind(-2)
        return [Observed(*each) for each in zip(values, gaps, strict=True)]
