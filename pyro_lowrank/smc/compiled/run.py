"""A run of the compiled filter, from a built-in kernel to the history that the plain loop would leave."""

from __future__ import annotations

import logging
from functools import cache
from typing import Any

import torch
from torch import Tensor

from pyro_lowrank.dynamics.compiled.network import obstacle_of_network
from pyro_lowrank.dynamics.noise import StudentTNoise
from pyro_lowrank.smc.built_in import BuiltInKernel
from pyro_lowrank.smc.compiled.function import CompiledFilter, Run
from pyro_lowrank.smc.compiled.plan import Plan, make_plan
from pyro_lowrank.smc.gradients import PathwiseGradient, ScoreFunctionGradient, StopGradient
from pyro_lowrank.smc.loop import History, Particles, Scheme, check_alive
from pyro_lowrank.smc.resampling import NoResampling, Resampler

_log = logging.getLogger("pyro_lowrank")


def obstacle(kernel: BuiltInKernel, scheme: Scheme, y: Tensor) -> str | None:
    """Return why a run has no compiled form, or None if nothing is known against it."""
    if y.device.type != "cpu":
        return f"the data lie on {y.device}"
    reason = obstacle_of_network(kernel.transition)
    if reason is not None:
        return reason
    if isinstance(kernel.transition.noise, StudentTNoise):
        return "Student-t transition noise has no compiled form"
    if type(scheme.gradient) not in (PathwiseGradient, StopGradient, ScoreFunctionGradient):
        return f"{type(scheme.gradient).__name__} is written by the user"
    keeps = isinstance(scheme.resampler, NoResampling)
    if not keeps and type(scheme.resampler).ancestors is not Resampler.ancestors:
        return f"{type(scheme.resampler).__name__} draws ancestors its own way"
    return None


def run_compiled(
    kernel: BuiltInKernel, scheme: Scheme, y: Tensor, u: Tensor | None = None, *, store: bool
) -> History[Any] | str:
    """Return the history of a run over recordings `trials x time x features`, or why there is no compiled form.

    It draws the same random numbers, in the same order, as the plain loop.
    """
    reason = obstacle(kernel, scheme, y)
    if reason is not None:
        return reason
    v = None if u is None else kernel.transition.effective_inputs(u)
    plan = make_plan(kernel.transition, kernel.emission, kernel.proposal, y, v)
    if isinstance(plan, str):
        return plan
    code = plan.code
    say_that_it_compiles(len(code.zero), len(code.zero_in), code.weighing, code.kind, code.link, plan.y.dtype)
    return _history(CompiledFilter.apply(_draw(kernel, scheme, plan), *plan.tensors), store)


@cache
def say_that_it_compiles(*code: Any) -> None:
    """Log, once for every form of a model, why the first call takes long."""
    _log.info("The filter's loops are compiled for models of this form when first used, for some ten seconds.")


def _draw(kernel: BuiltInKernel, scheme: Scheme, plan: Plan) -> Run:
    """Draw the random numbers of a run."""
    trials, steps = plan.y.shape[:2]
    white, draw = kernel.draw_white(steps, trials), plan.tables.draw
    # In the order of the plain loop, which resamples after the first time bin.
    first = None if draw is None else draw(white[:1], 0)
    random = scheme.resampler.draw(steps - 1, kernel.num_particles, torch.Size([trials]), dtype=plan.y.dtype)
    positions, threshold = plan.y.new_zeros(trials, steps, 0), -1.0
    if not isinstance(scheme.resampler, NoResampling):
        positions = scheme.resampler.positions(random.movedim(1, 0), kernel.num_particles).movedim(0, 1)
        # At a threshold of 1 every trial resamples, whatever its effective sample size.
        threshold = scheme.ess_threshold * kernel.num_particles if scheme.ess_threshold < 1 else float("inf")
    log_densities = plan.y.new_zeros(trials, steps, 0)
    if draw is not None and first is not None:
        white, log_densities = (torch.cat(parts) for parts in zip(first, draw(white[1:], 1), strict=True))
        log_densities = log_densities.permute(2, 0, 1)
    # Where the tables hold all of the likelihood the loops need no recording.
    shown = slice(None) if plan.likelihood is not None else slice(0)
    return Run(
        code=plan.code,
        units=kernel.transition.bias.shape[-1],
        y=plan.y[..., shown],
        present=plan.present[..., shown],
        index=plan.tables.index,
        white=white.permute(2, 0, 1, 3),
        log_densities=log_densities,
        positions=positions,
        threshold=threshold,
        carries=isinstance(scheme.gradient, StopGradient),
        cut_every=0 if scheme.cut_every is None else scheme.cut_every,
        # Asked here: inside a node of the graph gradients are always off.
        differentiable=torch.is_grad_enabled(),
    )


def _history(found: tuple[Tensor, ...], store: bool) -> History[Any]:
    """Return the history, in the plain loop's order of dims."""
    increments, log_probs = found[0].mT, found[1].mT
    check_alive(increments)
    z, log_weights, ancestors = found[2].permute(1, 2, 0, 3), found[3].permute(1, 2, 0), found[4].permute(1, 2, 0)
    ess, resampled = found[5].mT, found[6].mT
    last = Particles(
        state={"z": z[-1]},
        log_weights=log_weights[-1],
        increment=increments[-1],
        ess=ess[-1],
        ancestors=ancestors[-1],
        resampled=resampled[-1],
        ancestor_log_prob=log_probs[-1],
    )
    return History(
        last=last,
        increments=increments,
        ess=ess,
        resampled=resampled,
        ancestor_log_probs=log_probs,
        states=[{"z": z_t} for z_t in z.unbind(0)] if store else None,
        log_weights=log_weights if store else None,
        ancestors=ancestors if store else None,
    )
