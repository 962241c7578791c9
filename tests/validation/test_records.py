"""A record that is damaged, or of something else, is never taken for the one that is wanted."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyro_lowrank.validation.records import Record, read_record, record_path, write_record

RECORD = Record(
    rank=2,
    fold=1,
    trials=("a", "b"),
    bins=(10, 12),
    evidence=(-3.5, 2.0),
    gains=(0.1, float("nan")),
    weights=(1.0, 0.0),
    train_evidence=-1.0,
    seconds=2,
)
SETTINGS = {"num_steps": 3, "hidden": [1, 2], "window": None}


def read(folder: Path, record: Record = RECORD, settings: Any = SETTINGS) -> Record | None:
    """Read the record that is wanted."""
    return read_record(
        record_path(folder, f"rank_{record.rank}", record.fold), record.rank, record.fold, record.trials, settings
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The file of a record."""
    path = record_path(tmp_path, "rank_2", 1)
    write_record(path, RECORD, SETTINGS)
    return path


def test_a_record_comes_back_as_it_was(path: Path) -> None:
    assert str(read(path.parent)) == str(RECORD), "as text, since NaN differs from itself"
    assert read(path.parent, replace(RECORD, fold=0)) is None
    assert [found.name for found in path.parent.iterdir()] == ["rank_2_fold_1.json"]


def test_a_record_of_an_earlier_release_has_no_digest(path: Path) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    del content["digest"]
    path.write_text(json.dumps(content), encoding="utf-8")
    assert str(read(path.parent)) == str(RECORD)


def test_a_flipped_bit_is_noticed(path: Path) -> None:
    whole, random = path.read_bytes(), np.random.default_rng(6)
    for place in range(len(whole)):
        content = bytearray(whole)
        content[place] ^= 1 << int(random.integers(8))
        path.write_bytes(content)
        try:
            found = read(path.parent)
        except ValueError as error:
            assert str(path) in str(error)  # noqa: PT017 (below, where there is none)
        else:
            assert str(found) == str(RECORD)
            assert whole[place : place + 1].isspace()


CHANGES: dict[str, Any] = {
    "list": lambda _: [1],
    "null": lambda _: None,
    "other version": lambda c: c | {"version": 2},
    "no settings": lambda c: {key: c[key] for key in ("version", "record")},
    "settings of another form": lambda c: c | {"settings": [1, 2]},
    "record of another form": lambda c: c | {"record": [1, 2]},
    "more": lambda c: c | {"more": 1},
    "missing": lambda c: c | {"record": {k: v for k, v in c["record"].items() if k != "bins"}},
    "unknown": lambda c: c | {"record": c["record"] | {"bin": []}},
    **{
        f"{name} {value!r}": lambda c, name=name, value=value: c | {"record": c["record"] | {name: value}}
        for name in RECORD.__dataclass_fields__
        for value in ("ab", None, True, [None], ["a", "b", "c"], {"a": 1}, [1.5])
        if not (name in ("train_evidence", "seconds") and value == [1.5])
    },
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_damaged_record_is_refused_with_what_to_do(name: str, path: Path) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    for digest in (True, False):
        if not digest:
            del content["digest"]
        path.write_text(json.dumps(CHANGES[name](content)), encoding="utf-8")
        with pytest.raises(ValueError, match=f"{path} is (no record .* remove it|of another cross-validation: trials)"):
            read(path.parent)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b'{"version": 1}'])
def test_what_is_no_record_is_refused(content: bytes, path: Path) -> None:
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{path} is no record of a cross-validation, or a damaged one; remove it"):
        read(path.parent)


@pytest.mark.parametrize(
    ("other", "told"),
    [
        (replace(RECORD, rank=3), "rank was 2, is 3"),
        (replace(RECORD, fold=0), "fold was 1, is 0"),
        (replace(RECORD, trials=("b", "a")), "trials was .*'a', 'b'.*, is .*'b', 'a'"),
    ],
)
def test_a_record_of_another_rank_fold_or_trials_is_refused(other: Record, told: str, path: Path) -> None:
    place = record_path(path.parent, f"rank_{other.rank}", other.fold)
    if place != path:
        shutil.copy(path, place)
    with pytest.raises(ValueError, match=f"of another cross-validation: {told}"):
        read(path.parent, other)


def test_leftovers_of_killed_processes_are_in_nobodys_way(tmp_path: Path) -> None:
    path = record_path(tmp_path, "rank_2", 1)
    # As the release before named them, by the number of the process, which is always 1 in a container.
    (tmp_path / f".{path.name}.{os.getpid()}").write_text("half", encoding="utf-8")
    write_record(path, RECORD, SETTINGS)
    assert read(tmp_path) is not None
