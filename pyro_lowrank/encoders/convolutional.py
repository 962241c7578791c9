"""The convolutional encoder: what a window of the recording says of the latents."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from pyro.nn import PyroModule
from torch import Tensor, nn
from torch.nn import functional

from pyro_lowrank.encoders.beyond import MODES, extend, last_bins
from pyro_lowrank.encoders.calls import with_mask
from pyro_lowrank.errors import check_choice, check_positive_int
from pyro_lowrank.modules import Module
from pyro_lowrank.parameters import parameter

_ACTIVATIONS: dict[str, Any] = {
    "gelu": functional.gelu,
    "leaky_relu": partial(functional.leaky_relu, negative_slope=0.1),
    "relu": functional.relu,
    "tanh": torch.tanh,
}


class Convolution(Module):
    """A convolution over time, whose parameters are Pyro parameters."""

    weight: Tensor
    bias: Tensor

    def __init__(self, inputs: int, outputs: int, size: int, dtype: torch.dtype | None, device: Any) -> None:
        super().__init__()
        start = nn.Conv1d(inputs, outputs, size, dtype=dtype, device=device)
        assert start.bias is not None
        self.weight, self.bias = parameter(start.weight.detach()), parameter(start.bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        """Return `trials x outputs x time` from `trials x inputs x time`, shorter by the size less one."""
        return functional.conv1d(x, self.weight, self.bias)


class ConvEncoder(Module):
    r"""Convolutions over time, from a recording to the mean and log variance of a Gaussian of each latent.

    Args:
        features: number of features.
        rank: number of latents.
        kernel_sizes: of the layers, in time bins.
        channels: of the layers but the last.
        padding: `"causal"` looks at the past, `"acausal"` at the future, `"centred"` at both; the present always.
        padding_mode: what lies beyond a trial's recording: `"zeros"`, `"replicate"`, `"reflect"`, or `"circular"`, its
            other end. A window may be longer than the trial with the first two.
        activation: `"gelu"`, `"leaky_relu"` (of slope 0.1 below zero), `"relu"` or `"tanh"`.
        constant_variance: whether the variances are parameters, the same for all data.
        sees_mask: whether one more channel per feature tells the missing entries, which are zero otherwise.
        dtype: of the parameters; torch's default if None.
        device: of the parameters; torch's default if None.

    Example::

        >>> mean, log_variance = ConvEncoder(features=8, rank=2)(torch.randn(5, 30, 8))
        >>> mean.shape, log_variance.shape
        (torch.Size([5, 30, 2]), torch.Size([5, 30, 2]))

    References:
        Pals et al. (2024), NeurIPS.
    """

    log_variance: Tensor

    def __init__(
        self,
        features: int,
        rank: int,
        kernel_sizes: Sequence[int] = (21, 11, 1),
        channels: Sequence[int] = (64, 64),
        *,
        padding: str = "causal",
        padding_mode: str = "zeros",
        activation: str = "gelu",
        constant_variance: bool = False,
        sees_mask: bool = True,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.features = check_positive_int("features", features)
        self.rank = check_positive_int("rank", rank)
        self.kernel_sizes = tuple(check_positive_int("kernel_sizes", size) for size in kernel_sizes)
        self.channels = tuple(check_positive_int("channels", number) for number in channels)
        if len(self.kernel_sizes) != len(self.channels) + 1:
            raise ValueError(
                f"`channels` must have one entry less than `kernel_sizes`, got {self.channels} and {self.kernel_sizes}."
            )
        self.padding = check_choice("padding", padding, ("causal", "acausal", "centred"))
        self.padding_mode = check_choice("padding_mode", padding_mode, MODES)
        self.activation = check_choice("activation", activation, tuple(_ACTIVATIONS))
        self.constant_variance, self.sees_mask = bool(constant_variance), bool(sees_mask)
        widths = [features * (2 if sees_mask else 1), *self.channels, rank * (1 if constant_variance else 2)]
        container: Any = PyroModule[nn.ModuleList]
        self.layers: Any = container(
            Convolution(widths[i], widths[i + 1], size, dtype, device) for i, size in enumerate(self.kernel_sizes)
        )
        if constant_variance:
            self.log_variance = parameter(torch.zeros(rank, dtype=dtype, device=device))
        # One that goes round sees either end from the other: nothing is known to be out of reach.
        round_trip = self.padding_mode == "circular"
        self.lookback = None if round_trip else sum(self._reach(size)[0] for size in self.kernel_sizes)
        self.lookahead = None if round_trip else sum(self._reach(size)[1] for size in self.kernel_sizes)

    def _reach(self, size: int) -> tuple[int, int]:
        back = {"causal": size - 1, "acausal": 0, "centred": (size - 1) // 2}[self.padding]
        return back, size - 1 - back

    def forward(self, y: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return mean and log variance, each `trials x time x rank`.

        Args:
            y: recording, `trials x time x features`, zero where missing.
            mask: of the same shape, one where recorded and zero where missing; None where nothing is missing.
        """
        if self.padding_mode in ("reflect", "circular") and max(self.kernel_sizes) > y.shape[-2]:
            done = {"reflect": "reflected in", "circular": "wrapped around"}[self.padding_mode]
            raise ValueError(
                f"A window of {max(self.kernel_sizes)} time bins cannot be {done} trials of {y.shape[-2]}; use "
                'smaller `kernel_sizes` or padding_mode="zeros".'
            )
        last = None if mask is None else last_bins(mask)
        if self.sees_mask:
            y = with_mask(y, mask)
        x = y.mT
        for number, (layer, size) in enumerate(zip(self.layers, self.kernel_sizes, strict=True)):
            if number:
                x = _ACTIVATIONS[self.activation](x)
            x = layer(extend(x, self._reach(size), self.padding_mode, last))
        if self.constant_variance:
            return x.mT, self.log_variance.expand_as(x.mT)
        mean, log_variance = x.mT.chunk(2, -1)
        return mean, log_variance

    def settings(self) -> dict[str, Any]:
        """Return the arguments that build an encoder of the same form."""
        names = ("features", "rank", "kernel_sizes", "channels", "padding", "padding_mode", "activation")
        return {name: getattr(self, name) for name in (*names, "constant_variance", "sees_mask")}
