"""The means of the next latents of all particles at one time bin, compiled: what an online step spends its time on."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_lowrank.compilation import run_side_by_side
from pyro_lowrank.dynamics.transition import Transition
from pyro_lowrank.smc.compiled.arrays import array, chunks, padded
from pyro_lowrank.smc.compiled.forward import move_parents
from pyro_lowrank.smc.compiled.plan import kind_of, number_of, weights_of

# Type checkers do not see through arguments that are unpacked.
_move: Any = move_parents


class CompiledMean:
    """Computes `Transition.mean` of particles, without gradients.

    Args:
        transition: its activation must have a compiled form, its parameters no batch dims.
    """

    def __init__(self, transition: Transition) -> None:
        kind = kind_of(transition.activation, transition.right.dtype)
        assert kind is not None
        decay, left, right, bias = weights_of(transition, with_inputs=transition.num_inputs > 0)
        self.units = (*kind, padded(left.mT), padded(right), padded(bias))
        self.decay, self.num_inputs = array(decay), transition.num_inputs
        zero = number_of(transition.right.dtype)(0)
        self.zero, self.zero_in = (zero,) * transition.rank, (zero,) * left.shape[1]

    @torch.no_grad()
    def __call__(self, z: Tensor, v: Tensor | None) -> Tensor:
        """Return the means, `particles x trials x rank`, for latents of that shape and inputs `trials x inputs`."""
        particles, trials, _ = z.shape
        inputs = z.new_zeros(trials, self.num_inputs) if v is None else v[..., : self.num_inputs]
        latents, seen = array(z), array(inputs.expand(trials, -1))
        means, own = np.empty_like(latents), np.arange(particles)

        def move(c: slice) -> None:
            for b in range(trials):
                block = latents[c, b], seen[b], own, len(latents[c]), means[c, b]
                _move(self.zero, self.zero_in, self.decay, self.units, *block)

        run_side_by_side([partial(move, c) for c in chunks(particles, latents[..., 0].size * self.units[-1].size)])
        return torch.from_numpy(means)
