"""What a report is about, computed once: posterior, expected and generated data, fixed points, diagnosis."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyro_lowrank.data.recording import Recording
from pyro_lowrank.errors import check_positive_int
from pyro_lowrank.infer.diagnose import Diagnosis, diagnose
from pyro_lowrank.infer.filter import SMCFilter
from pyro_lowrank.infer.latents import LEVEL, Latents
from pyro_lowrank.infer.posterior import SMCPosterior
from pyro_lowrank.models.state_space import StateSpaceModel
from pyro_lowrank.training.baselines import Baselines, baselines_of
from pyro_lowrank.training.independent import without_dynamics
from pyro_lowrank.training.tensors import as_tensors

logger = logging.getLogger(__name__)
Array = NDArray[np.floating[Any]]

# So many time bins, of all trials together, tell what there is to see; more are left out, and the page says so.
MOST_BINS = 40_000
# Numbers in the particles of one run at most, so that a report fits into the memory that the fit had.
_MOST_NUMBERS = 30_000_000
_RUNS = 4
_MOST_DRAWN = 4_000_000
_SECONDS_FOR_FIXED_POINTS = 30.0
# Time bins at the begin of a trial from which its continuation is generated.
_SHARE_SEEN = 0.05


@dataclass(frozen=True, eq=False)
class Material:
    """What the sections of a report draw from; arrays are `trials x time x ...`, NaN after a trial's end.

    Attributes:
        model: that was fitted.
        guide: what proposed the particles, or None.
        recording: what of it is shown.
        left_out: a sentence on what of the recording is not shown, or nothing.
        posterior: of the first run.
        draws: smoothed paths, `draws x trials x time x rank`.
        latents: their means and bands.
        expected: observations given the whole recording.
        generated: as many new trials as recorded ones.
        repeated: more of them, for statistics that chance in the draws should not move.
        continued: trials generated given their first bins alone.
        seen: how many bins these are.
        diagnosis: of all runs.
        runs: of the filter.
        fixed_points: without input, or None.
        why_none: a sentence, where there are none.
        evidence: of the recording, nats per time bin.
        without_dynamics: of independent features, nats per time bin, or None.
        baselines: of more that has no latent dynamics, fitted to this recording, or None.
    """

    model: StateSpaceModel
    guide: Any
    recording: Recording
    left_out: str
    posterior: SMCPosterior
    draws: Array
    latents: Latents
    expected: Array
    generated: Array
    repeated: Array
    continued: Array
    seen: int
    diagnosis: Diagnosis
    runs: tuple[SMCPosterior, ...]
    fixed_points: Any
    why_none: str
    evidence: float
    without_dynamics: float | None
    baselines: Baselines | None

    @property
    def counts(self) -> bool:
        """Whether the recording holds counts, which are drawn as spikes."""
        seen = self.recording.data[self.recording.mask]
        return self.posterior.mean_name == "rates" and bool((seen >= 0).all() and (seen == np.round(seen)).all())

    @property
    def within(self) -> NDArray[np.bool_]:
        """Which time bins belong to their trial, `trials x time`."""
        return np.arange(self.recording.data.shape[1]) < self.recording.trial_lengths[:, np.newaxis]

    @property
    def means(self) -> Array:
        """The smoothed means of the latents, NaN after a trial's end."""
        return np.where(self.within[..., np.newaxis], self.latents.mean.cpu().numpy(), np.nan)


def gather(
    model: StateSpaceModel,
    guide: Any,
    recording: Recording,
    *,
    num_particles: int | None,
    num_draws: int,
) -> Material:
    """Run the filter and the smoother, generate, look for fixed points; the generators are the caller's."""
    shown, left_out = _part(recording)
    y, u = (*as_tensors(shown, model), None)[:2]
    assert y is not None
    trials, time = y.shape[:2]
    most = max(20, _MOST_NUMBERS // (trials * time * model.dynamics.rank))
    wanted = 1000 if guide is None or type(guide).__name__ == "BootstrapGuide" else 200
    particles = min(wanted, most) if num_particles is None else check_positive_int("num_particles", num_particles)
    check_positive_int("num_draws", num_draws)
    logger.info("Report: filtering %d trials x %d time bins with %d particles.", trials, time, particles)
    smc = SMCFilter(model, guide, particles)
    runs = tuple(smc.run(y, u) for _ in range(_RUNS))
    posterior = runs[0]
    draws = posterior.smooth(num_draws)
    lengths = torch.as_tensor(shown.trial_lengths, device=y.device)
    within = (torch.arange(time, device=y.device) < lengths.unsqueeze(-1)).unsqueeze(-1)
    logger.info("Report: generating as much as was recorded.")
    copies = max(1, min(20, _MOST_DRAWN // y.numel()))
    repeated = torch.cat([_masked(_simulated(model, y, u), within) for _ in range(copies)])
    seen = max(1, round(_SHARE_SEEN * time))
    begun = y.clone()
    begun[:, seen:] = torch.nan
    began = smc.run(begun, u)
    continued = _masked(began.replicate(began.smooth(1)).y[0], within)
    fixed_points, why_none = _fixed_points(model)
    return Material(
        model=model,
        guide=guide,
        recording=shown,
        left_out=left_out,
        posterior=posterior,
        draws=draws.cpu().numpy(),
        latents=Latents.of_draws(draws, LEVEL, lengths),
        expected=_masked(posterior.predict(draws), within).cpu().numpy(),
        generated=repeated[:trials].cpu().numpy(),
        repeated=repeated.cpu().numpy(),
        continued=continued.cpu().numpy(),
        seen=seen,
        diagnosis=diagnose(runs),
        runs=runs,
        fixed_points=fixed_points,
        why_none=why_none,
        evidence=float(posterior.log_evidence.sum() / (~y.isnan()).any(-1).sum()),
        without_dynamics=without_dynamics(model.observation, y, y),
        baselines=baselines_of(model, y, y),
    )


def _part(recording: Recording) -> tuple[Recording, str]:
    """The first trials, and of these the first bins, that are few enough; and a sentence if that is not all."""
    trials, time = recording.data.shape[:2]
    if trials * time <= MOST_BINS:
        return recording, ""
    bins = min(time, MOST_BINS)
    rows = max(1, MOST_BINS // bins)
    part = recording.select(trials=slice(0, rows))
    bins = min(bins, part.data.shape[1])
    part = replace(
        part,
        data=part.data[:, :bins],
        inputs=None if part.inputs is None else part.inputs[:, :bins],
        trial_lengths=np.minimum(part.trial_lengths, bins),
    )
    return part, f"Shown are {rows} of {trials} trials, and at most {bins} of {time} time bins of each."


def _simulated(model: StateSpaceModel, y: Tensor, u: Tensor | None) -> Tensor:
    return model.simulate(y.shape[0], y.shape[1], u).y


def _masked(values: Tensor, within: Tensor) -> Tensor:
    return torch.where(within, values, torch.nan)


def _fixed_points(model: StateSpaceModel) -> tuple[Any, str]:
    find = getattr(model.dynamics, "fixed_points", None)
    if find is None:
        return None, "These dynamics are no network whose fixed points can be found."
    logger.info("Report: looking for fixed points, %.0f s at most.", _SECONDS_FOR_FIXED_POINTS)
    try:
        return find(max_seconds=_SECONDS_FOR_FIXED_POINTS), ""
    except (TypeError, ValueError) as error:
        return None, f"Fixed points were not looked for: {error}"
