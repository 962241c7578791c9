"""Priors on the parameters of a model: sensible ones where nothing else is said, and a table of them."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
from pyro.nn import PyroModule, PyroSample
from torch import Tensor
from torch.distributions import constraints

from pyro_lowrank.errors import check_positive, check_same_type
from pyro_lowrank.models.state_space import StateSpaceModel
from pyro_lowrank.modules import prior_names
from pyro_lowrank.observations.driven import DrivenObservation

Prior = Any


class ColumnShrinkage:
    r"""A prior of a matrix whose columns may each be switched off: M's, so that the data say how many latents act.

    .. math:: M_{ir} = \tau_r\, m_{ir}, \qquad m_{ir} \sim N(0, 1 / R), \qquad \tau_r \sim \mathrm{C}^+(0, s)

    Half-Cauchy scales have most of their mass near zero and tails that leave large columns alone. The sites are
    `NAME_columns`, tau, and `NAME_raw`, m; M follows from them. It is known up to the order of the columns.

    Args:
        scale: s, the median of tau.

    Example::

        >>> import pyro_lowrank as plr
        >>> model = plr.StateSpaceModel(plr.LowRankRNN(rank=3, units=9), plr.GaussianObservation(rank=3, features=3))
        >>> print(prior_table(with_priors(model, only=[], **{"dynamics.left": ColumnShrinkage(scale=0.3)})))
        parameter              shape   prior
        dynamics.left                  given those of the others
        dynamics.left_columns  (3,)    HalfCauchy(0.3)
        dynamics.left_raw      (9, 3)  Normal(0, 0.577)

    References:
        Carvalho, Polson and Scott (2010), Biometrika 97:465.
    """

    def __init__(self, scale: float = 0.3) -> None:
        self.scale = check_positive("scale", scale)

    def put(self, name: str, place: _Place) -> None:
        """Give a parameter this prior.

        Raises:
            ValueError: if it is no matrix, or may not have any values.
        """
        value = place.value
        if value.dim() != 2 or not _same(place.constraint, constraints.real):
            raise ValueError(
                f"ColumnShrinkage is a prior of matrices of real numbers, such as 'dynamics.left'; {name!r} has shape "
                f"{tuple(value.shape)} and {place.constraint} entries."
            )
        columns, raw = f"{place.attribute}_columns", f"{place.attribute}_raw"
        scale = torch.full_like(value[0], self.scale)
        setattr(place.owner, columns, PyroSample(dist.HalfCauchy(scale).to_event(1)))
        one = torch.ones_like(value)
        setattr(place.owner, raw, PyroSample(dist.Normal(0 * one, one / math.sqrt(value.shape[-1])).to_event(2)))
        setattr(place.owner, place.attribute, PyroSample(partial(_scaled, columns=columns, raw=raw)))


def _scaled(owner: PyroModule, *, columns: str, raw: str) -> Tensor:
    """Return the matrix that its columns' scales and the rest make."""
    scaled: Tensor = getattr(owner, raw) * getattr(owner, columns).unsqueeze(-2)
    return scaled


class _Place(NamedTuple):
    """A parameter: the module that it belongs to, what it is called there, its value, and what values it may have."""

    owner: PyroModule
    attribute: str
    value: Tensor
    constraint: constraints.Constraint


