"""The front of the analyzer: fixed points of a network by the method of one's choice."""

from __future__ import annotations

import time

from numpy.typing import ArrayLike

from pyro_lowrank.errors import check_choice, check_positive, check_positive_int
from pyro_lowrank.fixed_points.certified import certify
from pyro_lowrank.fixed_points.enumerate import enumerate_regions
from pyro_lowrank.fixed_points.found import Found
from pyro_lowrank.fixed_points.network import Network, build_network
from pyro_lowrank.fixed_points.progress import Progress
from pyro_lowrank.fixed_points.result import FixedPoints, complete_result
from pyro_lowrank.fixed_points.search import search
from pyro_lowrank.piecewise import PiecewiseLinear

METHODS = ("certified", "enumerate", "search")


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
    progress: Progress | None = None,
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
        max_seconds: stop, incomplete, after so long, in seconds. The certified method spends the last tenth on a search
            in the boxes that are open.
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
    return fixed_points_of(
        network,
        method=method,
        max_boxes=max_boxes,
        max_seconds=max_seconds,
        threads=threads,
        num_starts=num_starts,
        constrained=constrained,
        seed=seed,
        progress=progress,
    )


def fixed_points_of(
    network: Network,
    *,
    method: str = "certified",
    max_boxes: int | None = None,
    max_seconds: float | None = None,
    threads: int | None = None,
    num_starts: int = 10_000,
    constrained: bool = True,
    seed: int = 0,
    progress: Progress | None = None,
) -> FixedPoints:
    """Find the fixed points of a network that is built already; see `find_fixed_points`.

    Args:
        network: as `build_network`, or one of the adapters, returns it.
        method: as of `find_fixed_points`.
        max_boxes: as of `find_fixed_points`.
        max_seconds: as of `find_fixed_points`.
        threads: as of `find_fixed_points`.
        num_starts: as of `find_fixed_points`.
        constrained: as of `find_fixed_points`.
        seed: as of `find_fixed_points`.
        progress: as of `find_fixed_points`.

    Raises:
        ValueError: as of `find_fixed_points`.
    """
    check_choice("method", method, METHODS)
    if max_boxes is not None:
        check_positive_int("max_boxes", max_boxes)
    if max_seconds is not None:
        check_positive("max_seconds", max_seconds)
    if threads is not None:
        check_positive_int("threads", threads)
    check_positive_int("num_starts", num_starts)
    check_positive_int("seed", seed, minimum=0)
    start = time.perf_counter()
    found: Found
    if method == "certified":
        found = certify(network, max_boxes=max_boxes, max_seconds=max_seconds, threads=threads, progress=progress)
    elif method == "enumerate":
        found = enumerate_regions(network, max_boxes=max_boxes, max_seconds=max_seconds, progress=progress)
    else:
        found = search(
            network,
            max_boxes=10_000 if max_boxes is None else max_boxes,
            num_starts=num_starts,
            max_seconds=max_seconds,
            constrained=constrained,
            seed=seed,
            progress=progress,
        )
    return complete_result(network, found, method=method, seconds=time.perf_counter() - start)
