"""The random numbers of a fit: of its own, and the same for a step whatever came before it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from pyro_lowrank.errors import check_positive_int
from pyro_lowrank.generators import lent_generators

Seed = int | torch.Generator
"""What a fit's random numbers come from: a number, or a generator, which one is drawn from."""


def plain_seed(seed: Seed) -> int:
    """Return a seed as a number; one that is drawn if it is a generator.

    Raises:
        ValueError: if it is below zero.
    """
    if isinstance(seed, torch.Generator):
        return int(torch.randint(2**62, (), generator=seed, device=seed.device))
    return check_positive_int("seed", seed, minimum=0)


def seed_of(seed: int, purpose: str, number: int) -> int:
    """Return the seed of the random numbers that a fit's `number`-th draw for a purpose uses.

    Seeding every step afresh makes a step depend on its number alone: a resumed fit needs no generator's state, and
    held-out evaluations change nothing about the training.
    """
    return int.from_bytes(hashlib.blake2b(f"{seed}/{purpose}/{number}".encode(), digest_size=8).digest(), "big")


@contextmanager
def own_generators(device: torch.device) -> Iterator[None]:
    """Within it, torch's global generators may be seeded; after it they are as they were before.

    Raises:
        RuntimeError: if another thread of the process is within it.
    """
    with lent_generators(), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


def seed_generators(device: torch.device, seed: int) -> None:
    """Seed the global generators that draws on `device` use."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        torch.cuda.default_generators[index].manual_seed(seed)
