"""The random numbers of a fit: of its own, and the same for a step whatever came before it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def seed_of(seed: int, purpose: str, number: int) -> int:
    """Return the seed of the random numbers that a fit's `number`-th draw for a purpose uses.

    Seeding every step afresh makes a step depend on its number alone: a resumed fit needs no generator's state, and
    held-out evaluations change nothing about the training.
    """
    return int.from_bytes(hashlib.blake2b(f"{seed}/{purpose}/{number}".encode(), digest_size=8).digest(), "big")


@contextmanager
def own_generators(device: torch.device) -> Iterator[None]:
    """Within it, torch's global generators may be seeded; after it they are as they were before."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


def seed_generators(device: torch.device, seed: int) -> None:
    """Seed the global generators that draws on `device` use."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        torch.cuda.default_generators[index].manual_seed(seed)
