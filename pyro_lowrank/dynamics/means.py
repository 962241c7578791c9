"""The means of the next latents: compiled where that can be had and pays."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.overrides import has_torch_function

from pyro_lowrank.dynamics.drift import Drift
from pyro_lowrank.dynamics.network import Network
from pyro_lowrank.errors import NoCompiledForm
from pyro_lowrank.shapes import as_one_call, holds_numbers

if TYPE_CHECKING:
    from pyro_lowrank.dynamics.compiled.mean import CompiledMean

Mean = Callable[[Tensor, Tensor | None], Tensor]

# Below this many evaluations of a unit tensor operations take no longer than copying the weights.
_WORTH_COMPILING = 100_000
_WORTH_REPLAYING = 20_000


def compiled_mean(drift: Drift) -> CompiledMean:
    """Return a compiled `Drift.mean`; its method `differentiable` is the one with gradients.

    Raises:
        NoCompiledForm: if there is none.
    """
    # Deferred: importing Numba takes longer than the rest of the package.
    from pyro_lowrank.dynamics.compiled.mean import CompiledMean

    return CompiledMean(drift)


def fastest_mean(drift: Drift, backend: str) -> Mean:
    """Return what computes the means: compiled loops where the backend and the drift let them.

    They have gradients where these are enabled when it is asked for.
    """
    try:
        if backend == "plain":
            return drift.mean
        found = compiled_mean(drift)
    except NoCompiledForm:
        return drift.mean
    return found.differentiable if torch.is_grad_enabled() else found


def next_mean(drift: Drift, z: Tensor, v: Tensor | None) -> Tensor:
    """Return `Drift.mean`, compiled where there are many latents."""
    return _at(fastest_mean(drift, "auto"), z, v) if _pays(drift, z, v) else drift.mean(z, v)


@as_one_call
def _at(mean: Mean, z: Tensor, v: Tensor | None) -> Tensor:
    return mean(z, v)


def _pays(drift: Drift, z: Tensor, v: Tensor | None) -> bool:
    if torch.jit.is_tracing() or torch.compiler.is_compiling() or not isinstance(drift, Network):
        return False
    # Where calls are recorded to be replayed, the weights are copied once for all replays.
    worth = _WORTH_REPLAYING if has_torch_function((z,)) else _WORTH_COMPILING
    if drift.bias.shape[-1] * z[..., 0].numel() < worth:
        return False
    inputs = () if v is None else (v,)
    dims = (drift.rank, drift.num_inputs)
    # What does not fit is left to the tensor operations, which say why.
    if not all(_fits(x, drift) and x.shape[-1] == dim for x, dim in zip((z, *inputs), dims, strict=False)):
        return False
    return not any(_is_transformed(x) for x in (z, *inputs, drift.decay, drift.left, drift.right, drift.bias))


def _fits(x: Tensor, network: Network) -> bool:
    """Whether the weights can be applied to the numbers in a tensor."""
    return x.dtype == network.right.dtype and x.device == network.right.device and holds_numbers(x)


def _is_transformed(x: Tensor | None) -> bool:
    """Whether a tensor stands for others, in `torch.func`, or carries a tangent."""
    if x is None:
        return False
    return torch._C._functorch.is_functorch_wrapped_tensor(x) or forward_ad.unpack_dual(x).tangent is not None
