"""Networks of other forms, and weights in files, as the analyzer takes them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import ArrayLike

from pyro_lowrank.errors import check_choice
from pyro_lowrank.fixed_points.network import LatentMap, build_network
from pyro_lowrank.piecewise import PiecewiseLinear


def from_shallow_plrnn(
    decay: ArrayLike,
    output_weights: ArrayLike,
    hidden_weights: ArrayLike,
    output_bias: ArrayLike,
    hidden_bias: ArrayLike,
    *,
    clipped: bool = False,
) -> LatentMap:
    r"""Return a shallow piecewise-linear RNN as the analyzer takes it.

    .. math::

        z' = A z + W_1 \max(W_2 z + h_2, 0) + h_1

    or, clipped, :math:`W_1 [\max(W_2 z + h_2, 0) - \max(W_2 z, 0)]` in the middle.

    Args:
        decay: A's diagonal, `rank`, or A, `rank x rank`.
        output_weights: W_1, `rank x hidden`.
        hidden_weights: W_2, `hidden x rank`.
        output_bias: h_1, `rank`.
        hidden_bias: h_2, `hidden`.
        clipped: whether the clipped form is meant.

    Raises:
        ValueError: if the weights are not finite or do not fit.

    Example::

        >>> from pyro_lowrank.fixed_points import fixed_points_of
        >>> network = from_shallow_plrnn([0.5], [[1.0]], [[-1.0]], [0.0], [3.0])
        >>> fixed_points_of(network, method="enumerate").points
        array([[2.]])

    References:
        Hess et al. (2023), "Generalized teacher forcing for learning chaotic dynamics", ICML.
    """
    # Ours subtracts the bias in `relu` and adds it in `clipped_relu`.
    bias = np.asarray(hidden_bias) if clipped else -np.asarray(hidden_bias)
    name = "clipped_relu" if clipped else "relu"
    return build_network(decay, hidden_weights, output_weights, bias, name, constant=output_bias)


def from_full_rank(
    decay: ArrayLike,
    weights: ArrayLike,
    bias: ArrayLike,
    activation: str | PiecewiseLinear = "relu",
    *,
    inside: bool = False,
    input_current: ArrayLike | None = None,
    constant: ArrayLike | None = None,
) -> LatentMap:
    r"""Return a network with a full weight matrix W as the analyzer takes it, with as many latents as units.

    .. math::

        z' = a z + W \phi(z + I; h) + c \qquad\text{or, inside,}\qquad z' = a z + \phi(W z + I; h) + c

    Args:
        decay: a, a number or one per unit, or a matrix `units x units`.
        weights: W, `units x units`.
        bias: h, `units`, as of `find_fixed_points` (`relu` subtracts it).
        activation: as of `find_fixed_points`.
        inside: whether W acts before the activation, as in vanilla RNNs, and not after it, as in PLRNNs.
        input_current: I, `units`.
        constant: c, `units`.

    Raises:
        ValueError: if the weights are not finite or do not fit.

    Example::

        >>> from pyro_lowrank.fixed_points import fixed_points_of
        >>> network = from_full_rank(0.0, [[2.0]], [0.0], "tanh", inside=True)
        >>> len(fixed_points_of(network, method="search", num_starts=50))
        3
    """
    identity = np.eye(len(np.atleast_1d(bias)))
    left, right = (weights, identity) if inside else (identity, weights)
    return build_network(decay, left, right, bias, activation, input_current, constant)


REQUIRED = ("decay", "left", "right", "bias")
OPTIONAL = ("activation", "input_current", "constant", "input_weights")
TEACHER = {"U": "left", "V": "right", "b_rec": "bias", "w_inp": "input_weights"}
"""Names in files of the paper's teacher networks, whose bias is added to the currents, with inputs in rows."""


def read_weights(path: str | os.PathLike[str], *, u: ArrayLike | None = None) -> dict[str, Any]:
    """Read weights from a `.npz` file and return the arguments of `find_fixed_points`.

    The file holds arrays under the names of those arguments: `decay`, `left`, `right`, `bias`, and, if there are any,
    `activation` (a string, `"relu"` unless given), `input_current`, `constant` and `input_weights`, `units x inputs`.
    Others are left alone. Files of the paper's teacher networks, with `decay`, `U`, `V` and `b_rec` (which is added to
    the currents, so that the bias is its negative) and `w_inp`, `inputs x units`, are read as well. Nothing is
    unpickled.

    Args:
        path: of the file.
        u: a constant input, `inputs`, for which the file must hold `input_weights`.

    Raises:
        ValueError: if an array is missing, is not an array of numbers, or the file is no `.npz`.
        FileNotFoundError: if there is no such file.

    Example::

        >>> np.savez("weights.npz", decay=0.5, left=np.eye(2), right=0.1 * np.eye(2), bias=np.zeros(2))
        >>> sorted(read_weights("weights.npz"))
        ['activation', 'bias', 'decay', 'left', 'right']
    """
    path = Path(path)
    held, found = _arrays(path)
    if "left" not in found and {"U", "V", "b_rec"} <= set(found):
        found = _of_teacher(path, found)
    missing = [name for name in REQUIRED if name not in found]
    if missing:
        raise ValueError(
            f"{path} lacks {', '.join(missing)}; it holds {', '.join(held) or 'nothing'}. Weights are saved with "
            "numpy.savez(path, decay=..., left=units x rank, right=rank x units, bias=units)."
        )
    arguments: dict[str, Any] = {name: found[name] for name in REQUIRED}
    arguments["activation"] = str(found["activation"]) if "activation" in found else "relu"
    check_choice("activation", arguments["activation"], ("relu", "clipped_relu", "identity", "tanh", "softplus"))
    arguments |= {name: found[name] for name in ("input_current", "constant") if name in found}
    if u is not None:
        arguments["input_current"] = _current(path, found, np.asarray(u, dtype=np.float64))
    return arguments


def _arrays(path: Path) -> tuple[list[str], dict[str, Any]]:
    """Names of all arrays in a file, and those arrays that are weights."""
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            held, found = [], None
        else:
            with loaded:
                held = list(loaded.files)
                found = {name: loaded[name] for name in (*REQUIRED, *OPTIONAL, *TEACHER) if name in held}
    except FileNotFoundError as error:
        raise FileNotFoundError(f"There is no file {path}.") from error
    except (BadZipFile, EOFError, OSError, ValueError) as error:
        raise ValueError(f"{path} is not a readable .npz file of plain arrays: {error}") from error
    if found is None:
        raise ValueError(f"{path} holds one array; weights are several, saved with numpy.savez.")
    return held, found


def _of_teacher(path: Path, found: dict[str, Any]) -> dict[str, Any]:
    """Return the arrays of one of the paper's teacher networks under our names."""
    weights = {TEACHER.get(name, name): array for name, array in found.items()}
    if str(weights.get("activation", "relu")) == "clipped_relu":
        raise ValueError(f"{path}: the bias of clipped relu units cannot be told from `b_rec`; save it as `bias`.")
    weights["bias"] = -weights["bias"]
    if "input_weights" in weights:
        weights["input_weights"] = weights["input_weights"].T
    return weights


def _current(path: Path, found: dict[str, Any], u: Any) -> Any:
    if "input_weights" not in found:
        raise ValueError(f"An input came, but {path} holds no `input_weights`, units x inputs.")
    weights = found["input_weights"]
    if weights.ndim != 2 or u.shape != weights.shape[1:]:
        raise ValueError(
            f"The input must be a vector with one entry per column of `input_weights` {weights.shape}, got {u.shape}."
        )
    return found.get("input_current", 0.0) + weights @ u
