"""Features that say nothing and trials of which nothing was recorded."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_lowrank.errors import warn_user


class Silence:
    """Gathers what is zero, or missing, throughout a recording that is seen in parts.

    Example::

        >>> silence = Silence()
        >>> silence.see(0, torch.tensor([[0.0, 1.0], [0.0, torch.nan]]))
        >>> silence.silent
        [0]
    """

    def __init__(self) -> None:
        self._quiet: Tensor | bool = True
        self._absent: Tensor | bool = True
        self._recorded: dict[int, bool] = {}
        self._features = 0

    def see(self, first: int, y: Tensor) -> None:
        """Take in a part of a trial, `time x features`, or trials from the `first` on, `trials x time x features`."""
        if not y.isnan().any():
            # As most are, and much faster.
            quiet = y.flatten(0, -2).abs().amax(0) == 0
            self._quiet, self._absent = quiet & self._quiet, torch.zeros_like(quiet)
            self._features = y.shape[-1]
            self._recorded.update(dict.fromkeys(range(first, first + (1 if y.dim() == 2 else len(y))), True))
            return
        missing = y.isnan()
        quiet, absent = ((y == 0) | missing).flatten(0, -2).all(0), missing.flatten(0, -2).all(0)
        self._quiet, self._absent = quiet & self._quiet, absent & self._absent
        self._features = y.shape[-1]
        for trial, empty in enumerate(missing.flatten(-2).all(-1).reshape(-1).tolist(), first):
            self._recorded[trial] = self._recorded.get(trial, False) or not empty

    @property
    def silent(self) -> list[int]:
        """Features that are zero wherever they were recorded."""
        assert isinstance(self._quiet, Tensor)
        return torch.as_tensor(self._quiet & ~torch.as_tensor(self._absent)).nonzero().flatten().tolist()

    def warn(self) -> None:
        """Warn of what works, and is a mistake as a rule."""
        silent = self.silent
        if silent:
            warn_user(
                f"{len(silent)} of {self._features} features are zero in every trial, {_listed(silent)}: nothing can "
                "be learned of them; leave them out, or check how they were recorded."
            )
        empty = [trial for trial, recorded in self._recorded.items() if not recorded]
        if empty:
            warn_user(
                f"{len(empty)} of {len(self._recorded)} trials hold NaN only, {_listed(empty)}: they count as trials "
                "of which nothing was recorded; leave them out if that is not what you want."
            )


def _listed(indices: list[int], most: int = 10) -> str:
    return f"number {', '.join(map(str, indices[:most]))}{', ...' if len(indices) > most else ''}"
