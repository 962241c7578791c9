"""From a network's parameters to the analyzer of fixed points, which knows numpy only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
import pyro.poutine as poutine
import torch
from torch import Tensor

from pyro_lowrank.dynamics.drift import Drift
from pyro_lowrank.dynamics.network import Network
from pyro_lowrank.generators import drawn_from
from pyro_lowrank.modules import bound, prior_names
from pyro_lowrank.parameters import copy_module

if TYPE_CHECKING:
    from pyro_lowrank.dynamics.base import Dynamics
    from pyro_lowrank.fixed_points.network import LatentMap
    from pyro_lowrank.fixed_points.result import FixedPoints
    from pyro_lowrank.fixed_points.samples import SampledFixedPoints
    from pyro_lowrank.piecewise import PiecewiseLinear

# Of the square root of the relative rounding error: what numbers of a network's mean may be off, computed in two ways.
_ROUNDING = 0.03


def fixed_points_of_samples(
    dynamics: Dynamics, samples: Mapping[str, Tensor], u: Any = None, **options: Any
) -> SampledFixedPoints:
    """Find the fixed points of a network, some of whose parameters have priors, at every sample of these.

    Args:
        dynamics: the network.
        samples: by the names of sites, `samples x ...`; those of other sites are left alone.
        u: a constant input, `inputs`; none if None.
        options: of `pyro_lowrank.fixed_points.find_fixed_points`, for each sample.

    Raises:
        ValueError: if a parameter with a prior has no samples, none has one, or numbers of samples differ.
    """
    from pyro_lowrank.fixed_points.samples import SampledFixedPoints

    values = _values_of_sites(dynamics, samples)
    results = []
    for index in range(len(next(iter(values.values())))):
        one = {name: value[index] for name, value in values.items()}
        with poutine.condition(data=one):
            results.append(dynamics.fixed_points(u, **options))
    return SampledFixedPoints(tuple(results))


def _values_of_sites(dynamics: Dynamics, samples: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the samples of the dynamics' own sample sites, each `samples x` the shape of its site."""
    with poutine.block(), poutine.trace() as tracer:
        dynamics.transition()
    sites = {name: site for name, site in tracer.trace.nodes.items() if site["type"] == "sample"}
    if not sites:
        raise ValueError(
            "No parameter of the dynamics has a prior, so none can have samples; use dynamics.fixed_points(), or give "
            "parameters a PyroSample."
        )
    missing = sorted(set(sites) - set(samples))
    if missing:
        raise ValueError(f"`samples` lacks {', '.join(missing)}; it holds {', '.join(samples) or 'nothing'}.")
    values = {}
    for name, site in sites.items():
        held: Tensor = site["value"]  # type: ignore[assignment]
        shape = held.shape
        value = torch.as_tensor(samples[name])
        # `Predictive` puts dims of size 1 between the samples and what a site holds.
        if value.dim() < 1 or value[:1].numel() != shape.numel():
            raise ValueError(f"`samples[{name!r}]` must be samples x {tuple(shape)}, got {tuple(value.shape)}.")
        values[name] = value.reshape(len(value), *shape)
    counts = {name: len(value) for name, value in values.items()}
    if len(set(counts.values())) > 1 or 0 in counts.values():
        raise ValueError(f"`samples` must be as many of each parameter, at least one, got {counts}.")
    return values


def network_of(dynamics: Dynamics, u: Any = None) -> dict[str, Any]:
    """Return the arguments of `find_fixed_points` for dynamics under a constant input, `inputs`, zero if None.

    Raises:
        TypeError: if the dynamics do not say that they are a network of units.
        ValueError: if the input does not fit, or the network that they say is not their mean.
    """
    drift = dynamics.transition().drift
    if isinstance(drift, Network):
        return analyzer_arguments(drift, u)
    told, drift, held = _told(dynamics, u)
    if told is None:
        raise TypeError(
            "The analyzer of fixed points knows networks of units, not a `mean` of your own: look for them by "
            "dynamics.search_fixed_points(); or, if it is such a network, say so by a method `as_network`."
        )
    arguments = {name: _array(value) if isinstance(value, Tensor) else value for name, value in told.items()}
    _check_network(type(dynamics).__name__, arguments, drift, held)
    return arguments


