"""From a network's parameters to the analyzer of fixed points, which knows numpy only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pyro_lowrank.dynamics.transition import Transition

if TYPE_CHECKING:
    from pyro_lowrank.piecewise import PiecewiseLinear


def analyzer_arguments(transition: Transition, u: Any = None) -> dict[str, Any]:
    """Return the arguments of `find_fixed_points` for a network under a constant input, `inputs`, none if None.

    Under a constant input the network's own leak on inputs, if there is one, settles at that input.

    Raises:
        ValueError: if the parameters have batch dims, the input does not fit, or the activation is a function of the
            user's own whose knots are not known.
    """
    if transition.batch_shape:
        raise ValueError(
            f"The parameters have batch dims {tuple(transition.batch_shape)}, one network each; pass them as arrays to "
            "pyro_lowrank.fixed_points.sampled_fixed_points."
        )
    right = _array(transition.right)
    left = (
        torch.eye(right.shape[1], dtype=torch.float64).numpy() if transition.left is None else _array(transition.left)
    )
    decay = _array(transition.decay)
    return {
        "decay": decay if decay.size > 1 else float(decay[0]),
        "left": left,
        "right": right,
        "bias": _array(transition.bias),
        "activation": _known_activation(transition),
        "input_current": _input_current(transition, u),
    }


def _array(tensor: Tensor) -> Any:
    return tensor.detach().to("cpu", torch.float64).numpy()


def _known_activation(transition: Transition) -> str | PiecewiseLinear:
    activation = transition.activation
    if activation.shape is not None:
        return activation.shape
    if activation.name in ("tanh", "softplus"):
        return activation.name
    raise ValueError(
        f"The activation {activation.name!r} is a function whose shape is not known to the analyzer of fixed points; "
        "declare it as a PiecewiseLinear, or use 'tanh' or 'softplus'."
    )


def _input_current(transition: Transition, u: Any) -> Any:
    if u is None:
        return None
    value = torch.as_tensor(u, dtype=torch.float64, device="cpu").detach()
    if transition.num_inputs == 0:
        raise ValueError("An input `u` came, but the dynamics were built with inputs=0; build them with inputs=...")
    if value.shape != (transition.num_inputs,):
        raise ValueError(
            f"`u` must be one constant input, a vector of {transition.num_inputs}, got shape {tuple(value.shape)}."
        )
    if not value.isfinite().all():
        raise ValueError(f"`u` must be finite, got {value.tolist()}.")
    return _array(transition.input_weights) @ value.numpy()
