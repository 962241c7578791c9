"""The units of a network in compiled loops: their rates, the latents that they drive, and the gradients of both.

What is fixed when a loop is compiled comes from the function that makes it: the number of latents, as a tuple of
zeros, so that the compiler keeps them in registers, and the activation.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numba import types
from numba.cpython.unsafe.tuple import tuple_setitem

from pyro_lowrank.compilation import first_class
from pyro_lowrank.dynamics.compiled.arithmetic import ONE, ZERO, scalar, softplus_and_slope, tanh

FAST = {"reassoc", "nsz", "contract", "arcp"}
"""The order of sums may change; infinities and NaN are kept."""


class Weights(NamedTuple):
    """A network, as the loops read it; units are padded with ones that nobody notices.

    Attributes:
        decay: `rank`.
        left: M and the input weights, `rank + inputs x units`.
        right: V, `rank x units`.
        bias: h, `units`.
        hinges: of a piecewise linear activation, rows (change of slope, knot, bias gain); the first row has the first
            slope in their place.
    """

    decay: Any
    left: Any
    right: Any
    bias: Any
    hinges: Any


class Form(NamedTuple):
    """What is fixed when the loops over the units are compiled.

    Attributes:
        rank: the number of latents.
        inputs: the number of inputs.
        activation: of the units, a function of this module.
        num_hinges: of a piecewise linear one.
        dtype: numpy's type of a number.
    """

    rank: int
    inputs: int
    activation: Any
    num_hinges: int
    dtype: Any

    @property
    def zeros(self) -> tuple[Any, Any]:
        """As many zeros as there are latents; as many as latents and inputs."""
        zero = self.dtype(0)
        return (zero,) * self.rank, (zero,) * (self.rank + self.inputs)


@scalar
def _positive_part(x: Any) -> Any:
    # Written so that NaN stays NaN, and in the one way that is a single instruction.
    return ZERO if x < ZERO else x


# Each returns phi(x; h) of a current x and a bias h, and the gradients of x and of h from `grad`, that of phi.


@scalar
def relu(num_hinges: Any, hinges: Any, x: Any, h: Any, grad: Any) -> Any:
    """Return max(x - h, 0)."""
    pull = grad if x - h > ZERO else ZERO
    return _positive_part(x - h), pull, -pull


@scalar
def clipped_relu(num_hinges: Any, hinges: Any, x: Any, h: Any, grad: Any) -> Any:
    """Return max(x + h, 0) - max(x, 0)."""
    first, second = (grad if x + h > ZERO else ZERO), (grad if x > ZERO else ZERO)
    return _positive_part(x + h) - _positive_part(x), first - second, first


@scalar
def identity(num_hinges: Any, hinges: Any, x: Any, h: Any, grad: Any) -> Any:
    """Return x - h."""
    return x - h, grad, -grad


@scalar
def tanh_of(num_hinges: Any, hinges: Any, x: Any, h: Any, grad: Any) -> Any:
    """Return tanh(x - h)."""
    rate = tanh(x - h)
    pull = grad * (ONE - rate * rate)
    return rate, pull, -pull


@scalar
def softplus_of(num_hinges: Any, hinges: Any, x: Any, h: Any, grad: Any) -> Any:
    """Return ln(1 + exp(x - h))."""
    rate, slope = softplus_and_slope(x - h)
    return rate, grad * slope, -grad * slope


@scalar
def piecewise_linear(num_hinges: Any, hinges: Any, x: Any, h: Any, grad: Any) -> Any:
    """Return the sum of a straight line and of hinges."""
    slope, slope_h = hinges[0, 0], -hinges[0, 0]
    rate = slope * (x - h)
    for j in range(1, num_hinges + 1):
        distance = x - (hinges[j, 1] + hinges[j, 2] * h)
        on = hinges[j, 0] if distance > ZERO else ZERO
        rate += on * distance
        slope += on
        slope_h -= on * hinges[j, 2]
    return rate, grad * slope, grad * slope_h


def floats(dtype: Any, dims: int) -> Any:
    """Return Numba's type of arrays of one of numpy's types of numbers."""
    return types.Array(types.float32 if dtype == np.float32 else types.float64, dims, "C", aligned=True)


class Arrays(NamedTuple):
    """Numba's types of the arrays that hold numbers of one type, and of what is made of them."""

    vector: Any
    matrix: Any
    weights: Any

    @classmethod
    @cache
    def of(cls, dtype: Any) -> Arrays:
        """Return the types for one of numpy's types of numbers."""
        vector, matrix = floats(dtype, 1), floats(dtype, 2)
        return cls(vector, matrix, types.NamedTuple((vector, matrix, matrix, vector, matrix), Weights))


