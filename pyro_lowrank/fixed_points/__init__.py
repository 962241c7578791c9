"""Fixed points of low-rank networks: numpy and compiled loops only, without torch or pyro."""

from __future__ import annotations

from pyro_lowrank.fixed_points.adapters import from_full_rank, from_shallow_plrnn, read_weights
from pyro_lowrank.fixed_points.continuation import Continuation, continuation
from pyro_lowrank.fixed_points.cycles import Cycles, cycles_of, find_cycles
from pyro_lowrank.fixed_points.find import find_fixed_points, fixed_points_of
from pyro_lowrank.fixed_points.found import FixedSet
from pyro_lowrank.fixed_points.result import Certificate, FixedPoints
from pyro_lowrank.fixed_points.samples import SampledFixedPoints, sampled_fixed_points

__all__ = [
    "Certificate",
    "Continuation",
    "Cycles",
    "FixedPoints",
    "FixedSet",
    "SampledFixedPoints",
    "continuation",
    "cycles_of",
    "find_cycles",
    "find_fixed_points",
    "fixed_points_of",
    "from_full_rank",
    "from_shallow_plrnn",
    "read_weights",
    "sampled_fixed_points",
]
