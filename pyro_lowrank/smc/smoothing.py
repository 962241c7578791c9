"""Paths of particles given the whole recording, with ancestors drawn afresh or as the filter left them.

A path is a sequence of indices of particles, one per time bin. Weights are `time x particles x trials` throughout.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from pyro_lowrank.smc.draws import drawn
from pyro_lowrank.smc.loop import State, take

# Pairs of paths and particles that are held at once: small enough for the cache, large enough to be worth a call.
_PAIRS = 2**18


class Transitions(Protocol):
    """The density of one state given the one before, up to factors that depend on the later one only."""

    @property
    def batch_dims(self) -> int:
        """Number of leading dims of state tensors before their own: particles, then plates."""

    def pairs(self, time: int, before: State) -> Callable[[State], Tensor]:
        """Return log p(after | before) as a function of D later states, `D x trials x particles`."""

    def matched(self, time: int, before: State, after: State) -> Tensor:
        """Return log p(after | before) of as many earlier states as later ones, `D x trials`."""

    def chosen(self, time: int, before: State, num_uses: int) -> Callable[[Tensor, State], Tensor]:
        """Return log p(after | before[index]) as a function of indices and later states, `D x trials`.

        It is called for `num_uses` indices per trial in all, which tells whether a table of all earlier states pays.
        """


class ToCome(Protocol):
    """What later time bins say of the particles of one, where they depend on more than its latents."""

    def score(self, time: int, states: Sequence[State], path: Tensor) -> Callable[[slice], Tensor]:
        """Return the log likelihood of the bins after `time` given its particles, as a function of which draws.

        `path` are the particles that were drawn of the bin after it, `draws x trials`; what is returned gives
        `draws x trials x particles`.
        """


def check_forgets(to_come: ToCome | None, what: str) -> None:
    """Raise where later bins depend on more than the latents of one, and `what` takes that they do not.

    Raises:
        ValueError: if they do.
    """
    if to_come is not None:
        raise ValueError(
            f"{what} weighs particles by their transitions alone, and observations that remember the latents (calcium, "
            'BOLD, coloured noise) depend on those before: use smooth(num_draws, method="backward").'
        )


def take_states(state: State, index: Tensor, batch_dims: int) -> State:
    """Return particles by index, `draws x trials`.

    Example::

        >>> take_states({"z": torch.tensor([[1.0], [2.0]])}, torch.tensor([[1], [1], [0]]), 2)["z"].mT
        tensor([[2., 2., 1.]])
    """
    # Where all trials are weighed together the index is one for all of them.
    chosen = index[:, 0] if index.shape[1] == 1 else index
    return {name: take(value, chosen, batch_dims) for name, value in state.items()}


def _draw(cumulative: Tensor, uniform: Tensor) -> Tensor:
    """Return indices drawn from cumulative weights `... x particles`, by uniform numbers `... x draws`."""
    found = torch.searchsorted(cumulative, (uniform * cumulative[..., -1:]).contiguous(), right=True)
    return found.clamp_(max=cumulative.shape[-1] - 1)


def _last(log_weights: Tensor, num_draws: int) -> Tensor:
    """Return where each path ends, `draws x trials`."""

    def draw(trials: int) -> Tensor:
        return torch.rand(num_draws, trials, dtype=log_weights.dtype, device=log_weights.device)

    uniform = drawn(draw, log_weights.shape[1], 1)
    return _ends(log_weights, uniform)


def _ends(log_weights: Tensor, uniform: Tensor) -> Tensor:
    """Return particles drawn by their weights, `draws x trials`."""
    return _draw(log_weights.exp().mT.contiguous().cumsum(-1), uniform.mT.contiguous()).mT


def uniform_of_paths(num_steps: int, num_paths: int, num_trials: int, like: Tensor) -> Tensor:
    """Draw the numbers in [0, 1) of `backward_paths`, `time x draws x trials`, of another tensor's type and device."""

    def draw(trials: int) -> Tensor:
        return torch.rand(num_steps, num_paths, trials, dtype=like.dtype, device=like.device)

    return drawn(draw, num_trials, 2)


