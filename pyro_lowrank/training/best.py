"""The model that was best on held-out data, among those that a fit went through."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from pyro_lowrank.serialization import check_state, restore_state, state_of


class Best:
    """Keeps the parameters that had the most held-out evidence.

    Args:
        model: what is fitted.
        guide: its guide; one that is no module has no parameters.

    Example::

        >>> import torch
        >>> best, model = Best(layer := nn.Linear(1, 1), None), layer
        >>> best.see(-1.0, step=0)
        >>> _ = layer.weight.data.add_(1.0)
        >>> best.see(-2.0, step=10)
        >>> best.put_back(), best.step
        (True, 0)
    """

    def __init__(self, model: Any, guide: Any) -> None:
        self._model = model
        self._guide = guide if isinstance(guide, nn.Module) else None
        self.step = 0
        self._evidence = -float("inf")
        self.tensors: Mapping[str, Tensor] = {}

    def see(self, evidence: float, *, step: int) -> None:
        """Keep the present parameters if their held-out evidence is the highest."""
        if evidence > self._evidence:
            self._evidence, self.step, self.tensors = evidence, step, state_of(self._model, self._guide)

    def remember(self, evidence: float, *, step: int, tensors: Mapping[str, Tensor]) -> None:
        """Take over what a fit that is resumed had kept.

        Raises:
            ValueError: if the tensors do not fit the model.
        """
        check_state(tensors, self._model, self._guide)
        self._evidence, self.step, self.tensors = evidence, step, tensors

    def put_back(self) -> bool:
        """Give the model the parameters that are kept; return whether there are any."""
        if self.tensors:
            restore_state(self.tensors, self._model, self._guide)
        return bool(self.tensors)