def with_priors(model: StateSpaceModel, *, only: Sequence[str] | None = None, **priors: Prior) -> StateSpaceModel:
    r"""Return a copy of a model whose parameters have priors, for `NUTS`, `ParticleGibbs`, `PMMH` or `Predictive`.

    Where nothing else is said, with rank R, N units and d the number of what a weight is summed over:

    .. math::

        M &\sim N(0, 1 / R), \quad V \sim N(0, 1 / N), \quad W_u \sim N(0, 1 / d), \quad h \sim N(0, 1) \\
        a &\sim \mathrm{Beta}(8, 2), \quad \sigma_z \sim \mathrm{LogNormal}(\log \sigma_0, 1), \quad
        \Sigma_z = \sigma_z \Omega\, \sigma_z, \ \Omega \sim \mathrm{LKJ}(2)

    with :math:`\sigma_0` the scale that the noise has now; readouts N(0, 1 / d), biases and all other real parameters
    N(0, 1); all other positive parameters log-normal around their value. Time constants of fluorescence and of blood
    flow have priors around the published values that they start at. All else supposes data of unit scale. See what they
    came to with `prior_table`.

    Args:
        model: the model, whose trained parameters are given priors; those that have some keep them.
        only: names of the parameters that are to have priors; the others keep their values. All if None.
        priors: distributions by the names of parameters, as in `**{"dynamics.decay": dist.Beta(9.0, 1.0)}`; a
            `ColumnShrinkage` for one whose columns may be switched off; None for one that keeps its value.

    Raises:
        ValueError: if there is no parameter of a name, or a prior has another shape or other values than it.
        TypeError: if a prior is no distribution, or of another floating-point type.

    Example::

        >>> import pyro.distributions as dist, pyro_lowrank as plr
        >>> model = plr.StateSpaceModel(plr.LowRankRNN(rank=2, units=9), plr.GaussianObservation(rank=2, features=3))
        >>> sampled = with_priors(model, only=["dynamics.left"], **{"dynamics.decay": dist.Beta(9.0, 1.0)})
        >>> print(prior_table(sampled))
        parameter       shape   prior
        dynamics.decay  ()      Beta(9, 1)
        dynamics.left   (9, 2)  Normal(0, 0.707)

    References:
        Lewandowski, Kurowicka and Joe (2009), J. Multivar. Anal. 100:1989.
    """
    if not isinstance(model, StateSpaceModel):
        raise TypeError(f"`model` must be a StateSpaceModel, got {type(model).__name__}.")
    # Not `copy_module`: sites are to have the names that they have in the model.
    changed = copy.deepcopy(model)
    places = dict(_places(changed))
    wanted = list(places) if only is None else list(only)
    unknown = sorted({*wanted, *priors} - set(places))
    if unknown:
        raise ValueError(f"There are no trained parameters {unknown} without a prior; there are {sorted(places)}.")
    for name in {**dict.fromkeys(wanted), **priors}:
        place = places[name]
        if name not in priors:
            _put_default(name, place, changed)
        elif isinstance(priors[name], ColumnShrinkage):
            priors[name].put(name, place)
        elif priors[name] is not None:
            _check(name, priors[name], place)
            setattr(place.owner, place.attribute, PyroSample(priors[name]))
    return changed


def prior_table(model: StateSpaceModel) -> str:
    """Return which parameters of a model have priors, and which, as a table of text.

    Example::

        >>> import pyro_lowrank as plr
        >>> model = plr.StateSpaceModel(plr.LowRankRNN(rank=1, units=9), plr.GaussianObservation(rank=1, features=3))
        >>> print(prior_table(with_priors(model, only=["observation.readout.bias"])))
        parameter                 shape  prior
        observation.readout.bias  (3,)   Normal(0, 1)
    """
    rows = [("parameter", "shape", "prior")]
    for path, part in model.named_modules():
        for attribute in prior_names(part):
            prior = part._pyro_samples[attribute]
            name = f"{path}.{attribute}".removeprefix(".")
            if hasattr(prior, "sample"):
                rows.append((name, str(tuple(prior.batch_shape + prior.event_shape)), _described(prior)))
            else:
                rows.append((name, "", "given those of the others"))
    head, *body = rows
    widths = [max(len(row[i]) for row in rows) for i in range(2)]
    return "\n".join(f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c}".rstrip() for a, b, c in (head, *sorted(body)))


def _places(model: StateSpaceModel) -> Iterator[tuple[str, _Place]]:
    """Yield the trained parameters of a model by name."""
    for path, part in model.named_modules():
        if not isinstance(part, PyroModule):
            continue
        for name, (constraint, _) in part._pyro_params.items():
            unconstrained = part._parameters[f"{name}_unconstrained"]
            if unconstrained is not None and unconstrained.requires_grad:
                value = getattr(part, name).detach()
                yield f"{path}.{name}".removeprefix("."), _Place(part, name, value, constraint)


