"""How much memory a process may still take, where the system tells."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import torch


def available_bytes(device: torch.device) -> int | None:
    """Return how many bytes a process may still take on a device, or None where nobody knows.

    On the CPU that is the least of what the machine has left, what the process's control group may still take, and what
    its limit of address space leaves.

    Example::

        >>> found = available_bytes(torch.device("cpu"))
        >>> found is None or found > 0
        True
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        # Torch keeps what it has freed.
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if device.type != "cpu":
        return None
    known = [_of_machine(Path("/proc/meminfo")), _of_address_space(Path("/proc/self/status"))]
    known += _of_groups(Path("/sys/fs/cgroup"), Path("/proc/self/cgroup"))
    return min((max(0, each) for each in known if each is not None), default=None)


def _of_machine(path: Path) -> int | None:
    return _entries(path).get("MemAvailable")


def _of_address_space(status: Path) -> int | None:
    with suppress(ImportError, OSError, ValueError):
        import resource

        limit, _ = resource.getrlimit(resource.RLIMIT_AS)
        taken = _entries(status).get("VmSize")
        if limit != resource.RLIM_INFINITY and taken is not None:
            return int(limit) - taken
    return None


def _entries(path: Path) -> dict[str, int]:
    """Return bytes by name, of lines such as `MemAvailable:  20 kB`."""
    found = {}
    with suppress(OSError, ValueError):
        for line in path.read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            if value.endswith(" kB"):
                found[name] = 1024 * int(value.split()[0])
    return found


def _of_groups(root: Path, own: Path) -> Iterator[int]:
    """Yield what the control groups of the process, of either version, and those around them leave."""
    with suppress(OSError):
        for line in own.read_text(encoding="utf-8").splitlines():
            _, kinds, place = line.split(":", 2)
            if kinds == "":
                names = root, "memory.max", "memory.current", "inactive_file"
            elif "memory" in kinds.split(","):
                names = root / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
            else:
                continue
            yield from _of_group(*names, place.strip("/"))


def _of_group(root: Path, limit: str, usage: str, reclaimed: str, place: str) -> Iterator[int]:
    within = root / place
    for folder in [within, *(parent for parent in within.parents if parent == root or root in parent.parents)]:
        with suppress(OSError, ValueError):
            most = (folder / limit).read_text(encoding="utf-8").strip()
            if most == "max":
                continue
            taken = int((folder / usage).read_text(encoding="utf-8"))
            statistics = dict(line.split() for line in (folder / "memory.stat").read_text("utf-8").splitlines())
            yield int(most) - taken + int(statistics.get(reclaimed, 0))
