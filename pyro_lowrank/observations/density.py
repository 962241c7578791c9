"""A likelihood that factorises over features: the density of one number given one readout, and what follows from it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import torch
from torch import Tensor

from pyro_lowrank.observations.aims import aims
from pyro_lowrank.scalars.derivative import derivative
from pyro_lowrank.scalars.expression import ONE, ZERO, Expression, larger, make, name, number, replace
from pyro_lowrank.scalars.torch_code import on_tensors
from pyro_lowrank.scalars.trace import traced
from pyro_lowrank.shapes import as_one_call, without_repetition

ETA = name("eta")
"""What is read from the latents, in the expressions of densities; what is recorded is `y`."""

AIM = name("_aim")
"""Where the data would have eta, see `aims`."""

# So near to the data the mean curvature on the way there is the one here, and rounding would spoil it.
_NEAR = 1e-2
# A feature that is farther than that below where the data would have it, in nats by its score, pulls no more, in
# proportion: a particle there has no weight beside nearer ones, but its information would exceed that of the transition
# by more than float32 can add to it.
_LARGEST_DEFICIT = 1e7


def _itself(eta: Any) -> Any:
    return eta


@dataclass(frozen=True)
class Link:
    """What stands between a readout and the functions of a family.

    Attributes:
        function: of eta, what the functions take for it.
        aim: as of `ScalarDensity.of`, of a family that has none.
        reach: score and information are taken no farther above the aim.
    """

    function: Callable[..., Any] = _itself
    aim: Callable[..., Any] | None = None
    reach: float | None = None


@dataclass(frozen=True, eq=False)
class ScalarDensity:
    r"""log p(y | eta, parameters) as an expression, with what a Gauss-Newton step needs of it.

    Attributes:
        parameters: their names.
        log_density: of `y`, `eta` and the parameters.
        score: its derivative by eta.
        information: what stands for minus its second derivative; not negative.
        stiffness: the mean curvature on the way to `aim`, where the data would have eta; not negative.
        aim: of tensors (y, *parameters), that; sought if None.
        of_counts: whether the data are whole numbers from 0 on.
    """

    parameters: tuple[str, ...]
    log_density: Expression
    score: Expression
    information: Expression
    stiffness: Expression
    aim: Callable[..., tuple[Tensor, ...]] | None
    of_counts: bool

    @classmethod
    def of(
        cls,
        log_density: Callable[..., Any],
        parameters: Sequence[str],
        *,
        information: Callable[..., Any] | None = None,
        aim: Callable[..., Any] | None = None,
        link: Link | None = None,
        of_counts: bool = False,
    ) -> ScalarDensity:
        """Return that of functions of numbers.

        Args:
            log_density: of (y, x, *parameters).
            parameters: their names.
            information: of (y, x, *parameters), per unit of x, which says by itself how far a step goes if there is no
                `aim`; minus the second derivative, at least zero, if None.
            aim: of (y, *parameters), the eta at which y is most likely.
            link: what `log_density` and `information` take for x; eta itself if None.
            of_counts: whether the data are whole numbers from 0 on.

        Raises:
            TypeError: if a function cannot be traced.
        """
        names, link = tuple(parameters), link or Link()
        aim = aim or link.aim
        (x,) = traced(link.function, ["eta"])
        density = replace(traced(log_density, ["y", "eta", *names])[0], {ETA: x})
        score = derivative(density, ETA)
        if information is None:
            curved = larger(make("negative", derivative(score, ETA)), ZERO)
        else:
            slope = derivative(x, ETA)
            own = replace(traced(information, ["y", "eta", *names])[0], {ETA: x})
            curved = make("multiply", own, make("multiply", slope, slope))
        if aim is None and information is not None:
            return cls(names, density, score, curved, curved, None, of_counts)
        way = make("subtract", AIM, ETA)
        near = make("less", make("absolute", way), number(_NEAR))
        start = replace(score, {ETA: AIM})
        if link.reach is not None:
            farthest = make("add", AIM, number(link.reach))
            held = {ETA: make("where", make("less", farthest, ETA), farthest, ETA)}
            score, curved = replace(score, held), replace(curved, held)
        rise = make("subtract", score, start)
        way = make("where", near, ONE, way)
        mean, steep = make("divide", rise, way), make("absolute", make("divide", score, way))
        # Where the likelihood flattens out far away, as one with heavy tails, the mean curvature may be negative.
        stiff = make("where", near, curved, make("where", make("less", ZERO, mean), mean, steep))
        deficit = make("absolute", make("multiply", score, way))
        is_over = make("less", number(_LARGEST_DEFICIT), deficit)
        # What is not taken must be finite, or its gradient, times zero, is NaN.
        large = make("where", is_over, deficit, ONE)
        share = make("where", is_over, make("divide", number(_LARGEST_DEFICIT), large), ONE)
        score, curved, stiff = (make("multiply", share, each) for each in (score, curved, stiff))
        sought = None if aim is None else on_tensors(traced(aim, ["y", *names]), ["y", *names])
        return cls(names, density, score, curved, stiff, sought, of_counts)

    @property
    def is_stiff(self) -> bool:
        """Whether the stiffness is another one than the information, so that the aim matters."""
        return self.stiffness is not self.information

    @property
    def arguments(self) -> tuple[str, ...]:
        """The names of what the functions of tensors are called with."""
        return ("y", "eta", *self.parameters)

    @cached_property
    def _values(self) -> Callable[..., tuple[Tensor, ...]]:
        return on_tensors([self.log_density], self.arguments)

    @cached_property
    def _curvatures(self) -> Callable[..., tuple[Tensor, ...]]:
        return on_tensors([self.score, self.information, self.stiffness], [*self.arguments, "_aim"])

    @cached_property
    def _expansion(self) -> Callable[..., tuple[Tensor, ...]] | None:
        observed = make("negative", derivative(self.score, ETA))
        try:
            change = derivative(observed, ETA)
        except ValueError:
            return None
        return on_tensors([self.score, self.information, observed, change], [*self.arguments, "_aim"])

    def expansion(self, y: Tensor, eta: Tensor, *parameters: Tensor) -> tuple[Tensor, ...] | None:
        """Return score, information, minus the second derivative and how that changes, of tensors that broadcast.

        None where a part of the density has no third derivative here.
        """
        if self._expansion is None:
            return None
        shape = torch.broadcast_shapes(y.shape, eta.shape, *(each.shape for each in parameters))
        found = self._expansion(y, eta, *parameters, self.aims(y, *parameters))
        return tuple(each.expand(shape) for each in found)

    def aims(self, y: Tensor, *parameters: Tensor) -> Tensor:
        """Return where data would have eta, of the shape that they and the parameters broadcast to."""
        shape = torch.broadcast_shapes(y.shape, *(each.shape for each in parameters))
        if not self.is_stiff:
            return y.new_zeros(()).expand(shape)
        if self.aim is not None:
            return self.aim(y, *parameters)[0].to(y.dtype).expand(shape)
        return aims(lambda *values: self._values(*values)[0], y, parameters, counts=self.of_counts)

    def log_prob(self, y: Tensor, eta: Tensor, *parameters: Tensor) -> Tensor:
        """Return the log density, in nats, of tensors that broadcast.

        Its gradient is the exact one of the branch that is taken: where the other one overflows, torch's is NaN.
        """
        return _log_density(self, *torch.broadcast_tensors(y, eta, *parameters))

    def curvature(self, y: Tensor, eta: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return score, information and stiffness, of tensors that broadcast."""
        shape = torch.broadcast_shapes(y.shape, eta.shape, *(each.shape for each in parameters))
        aim = self.aims(y, *parameters)
        score, information, stiffness = self._curvatures(y, eta, *parameters, aim)
        return score.expand(shape), information.expand(shape), stiffness.expand(shape)