def _told(dynamics: Dynamics, u: Any) -> tuple[dict[str, Any] | None, Drift, Tensor]:
    """Return what dynamics say of themselves, their drift, and their input, all in one precision."""
    *doubles, single = _versions(dynamics)
    for exact, drift, like in doubles:
        held = _held(dynamics, u).to(like)
        with suppress(RuntimeError):  # They hold numbers of another precision.
            return bound(exact).as_network(None if u is None else held), drift, held
    _, drift, like = single
    held = _held(dynamics, u).to(like)
    return bound(dynamics).as_network(None if u is None else held), drift, held


def _held(dynamics: Dynamics, u: Any) -> Tensor:
    """Return a constant input, zero if None, `inputs`."""
    inputs = dynamics.num_inputs
    # A list is as exact as Python's numbers are, a tensor as its own.
    held = u if isinstance(u, Tensor) else torch.as_tensor([0.0] * inputs if u is None else u, dtype=torch.float64)
    if held.shape != (inputs,):
        raise ValueError(f"The input `u` must be one number for each of {inputs} channels, got {tuple(held.shape)}.")
    if not held.isfinite().all():
        raise ValueError(f"`u` must be finite, got {held.tolist()}.")
    return held


def _check_network(name: str, arguments: dict[str, Any], drift: Drift, held: Tensor) -> None:
    """Raise unless the mean is that of a network, near and far and around each knot, up to the rounding of its numbers.

    Args:
        name: of the class.
        arguments: of `find_fixed_points`.
        drift: of the dynamics.
        held: their input, in the precision of the drift.
    """
    from pyro_lowrank.fixed_points.network import build_network

    try:
        network = build_network(**arguments)
    except TypeError as error:
        raise TypeError(f"`as_network` of {name} must return arguments of `find_fixed_points`: {error}") from error
    if network.rank != drift.rank:
        raise ValueError(f"`as_network` of {name} returns a network of rank {network.rank} for rank={drift.rank}.")
    z = torch.as_tensor(_probes(network), dtype=held.dtype, device=held.device)
    with torch.no_grad():
        mean = _array(drift.mean(z, held.expand(len(z), -1) if len(held) else None))
    points = _array(z)
    image = points + network.value(points)
    off = np.abs(mean - image).max(1) / (1 + np.abs(points).max(1) + np.abs(image).max(1))
    worst = int(off.argmax())
    if not off[worst] < _ROUNDING * float(torch.finfo(held.dtype).eps) ** 0.5:
        raise ValueError(
            f"`as_network` of {name} returns another network than its `mean`: of latents {points[worst].tolist()} the "
            f"one makes {image[worst].tolist()}, the other {mean[worst].tolist()}."
        )


def _probes(network: LatentMap) -> Any:
    """Return latents near the origin and far from it, and on both sides of each knot of each unit, `... x rank`."""
    rng = np.random.default_rng(0)
    around = rng.normal(size=(200, network.rank)) * np.logspace(-2, 3, 200)[:, np.newaxis]
    knots = network.knots if network.knots.shape[1] else -network.intercepts[:, :1]
    square = (network.weights**2).sum(1)
    seeing = square > 0
    nearest = network.weights[seeing, np.newaxis] * (knots[seeing] / square[seeing, np.newaxis])[..., np.newaxis]
    nearest = nearest.reshape(-1, network.rank)
    aside = np.abs(nearest).max(1, keepdims=True) * rng.normal(size=nearest.shape)
    return np.concatenate([around, *(size * nearest + 0.1 * aside for size in (0.5, 1.5, 3.0))])


def analyzer_arguments(network: Network, u: Any = None) -> dict[str, Any]:
    """Return the arguments of `find_fixed_points` for a network under a constant input, `inputs`, none if None.

    Under a constant input the network's own leak on inputs, if there is one, settles at that input.

    Raises:
        ValueError: if the parameters have batch dims, the input does not fit, or the activation is a function of the
            user's own whose knots are not known.
    """
    if network.batch_shape:
        raise ValueError(
            f"The parameters have batch dims {tuple(network.batch_shape)}, one network each; use "
            "pyro_lowrank.posterior_fixed_points, or pass arrays to pyro_lowrank.fixed_points.sampled_fixed_points."
        )
    right = _array(network.right)
    left = torch.eye(right.shape[1], dtype=torch.float64).numpy() if network.left is None else _array(network.left)
    decay = _array(network.decay)
    return {
        "decay": decay if decay.size > 1 else float(decay[0]),
        "left": left,
        "right": right,
        "bias": _array(network.bias),
        "activation": _known_activation(network),
        "input_current": _input_current(network, u),
    }


