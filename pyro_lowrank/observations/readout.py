"""Readouts: from latents and inputs to one number per feature, before any link or noise."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from pyro_lowrank.errors import check_choice, check_indices, check_positive_int
from pyro_lowrank.modules import Module
from pyro_lowrank.parameters import parameter, remember_drawn
from pyro_lowrank.shapes import apply_matrix


class Units(Protocol):
    """What a readout from units needs of a network at fixed parameter values."""

    def currents(self, z: Tensor, v: Tensor | None = None) -> Tensor:
        """Return the currents, `... x units`."""

    def rates(self, z: Tensor, v: Tensor | None = None) -> Tensor:
        """Return the rates, `... x units`."""


@dataclass(frozen=True)
class AffineMap:
    r"""The readout C z + D v + b at fixed parameter values: `weight` C, `input_weight` D (or None), `bias` b."""

    weight: Tensor
    input_weight: Tensor | None
    bias: Tensor

    def offset(self, v: Tensor | None) -> Tensor:
        """Return D v + b, `... x features`."""
        if self.input_weight is None or v is None:
            return self.bias
        return self.bias + apply_matrix(self.input_weight, v)

    def __call__(self, z: Tensor, v: Tensor | None = None) -> Tensor:
        """Return the readout, `... x features`."""
        offset = self.offset(v)
        if self.weight.dim() == 2 and offset.dim() == 1:
            # One pass in place of two over what may be the largest tensor of a time bin.
            return functional.linear(z, self.weight, offset)
        return apply_matrix(self.weight, z) + offset


@dataclass(frozen=True)
class RatesMap:
    """The readout from the rates of the units at fixed parameter values: `scale * rates + bias`."""

    units: Units
    scale: Tensor
    bias: Tensor

    def __call__(self, z: Tensor, v: Tensor | None = None) -> Tensor:
        """Return the readout, `... x features`."""
        return self.scale * self.units.rates(z, v) + self.bias


class Readout(Module):
    """Base of the readouts."""

    features: int

    @abstractmethod
    def bind(self, units: Any) -> AffineMap | RatesMap:
        """Return the readout at the present parameter values of its own and of the network (a `Network`)."""

    def apply_basis(self, matrix: Tensor) -> None:
        """Read the same from latents z' = `matrix` z; the units' currents and rates do not depend on the basis."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Return the arguments that build a readout of the same form."""


def _parameter(module: nn.Module, name: str, value: Tensor, *, trainable: bool) -> None:
    if trainable:
        setattr(module, name, parameter(value))
    else:
        module.register_buffer(name, value)


