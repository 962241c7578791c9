"""A model of the user's own, run again with its latent sites set to the values of paths."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer.smcfilter import SMCState
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from pyro_lowrank.errors import CannotBeReplayed
from pyro_lowrank.handlers import invisible
from pyro_lowrank.modules import own_values
from pyro_lowrank.smc.effects import (
    Call,
    EffectsKernel,
    FromModel,
    is_of_trials,
    site_log_prob,
    unscaled_log_prob,
)
from pyro_lowrank.smc.loop import State
from pyro_lowrank.smc.smoothing import take_states
from pyro_lowrank.smc.taped import Results, Untaped

_MEND = "pass method='genealogy' to `smooth` and gradient=PathwiseGradient() to SMC_ELBO."
_NOT_KEPT = (
    "The transition density of {0} cannot be replayed: its state does not keep the latent site {1!r} as it was drawn. "
    "Keep it, `state[{1!r}] = pyro.sample({1!r}, ...)`, or " + _MEND
)

_HIDDEN = (
    "The transition density of {0} cannot be replayed: its step depends on {1}, so it cannot be run at one time bin "
    "after another. Hand over what changes with time as data are, one value per time bin, or keep it in the state, or "
    + _MEND
)


class _Fixed(Messenger):
    """Gives latent sites values by name, or by place where a count names them; without values, notes what they draw."""

    def __init__(self, values: dict[str, Tensor] | None = None) -> None:
        super().__init__()
        self.values = values
        self.sites: list[Any] = []
        self._places, self._number, self.drew = list(values or {}), 0, False

    @property
    def latent(self) -> dict[str, Any]:
        """The values of latent sites, in their order."""
        return {site["name"]: site["value"] for site in self.sites if not site["is_observed"]}

    def _pyro_sample(self, msg: Any) -> None:
        subsampling = type(msg["fn"]).__name__ == "_Subsample"
        if self.values is None or msg["is_observed"] or subsampling or msg["infer"].get("_do_not_trace"):
            return
        place, self._number = self._number, self._number + 1
        name = self._places[place] if place < len(self._places) and msg["name"] not in self.values else msg["name"]
        if name in self.values:
            msg["value"], msg["done"] = self.values[name], True
        else:
            self.drew = True

    def _pyro_post_sample(self, msg: Any) -> None:
        if type(msg["fn"]).__name__ != "_Subsample" and not msg["infer"].get("_do_not_trace"):
            self.sites.append(msg)
        msg["stop"] = True


class _AnyShape(SMCState):
    """A state whose tensors need not begin with the particles."""

    def __setitem__(self, key: Any, value: Tensor) -> None:
        dict.__setitem__(self, key, value)


@dataclass(frozen=True)
class ReplayedTransitions:
    """Of a user-written model, whose `step` is run again with its latent sites set to a path's values.

    That needs every latent site of `step` to be kept in the state as it was drawn; what else the state holds must
    follow from them and from the data. The model is run at its present parameters.

    Args:
        kernel: of the run.
        calls: arguments of each time bin, with what the guide's `encode` returned if its density is asked for.
        tapes: how steps are run again.
    """

    kernel: EffectsKernel
    calls: list[Call]
    tapes: Untaped = field(default_factory=Untaped, repr=False, compare=False)

    @property
    def batch_dims(self) -> int:
        """Number of leading dims of state tensors before their own."""
        return self.kernel.batch_dims

    def pairs(self, time: int, before: State) -> Callable[[State], Tensor]:
        """Return the log density of a later state and its data, as a function of it, `D x trials x particles`."""

        def score(after: State) -> Tensor:
            draws = next(iter(after.values())).shape[0]
            broadcasts, sizes = self.tapes.kept.broadcasts, (self.kernel.num_particles, draws)
            if sizes not in broadcasts:
                # The random numbers that follow must not depend on whether this is known already.
                with torch.random.fork_rng(devices=[]):
                    found = self._repeated(time, before, after)
                    broadcasts[sizes] = self._agrees(time, before, after, found)
            if broadcasts[sizes]:
                return self._side_by_side(time, before, after)
            return self._repeated(time, before, after)

        return score

    def _repeated(self, time: int, before: State, after: State) -> Tensor:
        """Return the log density of all pairs of states, each of which is a particle."""
        draws, num_particles = next(iter(after.values())).shape[0], self.kernel.num_particles
        earlier = {n: value.repeat(draws, *(1,) * (value.dim() - 1)) for n, value in before.items()}
        later = {n: value.repeat_interleave(num_particles, 0) for n, value in after.items()}
        return self._score(time, earlier, later).unflatten(0, (draws, num_particles)).movedim(1, -1)

    def _side_by_side(self, time: int, before: State, after: State) -> Tensor:
        """Return the log density of all pairs, draws in a dim of their own: what sees one of the two is done once."""
        return self._taped("pairs", time, before, after, lambda: self._of_pairs(time, before, after))

    def _taped(self, part: str, time: int, before: State, after: State, density: Callable[[], Tensor]) -> Tensor:
        """Return a density of later states given earlier ones, replayed once it is known where sites are kept."""
        if (time < 0) not in self.tapes.kept.homes:
            return density()
        given = (before, after, *self.calls[time + 1].parts)
        return self.tapes.run(part, lambda: ({}, (density(),)), given)[1][0]

    def _of_pairs(self, time: int, before: State, after: State) -> Tensor:
        draws, num_particles = next(iter(after.values())).shape[0], self.kernel.num_particles
        later = {name: value.unsqueeze(1) for name, value in after.items()}
        # The store is set aside before the plate: within it, it would be read, and overwrite the model.
        with own_values(self.kernel.model), invisible(), pyro.plate("draws", draws, dim=-self.batch_dims - 1):
            sites = self._steps(time, before, later, _AnyShape(num_particles))
        total: Tensor | float = 0.0
        for site in sites:
            found = unscaled_log_prob(site)
            found = found.reshape((1,) * (self.batch_dims + 1 - found.dim()) + found.shape)
            found = found.expand(draws, num_particles, *found.shape[2:])
            if not any(map(is_of_trials, site["cond_indep_stack"])):
                found = found.flatten(2).sum(2, keepdim=True)
            # Of the plates only the trials are kept apart.
            total = total + (found.flatten(2, -2).sum(2) if found.dim() > 3 else found)
        return total.movedim(1, -1) if isinstance(total, Tensor) else torch.zeros(draws, 1, num_particles)

    def _agrees(self, time: int, before: State, after: State, expected: Tensor) -> bool:
        """Whether the program may be run on pairs side by side: not where it counts dims from the left."""
        try:
            found = self._side_by_side(time, before, after)
        except (RuntimeError, ValueError, IndexError, KeyError, TypeError):
            return False
        return found.shape == expected.shape and torch.allclose(found, expected, rtol=1e-4, atol=1e-4)

    def matched(self, time: int, before: State, after: State) -> Tensor:
        """Return the log density of later states and their data given as many earlier ones, `D x trials`."""
        return self._score(time, before, after)

    def chosen(self, time: int, before: State, num_uses: int) -> Callable[[Tensor, State], Tensor]:
        """Return the log density of later states and their data given earlier ones by index, `D x trials`."""
        return lambda index, after: self.matched(time, take_states(before, index, self.batch_dims), after)

    def log_joint(self, path: Sequence[State]) -> Tensor:
        r"""Return log p(z, y) along paths, and what the guide's own parameters learn by, averaged, `trials`.

        The model is run once along the paths, its state carried on, so that gradients pass through whatever the state
        holds beside the latents. To the parameters that are the guide's alone goes the gradient of
        :math:`\log q(z \mid y)`, which is nothing in value.

        Args:
            path: states of the particles on the paths, one per time bin.

        Raises:
            CannotBeReplayed: if the model or the guide cannot be run along paths.
        """
        size = next(iter(path[0].values())).shape[0]
        learns = _parameters_of_the_guide(self.kernel.model, self.kernel.guide)
        state: State = {}
        done: set[int] = set()
        numbers: list[Sequence[Tensor]] = []
        for t, held in enumerate(path):
            if t < 2:
                self._check_guide(t, state, self.calls[t], size)
            if t == 2:
                for bins, sums in self._at_once(path, state):
                    done |= set(bins)
                    numbers.append(sums)
            if t in done:
                state = {name: held[name] for name in state}
                continue
            state, found = self._of_bin(t, state, held, size, learns)
            numbers.append(found)
        log_p, *log_q = (sum(column) for column in zip(*numbers, strict=True))
        density = _of_particles(log_p)
        return density + _for_parameters(_of_particles(log_q[0]), learns) if learns else density

    def _of_bin(self, t: int, before: State, held: State, size: int, learns: list[Tensor]) -> Results:
        """Return the state on paths after a time bin, and log densities of model and guide there."""
        call = self.calls[t]

        def step() -> Results:
            after, sites, values = self._along(t - 1, before, held, SMCState(size))
            log_q = (self._proposed(t, before, call, values, size),) if learns else ()
            return after, (self._log_prob(sites, size), *log_q)

        known = t > 0 and False in self.tapes.kept.homes
        return self.tapes.run("paths", step, (before, held, *call.parts)) if known else step()

    def _at_once(self, path: Sequence[State], state: State) -> Iterator[tuple[list[int], list[Tensor]]]:
        """Yield time bins from the third on, and the sums of what `_of_bin` returns of them."""
        if set(state) != set(self.tapes.kept.homes.get(False, {}).values()):
            return  # It remembers more than its latents.
        befores = [{name: held[name] for name in state} for held in path[1:-1]]
        calls = (call.parts for call in self.calls[2:])
        steps = [(before, held, *parts) for before, held, parts in zip(befores, path[2:], calls, strict=True)]
        for indices, sums in self.tapes.together("paths", steps):
            yield [2 + i for i in indices], sums

    def along(self, path: Sequence[State]) -> Iterator[list[Any]]:
        """Yield the sites of each time bin, as Pyro's messages, of one run along paths, its state carried on.

        Args:
            path: states of the particles on the paths, one per time bin.

        Raises:
            CannotBeReplayed: if the model cannot be run along paths.
        """
        size = next(iter(path[0].values())).shape[0]
        state: State = {}
        for t, held in enumerate(path):
            state, sites, _ = self._along(t - 1, state, held, SMCState(size))
            yield sites

    def _check_guide(self, t: int, state: State, call: Call, size: int) -> None:
        """Raise if the guide, no module, makes parameters as it runs that the model does not."""
        model, guide = self.kernel.model, self.kernel.guide
        if isinstance(guide, nn.Module | FromModel):
            return
        kwargs = call.kwargs if call.encoding is None else {**call.kwargs, "encoding": call.encoding}
        programs = {"model": (model, call.kwargs), "guide": (guide, kwargs)}
        made = {}
        for role, (program, given) in programs.items():
            particles = SMCState(size)
            particles.update(state)
            plate = pyro.plate("particles", size, dim=-self.batch_dims)
            with torch.random.fork_rng(devices=[]), torch.no_grad(), own_values(program), invisible(), plate:
                trace = poutine.trace(program.step if t else program.init).get_trace(particles, *call.args, **given)
            made[role] = {name for name, node in trace.nodes.items() if node["type"] == "param"}
        own = sorted(made["guide"] - made["model"])
        if own:
            raise CannotBeReplayed(
                f"{type(guide).__name__} makes parameters by `pyro.param`, {', '.join(own)}, and holds none: make it a "
                f"torch module that holds them, or {_MEND}"
            )

    def _proposed(self, t: int, state: State, call: Call, values: dict[str, Tensor], size: int) -> Tensor:
        guide, fixed = self.kernel.guide, _Fixed(values)
        kwargs = call.kwargs if call.encoding is None else {**call.kwargs, "encoding": call.encoding}
        particles = SMCState(size)
        particles.update({name: value.detach() for name, value in state.items()})
        with (
            own_values(guide),
            invisible(),
            fixed,
            pyro.plate("particles", size, dim=-self.batch_dims),
            particles._lock(),
        ):
            (guide.step if t else guide.init)(particles, *call.args, **kwargs)
        if fixed.drew:
            raise CannotBeReplayed(f"{type(guide).__name__} has sites that the model has not; {_MEND}")
        return self._log_prob(fixed.sites, size) if fixed.sites else torch.zeros(size, 1)

    def _run(self, time: int, state: State, handler: _Fixed, particles: SMCState) -> State:
        """Run the step out of a time bin; `init` for the one before the first."""
        particles.update(state)
        call, model, size = self.calls[time + 1], self.kernel.model, particles._num_particles
        if self.tapes.kept.hidden:
            raise CannotBeReplayed(_HIDDEN.format(type(model).__name__, self.tapes.kept.hidden))
        with own_values(model), invisible(), handler, pyro.plate("particles", size, dim=-self.batch_dims):
            (model.init if time < 0 else model.step)(particles, *call.args, **call.kwargs)
        return dict(particles)

    def _along(
        self, time: int, before: State, held: State, particles: SMCState
    ) -> tuple[State, list[Any], dict[str, Tensor]]:
        """Run the step with its latent sites at what a state holds of them; return state, sites and these values."""
        known = self.tapes.kept.homes.get(time < 0)
        for homes in (known, None) if known else (None,):
            # Where sites are kept is nearly always as before: looked for anew only where a run shows it is not.
            now = self._homes(time, before, type(particles)(particles._num_particles)) if homes is None else homes
            values = {site: held[name] for site, name in now.items() if name in held}
            if len(values) < len(now):
                raise CannotBeReplayed(_NOT_KEPT.format(type(self.kernel.model).__name__, min(set(now) - set(values))))
            fixed = _Fixed(values)
            state = self._run(time, before, fixed, copy.copy(particles))
            if _are_kept(fixed.latent, now, state):
                self.tapes.kept.homes[time < 0] = now
                return state, fixed.sites, values
        raise CannotBeReplayed(
            f"The transition density of {type(self.kernel.model).__name__} cannot be replayed: run again, it has other "
            f"latent sites, {', '.join(sorted(fixed.latent)) or 'none'}; {_MEND}"
        )

    def _homes(self, time: int, before: State, particles: SMCState) -> dict[str, Any]:
        """Return where the state keeps each latent site of the step, by the names of the sites."""
        # The draws only show where they are kept: the random numbers that follow must not depend on them.
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            drawn = _Fixed()
            state = self._run(time, before, drawn, particles)
        found = {}
        for site in (site for site in drawn.sites if not site["is_observed"]):
            homes = [name for name, value in state.items() if value is site["value"]]
            if not homes:
                raise CannotBeReplayed(_NOT_KEPT.format(type(self.kernel.model).__name__, site["name"]))
            found[site["name"]] = homes[0]
        return found

    def _steps(self, time: int, before: State, after: State, particles: SMCState) -> list[Any]:
        """Return the sites of the steps from earlier states to later ones."""
        state, sites, _ = self._along(time, before, after, particles)
        for name in set(after) - set(self.tapes.kept.homes[time < 0].values()):
            if not torch.isclose(state[name], after[name], rtol=1e-4, atol=1e-5).all():
                raise CannotBeReplayed(
                    f"The transition density of {type(self.kernel.model).__name__} cannot be replayed: {name!r} of its "
                    f"state remembers the state before, so a path cannot change its ancestor; {_MEND}"
                )
        return sites

    def _score(self, time: int, before: State, after: State) -> Tensor:
        size = next(iter(before.values())).shape[0]

        def density() -> Tensor:
            return self._log_prob(self._steps(time, before, after, SMCState(size)), size)

        return self._taped("scores", time, before, after, density)

    def _log_prob(self, sites: Sequence[Any], size: int) -> Tensor:
        """Return the log density of all sites, `particles x trials`."""
        total: Tensor | float = 0.0
        for site in sites:
            per_trial = any(map(is_of_trials, site["cond_indep_stack"]))
            found = site_log_prob(site, size, self.batch_dims, per_trial=per_trial)
            total = total + found.reshape(size, -1)
        return total if isinstance(total, Tensor) else torch.zeros(size, 1)


def _are_kept(latent: dict[str, Any], homes: dict[str, Any], state: State) -> bool:
    """Whether a state keeps latent sites where their namesakes, or else those in their places, were kept before."""
    if len(latent) != len(homes):
        return False
    places = zip(latent.items(), homes.values(), strict=True)
    return all(state.get(homes.get(name, home)) is value for (name, value), home in places)


def _of_particles(total: Tensor | float) -> Tensor:
    assert isinstance(total, Tensor)
    return total.mean(0)


def _parameters_of_the_guide(model: Any, guide: Any) -> list[Tensor]:
    """Return the parameters that are trained and the guide's alone."""
    if not isinstance(guide, nn.Module):
        return []
    of_model = {id(parameter) for parameter in model.parameters()} if isinstance(model, nn.Module) else set()
    return [p for p in guide.parameters() if p.requires_grad and id(p) not in of_model]


def _for_parameters(value: Tensor, parameters: list[Tensor]) -> Tensor:
    """Return zeros that give some parameters the gradient of a value, and no others."""
    return _Only.apply(value, *parameters) if value.requires_grad else torch.zeros_like(value)


class _Only(torch.autograd.Function):
    """Zeros with the gradient of a value, for the parameters that are given alone."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, *parameters: Tensor) -> Tensor:
        """Return zeros."""
        ctx.value, ctx.parameters = value, parameters
        return torch.zeros_like(value)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of the parameters."""
        found = torch.autograd.grad(ctx.value, ctx.parameters, grad_outputs[0], allow_unused=True, retain_graph=True)
        return None, *found