INDICES = types.Array(types.int64, 1, "C", aligned=True)


@cache
def mover(form: Form) -> Any:
    """Compile `move`, which writes the means of the next latents of some particles.

    Particles with the same ancestor share its mean, which is all that the units cost. Two are swept at a time, for the
    price of loading the weights once.
    """
    zero, zero_in = form.zeros
    rank, seen_size, activation, num_hinges = len(zero), len(zero_in), form.activation, form.num_hinges
    arrays = Arrays.of(form.dtype)

    @first_class(
        types.void(arrays.weights, arrays.matrix, arrays.vector, INDICES, types.int64, arrays.matrix), fastmath=FAST
    )
    def move(weights: Any, z: Any, v: Any, which: Any, size: Any, means: Any) -> None:
        """Write a z + V phi(M z + W v; h) of the first `size` particles `which`; z and means `rank x particles`."""
        left, right, bias, hinges = weights.left, weights.right, weights.bias, weights.hinges
        for k in range(0, size, 2):
            first, second = which[k], which[min(k + 1, size - 1)]
            seen, other, total, others = zero_in, zero_in, zero, zero
            for d in range(seen_size):
                seen = tuple_setitem(seen, d, z[d, first] if d < rank else v[d - rank])
                other = tuple_setitem(other, d, z[d, second] if d < rank else v[d - rank])
            for i in range(bias.shape[0]):
                x, y = ZERO * bias[0], ZERO * bias[0]
                for d in range(seen_size):
                    x += left[d, i] * seen[d]
                    y += left[d, i] * other[d]
                rate, _, _ = activation(num_hinges, hinges, x, bias[i], ONE)
                rates, _, _ = activation(num_hinges, hinges, y, bias[i], ONE)
                for r in range(rank):
                    total = tuple_setitem(total, r, total[r] + right[r, i] * rate)
                    others = tuple_setitem(others, r, others[r] + right[r, i] * rates)
            for r in range(rank):
                means[r, first] = weights.decay[r] * z[r, first] + total[r]
                means[r, second] = weights.decay[r] * z[r, second] + others[r]

    return move


@cache
def stepper(form: Form) -> Any:
    """Compile `step`, which writes the mean of the next latents and its Jacobian at one point."""
    zero, zero_in = form.zeros
    rank, seen_size, activation, num_hinges = len(zero), len(zero_in), form.activation, form.num_hinges
    arrays = Arrays.of(form.dtype)

    @first_class(types.void(arrays.weights, arrays.vector, arrays.vector, arrays.vector, arrays.matrix), fastmath=FAST)
    def step(weights: Any, z: Any, v: Any, mean: Any, jacobian: Any) -> None:
        """Write a z + V phi(M z + W v; h) and diag(a) + V diag(phi') M."""
        left, right, bias, hinges = weights.left, weights.right, weights.bias, weights.hinges
        seen = zero_in
        for d in range(seen_size):
            seen = tuple_setitem(seen, d, z[d] if d < rank else v[d - rank])
        for r in range(rank):
            mean[r] = weights.decay[r] * z[r]
            for d in range(rank):
                jacobian[r, d] = weights.decay[r] if r == d else ZERO
        for i in range(bias.shape[0]):
            x = ZERO * bias[0]
            for d in range(seen_size):
                x += left[d, i] * seen[d]
            rate, slope, _ = activation(num_hinges, hinges, x, bias[i], ONE)
            for r in range(rank):
                mean[r] += right[r, i] * rate
                for d in range(rank):
                    jacobian[r, d] += right[r, i] * slope * left[d, i]

    return step


