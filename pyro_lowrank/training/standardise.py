"""Training on standardised features, and bringing the fitted model back to the units of the recording."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_lowrank.arrays import varies
from pyro_lowrank.observations.base import Observation
from pyro_lowrank.observations.gaussian import GaussianObservation
from pyro_lowrank.observations.readout import AffineReadout


@dataclass(frozen=True)
class Standardisation:
    r"""The map :math:`y' = (y - m) / s` of each feature, and what it does to a model.

    One learning rate suits all features only where they are of one size. A model of y' is turned into the same model
    of y exactly: :math:`C = s C',\ b = s b' + m,\ \sigma = s \sigma'`, and
    :math:`F = s F'` for noise that is shared.

    Args:
        mean: m, `features`, in the units of the recording.
        scale: s, `features`, in the units of the recording; 1 for a feature that never changes.

    Example::

        >>> y = torch.tensor([[[1.0, 10.0], [3.0, 10.0]]])
        >>> standardisation = Standardisation.of(y)
        >>> standardisation.apply(y)
        tensor([[[-1.,  0.],
                 [ 1.,  0.]]])
    """

    mean: Tensor
    scale: Tensor

    @classmethod
    def of(cls, y: Tensor) -> Standardisation:
        """Return the map that gives each feature of `y`, `trials x time x features`, mean 0 and variance 1."""
        low = y.nan_to_num(nan=torch.inf).amin((0, 1))
        high = y.nan_to_num(nan=-torch.inf).amax((0, 1))
        changes = varies(low, high)
        # Of the range, whose square neither overflows nor underflows.
        middle, span = low + (high - low) / 2, torch.where(changes, high - low, 1.0)
        unit = (y - middle) / span
        mean = unit.nanmean((0, 1))
        scale = span * (unit - mean).square().nanmean((0, 1)).sqrt()
        # A feature that never changes is its own mean, and one without any entry has none.
        constant = torch.where(low <= high, low, 0.0)
        return cls(torch.where(changes, middle + span * mean, constant), torch.where(changes, scale, 1.0))

    def apply(self, y: Tensor) -> Tensor:
        """Return the standardised recording."""
        return (y - self.mean) / self.scale

    def log_scale(self, y: Tensor) -> float:
        """Return by how much log p(y') exceeds log p(y), in nats per observed time bin."""
        seen = ~y.isnan()
        return float((seen * self.scale.log()).sum() / seen.any(-1).sum().clamp(min=1))

    def fold_into(self, observation: Observation) -> None:
        """Turn an observation model of the standardised recording into that of the recording itself, in place.

        Raises:
            TypeError: if it is not Gaussian with an affine readout, or has one noise for features of different units.
        """
        readout: Any = getattr(observation, "readout", None)
        gaussian = isinstance(observation, GaussianObservation) and isinstance(readout, AffineReadout)
        if not gaussian or (observation.noise_kind == "scalar" and bool((self.scale != self.scale[:1]).any())):
            raise TypeError(
                "Only a GaussianObservation with an affine readout and diagonal noise can be brought to other units, "
                f"got {observation!r}."
            )
        mean, scale = self.mean.to(readout.weight), self.scale.to(readout.weight)
        with torch.no_grad():
            readout.weight = scale.unsqueeze(-1) * readout.weight
            if readout.num_inputs:
                readout.input_weight = scale.unsqueeze(-1) * readout.input_weight
            readout.bias = scale * readout.bias + mean
            noise_scale = scale[0] if observation.noise_kind == "scalar" else scale
            observation.noise_scale = noise_scale * observation.noise_scale
            if observation.num_noise_factors:
                observation.noise_factors = scale.unsqueeze(-1) * observation.noise_factors
