"""One page on a fitted model and its recording."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from pyro_lowrank.data.recording import Recording
from pyro_lowrank.errors import require
from pyro_lowrank.files import check_writable, write_whole
from pyro_lowrank.models.state_space import StateSpaceModel
from pyro_lowrank.reports import activity, fitted, latent
from pyro_lowrank.reports.material import Array, Material, gather
from pyro_lowrank.reports.parts import Page
from pyro_lowrank.training.randomness import own_generators, seed_generators
from pyro_lowrank.training.result import FitResult

logger = logging.getLogger(__name__)

_TEMPLATE = Path(__file__).with_name("page.html")


def report(
    path: str | os.PathLike[str],
    model: StateSpaceModel,
    guide: Any,
    recording: Recording | Tensor,
    *,
    fit: FitResult | None = None,
    without_dynamics: float | None = None,
    behaviour: ArrayLike | None = None,
    behaviour_names: Sequence[str] = (),
    num_particles: int | None = None,
    num_draws: int = 100,
    settings: Mapping[str, Any] | None = None,
    title: str = "",
    seed: int = 0,
) -> Path:
    """Write one HTML page on a fitted model and its recording, with every picture in it; return its path.

    It shows what was fitted and how the fit went; the inferred rates or means over the recording; recorded against
    generated data; trial averages by condition, recorded, inferred and generated; the latents over time, by condition
    and in the flow with its certified fixed points; behaviour decoded, if there is any; whether the filter can be
    trusted; a summary by ArviZ. The page needs nothing else: no network, no scripts. Needs the extra `report`.

    Args:
        path: of the page, such as `"report.html"`.
        model: that was fitted.
        guide: its guide, or None.
        recording: with its inputs and conditions; or a tensor, `trials x time x features`.
        fit: what `plr.fit` returned, for the course of the fit.
        without_dynamics: log evidence of the held-out data without dynamics, in nats per bin, a line beside their
            curve; if None what `fit` says of them, else that of independent features on this recording.
        behaviour: `trials x time x targets`, NaN where missing, to be decoded from the latents.
        behaviour_names: one per target.
        num_particles: of the filter; what suits the guide and the size of the recording if None.
        num_draws: paths of the smoother.
        settings: what else to tell of the fit, by name.
        title: of the page.
        seed: of everything random; the caller's generators are left as they were.

    Raises:
        ModuleNotFoundError: if the extra `report` is not installed.
        TypeError: if the model is not a `StateSpaceModel`.
        ValueError: if recording, behaviour and model do not fit each other.
        OSError: if the page cannot be written, before any long work.

    Example::

        >>> import torch, pyro_lowrank as plr
        >>> model = plr.StateSpaceModel(plr.LowRankRNN(rank=1, units=5), plr.GaussianObservation(rank=1, features=3))
        >>> y = model.simulate(num_trials=2, num_steps=30).y
        >>> plr.report("report.html", model, plr.OptimalGuide(model), y, num_particles=20, num_draws=10).name
        'report.html'
    """
    jinja = require("jinja2", "report", "A report")
    require("matplotlib", "report", "A report")
    if not isinstance(model, StateSpaceModel):
        raise TypeError(f"A report is of a StateSpaceModel, got {type(model).__name__}.")
    if not isinstance(recording, Recording):
        recording = Recording(np.asarray(recording.detach().cpu()))
    targets = _behaviour(behaviour, recording)
    names = _names(behaviour_names, targets)
    check_writable(path)
    if without_dynamics is None and fit is not None:
        without_dynamics = fit.without_dynamics
    device = next(model.parameters()).device
    with own_generators(device), torch.no_grad():
        seed_generators(device, seed)
        material = gather(model, guide, recording, num_particles=num_particles, num_draws=num_draws)
        logger.info("Report: drawing.")
        found = [
            fitted.the_model(material, settings or {}),
            fitted.the_fit(material, fit, without_dynamics),
            activity.inferred(material),
            latent.over_time(material),
            latent.by_condition(material),
            latent.flow(material),
            activity.generated(material),
            activity.psths(material),
            latent.behaviour(material, targets, names),
            fitted.the_filter(material),
            fitted.the_summary(material),
        ]
    page = Page(
        title=title or f"{type(model.dynamics).__name__} of rank {model.dynamics.rank}",
        facts=_facts(material, fit, without_dynamics),
        sections=[section for section in found if section is not None],
    )
    environment = jinja.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    text = environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(page=page)
    write_whole(path, text.encode())
    return Path(path)


def _facts(material: Material, fit: FitResult | None, reference: float | None) -> list[tuple[str, str]]:
    """The few numbers that the page begins with."""
    trials, time, features = material.recording.data.shape
    found = [("recording", f"{trials} × {time} × {features}")]
    found.append(("evidence", f"{material.evidence:.3f} nats/bin"))
    without = material.without_dynamics
    if fit is not None and len(fit.held_out_evidence):
        found.append(("held out, best", f"{fit.held_out_evidence.max():.3f} nats/bin"))
        without = without if reference is None else reference
    if without is not None:
        found.append(("without dynamics", f"{without:.3f} nats/bin"))
    judged = fitted.judged(material, fit)
    if judged is not None:
        best = judged.baselines.best
        found.append((f"best without dynamics, {judged.where}", f"{best.nats:.3f} nats/bin, {best.name}"))
    found.append(("effective particles", f"{material.diagnosis.mean_ess:.0f} of {material.posterior.num_particles}"))
    if material.fixed_points is not None:
        proved = "all, proved" if material.fixed_points.certificate.complete else "perhaps not all"
        found.append(("fixed points", f"{len(material.fixed_points.points)} ({proved})"))
    return found


def _behaviour(behaviour: ArrayLike | None, recording: Recording) -> Array | None:
    if behaviour is None:
        return None
    targets = np.asarray(behaviour, dtype=np.float64)
    targets = targets[..., np.newaxis] if targets.ndim == 2 else targets
    if targets.ndim != 3 or targets.shape[:2] != recording.data.shape[:2]:
        raise ValueError(
            f"`behaviour` must be trials x time x targets, as the recording {recording.data.shape[:2]}, got "
            f"{targets.shape}."
        )
    return targets


def _names(names: Sequence[str], targets: Array | None) -> list[str]:
    number = 0 if targets is None else targets.shape[-1]
    if names and len(names) != number:
        raise ValueError(f"`behaviour_names` must be one per target, {number}, got {len(names)}.")
    return list(names) or [f"target {index + 1}" for index in range(number)]
