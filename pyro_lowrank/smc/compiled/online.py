"""Proposals and weights of one time bin in compiled loops, for filters that run online."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_lowrank.compilation import run_side_by_side
from pyro_lowrank.dynamics.compiled.arrays import array, chunks
from pyro_lowrank.dynamics.noise import GaussianNoise
from pyro_lowrank.dynamics.transition import Transition
from pyro_lowrank.guides.base import Bin
from pyro_lowrank.smc.compiled.forward import forward_scratch, propose_and_weigh
from pyro_lowrank.smc.compiled.function import Arrays, Run, part_of
from pyro_lowrank.smc.compiled.plan import make_plan
from pyro_lowrank.smc.compiled.run import say_that_it_compiles

# Type checkers do not see through arguments that are unpacked.
_propose: Any = propose_and_weigh


class CompiledProposal:
    """Computes `Proposal.propose`, without gradients, for a proposal that looks at no time bin but its own.

    Args:
        transition: of the model.
        emission: of the model.
        proposal: one that has tables.
    """

    def __init__(self, transition: Transition, emission: Any, proposal: Any) -> None:
        self.transition, self.emission, self.proposal = transition, emission, proposal

    @torch.no_grad()
    def __call__(self, noise: GaussianNoise, mean: Tensor, white: Tensor, bin_t: Bin) -> tuple[Tensor, Tensor]:
        """Return proposed latents `particles x trials x rank` and the log of their incremental weights."""
        y = bin_t.y if bin_t.missing is None else bin_t.y.masked_fill(bin_t.missing, torch.nan)
        v = None if bin_t.v is None else bin_t.v.unsqueeze(1)
        plan = make_plan(self.transition, self.emission, self.proposal, y.unsqueeze(1), v)
        if isinstance(plan, str):
            return self.proposal.propose(noise, mean, white, bin_t)
        code, trials = plan.code, len(y)
        say_that_it_compiles("online", len(code.zero), code.weighing, code.link, code.readout, y.dtype)
        drawn, log_densities = white.unsqueeze(0), white.new_zeros(1, 0, trials)
        if plan.tables.draw is not None:
            drawn, log_densities = plan.tables.draw(drawn, 0)
        run = Run(
            code=code,
            units=self.transition.bias.shape[-1],
            y=plan.y,
            present=plan.present,
            # The sets of the tables are for the first time bin and for the others.
            index=torch.full((trials, 1), int(noise is self.transition.noise)),
            white=drawn.permute(2, 0, 1, 3),
            log_densities=log_densities.permute(2, 0, 1),
            positions=white.new_zeros(trials, 1, 0),
            threshold=-1.0,
            carries=False,
            cut_every=0,
            differentiable=False,
        )
        arrays, means = Arrays(run, plan.tensors), array(mean.expand(white.shape).transpose(0, 1))
        out = np.empty_like(arrays.white), np.zeros(arrays.white.shape[:-1], arrays.white.dtype)

        def propose(c: slice) -> None:
            _, *parts = arrays.of_trials(c)
            scratch = forward_scratch(code.weighing, arrays.white)
            _propose(code.arguments, *parts, part_of(arrays.random, c), means[c], scratch, part_of(out, c))

        # A feature costs about what a unit does.
        run_side_by_side([partial(propose, c) for c in chunks(trials, white[..., 0].numel() * y.shape[-1])])
        z, log_weights = (torch.from_numpy(each[:, 0]).transpose(0, 1) for each in out)
        return z, log_weights
