"""Models whose features remember, and recordings of them with gaps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import pyro_lowrank as plr
from tests.oracles.linear import linear_model


def remembering(
    dtype: torch.dtype = torch.float64, *, order: int = 3, features: int = 4, noise_factors: int = 1, **options: Any
) -> plr.StateSpaceModel:
    """Build a linear model in general position whose features remember."""
    options = {"noise": "autoregressive", "order": order, "noise_factors": noise_factors} | options
    model = linear_model(features=features, dtype=dtype, **options)
    with torch.no_grad():
        for parameter in model.observation.autoregression.parameters():
            parameter.copy_(1.5 * torch.randn_like(parameter))
    return model


def gaps(y: Tensor) -> Tensor:
    """Leave out single entries, a feature's beginning and end, whole bins."""
    y = y.clone()
    y[0, 2, :2] = y[0, 3, 1] = y[0, :2, 3] = y[0, -1, 0] = y[1, 0] = y[1, 4:6] = torch.nan
    return y
