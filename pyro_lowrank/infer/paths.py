"""Paths of particles given the whole recording, by whichever smoother."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_lowrank.errors import check_choice, check_positive_int
from pyro_lowrank.smc.loop import State, take
from pyro_lowrank.smc.replayed import ReplayedTransitions
from pyro_lowrank.smc.smoothing import backward_paths, check_forgets, genealogy_paths, mcmc_paths
from pyro_lowrank.smc.transitions import BuiltInTransitions

SMOOTHERS = ("backward", "mcmc", "genealogy")


def bins_of(particles: State, batch_dims: int) -> list[State]:
    """Return states `particles x trials x time x ...` time bin by time bin."""
    names = {name: value.unbind(time_dim(value, batch_dims)) for name, value in particles.items()}
    return [dict(zip(names, values, strict=True)) for values in zip(*names.values(), strict=True)]


def time_dim(value: Tensor, batch_dims: int) -> int:
    """Return the dim of a state tensor that is time."""
    return min(batch_dims, value.dim() - 1)


def draw_paths(
    transitions: BuiltInTransitions | ReplayedTransitions | None,
    particles: State,
    log_weights: Tensor,
    ancestors: Tensor,
    num_draws: int,
    method: str,
    num_moves: int,
) -> Tensor:
    """Return indices of the particles on paths given the whole recording, `draws x trials x time`.

    Args:
        transitions: the model of the run, which only `"genealogy"` does without.
        particles: state tensors by name, `particles x trials x time x ...`.
        log_weights: `time x particles x trials`.
        ancestors: likewise.
        num_draws: number of paths.
        method: one of `SMOOTHERS`; see `SMCPosterior.smooth`.
        num_moves: proposals per path and time bin of `"mcmc"`.
    """
    check_positive_int("num_draws", num_draws)
    check_positive_int("num_moves", num_moves)
    check_choice("method", method, SMOOTHERS)
    if method == "genealogy":
        return genealogy_paths(log_weights, ancestors, num_draws)
    assert transitions is not None
    states = bins_of(particles, transitions.batch_dims)
    to_come = transitions.to_come() if isinstance(transitions, BuiltInTransitions) else None
    if method == "mcmc":
        check_forgets(to_come, 'method="mcmc"')
        return mcmc_paths(transitions, states, log_weights, ancestors, num_draws, num_moves)
    steps, _, trials = log_weights.shape
    uniforms = torch.rand(steps, num_draws, trials, dtype=log_weights.dtype, device=log_weights.device)
    paths = None
    if isinstance(transitions, BuiltInTransitions) and to_come is None:
        paths = transitions.compiled_paths(particles["z"], log_weights, uniforms)
    return backward_paths(transitions, states, log_weights, uniforms, to_come=to_come) if paths is None else paths


def along(value: Tensor, paths: Tensor, dim: int, *, by_trial: bool) -> Tensor:
    """Return a state tensor along paths, `draws x trials x time x ...`.

    Args:
        value: of the particles, `particles x trials x time x ...`.
        paths: indices, `draws x trials x time`.
        dim: of the tensor that is time.
        by_trial: whether trials are told apart.
    """
    if dim == 2 and by_trial and value.shape[1] == paths.shape[1]:
        index = paths.reshape(*paths.shape, *(1,) * (value.dim() - 3)).expand(*paths.shape, *value.shape[3:])
        return value.gather(0, index)
    # The trials are the innermost plate, or there are none that are told apart.
    chosen = paths if by_trial else paths[:, 0]
    bins = [take(v, i, dim) for v, i in zip(value.unbind(dim), chosen.unbind(-1), strict=True)]
    return torch.stack(bins, dim)
