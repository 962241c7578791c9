"""Whether the particles of a fit were enough: its evidence with more of them."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Iterator

import numpy as np
import torch
from pyro.infer.smcfilter import SMCFailed

from pyro_lowrank.infer.elbo import SMC_ELBO
from pyro_lowrank.training.batches import Batch, Data
from pyro_lowrank.training.particles import ParticleCheck, settled
from pyro_lowrank.training.randomness import own_generators, seed_generators, seed_of
from pyro_lowrank.training.steps import Steps

logger = logging.getLogger(__name__)

# Independent runs at each number of particles: their spread is the Monte Carlo error.
_RUNS = 4
# Doublings at most, 16 times as many particles.
_DOUBLINGS = 4
# Time bins that it is looked at on: the cost shall be small beside that of the fit.
_MOST_BINS = 2000


def check_particles(steps: Steps) -> ParticleCheck | None:
    """Double the particles until the held-out evidence no longer changes; None where that cannot be done.

    Args:
        steps: of a fit that has ended, with its parameters as they are kept.
    """
    if steps.held_out is None or not isinstance(steps.elbo, SMC_ELBO):
        return None
    table = torch.full((_DOUBLINGS + 1, 2), math.nan, dtype=torch.float64, device=steps.device)
    if steps.team.leads:
        try:
            with own_generators(steps.device):
                for row, found in zip(table, _doubled(steps, steps.elbo, _some(steps.held_out)), strict=False):
                    row.copy_(torch.tensor(found))
        except SMCFailed as reason:
            logger.warning("The evidence with more particles cannot be told: %s", reason)
    steps.team.lead_([table])
    rows = table[~table.isnan().any(1)].cpu().numpy()
    if not len(rows):
        return None
    evidence, error = rows.T
    is_settled = len(rows) > 1 and settled(evidence[-2:], error[-2:])
    numbers = steps.elbo.num_particles * 2 ** np.arange(len(rows))
    return ParticleCheck(numbers, evidence, error, is_settled)


def _doubled(steps: Steps, elbo: SMC_ELBO, batch: Batch) -> Iterator[tuple[float, float]]:
    """Yield mean and standard error at each number, until it is settled."""
    found: list[tuple[float, float]] = []
    for doubling in range(_DOUBLINGS + 1):
        wider = copy.copy(elbo)
        wider.num_particles = elbo.num_particles * 2**doubling
        values = []
        for run in range(_RUNS):
            seed_generators(steps.device, seed_of(steps.seed, "particles checked", _RUNS * doubling + run))
            values.append(steps.evidence_of(batch, wider))
        found.append((float(np.mean(values)), float(np.std(values, ddof=1) / math.sqrt(_RUNS))))
        yield found[-1]
        if doubling and settled(*np.array(found[-2:]).T):
            return


def _some(data: Data) -> Batch:
    """Return the first trials, as many as have some 2,000 time bins together."""
    batch = next(iter(data.pieces()))
    return batch.part(0, max(1, _MOST_BINS // batch.y.shape[1]))
