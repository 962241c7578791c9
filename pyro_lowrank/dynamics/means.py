"""The means of the next latents without gradients: compiled where that can be had and pays."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pyro_lowrank.compilation import HAS_NUMBA, NO_NUMBA
from pyro_lowrank.dynamics.transition import Transition

Mean = Callable[[Tensor, Tensor | None], Tensor]

# Below this many evaluations of a unit tensor operations take no longer than copying the weights.
_WORTH_COMPILING = 50_000


def compiled_mean(transition: Transition) -> Mean | str:
    """Return a compiled `Transition.mean`, without gradients, or why there is none."""
    if not HAS_NUMBA:
        return NO_NUMBA
    # Deferred: importing Numba takes longer than the rest of the package.
    from pyro_lowrank.dynamics.compiled.mean import CompiledMean
    from pyro_lowrank.dynamics.compiled.network import obstacle_of_network

    reason = obstacle_of_network(transition)
    return CompiledMean(transition) if reason is None else reason


def next_mean(transition: Transition, z: Tensor, v: Tensor | None) -> Tensor:
    """Return `Transition.mean`, compiled where no gradient is asked for and there are many latents."""
    mean = compiled_mean(transition) if _pays(transition, z, v) else transition.mean
    return transition.mean(z, v) if isinstance(mean, str) else mean(z, v)


def _pays(transition: Transition, z: Tensor, v: Tensor | None) -> bool:
    if torch.is_grad_enabled() or torch.jit.is_tracing() or torch.compiler.is_compiling():
        return False
    if transition.bias.shape[-1] * z[..., 0].numel() < _WORTH_COMPILING:
        return False
    inputs = () if v is None else (v,)
    dims = (transition.rank, transition.num_inputs)
    # What does not fit is left to the tensor operations, which say why.
    return all(_holds_numbers(x, transition) and x.shape[-1] == dim for x, dim in zip((z, *inputs), dims, strict=False))


def _holds_numbers(x: Tensor, transition: Transition) -> bool:
    """Whether a tensor holds numbers that the weights can be applied to; inside torch's transforms it does not."""
    same = x.dtype == transition.right.dtype and x.device == transition.right.device
    return same and type(x) is Tensor and not torch._C._functorch.is_functorch_wrapped_tensor(x)
