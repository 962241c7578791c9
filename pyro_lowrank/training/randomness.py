"""The random numbers of a fit: of its own, and the same for a step whatever came before it."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def seed_of(seed: int, purpose: str, number: int) -> int:
    """Return the seed of the random numbers that a fit's `number`-th draw for a purpose uses.

    Seeding every step afresh makes a step depend on its number alone: a resumed fit needs no generator's state, and
    held-out evaluations change nothing about the training.
    """
    return int.from_bytes(hashlib.blake2b(f"{seed}/{purpose}/{number}".encode(), digest_size=8).digest(), "big")


_seeding = threading.RLock()


@contextmanager
def own_generators(device: torch.device) -> Iterator[None]:
    """Within it, torch's global generators may be seeded; after it they are as they were before.

    Pyro draws from these, and keeps its handlers for all threads of a process in one place: two threads at once would
    take each other's numbers.

    Raises:
        RuntimeError: if another thread of the process is within it.
    """
    if not _seeding.acquire(blocking=False):
        raise RuntimeError(
            "Another thread of this process is fitting a model, or scoring or simulating one by a seed. Both would "
            "draw from torch's global generator, which Pyro uses, and neither would get the numbers of its seed: run "
            "them one after the other, or in processes (multiprocessing, joblib's loky, "
            "concurrent.futures.ProcessPoolExecutor)."
        )
    try:
        with _forked(device):
            yield
    finally:
        _seeding.release()


@contextmanager
def _forked(device: torch.device) -> Iterator[None]:
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


def seed_generators(device: torch.device, seed: int) -> None:
    """Seed the global generators that draws on `device` use."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        torch.cuda.default_generators[index].manual_seed(seed)
