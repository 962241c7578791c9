"""What stands beside networks in a cross-validation: models without latent dynamics, on the same folds."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyro_lowrank.data.recording import Recording
from pyro_lowrank.metrics.estimate import Estimate, ratio_of
from pyro_lowrank.training.baselines import Terms
from pyro_lowrank.training.tensors import as_tensors
from pyro_lowrank.validation.parts import Fold, Part

logger = logging.getLogger(__name__)

Array = NDArray[np.float64]


def baselines_by_trial(terms: Iterable[Terms], folds: Sequence[Fold]) -> dict[str, Array]:
    """Return log evidence in nats of every held-out trial under models without latent dynamics, `trials`, by name.

    Args:
        terms: of the networks that are compared; none of data that are no real numbers.
        folds: each of which they are fitted to and judged on anew.

    Returns:
        Nothing of data that stay on disk, which nobody holds as a whole.
    """
    several = list(terms)
    found: dict[str, list[Array]] = {}
    for train, held_out in (map(_tensor, fold) for fold in folds if several):
        if train is None or held_out is None or train.shape[1] < 2:
            return {}
        try:
            yardsticks = Terms.fitted(several, train)
        except torch.linalg.LinAlgError as reason:
            logger.warning("What the data are worth without latent dynamics cannot be told: %s", reason)
            return {}
        for yardstick in yardsticks:
            found.setdefault(yardstick.name, []).append(yardstick.log_evidence(held_out).numpy())
    return {name: np.concatenate(parts) for name, parts in found.items()}


def _tensor(part: Part) -> Tensor | None:
    return as_tensors(part, torch.zeros((), dtype=torch.float64))[0] if isinstance(part, Recording) else None


def lines_of(baselines: Mapping[str, Array], network: Array | None, bins: Array) -> list[str]:
    """Return lines that tell of models without latent dynamics, and what they have less than a network.

    Args:
        baselines: log evidence by name, `trials`.
        network: that of the best network, or None.
        bins: observed time bins of the trials.
    """
    lines = []
    for name, evidence in baselines.items():
        less = Estimate(np.nan) if network is None else ratio_of(evidence - network, bins)
        cells = [str(value) if value == value else "-" for value in (ratio_of(evidence, bins), less)]
        lines.append("      " + "".join(f"  {cell:>19}" for cell in cells) + f"  {name}")
    return ["  without latent dynamics", *lines] if lines else []
