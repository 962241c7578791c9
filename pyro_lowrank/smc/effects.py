"""Moving and weighing particles of any Pyro model with `init` and `step`, by tracing its sites."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.infer.smcfilter import SMCState
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_lowrank.errors import warn_user
from pyro_lowrank.handlers import TRIALS, invisible
from pyro_lowrank.smc.densities import log_prob
from pyro_lowrank.smc.loop import State


@dataclass(frozen=True)
class Call:
    """The arguments of one call of `init` or `step`; `encoding` is the slice of what the guide's `encode` returned."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)
    encoding: Any = None

    @property
    def parts(self) -> tuple[Any, ...]:
        """All that is in it."""
        return self.args, self.kwargs, self.encoding


def _cut(value: Any, num_steps: int) -> list[Any]:
    """Cut a tensor at its time dim (-2), or every tensor in nested dicts, tuples and lists."""
    if isinstance(value, Tensor):
        if value.dim() < 2 or value.shape[-2] != num_steps:
            raise ValueError(
                f"Every tensor given must have {num_steps} time bins in its dim -2, as the first one has, got shape "
                f"{tuple(value.shape)}."
            )
        return list(value.unbind(-2))
    if isinstance(value, dict):
        cut = {key: _cut(item, num_steps) for key, item in value.items()}
        return [{key: items[t] for key, items in cut.items()} for t in range(num_steps)]
    if isinstance(value, (tuple, list)):
        columns = [_cut(item, num_steps) for item in value]
        rows = [[column[t] for column in columns] for t in range(num_steps)]
        return rows if isinstance(value, list) else [tuple(row) for row in rows]
    return [value] * num_steps


class FromModel:
    """A guide without sites, which leaves it to the model to propose: the bootstrap filter of a user's model.

    A guide that writes the transition down again would have it evaluated twice, and two densities that cancel.
    """

    def init(self, state: State, *args: Any, **kwargs: Any) -> None:
        """Propose nothing."""

    step = init


class EffectsKernel:
    """Moves and weighs particles by running the guide's and the model's `init` and `step` under Pyro's handlers.

    Weights are kept per trial where the model has a plate named "trials" at dim -1, else for all batch dims together.
    Scales of sites (`poutine.scale`, subsampled plates) never enter the weights: they scale the log evidence, and are
    collected in `scale`. The handlers around the filter see none of the sites, only the parameters.

    Args:
        model: an object with `init(state, ...)` and `step(state, ...)`.
        guide: likewise.
        num_particles: number of particles.
        max_plate_nesting: number of plates that the model nests at most; particles go at dim -1 - max_plate_nesting.
    """

    def __init__(self, model: Any, guide: Any, num_particles: int, max_plate_nesting: int) -> None:
        self.model, self.guide = model, guide
        self.num_particles = num_particles
        self.batch_dims = 1 + max_plate_nesting
        with invisible():
            self.particle_plate = pyro.plate("particles", num_particles, dim=-self.batch_dims)
        self.scale: float | Tensor | None = None

    def slices(self, data: tuple[tuple[Any, ...], dict[str, Any]]) -> list[Call]:
        """Cut whole sequences, every tensor at its dim -2, into the arguments of `init` and `step`."""
        args, kwargs = data
        calls = self.calls(*args, **kwargs)
        encode = getattr(self.guide, "encode", None)
        if encode is None:
            return calls
        with invisible():
            encodings = _cut(encode(*args, **kwargs), len(calls))
        return [replace(call, encoding=encoding) for call, encoding in zip(calls, encodings, strict=True)]

    @staticmethod
    def calls(*args: Any, **kwargs: Any) -> list[Call]:
        """Cut whole sequences into the arguments of the model's `init` and `step`."""
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor) and value.dim() >= 2]
        if not tensors:
            raise ValueError("At least one tensor with time in dim -2 must be given: it tells the number of time bins.")
        num_steps = tensors[0].shape[-2]
        return [Call(*row) for row in zip(_cut(args, num_steps), _cut(kwargs, num_steps), strict=True)]

    def init(self, slice_t: Call) -> tuple[State, Tensor]:
        """Propose and weigh the first particles."""
        return self._run(self.model.init, self.guide.init, {}, slice_t)

    def step(self, state: State, slice_t: Call) -> tuple[State, Tensor]:
        """Propose and weigh the next particles."""
        return self._run(self.model.step, self.guide.step, state, slice_t)

    def _run(
        self, model: Callable[..., Any], guide: Callable[..., Any], state: State, call: Call
    ) -> tuple[State, Tensor]:
        particles = SMCState(self.num_particles)
        particles.update(state)
        guide_kwargs = call.kwargs if call.encoding is None else {**call.kwargs, "encoding": call.encoding}
        with invisible(), self.particle_plate:
            with particles._lock():
                guide_trace = poutine.trace(guide).get_trace(particles, *call.args, **guide_kwargs)
            replayed = poutine.replay(model, guide_trace)
            model_trace = poutine.trace(replayed).get_trace(particles, *call.args, **call.kwargs)
        return dict(particles), self._weigh(model_trace, guide_trace)

    def _weigh(self, model_trace: Trace, guide_trace: Trace) -> Tensor:
        """Return log p(observed, proposed) - log q(proposed) of one step, `particles (x trials)`."""
        proposed, latent = _latent_sites(guide_trace), _latent_sites(model_trace)
        unknown = sorted(proposed.keys() - latent.keys())
        if unknown:
            raise ValueError(
                f"The guide samples {unknown}, which are no latent sites of the model at this step; the model has "
                f"{sorted(latent)}."
            )
        if torch.is_grad_enabled():
            for name, site in (latent | proposed).items():
                _warn_unless_reparametrised(name, site)
        # A latent site that the guide leaves out is proposed from the model: its weight is 1.
        observed = [site for site in model_trace.nodes.values() if site["type"] == "sample" and site["is_observed"]]
        positive = [*(latent[name] for name in proposed), *observed]
        trials = _num_trials([*latent.values(), *observed, *proposed.values()])
        per_trial = trials is not None
        if not positive:
            return torch.zeros(self.num_particles, *() if trials is None else (trials,))
        total = self._log_prob(positive[0], per_trial)
        for site in positive[1:]:
            total = total + self._log_prob(site, per_trial)
        for site in proposed.values():
            total = total - self._log_prob(site, per_trial)
        return total

    def _log_prob(self, site: Any, per_trial: bool) -> Tensor:
        self._collect_scale(site)
        return site_log_prob(site, self.num_particles, self.batch_dims, per_trial=per_trial)

    def _collect_scale(self, site: Any) -> None:
        scale = site["scale"]
        if self.scale is None:
            self.scale = scale
        elif isinstance(scale, float) and isinstance(self.scale, float) and scale == self.scale:
            return  # As nearly always: tensors cost more than the comparison.
        elif not torch.equal(torch.as_tensor(scale), torch.as_tensor(self.scale)):
            raise ValueError(
                f"All sites of a filtered model and its guide must have one scale, which scales the log evidence; got "
                f"{scale} at {site['name']!r} and {self.scale} before."
            )


