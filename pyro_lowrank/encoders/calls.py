"""How encoders are called: with a mask beside the recording, or without."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn


def call_encoder(encoder: nn.Module, y: Tensor, mask: Tensor) -> Any:
    """Run an encoder, with the mask if its `forward` takes a second argument.

    Args:
        encoder: a user's own, or one of this library.
        y: recording, `trials x time x features`, zero where missing.
        mask: of the same shape, one where recorded.
    """
    takes_mask = len(inspect.signature(encoder.forward).parameters) > 1
    return encoder(y, mask) if takes_mask else encoder(y)


def with_mask(y: Tensor, mask: Tensor | None) -> Tensor:
    """Return a recording with one more channel per feature, one where it is missing."""
    return torch.cat([y, torch.zeros_like(y) if mask is None else 1 - mask], -1)


def reach_of(encoder: nn.Module) -> tuple[int | None, int | None]:
    """Return how many time bins back and ahead of a bin an encoder reads, None for what it does not say."""
    return getattr(encoder, "lookback", None), getattr(encoder, "lookahead", None)
