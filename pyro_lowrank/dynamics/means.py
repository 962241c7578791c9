"""The means of the next latents: compiled where that can be had and pays."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pyro_lowrank.dynamics.drift import Drift
from pyro_lowrank.dynamics.network import Network
from pyro_lowrank.errors import NoCompiledForm
from pyro_lowrank.shapes import holds_numbers

Mean = Callable[[Tensor, Tensor | None], Tensor]

# Below this many evaluations of a unit tensor operations take no longer than copying the weights.
_WORTH_COMPILING = 50_000


def compiled_mean(drift: Drift) -> Mean:
    """Return a compiled `Drift.mean`, without gradients.

    Raises:
        NoCompiledForm: if there is none.
    """
    # Deferred: importing Numba takes longer than the rest of the package.
    from pyro_lowrank.dynamics.compiled.mean import CompiledMean

    return CompiledMean(drift)


def fastest_mean(drift: Drift, backend: str) -> Mean:
    """Return what computes the means without gradients: compiled loops where the backend and the drift let them."""
    try:
        return drift.mean if backend == "plain" else compiled_mean(drift)
    except NoCompiledForm:
        return drift.mean


def next_mean(network: Network, z: Tensor, v: Tensor | None) -> Tensor:
    """Return `Network.mean`, compiled where no gradient is asked for and there are many latents."""
    return fastest_mean(network, "auto" if _pays(network, z, v) else "plain")(z, v)


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
