"""What `pyro-lowrank fit` has before it fits."""

from __future__ import annotations

from dataclasses import dataclass

from pyro_lowrank.data.held_out import HeldOut
from pyro_lowrank.guides.base import Guide
from pyro_lowrank.models.state_space import StateSpaceModel
from pyro_lowrank.training.batches import Batch
from pyro_lowrank.training.standardise import Standardisation
from pyro_lowrank.training.stored import StoredData


@dataclass(frozen=True)
class Prepared:
    """The model, and the data that it is fitted to.

    Attributes:
        model: still as it was drawn.
        guide: its guide.
        train: what it is fitted to, standardised where asked.
        held_out: what it is not fitted to, likewise; or None.
        places: where both are in the recording.
        standardisation: by which both were, or None.
        orientation: how the file was read.
        bin_size: seconds per time bin, or None.
        feature_names: of the recording.
    """

    model: StateSpaceModel
    guide: Guide
    train: Batch | StoredData
    held_out: Batch | StoredData | None
    places: HeldOut
    standardisation: Standardisation | None
    orientation: str
    bin_size: float | None
    feature_names: tuple[str, ...]


STANDARDISED = (
    "Each feature is standardised for the training, and the evidence below is of the\n"
    "standardised data; the saved model is in the recording's own units."
)
