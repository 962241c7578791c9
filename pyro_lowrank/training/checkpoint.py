"""Checkpoints: everything a fit needs to go on as if it had not stopped, in one file that `load` reads too."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn, optim

from pyro_lowrank.files import (
    Archive,
    check_same_settings,
    check_writable,
    read_archive,
    told_of,
    write_archive,
)
from pyro_lowrank.serialization import check_state, check_trained, describe, restore_state, state_of
from pyro_lowrank.training.best import Best
from pyro_lowrank.training.result import History

logger = logging.getLogger(__name__)

_PREFIX = "training."


def flatten(tree: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """Return nested dicts and lists as JSON, their tensors put into `tensors` under names that begin with `name`.

    Example::

        >>> import torch
        >>> tensors = {}
        >>> flatten({0: {"mean": torch.zeros(2), "steps": 3}}, "state", tensors), list(tensors)
        ([[0, [['mean', {'tensor': 'state.0.mean'}], ['steps', 3]]]], ['state.0.mean'])
    """
    if isinstance(tree, Tensor):
        tensors[name] = tree
        return {"tensor": name}
    if isinstance(tree, dict):
        # As pairs: JSON would turn keys that are numbers into strings.
        return [[key, flatten(item, f"{name}.{key}", tensors)] for key, item in tree.items()]
    if isinstance(tree, (list, tuple)):
        return {"items": [flatten(item, f"{name}.{index}", tensors) for index, item in enumerate(tree)]}
    if tree is None or isinstance(tree, (bool, int, float, str)):
        return tree
    raise TypeError(
        f"The optimiser's state holds a {type(tree).__name__}, at {name}, which a checkpoint of tensors and JSON "
        "cannot keep; use another optimiser, or no checkpoint."
    )


def unflatten(node: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Return what `flatten` was given; tuples come back as lists.

    Example::

        >>> unflatten(flatten({"lr": 0.1, "betas": (0.9, 0.99)}, "group", {}), {})
        {'lr': 0.1, 'betas': [0.9, 0.99]}
    """
    if isinstance(node, list):
        return {key: unflatten(item, tensors) for key, item in node}
    if isinstance(node, dict):
        if "tensor" in node:
            return tensors[node["tensor"]]
        return [unflatten(item, tensors) for item in node["items"]]
    return node


@dataclass(frozen=True)
class SavedProgress:
    """What a checkpoint says of its fit: steps taken, steps planned, and what determines the numbers."""

    step: int
    num_steps: int
    settings: Mapping[str, Any]


