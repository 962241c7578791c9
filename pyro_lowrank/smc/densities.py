"""Log densities of a user's sites: of normals compiled where that pays, of counts without what particles share."""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_lowrank.shapes import holds_numbers

# Below this many numbers tensor operations take no longer.
_WORTH_COMPILING = 10_000


def log_prob(density: Any, value: Any, *args: Any, **kwargs: Any) -> Tensor:
    """Return `density.log_prob(value, ...)`: the same numbers, sooner for independent normals and Poisson counts."""
    found = None
    if not args and not kwargs:
        found = _of_counts(density, value)
        found = _of_normals(density, value) if found is None and not torch.is_grad_enabled() else found
    return density.log_prob(value, *args, **kwargs) if found is None else found


def _of_counts(density: Any, value: Any) -> Tensor | None:
    """Return the log density of independent Poisson counts, whose ln y! particles share; None of anything else."""
    if type(density) is not dist.Independent or type(density.base_dist) is not dist.Poisson:
        return None
    rate = density.base_dist.rate
    if density.base_dist.is_sparse or not _broadcasts(value.shape, rate.shape):
        return None
    if density.base_dist._validate_args:
        density.base_dist._validate_sample(value)
    found = value.xlogy(rate) - rate - (value + 1).lgamma()
    return found.flatten(-density.reinterpreted_batch_ndims).sum(-1)


def _of_normals(density: Any, value: Any) -> Tensor | None:
    """Return the log density, or None where it is left to the tensor operations, which say what is wrong if any is."""
    if type(density) is not dist.Independent or type(density.base_dist) is not dist.Normal:
        return None
    location, scale = density.base_dist.loc, density.base_dist.scale
    if location.numel() < _WORTH_COMPILING or not all(map(_real_on_the_cpu, (value, location, scale))):
        return None
    if not value.dtype == location.dtype == scale.dtype or not _broadcasts(value.shape, location.shape):
        return None
    if torch.jit.is_tracing() or torch.compiler.is_compiling():
        return None
    # Deferred: importing Numba takes longer than the rest of the package.
    from pyro_lowrank.smc.compiled.normal import normal_log_prob

    batch, numbers = density.batch_shape, density.event_shape.numel()
    rows = (_different_rows(x, len(batch)).reshape(-1, numbers) for x in (value.expand_as(location), location, scale))
    found = normal_log_prob([x.contiguous().numpy() for x in rows], batch.numel())
    return torch.from_numpy(found).view(batch) if math.isfinite(found.sum()) else None


def _broadcasts(shape: torch.Size, target: torch.Size) -> bool:
    """Whether a shape can be expanded to another one."""
    if len(shape) > len(target):
        return False
    return all(m in (1, n) for m, n in zip(reversed(shape), reversed(target), strict=False))


def _real_on_the_cpu(x: Any) -> bool:
    return holds_numbers(x) and x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)


def _different_rows(x: Tensor, dims: int) -> Tensor:
    """Return a tensor without the repetition along the first of its `dims` leading dims."""
    for dim in range(dims):
        if x.stride(dim) != 0 and x.shape[dim] > 1:
            break
        x = x.narrow(dim, 0, 1)
    return x
