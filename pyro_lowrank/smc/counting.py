"""Whether a step that counts its calls does something else at another count, or only names its sites by it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

Results = tuple[dict[str, Tensor], tuple[Tensor, ...]]
"""What a step returns: the state after it, and numbers of its particles."""


def repeats(step: Callable[[], Results], expected: Results, seed: Tensor) -> bool:
    """Return whether a step does again what it did, and twice the same to the gradients of parameters.

    What parameters that are zero hide in its numbers shows in these: those of `offsets[t]` are of another entry.

    Args:
        step: of a program, which may have counted since.
        expected: what it returned.
        seed: the state of torch's generator before that.
    """

    def again() -> Results:
        torch.set_rng_state(seed)
        return step()

    with torch.random.fork_rng(devices=[]):
        try:
            if not same(again(), expected):
                return False
            with torch.enable_grad():
                gradients = [_gradients(again()) for _ in range(2)]
        except Exception:
            # What counts its steps has come to the end of what it counts.
            return False
    one, other = gradients
    return one.keys() == other.keys() and all(torch.equal(one[each], other[each]) for each in one)


def same(found: Results, expected: Results) -> bool:
    """Return whether two steps returned the same but for rounding."""
    pairs = zip((*found[0].values(), *found[1]), (*expected[0].values(), *expected[1]), strict=False)
    return found[0].keys() == expected[0].keys() and all(close(ours, theirs) for ours, theirs in pairs)


def close(found: Tensor, expected: Tensor) -> bool:
    """Return whether tensors are equal but for rounding."""
    if found.shape != expected.shape or found.dtype != expected.dtype or found.requires_grad != expected.requires_grad:
        return False
    tolerance = 1e-9 if found.dtype == torch.float64 else 1e-4
    return torch.allclose(found, expected, rtol=tolerance, atol=tolerance, equal_nan=True)


def _gradients(results: Results) -> dict[int, Tensor]:
    """Return gradients of the sum of all that a step returned, by the identity of what it was computed from."""
    total = sum((x.sum() for x in (*results[0].values(), *results[1]) if x.requires_grad), torch.zeros(()))
    leaves = {id(x): x for x in _leaves(total.grad_fn)}
    if not leaves:
        return {}
    # The state before the step has a history that is needed again.
    found = torch.autograd.grad(total, list(leaves.values()), retain_graph=True)
    return dict(zip(leaves, found, strict=True))


def _leaves(node: Any) -> Iterable[Tensor]:
    """Yield the leaves of a history of gradients."""
    waiting, seen = [node], set()
    while waiting:
        here = waiting.pop()
        if here is None or here in seen:
            continue
        seen.add(here)
        if hasattr(here, "variable"):
            yield here.variable
        waiting.extend(before for before, _ in here.next_functions)