@cache
def gradient_adder(form: Form) -> Any:
    """Compile `add`, which adds up the gradients of a network's weights over many points."""
    zero, zero_in = form.zeros
    rank, seen_size, activation, num_hinges = len(zero), len(zero_in), form.activation, form.num_hinges
    arrays = Arrays.of(form.dtype)

    @first_class(
        types.void(arrays.weights, arrays.matrix, arrays.matrix, arrays.matrix, arrays.matrix, arrays.vector),
        fastmath=FAST,
    )
    def add(weights: Any, seen: Any, grad: Any, grad_left: Any, grad_right: Any, grad_bias: Any) -> None:
        """Add the gradients of M, V and h, given those of the drive V phi(M s; h), `rank x points`, at what is seen."""
        left, right, bias, hinges = weights.left, weights.right, weights.bias, weights.hinges
        for i in range(bias.shape[0]):
            row_left, row_right, total_left, total_right, total_bias, h = zero_in, zero, zero_in, zero, zero[0], bias[i]
            for d in range(seen_size):
                row_left = tuple_setitem(row_left, d, left[d, i])
            for r in range(rank):
                row_right = tuple_setitem(row_right, r, right[r, i])
            for c in range(seen.shape[1]):
                x, grad_rate = zero[0], zero[0]
                for d in range(seen_size):
                    x += row_left[d] * seen[d, c]
                for r in range(rank):
                    grad_rate += row_right[r] * grad[r, c]
                rate, grad_x, grad_h = activation(num_hinges, hinges, x, h, grad_rate)
                total_bias += grad_h
                for r in range(rank):
                    total_right = tuple_setitem(total_right, r, total_right[r] + rate * grad[r, c])
                for d in range(seen_size):
                    total_left = tuple_setitem(total_left, d, total_left[d] + grad_x * seen[d, c])
            for d in range(seen_size):
                grad_left[d, i] += total_left[d]
            for r in range(rank):
                grad_right[r, i] += total_right[r]
            grad_bias[i] += total_bias

    return add


@cache
def puller(form: Form) -> Any:
    """Compile `pull`, which writes the gradients of what the units see."""
    zero, zero_in = form.zeros
    rank, seen_size, activation, num_hinges = len(zero), len(zero_in), form.activation, form.num_hinges
    arrays = Arrays.of(form.dtype)

    @first_class(types.void(arrays.weights, arrays.matrix, arrays.matrix, arrays.matrix), fastmath=FAST)
    def pull(weights: Any, seen: Any, grad: Any, grad_seen: Any) -> None:
        """Write the gradients of s, `rank + inputs x points`, from those of the drive V phi(M s; h)."""
        left, right, bias, hinges = weights.left, weights.right, weights.bias, weights.hinges
        for c in range(seen.shape[1]):
            point, up, total = zero_in, zero, zero_in
            for d in range(seen_size):
                point = tuple_setitem(point, d, seen[d, c])
            for r in range(rank):
                up = tuple_setitem(up, r, grad[r, c])
            for i in range(bias.shape[0]):
                x, grad_rate = zero[0], zero[0]
                for d in range(seen_size):
                    x += left[d, i] * point[d]
                for r in range(rank):
                    grad_rate += right[r, i] * up[r]
                _, grad_x, _ = activation(num_hinges, hinges, x, bias[i], grad_rate)
                for d in range(seen_size):
                    total = tuple_setitem(total, d, total[d] + left[d, i] * grad_x)
            for d in range(seen_size):
                grad_seen[d, c] = total[d]

    return pull