@cache
def _slope(density: ScalarDensity, argument: str) -> Callable[..., tuple[Tensor, ...]]:
    """Return the derivative of a log density by an argument; the data, too, may be latents of a larger model."""
    return on_tensors([derivative(density.log_density, name(argument))], density.arguments)


@as_one_call
def _log_density(density: ScalarDensity, *values: Tensor) -> Tensor:
    found: Tensor = _LogDensity.apply(density, *values)
    return found


class _LogDensity(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(density: ScalarDensity, *values: Tensor) -> Tensor:
        # What is the same for many particles is computed once.
        (found,) = density._values(*map(without_repetition, values))
        return found.expand(values[0].shape).to(values[1].dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.density = inputs[0]
        ctx.save_for_backward(*inputs[1:])
        ctx.save_for_forward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        (grad,) = grad_outputs
        density, values = ctx.density, [without_repetition(each) for each in ctx.saved_tensors]
        wanted = zip(density.arguments, ctx.needs_input_grad[1:], strict=True)
        slopes = [_slope(density, argument)(*values)[0] if is_wanted else None for argument, is_wanted in wanted]
        # What is masked may have no density, as missing numbers of a likelihood of numbers above zero.
        return None, *(None if each is None else torch.where(grad == 0, 0.0, grad * each) for each in slopes)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        density, values = ctx.density, ctx.saved_tensors
        ways = [
            (argument, way) for argument, way in zip(density.arguments, tangents[1:], strict=True) if way is not None
        ]
        moved = [_slope(density, argument)(*values)[0] * way for argument, way in ways]
        return torch.stack(torch.broadcast_tensors(*moved)).sum(0).expand(values[0].shape)
