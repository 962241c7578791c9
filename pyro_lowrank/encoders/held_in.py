"""An encoder that sees some features only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pyro_lowrank.encoders.calls import call_encoder
from pyro_lowrank.errors import check_indices
from pyro_lowrank.modules import Module


class HeldIn(Module):
    r"""Shows an encoder the held-in features of a recording only, whose likelihood covers all: co-smoothing.

    Fitted so, the latents that the encoder infers from some neurons must explain the others too. To predict these, run
    the filter with the held-out features missing, so that neither the encoder nor the weights see them:
    `y[..., held_out] = nan`, `SMCFilter(model, guide, ...).run(y).predict()`.

    Args:
        encoder: of the held-in features: to mean and log variance, as for `EncoderGuide`.
        held_in: their indices among all features, as of `pyro_lowrank.data.split_features`.

    Raises:
        ValueError: if the indices are not distinct, or not as many as the encoder's features.

    Example::

        >>> import pyro_lowrank as plr
        >>> encoder = HeldIn(plr.ConvEncoder(features=30, rank=2), held_in=range(30))
        >>> model = plr.StateSpaceModel(plr.LowRankRNN(rank=2, units=50), plr.PoissonObservation(rank=2, features=40))
        >>> guide = plr.EncoderGuide(model, encoder)

    References:
        Pei, Ye et al. (2021), "Neural Latents Benchmark '21", NeurIPS Datasets and Benchmarks.
    """

    def __init__(self, encoder: nn.Module, held_in: Sequence[int]) -> None:
        super().__init__()
        if not isinstance(encoder, nn.Module):
            raise TypeError(f"`encoder` must be a torch.nn.Module, got {type(encoder).__name__}.")
        self.held_in = check_indices("held_in", held_in)
        expected = getattr(encoder, "features", len(self.held_in))
        if expected != len(self.held_in):
            raise ValueError(
                f"`held_in` must hold as many features as the encoder has, {expected}, got {len(self.held_in)}."
            )
        self.encoder = encoder
        for name in ("rank", "lookback", "lookahead"):
            if hasattr(encoder, name):
                setattr(self, name, getattr(encoder, name))

    def forward(self, y: Tensor, mask: Tensor) -> Any:
        """Return what the encoder does of the held-in features.

        Args:
            y: recording, `trials x time x features`, zero where missing.
            mask: of the same shape, one where recorded.
        """
        if max(self.held_in) >= y.shape[-1]:
            raise ValueError(
                f"`held_in` must hold indices of the {y.shape[-1]} features of the recording, got {max(self.held_in)}."
            )
        index = torch.tensor(self.held_in, device=y.device)
        return call_encoder(self.encoder, y.index_select(-1, index), mask.index_select(-1, index))

    def settings(self) -> dict[str, Any]:
        """Return the arguments that build an encoder of the same form."""
        return {"encoder": self.encoder, "held_in": self.held_in}
