"""Fixed points of every posterior draw of the weights: how many there are, with which probability, and where."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pyro import poutine
from torch import Tensor

from pyro_lowrank.dynamics.analysis import fixed_points_of_samples
from pyro_lowrank.dynamics.base import Dynamics
from pyro_lowrank.errors import check_positive_int
from pyro_lowrank.infer.mcmc.sampled import own_store
from pyro_lowrank.models.state_space import StateSpaceModel

if TYPE_CHECKING:
    from pyro_lowrank.fixed_points.along import FixedPointsAlongInput
    from pyro_lowrank.fixed_points.samples import SampledFixedPoints


def posterior_fixed_points(
    posterior: Any,
    samples: Mapping[str, Tensor] | None = None,
    u: Any = None,
    *,
    num_draws: int | None = None,
    method: str = "certified",
    max_boxes: int | None = None,
    max_seconds: float | None = None,
    threads: int | None = None,
    num_starts: int = 10_000,
    constrained: bool = True,
    seed: int = 0,
) -> SampledFixedPoints:
    """Find the fixed points of every posterior draw of a network's parameters: how many there are, and where.

    Args:
        posterior: an `MCMC` after `run`, of a kernel for a `StateSpaceModel`; or that model, or a network, some of
            whose parameters have priors (`PyroSample`).
        samples: with a model or network, draws of these parameters by the names of their sites, `samples x ...`, as
            `Predictive`, an autoguide or `MCMC.get_samples` return them; those of other sites are left alone.
        u: a constant input, `inputs`; none if None.
        num_draws: so many draws are looked at, spread evenly over all; all if None.
        method: as of `pyro_lowrank.fixed_points.find_fixed_points`; it and the budgets are for each draw.
        max_boxes: as there.
        max_seconds: as there.
        threads: as there.
        num_starts: as there.
        constrained: as there.
        seed: as there.

    Returns:
        Of an `MCMC` or a model it holds, beside the latents of each point, what the observation model expects there:
        latents of different draws may have different bases, recordings do not.

    Raises:
        TypeError: if `posterior` is neither.
        ValueError: if a parameter with a prior has no samples, none has one, or numbers of samples differ.

    Example::

        >>> import pyro_lowrank as plr
        >>> from pyro.distributions import Normal
        >>> from pyro.nn import PyroSample
        >>> dynamics = plr.LowRankRNN(rank=2, units=20)
        >>> dynamics.bias = PyroSample(Normal(torch.zeros(20), 1.0).to_event(1))
        >>> found = plr.posterior_fixed_points(dynamics, {"bias": torch.randn(5, 20)})
        >>> len(found.results), found.complete.all().item()
        (5, True)
    """
    dynamics, draws, model = _parts(posterior, samples)
    draws = _thinned(draws, num_draws)
    # Parameters without priors are the model's own, whatever another model has left in Pyro's store.
    with own_store():
        found = fixed_points_of_samples(
            dynamics,
            draws,
            u,
            method=method,
            max_boxes=max_boxes,
            max_seconds=max_seconds,
            threads=threads,
            num_starts=num_starts,
            constrained=constrained,
            seed=seed,
        )
        return found if model is None else found.seen_as(_readouts(model, draws, found, u))


def fixed_points_along_input(
    posterior: Any, inputs: Any, samples: Mapping[str, Tensor] | None = None, **options: Any
) -> FixedPointsAlongInput:
    """Find the fixed points of every posterior draw at each of a sequence of inputs: bifurcations, with their bands.

    Args:
        posterior: as of `posterior_fixed_points`.
        inputs: constant inputs, `steps x inputs`.
        samples: as there.
        options: as there.

    Raises:
        ValueError: if the inputs are not two or more, or as there.
    """
    from pyro_lowrank.fixed_points.along import FixedPointsAlongInput

    steps = torch.as_tensor(inputs)
    if steps.dim() != 2 or len(steps) < 2:
        raise ValueError(f"`inputs` must be two or more inputs, steps x inputs, got shape {tuple(steps.shape)}.")
    found = [posterior_fixed_points(posterior, samples, step, **options) for step in steps]
    return FixedPointsAlongInput(tuple(found), steps.double().numpy())


def _parts(
    posterior: Any, samples: Mapping[str, Tensor] | None
) -> tuple[Dynamics, Mapping[str, Tensor], StateSpaceModel | None]:
    """Return the network, draws of its parameters, and its model where that is known."""
    if isinstance(posterior, Dynamics):
        if samples is None:
            raise ValueError("With a network, pass draws of its parameters, `samples`, by the names of their sites.")
        return posterior, samples, None
    if isinstance(posterior, StateSpaceModel) and samples is not None:
        model, draws = posterior, samples
    else:
        model = sampled_model(posterior)
        draws = posterior.get_samples()
    return model.dynamics, draws, model


def sampled_model(mcmc: Any) -> StateSpaceModel:
    """Return the model that an `MCMC` has drawn from.

    Raises:
        TypeError: if there is none, or it is none of ours.
        ValueError: if it was not run.
    """
    model = getattr(getattr(mcmc, "kernel", None), "model", None)
    if not isinstance(model, StateSpaceModel):
        raise TypeError(
            "`posterior` must be a pyro.infer.MCMC after `run`, whose kernel is made from a StateSpaceModel, such as "
            f"ParticleGibbs(model); or a network with `samples`; got {type(mcmc).__name__}."
        )
    if getattr(mcmc, "_samples", None) is None:
        raise ValueError("The MCMC has no draws yet: call its `run` first.")
    return model


def _thinned(draws: Mapping[str, Tensor], number: int | None) -> dict[str, Tensor]:
    if number is None or not draws:
        return dict(draws)
    check_positive_int("num_draws", number)
    size = min(len(value) for value in draws.values())
    index = torch.linspace(0, size - 1, min(number, size)).round().long()
    return {name: torch.as_tensor(value)[index] for name, value in draws.items()}


@torch.no_grad()
def _readouts(model: StateSpaceModel, draws: Mapping[str, Tensor], found: Any, u: Any) -> list[Any]:
    """Return what is expected to be recorded at the fixed points of each draw, `points x features` each."""
    like, places = model.observation.readout.bias, []
    for index, result in enumerate(found.results):
        z = torch.as_tensor(result.points).to(like)
        v = None if u is None else torch.as_tensor(u).to(like).expand(len(z), -1)
        with poutine.block(), poutine.condition(data={name: value[index] for name, value in draws.items()}):
            mean = model.observation.mean(z, v)
        places.append(mean.double().numpy().reshape(len(z), -1) if len(z) else np.zeros((0, mean.shape[-1])))
    return places
