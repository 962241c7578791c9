"""Giving parameters values, where they are trained."""

from __future__ import annotations

import torch
from torch import Tensor


def set_value(module: torch.nn.Module, name: str, value: Tensor) -> None:
    """Give a parameter a value, unless it is frozen or no parameter at all.

    Example::

        >>> import pyro_lowrank as plr
        >>> observation = plr.PoissonObservation(rank=1, features=2)
        >>> set_value(observation.readout, "bias", torch.ones(2))
        >>> observation.readout.bias.detach()
        tensor([1., 1.])
    """
    for stored in (name, f"{name}_unconstrained"):
        parameter = module._parameters.get(stored)
        if parameter is not None and parameter.requires_grad:
            setattr(module, name, value.clone())


def noise_scale_of(kind: str, covariance: Tensor) -> Tensor:
    """Return the value of a noise's scale, of a kind, at which it has a covariance, or one as near as the kind can.

    Example::

        >>> noise_scale_of("diagonal", torch.tensor([[4.0, 1.0], [1.0, 9.0]]))
        tensor([2., 3.])
    """
    variance = covariance.diagonal()
    if kind == "full":
        return torch.linalg.cholesky(covariance + 1e-6 * torch.diag_embed(variance))
    return variance.sqrt() if kind == "diagonal" else variance.mean().sqrt()
