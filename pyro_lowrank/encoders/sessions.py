"""An encoder with an input layer for each session."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pyro.nn import PyroModule
from torch import Tensor, nn

from pyro_lowrank.encoders.calls import call_encoder
from pyro_lowrank.errors import check_positive_int
from pyro_lowrank.modules import Module
from pyro_lowrank.parameters import parameter


class InputLayer(Module):
    """A linear map of one session's features, whose parameters are Pyro parameters."""

    weight: Tensor
    bias: Tensor

    def __init__(self, features: int, outputs: int, dtype: torch.dtype | None, device: Any) -> None:
        super().__init__()
        start = nn.Linear(features, outputs, dtype=dtype, device=device)
        self.weight, self.bias = parameter(start.weight.detach()), parameter(start.bias.detach())

    def forward(self, y: Tensor, recorded: Tensor) -> Tensor:
        """Return `trials x time x outputs`, zero in bins of which nothing was recorded, `trials x time x 1`."""
        return y @ self.weight.mT + recorded * self.bias


class SessionEncoder(Module):
    r"""Brings each session's features into one space, in which the sessions share an encoder.

    .. math:: \mu_t, \log s_t^2 = \mathrm{encoder}(W_s y_t + b_s) \quad \text{for a trial of session } s

    Args:
        sessions: number of features by session, in the order of the `MultiSession`.
        encoder: of the common space, which has as many dims as it has `features`.
        dtype: of the input layers; torch's default if None.
        device: of the input layers; torch's default if None.

    Raises:
        ValueError: if there is no session, or the encoder does not say how many features it takes.

    Example::

        >>> import pyro_lowrank as plr
        >>> sessions = plr.MultiSession({
        ...     "monday": plr.PoissonObservation(rank=2, features=40),
        ...     "tuesday": plr.PoissonObservation(rank=2, features=25),
        ... })
        >>> model = plr.StateSpaceModel(plr.LowRankRNN(rank=2, units=50), sessions)
        >>> encoder = SessionEncoder({"monday": 40, "tuesday": 25}, plr.ConvEncoder(features=16, rank=2))
        >>> guide = plr.EncoderGuide(model, encoder)
    """

    def __init__(
        self,
        sessions: Mapping[str, int],
        encoder: nn.Module,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        if not sessions:
            raise ValueError("`sessions` must hold the number of features of at least one session, by name.")
        if not isinstance(encoder, nn.Module) or not hasattr(encoder, "features"):
            raise ValueError(
                "`encoder` must be a torch.nn.Module with an attribute `features`, the dims of the space that sessions "
                f"share, got {type(encoder).__name__}."
            )
        self.sessions = {name: check_positive_int(f"sessions[{name!r}]", size) for name, size in sessions.items()}
        self.features = sum(self.sessions.values())
        container: Any = PyroModule[nn.ModuleList]
        self.inputs: Any = container(
            InputLayer(size, encoder.features, dtype, device)  # type: ignore[arg-type]
            for size in self.sessions.values()
        )
        self.encoder = encoder
        for name in ("rank", "lookback", "lookahead"):
            if hasattr(encoder, name):
                setattr(self, name, getattr(encoder, name))

    def forward(self, y: Tensor, mask: Tensor) -> Any:
        """Return mean and log variance, each `trials x time x rank`.

        Args:
            y: recording, `trials x time x features`, zero where missing.
            mask: of the same shape, one where recorded.
        """
        sizes = list(self.sessions.values())
        common, anything = torch.zeros((), dtype=y.dtype, device=y.device), mask[..., :1] * 0
        for layer, piece, seen in zip(self.inputs, y.split(sizes, -1), mask.split(sizes, -1), strict=True):
            # Bin by bin, so that what is seen online does not depend on other bins.
            recorded = seen.amax(-1, keepdim=True)
            common, anything = common + layer(piece, recorded), torch.maximum(anything, recorded)
        return call_encoder(self.encoder, common, anything.expand_as(common))

    def settings(self) -> dict[str, Any]:
        """Return the arguments that build an encoder of the same form."""
        return {"sessions": self.sessions, "encoder": self.encoder}