def _blocks(index: Tensor, num_particles: int) -> Iterator[Tensor]:
    """Cut draws `draws x trials` so that a block of them makes few pairs with all particles."""
    return iter(index.split(max(1, _PAIRS // (num_particles * index.shape[1]))))


def backward_paths(
    transitions: Transitions,
    states: Sequence[State],
    log_weights: Tensor,
    uniforms: Tensor,
    last: Tensor | None = None,
    to_come: ToCome | None = None,
) -> Tensor:
    r"""Draw paths given the whole recording, each ancestor afresh among all particles.

    .. math:: P(b_t = i \mid b_{t+1}) \propto W_t^i\, p(z_{t+1}^{b_{t+1}} \mid z_t^i)

    Args:
        transitions: the density of the steps.
        states: of the particles, one per time bin.
        log_weights: of the particles.
        uniforms: numbers in [0, 1), `time x draws x trials`.
        last: where the paths of each trial end, `trials`; at the last time bin if None. What comes after is no path.
        to_come: what the later bins say of the particles beside their transitions; None where that is nothing.

    Returns:
        Indices of particles, `draws x trials x time`.

    References:
        Godsill, Doucet and West (2004), J. Am. Stat. Assoc. 99:156.
    """
    num_steps, num_particles, _ = log_weights.shape
    paths = [_ends(log_weights[-1], uniforms[-1])]
    for t in reversed(range(num_steps - 1)):
        score = transitions.pairs(t, states[t])
        prior = log_weights[t].mT
        later = None if to_come is None else to_come.score(t, states, paths[-1])
        drawn: list[Tensor] = []
        for index, numbers in zip(_blocks(paths[-1], num_particles), _blocks(uniforms[t], num_particles), strict=True):
            logits = score(take_states(states[t + 1], index, transitions.batch_dims))
            if later is not None:
                begin = sum(map(len, drawn))
                logits = logits + later(slice(begin, begin + len(index)))
            if last is not None:
                logits = torch.where((t < last).unsqueeze(-1), logits, 0.0)
            weights = torch.softmax(logits.add_(prior), -1)
            drawn.append(_draw(weights.cumsum(-1), numbers.unsqueeze(-1)).squeeze(-1))
        paths.append(torch.cat(drawn))
    return torch.stack(paths[::-1], -1)


def along(stack: Tensor, paths: Tensor) -> Tensor:
    """Return the particles on paths `draws x trials x time`, from `time x particles x trials x ...`.

    Example::

        >>> along(torch.tensor([[[1.0], [2.0]], [[3.0], [4.0]]]).unsqueeze(-1), torch.tensor([[[1, 0]]])).flatten()
        tensor([2., 3.])
    """
    index = paths.permute(2, 0, 1)
    index = index.reshape(*index.shape, *(1,) * (stack.dim() - 3)).expand(*index.shape, *stack.shape[3:])
    return stack.gather(1, index).movedim(0, 2)


def mcmc_paths(
    transitions: Transitions,
    states: Sequence[State],
    log_weights: Tensor,
    ancestors: Tensor,
    num_draws: int,
    num_moves: int,
) -> Tensor:
    r"""Draw paths given the whole recording, each ancestor by a Markov chain: the cost does not grow with particles.

    The chain starts at the filter's own ancestor, proposes i from the filter's weights, and accepts with probability
    :math:`\min(1, p(z_{t+1} \mid z_t^i) / p(z_{t+1} \mid z_t^{b_t}))`.

    Args:
        transitions: the density of the steps.
        states: of the particles, one per time bin.
        log_weights: of the particles.
        ancestors: that the filter drew, `time x particles x trials`.
        num_draws: number of paths.
        num_moves: proposals per path and time bin.

    Returns:
        Indices of particles, `draws x trials x time`.

    References:
        Bunch and Godsill (2013), IEEE Trans. Signal Process. 61:956.
    """
    paths = [_last(log_weights[-1], num_draws)]
    batch_dims = transitions.batch_dims
    for t in reversed(range(len(log_weights) - 1)):
        after = take_states(states[t + 1], paths[-1], batch_dims)
        current = ancestors[t + 1].gather(0, paths[-1])
        score = transitions.chosen(t, states[t], num_draws * (num_moves + 1))
        density = score(current, after)
        cumulative = log_weights[t].exp().mT.contiguous().cumsum(-1)
        uniform = _uniform_of_moves(num_moves, current, density)
        proposals = _draw(cumulative, uniform[0].movedim(-1, 0).flatten(1)).unflatten(1, (num_moves, -1)).movedim(0, -1)
        densities = _densities(score, proposals, after, batch_dims)
        for proposed, proposed_density, chance in zip(proposals, densities, uniform[1].log(), strict=True):
            accepted = chance < proposed_density - density
            current = torch.where(accepted, proposed, current)
            density = torch.where(accepted, proposed_density, density)
        paths.append(current)
    return torch.stack(paths[::-1], -1)


def _uniform_of_moves(num_moves: int, current: Tensor, like: Tensor) -> Tensor:
    num_draws, num_trials = current.shape

    def draw(trials: int) -> Tensor:
        return torch.rand(2, num_moves, num_draws, trials, dtype=like.dtype, device=like.device)

    return drawn(draw, num_trials, 3)


def _densities(
    score: Callable[[Tensor, State], Tensor], proposals: Tensor, after: State, batch_dims: int
) -> Iterator[Tensor]:
    """Yield the density of the later states at each of the proposals, `moves x draws x trials`, many in one call."""
    num_draws = proposals.shape[1]
    own = torch.arange(num_draws, device=proposals.device).unsqueeze(-1).expand_as(proposals[0])
    for block in proposals.split(max(1, _PAIRS // proposals[0].numel())):
        repeated = take_states(after, own.repeat(len(block), 1), batch_dims)
        yield from score(block.flatten(0, 1), repeated).unflatten(0, (len(block), num_draws))


def genealogy(ancestors: Tensor, last: Tensor) -> Tensor:
    """Return the paths that the filter itself left, `draws x trials x time`.

    Args:
        ancestors: that the filter drew, `time x particles x trials`.
        last: indices of particles of the last time bin, `draws x trials`.

    Example::

        >>> genealogy(torch.tensor([[[0], [1]], [[1], [1]]]), torch.tensor([[0], [1]]))[:, 0]
        tensor([[1, 0],
                [1, 1]])
    """
    paths = [last]
    for parents in ancestors[1:].flip(0):
        paths.append(parents.gather(0, paths[-1]))
    return torch.stack(paths[::-1], -1)


def genealogy_paths(log_weights: Tensor, ancestors: Tensor, num_draws: int) -> Tensor:
    """Draw paths from the filter's own, which share their ancestors a few time bins back."""
    return genealogy(ancestors, _last(log_weights[-1], num_draws))


def smoothed_log_weights(transitions: Transitions, states: Sequence[State], log_weights: Tensor) -> Tensor:
    r"""Return the particles' weights given the whole recording, `time x particles x trials`.

    .. math::

        W_{t \mid T}^i = W_t^i \sum_j W_{t+1 \mid T}^j
            \frac{p(z_{t+1}^j \mid z_t^i)}{\sum_l W_t^l\, p(z_{t+1}^j \mid z_t^l)}

    It costs K^2 per time bin and trial.

    References:
        Doucet, Godsill and Andrieu (2000), Stat. Comput. 10:197.
    """
    num_steps, num_particles, num_trials = log_weights.shape
    everyone = torch.arange(num_particles, device=log_weights.device).unsqueeze(-1).expand(-1, num_trials)
    smoothed = [log_weights[-1]]
    for t in reversed(range(num_steps - 1)):
        score = transitions.pairs(t, states[t])
        prior = log_weights[t].mT
        total = torch.full_like(prior, -torch.inf)
        later = smoothed[-1].split(len(next(_blocks(everyone, num_particles))))
        for index, log_later in zip(_blocks(everyone, num_particles), later, strict=True):
            joint = score(take_states(states[t + 1], index, transitions.batch_dims)).add_(prior)
            share = torch.log_softmax(joint, -1) + log_later.unsqueeze(-1)
            total = torch.logaddexp(total, share.logsumexp(0))
        smoothed.append((total - total.logsumexp(-1, keepdim=True)).mT)
    return torch.stack(smoothed[::-1])
