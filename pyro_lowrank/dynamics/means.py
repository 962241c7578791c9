"""The means of the next latents without gradients: compiled where that can be had and pays."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pyro_lowrank.compilation import HAS_NUMBA, NO_NUMBA
from pyro_lowrank.dynamics.network import Network
from pyro_lowrank.shapes import holds_numbers

Mean = Callable[[Tensor, Tensor | None], Tensor]

# Below this many evaluations of a unit tensor operations take no longer than copying the weights.
_WORTH_COMPILING = 50_000


def compiled_mean(network: Network) -> Mean | str:
    """Return a compiled `Network.mean`, without gradients, or why there is none."""
    if not HAS_NUMBA:
        return NO_NUMBA
    # Deferred: importing Numba takes longer than the rest of the package.
    from pyro_lowrank.dynamics.compiled.mean import CompiledMean
    from pyro_lowrank.dynamics.compiled.network import obstacle_of_network

    reason = obstacle_of_network(network)
    return CompiledMean(network) if reason is None else reason


def next_mean(network: Network, z: Tensor, v: Tensor | None) -> Tensor:
    """Return `Network.mean`, compiled where no gradient is asked for and there are many latents."""
    mean = compiled_mean(network) if _pays(network, z, v) else network.mean
    return network.mean(z, v) if isinstance(mean, str) else mean(z, v)


def _pays(network: Network, z: Tensor, v: Tensor | None) -> bool:
    if torch.is_grad_enabled() or torch.jit.is_tracing() or torch.compiler.is_compiling():
        return False
    if network.bias.shape[-1] * z[..., 0].numel() < _WORTH_COMPILING:
        return False
    inputs = () if v is None else (v,)
    dims = (network.rank, network.num_inputs)
    # What does not fit is left to the tensor operations, which say why.
    return all(_fits(x, network) and x.shape[-1] == dim for x, dim in zip((z, *inputs), dims, strict=False))


def _fits(x: Tensor, network: Network) -> bool:
    """Whether the weights can be applied to the numbers in a tensor."""
    return x.dtype == network.right.dtype and x.device == network.right.device and holds_numbers(x)