def _check(name: str, prior: Prior, place: _Place) -> None:
    """Raise unless a prior is one of the parameter's values."""
    if not hasattr(prior, "sample"):
        raise TypeError(f"The prior of {name!r} must be a distribution of pyro.distributions, got {prior!r}.")
    # A look at one draw leaves the random numbers that follow as they are.
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        try:
            draw = prior.sample()
        except NotImplementedError as reason:
            raise ValueError(
                f"The prior of {name!r}, {type(prior).__name__}, cannot be drawn from: chains start from draws, and "
                "the posterior may be improper with it; give a proper one, such as a wide Normal."
            ) from reason
    if draw.shape != place.value.shape:
        shape = tuple(place.value.shape)
        raise ValueError(
            f"The prior of {name!r} has draws of shape {tuple(draw.shape)}, the parameter has {shape}: "
            f"prior.expand({list(shape)}).to_event({len(shape)})."
        )
    check_same_type(f"A draw of the prior of {name}", draw, place.value)
    if prior.batch_shape:
        raise ValueError(f"The prior of {name!r} has batch dims {tuple(prior.batch_shape)}: prior.to_event().")
    if not place.constraint.check(draw).all():
        raise ValueError(f"The prior of {name!r} has draws that it cannot be, such as {draw}: {place.constraint}.")


def _put_default(name: str, place: _Place, model: StateSpaceModel) -> None:
    owner, attribute, value, constraint = place
    if value.dim() >= 2 and attribute in ("noise_scale", "initial_noise_scale"):
        _put_covariance(owner, attribute, value)
        return
    own = owner.priors().get(attribute) if isinstance(owner, DrivenObservation) else None
    prior = _default(name, value, constraint) if own is None else own.to_event(value.dim())
    setattr(owner, attribute, PyroSample(prior))


def _default(name: str, value: Tensor, constraint: constraints.Constraint) -> Prior:
    """Return the prior of a parameter of which nothing else is said."""
    one = torch.ones_like(value)
    if _same(constraint, constraints.unit_interval):
        prior: Prior = dist.Beta(8 * one, 2 * one)
    elif _same(constraint, constraints.positive):
        prior = dist.LogNormal(value.log(), one)
    elif not _same(constraint, constraints.real):
        raise ValueError(f"There is no prior by default for {name!r}, {constraint}: give one, or None.")
    elif value.dim() >= 2:
        prior = dist.Normal(0 * one, one / math.sqrt(value.shape[-1]))
    else:
        prior = dist.Normal(0 * one, one)
    return prior.to_event(value.dim())


def _same(constraint: constraints.Constraint, other: constraints.Constraint) -> bool:
    """Whether two constraints are one: copies of a model have copies of them."""
    return type(constraint) is type(other) and vars(constraint) == vars(other)


def _put_covariance(owner: PyroModule, attribute: str, value: Tensor) -> None:
    """Give a Cholesky factor the prior of standard deviations times correlations, which are sites of their own."""
    scale = (value @ value.mT).diagonal(dim1=-2, dim2=-1).sqrt()
    deviations, correlations = f"{attribute}_deviations", f"{attribute}_correlations"
    setattr(owner, deviations, PyroSample(dist.LogNormal(scale.log(), torch.ones_like(scale)).to_event(1)))
    # Of one latent there are no correlations.
    if value.shape[-1] > 1:
        prior = dist.LKJCholesky(value.shape[-1], torch.tensor(2.0, dtype=value.dtype, device=value.device))
        setattr(owner, correlations, PyroSample(prior))
    setattr(owner, attribute, PyroSample(partial(_factor, deviations=deviations, correlations=correlations)))


def _factor(owner: PyroModule, *, deviations: str, correlations: str) -> Tensor:
    """Return the Cholesky factor that deviations and correlations make."""
    scale = getattr(owner, deviations)
    if scale.shape[-1] == 1:
        return scale.unsqueeze(-1)
    return scale.unsqueeze(-1) * getattr(owner, correlations)


def _described(prior: Prior) -> str:
    """Return a distribution's name and parameters, where they are the same for all entries."""
    base = prior
    while isinstance(base, torch.distributions.Independent):
        base = base.base_dist
    shown = []
    for name in base.arg_constraints:
        value = getattr(base, name, None)
        if not isinstance(value, Tensor):
            continue
        low, high = value.min().item(), value.max().item()
        shown.append(f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}")
    return f"{type(base).__name__}({', '.join(shown)})"
