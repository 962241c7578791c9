"""What is kept of each fold and rank: one small file each, written all or nothing."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from pyro_lowrank.files import check_same_settings, told_of, write_whole

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


def record_path(folder: str | os.PathLike[str], name: str, fold: int, steps: int | None = None) -> Path:
    """Return the file of a point and fold.

    Args:
        folder: where records are kept.
        name: of the point.
        fold: number of the fold.
        steps: after how many of its steps; None for all.

    Example:
        >>> record_path("found", "rank_2", 0).name
        'rank_2_fold_0.json'
    """
    return Path(folder) / f"{name}_fold_{fold}{'' if steps is None else f'_steps_{steps}'}.json"


def write_record(path: Path, record: Record, settings: Mapping[str, Any]) -> None:
    """Write a record, all or nothing, with what determines its numbers and a digest of both."""
    content = {"version": _VERSION, "settings": settings, "record": asdict(record)}
    write_whole(path, json.dumps({**content, "digest": _digest(content)}, indent=1).encode())


def read_record(path: Path, rank: int, fold: int, trials: Sequence[str], settings: Mapping[str, Any]) -> Record | None:
    """Return the record of a rank and fold, or None if there is none. Earlier releases wrote no digest.

    Args:
        path: where it is.
        rank: of the model.
        fold: number of the fold.
        trials: names of the trials that are held out.
        settings: what determines the numbers.

    Raises:
        ValueError: if the file is no record, is damaged, or of another rank, fold or trials, or under other settings.
    """
    if not path.exists():
        return None
    with told_of(f"{path} is no record of a cross-validation, or a damaged one; remove it, and it is computed anew"):
        content = json.loads(path.read_bytes())
        if content.keys() - {"digest"} != {"version", "settings", "record"} or content["version"] != _VERSION:
            raise ValueError(f"it must hold version {_VERSION}, settings and a record.")
        digest = content.pop("digest", None)
        if digest not in (None, _digest(content)):
            raise ValueError("what it holds is not what was written, by its digest.")
        theirs, record = dict(content["settings"]), _record(content["record"])
    # Earlier releases did not keep the shapes of a user's model.
    ours = {name: value for name, value in settings.items() if digest or name != "shapes"}
    check_same_settings(
        f"{path} is of another cross-validation",
        # What tells one file of a cross-validation from another, in one go with the rest.
        {**theirs, "rank": record.rank, "fold": record.fold, "trials": list(record.trials)},
        # Through JSON, as theirs went.
        json.loads(json.dumps({**ours, "rank": rank, "fold": fold, "trials": list(trials)})),
        "Go on with the settings and data it was begun with, or choose another `folder`.",
    )
    return record


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _record(values: Mapping[str, Any]) -> Record:
    """Return a record whose values are of the kinds and numbers that `Record` declares."""
    kinds = {field.name: _KINDS[str(field.type)] for field in fields(Record)}
    if values.keys() != kinds.keys():
        raise ValueError(f"it must hold {', '.join(kinds)}, and holds {', '.join(values)}.")
    for name, (several, kind) in kinds.items():
        items = values[name] if several else [values[name]]
        if not isinstance(items, list) or not all(type(item) in kind for item in items):
            raise ValueError(f"{name} must be {'several' if several else 'one'} of {kind[-1].__name__}.")
    arguments: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
    record = Record(**arguments)
    one_each = {len(record.trials), len(record.bins), len(record.evidence)}
    if len(one_each) > 1 or len(record.gains) != len(record.weights) or len(record.gains) not in {0, *one_each}:
        raise ValueError("it must hold one number for each of its trials.")
    return record


# By their declarations: whether there are several, and of which types.
_KINDS: dict[str, tuple[bool, tuple[type, ...]]] = {
    "int": (False, (int,)),
    "float": (False, (int, float)),
    "tuple[str, ...]": (True, (str,)),
    "tuple[int, ...]": (True, (int,)),
    "tuple[float, ...]": (True, (int, float)),
}
