"""Log densities of a user's sites: of normals compiled where that pays, of counts without what particles share."""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_lowrank.shapes import as_one_call, holds_numbers

# Families that are made of parameters of the shape of their batch.
_BY_PARAMETERS = {
    getattr(torch.distributions, name)
    for name in ("Bernoulli", "Binomial", "Exponential", "Gamma", "Laplace", "NegativeBinomial", "Normal", "Poisson")
} | {torch.distributions.StudentT}

# Below this many numbers tensor operations take no longer.
_WORTH_COMPILING = 10_000


def log_prob(density: Any, value: Any, *args: Any, **kwargs: Any) -> Tensor:
    """Return `density.log_prob(value, ...)`: the same numbers, sooner for independent normals and Poisson counts."""
    if args or kwargs:
        return density.log_prob(value, *args, **kwargs)
    few = _without_repetition(density)
    found = _of_counts(few, value)
    found = _of_normals(few, value) if found is None and not torch.is_grad_enabled() else found
    if found is None:
        found = few.log_prob(value)
    # What was repeated is repeated in the end.
    return found if few is density else found.expand(torch.broadcast_shapes(found.shape, density.batch_shape))


def _without_repetition(density: Any) -> Any:
    """Return a distribution without the dims of its batch along which plates have repeated it: they are of size 1."""
    base = density.base_dist if type(density) is dist.Independent else density
    if type(base).__mro__[1] not in _BY_PARAMETERS:
        return density
    values = {name: base.__dict__[name] for name in base.arg_constraints if name in base.__dict__}
    shape = base.batch_shape
    if not values or any(x.shape != shape for x in values.values()):
        return density
    dims = [d for d, n in enumerate(shape) if n > 1 and all(x.stride(d) == 0 for x in values.values())]
    dims = [d for d in dims if d < len(density.batch_shape)]
    if not dims:
        return density
    for d in dims:
        values = {name: x.narrow(d, 0, 1) for name, x in values.items()}
    few = type(base)(**values, validate_args=False)
    few._validate_args = base._validate_args
    return few if base is density else few.to_event(density.reinterpreted_batch_ndims)


def _of_counts(density: Any, value: Any) -> Tensor | None:
    """Return the log density of independent Poisson counts, whose ln y! particles share; None of anything else."""
    if type(density) is not dist.Independent or type(density.base_dist) is not dist.Poisson:
        return None
    rate = density.base_dist.rate
    if density.base_dist.is_sparse or not _broadcasts(value.shape, rate.shape):
        return None
    if density.base_dist._validate_args:
        density.base_dist._validate_sample(value)
    dims = density.reinterpreted_batch_ndims
    # In torch y ln r by `xlogy` takes ten times as long as the logarithm alone. 0 ln 0 is nothing.
    moved = torch.where(value == 0, 0.0, value * rate.log()) - rate
    shared = (value + 1).lgamma()
    if value.shape[-dims:] != rate.shape[-dims:]:
        return (moved - shared).flatten(-dims).sum(-1)
    return moved.flatten(-dims).sum(-1) - shared.flatten(-dims).sum(-1)


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
    return _compiled_normals(density, value, location, scale)


@as_one_call
def _compiled_normals(density: Any, value: Tensor, location: Tensor, scale: Tensor) -> Tensor:
    """Return the log density of independent normals, at this location and scale."""
    # Deferred: importing Numba takes longer than the rest of the package.
    from pyro_lowrank.smc.compiled.normal import normal_log_prob

    batch, numbers = density.batch_shape, density.event_shape.numel()
    rows = (_different_rows(x, len(batch)).reshape(-1, numbers) for x in (value.expand_as(location), location, scale))
    found = normal_log_prob([x.contiguous().numpy() for x in rows], batch.numel())
    if math.isfinite(found.sum()):
        return torch.from_numpy(found).view(batch)
    normal = dist.Normal(location, scale, validate_args=density.base_dist._validate_args)
    plain: Tensor = normal.to_event(density.reinterpreted_batch_ndims).log_prob(value)
    return plain


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
