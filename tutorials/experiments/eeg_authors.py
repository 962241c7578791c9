"""The authors' own EEG models, read by `load_smc_rnns` and judged as ours are: what the measures say of known networks.

One seed is one model. It takes a checkout of the authors' repository, which the environment variable SMC_RNNS names.
`d_stsp_published` is D_stsp as programs in the field compute it, in float32, leaving out draws where a density
underflows: those are the draws that count most, so it is smaller.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import eeg
from shared import REPOSITORY, DataMissing

import pyro_lowrank as plr

REFERENCE = {"d_stsp_published": eeg.REFERENCE["d_stsp"], "d_h": eeg.REFERENCE["d_h"]}
GOAL: dict[str, float] = {}
SEEDS = range(20)


@dataclass(frozen=True)
class Settings:
    """Which of the models."""

    folder: str = "models/sweep_eeg_rs"


FULL = REDUCED = Settings()


def run(seed: int, settings: Settings) -> dict:
    """Judge one model."""
    checkout = os.environ.get("SMC_RNNS")
    if not checkout:
        raise DataMissing(f"Set the environment variable SMC_RNNS to a checkout of {REPOSITORY}.")
    paths = sorted(Path(checkout, settings.folder).glob("*_vae_params.pkl"))
    name = str(paths[seed]).removesuffix("_vae_params.pkl")
    model, guide = plr.load_smc_rnns(name)
    return {**eeg.judge(model, guide, *eeg.recordings(), seed), "decay": float(model.dynamics.decay.detach())}


draw = eeg.draw
