"""Networks of other ranks than 3 that generate EEG, trained and judged as in `eeg`."""

from __future__ import annotations

from dataclasses import dataclass, replace

import eeg
from shared import tensor

REFERENCE = {}
GOAL = {}


@dataclass(frozen=True)
class Settings:
    """The ranks, and all else as in `eeg`."""

    ranks: tuple[int, ...] = (2, 4)
    base: eeg.Settings = eeg.FULL


FULL, REDUCED = Settings(), Settings(base=eeg.REDUCED)


def run(seed: int, settings: Settings) -> dict:
    """Train and judge one network of each rank."""
    raw, smoothed = eeg.recordings()
    row = {}
    for rank in settings.ranks:
        model, guide, fit = eeg.trained(tensor(raw[None]), seed, replace(settings.base, rank=rank))
        found = eeg.judge(model, guide, raw, smoothed, seed)
        found["evidence"] = float(fit.evidence[-len(fit.evidence) // 10 :].mean())
        row |= {f"{name}_rank_{rank}": value for name, value in found.items()}
    return row


def draw(figure, record: dict) -> None:
    """Draw both measures of each network."""
    axes = figure.subplots()
    for rank in record["settings"]["ranks"]:
        x, y = ([row[f"{name}_rank_{rank}"] for row in record["rows"]] for name in ("d_stsp", "d_h"))
        axes.scatter(x, y, s=18, label=f"rank {rank}")
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    axes.set(
        xlabel="D_stsp (nats), no draw left out", ylabel="D_H", title=f"{len(record['rows'])} networks of each rank"
    )
