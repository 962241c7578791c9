"""The means of the next latents of many particles at one time bin, compiled: much of what an online step takes."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_lowrank.compilation import run_side_by_side
from pyro_lowrank.dynamics.compiled.arrays import array, chunks, padded
from pyro_lowrank.dynamics.compiled.network import kind_of, number_of, weights_of
from pyro_lowrank.dynamics.compiled.units import move_parents
from pyro_lowrank.dynamics.network import Network

# Type checkers do not see through arguments that are unpacked.
_move: Any = move_parents


class CompiledMean:
    """Computes `Network.mean`, without gradients.

    Args:
        network: one for which `obstacle_of_network` finds no obstacle.
    """

    def __init__(self, network: Network) -> None:
        kind = kind_of(network.activation, network.right.dtype)
        assert kind is not None
        decay, left, right, bias = weights_of(network, with_inputs=network.num_inputs > 0)
        self.units = (*kind, padded(left.mT), padded(right), padded(bias))
        self.decay, self.num_inputs = array(decay), network.num_inputs
        zero = number_of(network.right.dtype)(0)
        self.zero, self.zero_in = (zero,) * network.rank, (zero,) * left.shape[1]

    @torch.no_grad()
    def __call__(self, z: Tensor, v: Tensor | None = None) -> Tensor:
        """Return the means, for latents `... x rank` and effective inputs `... x inputs` that broadcast with them."""
        inputs, batch, trials = z.new_zeros(self.num_inputs), z.shape[:-1], torch.Size()
        if v is not None and self.num_inputs:
            inputs, batch = v, torch.broadcast_shapes(z.shape[:-1], v.shape[:-1])
            # Trials, which have inputs of their own, are the last dims; the particles of a trial are swept in one call.
            trials = v.shape[:-1] if v.shape[:-1] == batch[len(batch) - v.dim() + 1 :] else batch
        seen = array(inputs.expand(*trials, self.num_inputs).reshape(trials.numel(), self.num_inputs))
        latents = array(z.expand(*batch, len(self.zero)).reshape(-1, len(seen), len(self.zero)))
        means, own = np.empty_like(latents), np.arange(len(latents))

        def move(c: slice) -> None:
            for b in range(len(seen)):
                block = latents[c, b], seen[b], own, len(latents[c]), means[c, b]
                _move(self.zero, self.zero_in, self.decay, self.units, *block)

        work = latents[..., 0].size * self.units[-1].size
        run_side_by_side([partial(move, c) for c in chunks(len(latents), work)])
        return torch.from_numpy(means).view(*batch, -1)
