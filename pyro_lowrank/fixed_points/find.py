"""The front of the analyzer: fixed points of a network by the method of one's choice."""

from __future__ import annotations

import time

from numpy.typing import ArrayLike

from pyro_lowrank.fixed_points.certified import certify
from pyro_lowrank.fixed_points.enumerate import enumerate_regions
from pyro_lowrank.fixed_points.explore import prepare
from pyro_lowrank.fixed_points.network import LatentMap, build_network
from pyro_lowrank.fixed_points.options import Options, ProgressCallback
from pyro_lowrank.fixed_points.result import FixedPoints, complete_result
from pyro_lowrank.fixed_points.search import search
from pyro_lowrank.piecewise import PiecewiseLinear


def find_fixed_points(
    decay: ArrayLike,
    left: ArrayLike,
    right: ArrayLike,
    bias: ArrayLike,
    activation: str | PiecewiseLinear = "relu",
    input_current: ArrayLike | None = None,
    constant: ArrayLike | None = None,
    *,
    method: str = "certified",
    max_boxes: int | None = None,
    max_seconds: float | None = None,
    threads: int | None = None,
    num_starts: int = 10_000,
    constrained: bool = True,
    seed: int = 0,
    progress: ProgressCallback | None = None,
) -> FixedPoints:
    r"""Find the fixed points of a low-rank recurrent network, their stability, and whether there are others.

    .. math::

        z = a z + V \phi(M z + I; h) + c

    Methods: `"certified"` splits latent space into boxes and proves of each that it holds no fixed point or exactly
    one, for any activation here; `"enumerate"` solves every linear region, for piecewise-linear activations and few
    units; `"search"` goes from random starts and proves nothing. Ctrl-C ends each and returns what is known.

    Args:
        decay: a, a number, one per latent, or a matrix `rank x rank`; it may exceed 1.
        left: M, `units x rank`.
        right: V = N^T, `rank x units`.
        bias: h, `units`.
        activation: `"relu"`, `"clipped_relu"`, `"tanh"`, `"softplus"`, `"identity"`, or knots and slopes.
        input_current: I, a constant current into each unit, `units`.
        constant: c, a constant drive of each latent, `rank`.
        method: `"certified"`, `"enumerate"` or `"search"`.
        max_boxes: stop, incomplete, after so many boxes, or linear regions, or starts of Newton's method.
        max_seconds: stop, incomplete, after so long, in seconds, compiling not counted. The certified method spends the
            last tenth on a search in the boxes that are open.
        threads: of the certified method; as many as there are cores if None.
        num_starts: most starts of a search.
        constrained: whether a search starts only in linear regions that exist.
        seed: of the random starts of a search.
        progress: called now and then with the numbers of boxes (or regions, or starts) and of fixed points so far.

    Raises:
        ValueError: if weights are not finite or do not fit, no activation or method has that name, a budget is not
            above zero, or units that are not piecewise linear are to be enumerated.
        TypeError: if an array is not one of real numbers, or the activation is a function, whose bounds are not known.

    Example::

        >>> result = find_fixed_points(0.5, [[1.0], [1.0]], [[2.0, -2.0]], [1.0, 2.0], method="enumerate")
        >>> result.stability.tolist(), result.certificate.complete
        (['attractor', 'repeller', 'attractor'], True)

    References:
        Pals et al. (2024), "Inferring stochastic low-rank recurrent neural networks from neural data", NeurIPS.
        Eisenmann et al. (2023), "Bifurcations and loss jumps in RNN training", NeurIPS.
    """
    network = build_network(decay, left, right, bias, activation, input_current, constant)
    options = Options(method, max_boxes, max_seconds, threads, num_starts, constrained, seed, progress)
    return analyse(network, options)


def fixed_points_of(
    network: LatentMap,
    *,
    method: str = "certified",
    max_boxes: int | None = None,
    max_seconds: float | None = None,
    threads: int | None = None,
    num_starts: int = 10_000,
    constrained: bool = True,
    seed: int = 0,
    progress: ProgressCallback | None = None,
) -> FixedPoints:
    """Find the fixed points of a network that is built already; the options, and errors, as of `find_fixed_points`.

    Args:
        network: as `build_network`, or one of the adapters, returns it.
    """
    options = Options(method, max_boxes, max_seconds, threads, num_starts, constrained, seed, progress)
    return analyse(network, options)


def analyse(network: LatentMap, options: Options) -> FixedPoints:
    """Find the fixed points of a network by the method that was chosen.

    Args:
        network: as `build_network`, or one of the adapters, returns it.
        options: the method, its budgets, and so on.

    Raises:
        ValueError: if units that are not piecewise linear are to be enumerated.

    Example::

        >>> network = build_network(0.5, [[1.0], [1.0]], [[2.0, -2.0]], [1.0, 2.0])
        >>> len(analyse(network, Options("enumerate")))
        3
    """
    method = {"certified": certify, "enumerate": enumerate_regions, "search": search}[options.method]
    if options.method == "certified":
        prepare()
    start = time.perf_counter()
    found = method(network, options)
    return complete_result(network, found, method=options.method, seconds=time.perf_counter() - start)