def search_fixed_points(
    dynamics: Dynamics, u: Any, starts: Any, num_starts: int, generator: torch.Generator
) -> FixedPoints:
    """Look for the fixed points of dynamics, whatever their mean is, under a constant input.

    Args:
        dynamics: the dynamics.
        u: the input, `inputs`; zero if None.
        starts: `... x rank`; those that `num_starts` and the generator give if None.
        num_starts: half of them are latents that the dynamics visit, the others lie around these, three times as far.
        generator: of the random numbers.

    Raises:
        ValueError: if starts or the input do not fit.
    """
    from pyro_lowrank.fixed_points.own import OwnMap, search_own

    rank, inputs, held = dynamics.rank, dynamics.num_inputs, _held(dynamics, u)
    if starts is None:
        starts = _visited(dynamics, held, num_starts, generator)
    starts = torch.as_tensor(starts).detach()
    if starts.shape[-1:] != (rank,):
        raise ValueError(f"`starts` must hold latents, ... x rank with rank={rank}, got {tuple(starts.shape)}.")
    _, drift, like = next(_versions(dynamics))
    v = held.to(like) if inputs else None

    def function(points: Any) -> tuple[Any, Any]:
        z = torch.as_tensor(points, dtype=like.dtype, device=like.device).requires_grad_()
        with torch.enable_grad():
            image = drift.mean(z, None if v is None else v.expand(len(z), inputs))
            rows = [torch.autograd.grad(image[:, i].sum(), z, retain_graph=True)[0] for i in range(rank)]
        return _array(image), _array(torch.stack(rows, 1))

    own = OwnMap(rank, function, float(torch.finfo(like.dtype).eps))
    return search_own(own, _array(starts.reshape(-1, rank)))


def _versions(dynamics: Dynamics) -> Iterator[tuple[Dynamics, Drift, Tensor]]:
    """Yield dynamics, their drift and a tensor of its precision: double first, where that runs."""
    if not any(prior_names(part) for part in dynamics.modules()):
        exact = copy_module(dynamics).double()
        like = exact.initial_mean.detach()
        drift = exact.transition().drift
        try:
            with torch.no_grad():
                drift.mean(like.expand(1, -1), like.new_zeros(1, dynamics.num_inputs) if dynamics.num_inputs else None)
        except RuntimeError:
            pass  # It holds numbers of another precision.
        else:
            yield exact, drift, like
    yield dynamics, dynamics.transition().drift, dynamics.initial_mean.detach()


def _visited(dynamics: Dynamics, held: Tensor, num_starts: int, generator: torch.Generator) -> Tensor:
    """Return latents that the dynamics visit under a constant input, and as many around them."""
    steps = 50
    trials = -(-num_starts // (2 * steps))
    u = held.to(dynamics.initial_mean).expand(trials, steps, -1) if dynamics.num_inputs else None
    with torch.no_grad(), drawn_from(generator):
        trajectory = dynamics.trajectory(steps, u)
        seen = trajectory.sample(() if trajectory.batch_shape else (trials,)).reshape(-1, dynamics.rank)
        seen = seen[seen.isfinite().all(-1)]
        around = seen + 3 * seen.std(0) * torch.randn_like(seen)
    return torch.cat([seen, around])


def _array(tensor: Tensor) -> Any:
    return tensor.detach().to("cpu", torch.float64).numpy()


def _known_activation(network: Network) -> str | PiecewiseLinear:
    activation = network.activation
    if activation.shape is not None:
        return activation.shape
    if activation.name in ("tanh", "softplus"):
        return activation.name
    raise ValueError(
        f"The activation {activation.name!r} is a function whose shape is not known to the analyzer of fixed points; "
        "declare it as a PiecewiseLinear, or use 'tanh' or 'softplus'."
    )


def _input_current(network: Network, u: Any) -> Any:
    if u is None:
        return None
    value = torch.as_tensor(u, dtype=torch.float64, device="cpu").detach()
    if network.num_inputs == 0:
        raise ValueError("An input `u` came, but the dynamics were built with inputs=0; build them with inputs=...")
    if value.shape != (network.num_inputs,):
        raise ValueError(
            f"`u` must be one constant input, a vector of {network.num_inputs}, got shape {tuple(value.shape)}."
        )
    if not value.isfinite().all():
        raise ValueError(f"`u` must be finite, got {value.tolist()}.")
    return _array(network.input_weights) @ value.numpy()