class AffineReadout(Readout):
    r"""An affine function of the latents, and of the inputs if there are any: C z + D v + b.

    Args:
        rank: number of latents.
        features: number of features.
        inputs: number of input channels that the readout sees; 0 reads from the latents alone.
        latents: which latents it reads, by number; all if None. So the features of one brain region read its own.
        train_weight: whether C and D are trained.
        train_bias: whether b is trained.
        dtype: of the parameters; torch's default if None.
        device: of the parameters; torch's default if None.

    Example::

        >>> AffineReadout(rank=3, features=64).weight.shape
        torch.Size([64, 3])
        >>> AffineReadout(rank=3, features=64, latents=(0, 2)).bind(None).weight[0, 1]
        tensor(0., grad_fn=<SelectBackward0>)
    """

    weight: Tensor
    input_weight: Tensor
    bias: Tensor

    def __init__(
        self,
        *,
        rank: int,
        features: int,
        inputs: int = 0,
        latents: Sequence[int] | None = None,
        train_weight: bool = True,
        train_bias: bool = True,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.rank = check_positive_int("rank", rank)
        self.features = check_positive_int("features", features)
        self.num_inputs = check_positive_int("inputs", inputs, minimum=0)
        self.latents = None if latents is None else check_indices("latents", latents, below=self.rank)
        self.train_weight, self.train_bias = bool(train_weight), bool(train_bias)
        factory: dict[str, Any] = {"dtype": dtype, "device": device}
        read = rank if self.latents is None else len(self.latents)
        columns = read + inputs
        weight = torch.randn(features, columns, **factory) * (2 / columns) ** 0.5
        _parameter(self, "weight", weight[:, :read].clone(), trainable=self.train_weight)
        if inputs:
            _parameter(self, "input_weight", weight[:, read:].clone(), trainable=self.train_weight)
        _parameter(self, "bias", torch.zeros(features, **factory), trainable=self.train_bias)
        remember_drawn(self, "weight", *(("input_weight",) if inputs else ()))

    def bind(self, units: Any) -> AffineMap:
        """Return the readout at the present parameter values."""
        weight = self.weight
        if self.latents is not None:
            index = torch.tensor(self.latents, device=weight.device)
            weight = weight.new_zeros(*weight.shape[:-1], self.rank).index_copy(-1, index, weight)
        return AffineMap(weight, self.input_weight if self.num_inputs else None, self.bias)

    def apply_basis(self, matrix: Tensor) -> None:
        """Read the same from latents z' = `matrix` z.

        Raises:
            ValueError: if it reads some of the latents only: in another basis it would read them all.
        """
        if self.latents is not None:
            raise ValueError(
                f"A readout of latents {list(self.latents)} alone fixes their basis: no copy in another one reads the "
                "same. Build it without `latents` to change the basis."
            )
        with torch.no_grad():
            self.weight.copy_(torch.linalg.solve(matrix.to(self.weight), self.weight, left=False))

    def settings(self) -> dict[str, Any]:
        """Return the arguments that build a readout of the same form."""
        return {
            "rank": self.rank,
            "features": self.features,
            "inputs": self.num_inputs,
            "latents": self.latents,
            "train_weight": self.train_weight,
            "train_bias": self.train_bias,
        }


class UnitReadout(Readout):
    r"""One unit of the network per feature: s x + b, from its current x or its rate phi(x; h).

    Args:
        units: number of units, and of features.
        source: `"currents"` or `"rates"`.
        train_scale: whether s is trained; it starts at `scale`.
        train_bias: whether b is trained; it starts at `bias`.
        scale: of every feature before training.
        bias: of every feature before training.
        dtype: of the parameters; torch's default if None.
        device: of the parameters; torch's default if None.

    Example::

        >>> UnitReadout(units=20, source="currents", train_scale=False).scale.requires_grad
        False
    """

    scale: Tensor
    bias: Tensor

    def __init__(
        self,
        *,
        units: int,
        source: str = "currents",
        train_scale: bool = True,
        train_bias: bool = True,
        scale: float = 1.0,
        bias: float = 0.0,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.units = self.features = check_positive_int("units", units)
        self.source = check_choice("source", source, ("currents", "rates"))
        self.train_scale, self.train_bias = bool(train_scale), bool(train_bias)
        factory: dict[str, Any] = {"dtype": dtype, "device": device}
        _parameter(self, "scale", torch.full((units,), float(scale), **factory), trainable=self.train_scale)
        _parameter(self, "bias", torch.full((units,), float(bias), **factory), trainable=self.train_bias)

    def bind(self, units: Any) -> AffineMap | RatesMap:
        """Return the readout at the present parameter values of its own and of the network."""
        if self.source == "rates":
            return RatesMap(units, self.scale, self.bias)
        scale = self.scale.unsqueeze(-1)
        weight = torch.diag_embed(self.scale) if units.left is None else scale * units.left
        return AffineMap(weight, scale * units.input_weights if units.num_inputs else None, self.bias)

    def settings(self) -> dict[str, Any]:
        """Return the arguments that build a readout of the same form."""
        return {
            "units": self.units,
            "source": self.source,
            "train_scale": self.train_scale,
            "train_bias": self.train_bias,
        }