def unscaled_log_prob(site: Any) -> Tensor:
    """Return the log density of a site of a trace without its scale, where it is not masked."""
    found = log_prob(site["fn"], site["value"], *site["args"], **site["kwargs"])
    return scale_and_mask(found, mask=site["mask"])


def site_log_prob(site: Any, num_particles: int, batch_dims: int, *, per_trial: bool) -> Tensor:
    """Return the log density of a site without its scale, `particles (x trials)`, summed over other batch dims.

    Args:
        site: of a trace.
        num_particles: in its first batch dim, if that is not left out for being the same for all.
        batch_dims: number of leading dims: particles, then plates.
        per_trial: whether trials, the last of them, are kept apart.
    """
    found = unscaled_log_prob(site)
    # Broadcast over the particles first: a site that is the same for all may lack their dim.
    found = found.reshape((1,) * (batch_dims - found.dim()) + found.shape)
    found = found.expand(num_particles, *found.shape[1:])
    if not per_trial:
        return found.reshape(num_particles, -1).sum(-1)
    return found if found.dim() == 2 else found.flatten(1, -2).sum(1)


def _latent_sites(trace: Trace) -> dict[str, Any]:
    """Return the sampled sites by name, those of subsampled plates left out."""
    return {
        name: site
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and not site["is_observed"] and not site_is_subsample(site)
    }


def _num_trials(sites: Sequence[Any]) -> int | None:
    """Return the size of the plate of trials that all sites lie in, or None if none does."""
    frames = [[frame for frame in site["cond_indep_stack"] if is_of_trials(frame)] for site in sites]
    outside = [site["name"] for site, found in zip(sites, frames, strict=True) if not found]
    if len(outside) == len(sites):
        return None
    if outside:
        raise ValueError(
            f"Site {outside[0]!r} lies outside the plate {TRIALS!r}, so particles cannot be weighed trial by "
            f"trial; move it inside, or give the plate another name to weigh all trials together."
        )
    return int(frames[0][0].size)


def is_of_trials(frame: Any) -> bool:
    """Whether a plate is that over trials."""
    return bool(frame.name == TRIALS and frame.dim == -1)


def _warn_unless_reparametrised(name: str, site: Any) -> None:
    if not getattr(site["fn"], "has_rsample", True):
        warn_user(
            f"The latent site {name!r} is not reparametrised: gradients do not pass through its samples, and the "
            "gradient of the log evidence is biased."
        )
