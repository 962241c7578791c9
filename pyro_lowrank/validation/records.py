"""What is kept of each fold and rank: one small file each, written all or nothing."""

from __future__ import annotations

import json
import os
import reprlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

_VERSION = 1


@dataclass(frozen=True)
class Record:
    """What one fit says of the trials that were held out of it.

    Attributes:
        rank: of the model.
        fold: number of the fold.
        trials: names of the trials.
        bins: observed time bins of each.
        evidence: log evidence of each, in nats.
        gains: of each, what the prediction of hidden features gains over their means; empty if none were hidden.
        weights: of each, what the gains are divided by, over trials.
        train_evidence: mean log evidence of the last tenth of the steps, in nats per time bin.
        seconds: that it took.
    """

    rank: int
    fold: int
    trials: tuple[str, ...]
    bins: tuple[int, ...]
    evidence: tuple[float, ...]
    gains: tuple[float, ...]
    weights: tuple[float, ...]
    train_evidence: float
    seconds: float


def record_path(folder: str | os.PathLike[str], rank: int, fold: int) -> Path:
    """Return the file of a rank and fold.

    Example:
        >>> record_path("found", 2, 0).name
        'rank_2_fold_0.json'
    """
    return Path(folder) / f"rank_{rank}_fold_{fold}.json"


def write_record(path: Path, record: Record, settings: Mapping[str, Any]) -> None:
    """Write a record, all or nothing, with what determines its numbers."""
    content = {"version": _VERSION, "settings": settings, "record": asdict(record)}
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("x", encoding="utf-8") as file:
            json.dump(content, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_record(path: Path, settings: Mapping[str, Any]) -> Record | None:
    """Return the record of a file, or None if there is none.

    Raises:
        ValueError: if it is no record, or one under other settings.
    """
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in content["record"].items()}
        theirs, record = content["settings"], Record(**values)
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no record of a cross-validation ({error}); remove it.") from error
    # Through JSON, as theirs went.
    ours = json.loads(json.dumps(settings))
    differing = sorted(key for key in theirs.keys() | ours.keys() if theirs.get(key) != ours.get(key))
    if differing:
        told = "; ".join(
            f"{key} was {reprlib.repr(theirs.get(key))}, is {reprlib.repr(ours.get(key))}" for key in differing
        )
        raise ValueError(
            f"{path} is of another cross-validation: {told}. Go on with the settings and data it was begun with, or "
            "choose another `folder`."
        )
    return record