class CheckpointFile:
    """The file in which a fit is kept.

    Args:
        path: the file.
        model: the model that is fitted.
        guide: its guide.
        optimizer: what trains them.
        settings: what, beside the data's values, determines the numbers; a fit goes on only under the same ones.
        besides: what is trained and of neither the model nor the guide.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        model: Any,
        guide: Any,
        optimizer: optim.Optimizer,
        settings: Mapping[str, Any],
        besides: Sequence[nn.Parameter] = (),
    ) -> None:
        self.path, self.besides = Path(path), besides
        self.model, self.optimizer, self.settings = model, optimizer, settings
        # A guide of the user's own may be no module, and then has no parameters.
        self.guide = guide if isinstance(guide, nn.Module) else None
        check_writable(self.path)
        self._description = self._describe(guide)

    def _describe(self, guide: Any) -> dict[str, Any]:
        try:
            return describe(self.model, guide)
        except TypeError as error:
            logger.info("Checkpoints resume this fit, but `load` cannot rebuild the model from them: %s", error)
            return {"model": None, "guide": None}

    def write(self, history: History, num_steps: int, best: Best) -> None:
        """Write what was reached, and what was best on the way, all or nothing.

        Raises:
            ValueError: if a parameter that is trained has become NaN or infinite; the checkpoint before is kept.
        """
        tensors = state_of(self.model, self.guide)
        check_trained(f"The checkpoint {self.path} is kept as it was, not replaced", tensors, self.model, self.guide)
        training: dict[str, Tensor] = {}
        record = {
            "step": len(history),
            "num_steps": num_steps,
            "settings": self.settings,
            "optimizer": flatten(self.optimizer.state_dict(), f"{_PREFIX}optimizer", training),
            "history": flatten(history.to_tensors(), f"{_PREFIX}history", training),
            "besides": flatten([each.detach() for each in self.besides], f"{_PREFIX}besides", training),
            "best": {"step": best.step, "tensors": flatten(dict(best.tensors), f"{_PREFIX}best", training)},
        }
        write_archive(self.path, Archive({**tensors, **training}, {**self._description, "training": record}))

    def read(self, best: Best) -> tuple[SavedProgress, History]:
        """Put the model, guide and optimiser in the state of the checkpoint; return its progress and history.

        Args:
            best: is given what was best on the way.

        Raises:
            ValueError: if the file is no checkpoint, is damaged, or of another fit; nothing is changed then.
        """
        archive = read_archive(self.path)
        progress = _progress(self.path, archive)
        check_same_settings(
            f"The checkpoint {self.path} is of another fit",
            progress.settings,
            self.settings,
            "Resume with the settings and data it was begun with, or begin anew under another `checkpoint`.",
        )
        record = archive.configuration["training"]
        with told_of(f"The checkpoint {self.path} does not fit this model"):
            check_state(archive.tensors, self.model, self.guide)
            check_trained("its numbers are no model's", archive.tensors, self.model, self.guide)
            history = History.from_tensors(unflatten(record["history"], archive.tensors))
            if len(history) != progress.step:
                raise ValueError(f"it records {len(history)} steps of {progress.step}.")
            besides = self._read_besides(record.get("besides"), archive.tensors)
            self._read_best(record.get("best"), history, archive.tensors, best)
            self.optimizer.load_state_dict(unflatten(record["optimizer"], archive.tensors))
            restore_state(archive.tensors, self.model, self.guide)
            for parameter, value in zip(self.besides, besides, strict=True):
                parameter.data.copy_(value)
        return progress, history

    def _read_besides(self, record: Any, tensors: Mapping[str, Tensor]) -> list[Tensor]:
        # Checkpoints of earlier releases have none.
        found = [] if record is None else unflatten(record, tensors)
        shapes, expected = [tuple(each.shape) for each in found], [tuple(each.shape) for each in self.besides]
        if shapes != expected or not all(bool(each.isfinite().all()) for each in found):
            raise ValueError(f"where windows start has shapes {shapes} for {expected}, or is not finite.")
        return found

    def _read_best(self, record: Any, history: History, tensors: Mapping[str, Tensor], best: Best) -> None:
        # Checkpoints of earlier releases have none.
        if record is None or not record["tensors"]:
            return
        kept = unflatten(record["tensors"], tensors)
        check_trained("the best of its models is none", kept, self.model, self.guide)
        best.remember(max(history.held_out_evidence), step=int(record["step"]), tensors=kept)

    def refuse_to_replace(self) -> None:
        """Raise if a file stands at the path that is not the checkpoint of a finished fit."""
        if not self.path.exists():
            return
        try:
            progress = _progress(self.path, read_archive(self.path))
        except ValueError as error:
            raise FileExistsError(
                f"`checkpoint` would overwrite {self.path}, which is no checkpoint ({error}); choose another name."
            ) from error
        if progress.step < progress.num_steps:
            raise FileExistsError(
                f"`checkpoint` would overwrite {self.path}, a fit stopped after {progress.step} of "
                f"{progress.num_steps} steps; pass resume=True to go on with it, remove it, or choose another name."
            )


def steps_in(path: Path) -> int:
    """Return how many steps a fit took until its checkpoint was written; 0 if there is none."""
    return _progress(path, read_archive(path)).step if path.exists() else 0


def _progress(path: Path, archive: Archive) -> SavedProgress:
    record = archive.configuration.get("training")
    if record is None:
        raise ValueError(f"{path} holds a model, but is no checkpoint of a fit.")
    with told_of(f"The checkpoint {path} is damaged"):
        progress = SavedProgress(record["step"], record["num_steps"], record["settings"])
        whole = isinstance(progress.step, int) and isinstance(progress.num_steps, int)
        if not whole or not isinstance(progress.settings, dict):
            raise ValueError("its steps and settings are not numbers and names.")
    return progress
