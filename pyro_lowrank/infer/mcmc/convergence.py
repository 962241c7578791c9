"""Whether chains agree on what the data can tell: quantities that do not depend on the order of units or the basis."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from pyro.ops.stats import effective_sample_size, split_gelman_rubin
from torch import Tensor

from pyro_lowrank.errors import check_positive_int
from pyro_lowrank.infer.mcmc.fixed_points import sampled_model
from pyro_lowrank.infer.mcmc.sampled import own_store
from pyro_lowrank.models.state_space import BoundModel
from pyro_lowrank.observations.readout import AffineMap
from pyro_lowrank.shapes import apply_matrix

_FEWEST_DRAWS = 4


@dataclass(frozen=True, eq=False)
class Convergence:
    """Draws of what is identified, and how far chains agree on it.

    Attributes:
        draws: by name, `chains x draws x ...`: `"decay"`; `"transition noise"`, its root mean variance over what is
            recorded; `"observation noise"`; `"flow"`, where the noiseless network leads from each of some points, in
            the leading directions of what is recorded, `points x directions`; `"readout"`, what is expected to be
            recorded in some time bins, `bins x features`.
        rhat: split R-hat of each, the shape of one draw; 1 where chains agree.
        ess: effective number of draws of each, over all chains.
    """

    draws: dict[str, Tensor]
    rhat: dict[str, Tensor]
    ess: dict[str, Tensor]

    @property
    def worst_rhat(self) -> float:
        """The largest of all."""
        return max(value.max().item() for value in self.rhat.values())

    @property
    def least_ess(self) -> float:
        """The smallest of all."""
        return min(value.min().item() for value in self.ess.values())

    def __str__(self) -> str:
        lines = [f"{'quantity':<18} {'mean':>10} {'sd':>10} {'R-hat':>7} {'ESS':>7}   (worst of each)"]
        for name, value in self.draws.items():
            flat = value.flatten(0, 1)
            lines.append(
                f"{name:<18} {flat.mean():10.4g} {flat.std(0).mean():10.3g} {self.rhat[name].max():7.3f} "
                f"{self.ess[name].min():7.0f}"
            )
        return "\n".join(lines)


def convergence(posterior: Any, samples: Mapping[str, Tensor] | None = None, *, num_points: int = 9) -> Convergence:
    """Return R-hat and effective sample sizes of what the data identify, after `ParticleGibbs`, `PMMH` or `NUTS`.

    Units may be permuted, and of latents any basis be taken, without a change of what is recorded: R-hat of single
    weights may be large though chains agree on all that matters.

    Args:
        posterior: a `pyro.infer.MCMC` after `run`, whose kernel is made from a `StateSpaceModel`; or that model.
        samples: with a model, draws by the names of its sites, `chains x draws x ...`, such as those of chains that ran
            apart.
        num_points: number of time bins, of the first trial, around which the flow is compared.

    Raises:
        TypeError: if it is of another model.
        ValueError: if it was not run, or has fewer than four draws per chain.

    Example::

        >>> import pyro_lowrank as plr
        >>> model = plr.StateSpaceModel(plr.LowRankRNN(rank=1, units=5), plr.GaussianObservation(rank=1, features=3))
        >>> sampled = plr.with_priors(model, only=["dynamics.decay"])
        >>> found = convergence(sampled, {"dynamics.decay": torch.rand(4, 100)})
        >>> found.worst_rhat < 1.1
        True

    References:
        Vehtari et al. (2021), Bayesian Anal. 16:667.
    """
    check_positive_int("num_points", num_points)
    if samples is None:
        model, samples = sampled_model(posterior), posterior.get_samples(group_by_chain=True)
    else:
        model = posterior
    chains, draws = next(iter(samples.values())).shape[:2]
    if draws < _FEWEST_DRAWS:
        raise ValueError(f"R-hat needs at least {_FEWEST_DRAWS} draws per chain, got {draws}.")
    each = [(c, d) for c in range(chains) for d in range(draws)]
    with own_store():
        bound = [_at(model, {name: value[c, d] for name, value in samples.items()}) for c, d in each]
    rows = [_scalars(model, one) for one in bound]
    if "z" in samples:
        bins = torch.linspace(0, samples["z"].shape[-2] - 1, num_points).round().long()
        z = samples["z"][:, :, 0, bins].flatten(0, 1)
        seen = [_readout(one, latents) for one, latents in zip(bound, z, strict=True)]
        middle = torch.stack(seen).mean(0)
        _, _, directions = torch.linalg.svd(middle - middle.mean(0), full_matrices=False)
        directions = directions[: bound[0].transition.rank]
        for row, one, read in zip(rows, bound, seen, strict=True):
            row["readout"], row["flow"] = read, _flow(one, middle) @ directions.mT
    found = {name: torch.stack([row[name] for row in rows]).unflatten(0, (chains, draws)) for name in rows[0]}
    # A quantity that has no prior never varies.
    found = {name: value for name, value in found.items() if (value != value[:1, :1]).any()}
    return Convergence(
        found,
        {name: split_gelman_rubin(value.double()) for name, value in found.items()},
        {name: effective_sample_size(value.double()) for name, value in found.items()},
    )


@torch.no_grad()
def _at(model: Any, values: dict[str, Tensor]) -> BoundModel:
    with poutine.block(), poutine.condition(data=values):
        bound: BoundModel = model.bind()
    return bound


def _map(bound: BoundModel) -> AffineMap:
    """Return how latents are seen where that is affine, otherwise the currents of the units."""
    readout = getattr(bound.emission, "readout", None)
    if isinstance(readout, AffineMap):
        return readout
    left = getattr(bound.transition.drift, "left", None)
    weight = torch.eye(bound.transition.rank).to(bound.transition.initial_mean) if left is None else left
    return AffineMap(weight, None, weight.new_zeros(len(weight)))


@torch.no_grad()
def _readout(bound: BoundModel, z: Tensor) -> Tensor:
    return apply_matrix(_map(bound).weight, z) + _map(bound).bias


@torch.no_grad()
def _flow(bound: BoundModel, seen: Tensor) -> Tensor:
    """Return what is seen one step after what is seen, without noise and inputs."""
    affine = _map(bound)
    z = (seen - affine.bias) @ torch.linalg.pinv(affine.weight).mT
    drift = bound.transition.drift
    v = z.new_zeros(len(z), drift.num_inputs) if drift.num_inputs else None
    return _readout(bound, bound.transition.mean(z, v))


@torch.no_grad()
def _scalars(model: Any, bound: BoundModel) -> dict[str, Tensor]:
    weight = _map(bound).weight
    spread = weight @ bound.transition.noise.spread @ weight.mT
    rows = {"transition noise": spread.diagonal().sum().div(bound.transition.rank).sqrt()}
    decay = getattr(bound.transition.drift, "decay", None)
    if decay is not None:
        rows["decay"] = decay
    parameters = getattr(bound.emission, "parameters", ())
    if hasattr(model.observation, "noise_variance") and parameters:
        rows["observation noise"] = parameters[0]
    return rows
