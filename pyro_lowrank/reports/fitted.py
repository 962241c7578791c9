"""Sections on the model, its fit and its filter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from pyro_lowrank.export.posterior import to_arviz
from pyro_lowrank.plots.posterior import plot_calibration, plot_ess
from pyro_lowrank.plots.training import plot_effective_size, plot_evidence
from pyro_lowrank.reports.material import Material
from pyro_lowrank.reports.parts import Section, Table, picture
from pyro_lowrank.training.baselines import Baselines

# Of a long recording, and of many trials, the summary tells of the first ones.
_SUMMARISED = 6
# Calibration is told by so many entries.
_MOST_ENTRIES = 200_000


class Course(Protocol):
    """How a fit went: a `FitResult`."""

    @property
    def evidence(self) -> NDArray[np.float64]:
        """Of each step."""

    @property
    def ess(self) -> NDArray[np.float64]:
        """Of each step."""

    @property
    def held_out_steps(self) -> NDArray[np.int64]:
        """At which held-out data were evaluated."""

    @property
    def held_out_evidence(self) -> NDArray[np.float64]:
        """Of these."""

    @property
    def held_out(self) -> float | None:
        """Of the model as it is now, or None."""

    @property
    def baselines(self) -> Baselines | None:
        """What the held-out data are worth without latent dynamics, or None."""

    @property
    def advice(self) -> tuple[str, ...]:
        """What to change."""


def the_model(material: Material, settings: Mapping[str, Any]) -> Section:
    """What was fitted to what."""
    dynamics, observation = material.model.dynamics, material.model.observation
    rows = [("dynamics", type(dynamics).__name__), ("rank", str(dynamics.rank))]
    for name in ("units", "activation"):
        value = getattr(dynamics, name, None)
        rows += [] if value is None else [(name, str(getattr(value, "name", value)))]
    rows += [("observation", type(observation).__name__), ("features", str(material.recording.data.shape[-1]))]
    rows += [("inputs", str(0 if material.recording.inputs is None else material.recording.inputs.shape[-1]))]
    rows += [("guide", "none" if material.guide is None else type(material.guide).__name__)]
    rows += [("particles here", str(material.posterior.num_particles))]
    rows += [(str(name).replace("_", " "), str(value)) for name, value in settings.items() if value is not None]
    return Section(
        "Model and recording",
        notes=[material.left_out] if material.left_out else [],
        table=Table(("", ""), rows),
        text=str(material.recording),
    )


def the_fit(material: Material, course: Course | None, reference: float | None) -> Section:
    """How the fit went, with the evidence without dynamics for scale."""
    here = f"This recording has {material.evidence:.3f} nats of log evidence per time bin"
    if material.without_dynamics is not None:
        gain = material.evidence - material.without_dynamics
        here += f", and {material.without_dynamics:.3f} without dynamics"
        # Where there are better yardsticks than independent features, these say what the latents are worth.
        here += f": the latents are worth {gain:.3f} nats per bin" if material.baselines is None else ""
    notes = [here + "."]
    if course is None or not len(course.evidence):
        notes.append("How the fit went was not handed to this report (`fit=`), so it is not drawn.")
        return Section("How the fit went", notes, table=_of_baselines(material, None))
    notes += _of_held_out(course, reference)
    line = material.without_dynamics if reference is None else reference
    evidence = picture(
        lambda axes: plot_evidence(
            axes, course.evidence, course.held_out_steps, course.held_out_evidence, reference=line
        ),
        "Log evidence over steps of training",
        "Log evidence of minibatches and of held-out data; the dashed line is what features without dynamics are worth"
        + (" on this recording." if reference is None else "."),
        height=3.4,
    )
    pictures = [evidence]
    if not np.isnan(course.ess).all() and len(course.ess):
        pictures.append(
            picture(
                lambda axes: plot_effective_size(axes, course.ess),
                "Effective sample size over steps of training",
                "Share of the particles that carry weight; a share that falls to a few percent asks for more of them.",
                height=3.4,
            )
        )
    return Section("How the fit went", [*notes, *course.advice], pictures, table=_of_baselines(material, course))


class Judged(NamedTuple):
    """A network beside models without latent dynamics, in nats per bin.

    Attributes:
        baselines: those models.
        network: the network.
        where: which data they are judged on.
    """

    baselines: Baselines
    network: float
    where: str


def judged(material: Material, course: Course | None) -> Judged | None:
    """Return the comparison on held-out data if there are any, else on this recording, or None."""
    if course is not None and course.baselines is not None and course.held_out is not None:
        return Judged(course.baselines, course.held_out, "held out")
    return None if material.baselines is None else Judged(material.baselines, material.evidence, "this recording")


def _of_baselines(material: Material, course: Course | None) -> Table | None:
    """What the dynamics add."""
    found = judged(material, course)
    if found is None:
        return None
    rows = [
        (row.name, _nats(row.nats) or row.remark, _nats(found.network - row.nats, sign="+"))
        for row in found.baselines.rows
    ]
    headings = ("without latent dynamics", f"nats per bin, {found.where}", "the network has more")
    return Table(headings, [*rows, ("the network", _nats(found.network), "")])


def _nats(value: float, sign: str = "") -> str:
    return f"{value:{sign}.3f}" if value == value else ""


def _of_held_out(course: Course, reference: float | None) -> list[str]:
    held_out = course.held_out_evidence
    if not len(held_out):
        return ["Nothing was held out, so that overfitting would not show."]
    best = int(held_out.argmax())
    told = (
        f"Held-out evidence went from {held_out[0]:.3f} to {held_out[-1]:.3f} nats per bin, and was highest, "
        f"{held_out[best]:.3f}, after {course.held_out_steps[best]} of {len(course.evidence)} steps"
    )
    if reference is None:
        return [told + "."]
    better = "more" if held_out[best] > reference else "less"
    return [told + f": {abs(held_out[best] - reference):.3f} {better} than without dynamics ({reference:.3f})."]


def the_filter(material: Material) -> Section:
    """Whether the filter can be trusted, in words."""
    found, bin_size = material.diagnosis, material.recording.bin_size
    pictures = [
        picture(
            lambda axes: plot_ess(
                axes,
                material.posterior.ess[:, : _SUMMARISED * 5].cpu(),
                num_particles=material.posterior.num_particles,
                bin_size=bin_size,
            ),
            "Effective sample size over time",
            "How many particles carry weight at each time bin; where it is low, look at the data there.",
        )
    ]
    if found.calibration is not None:
        pit = material.posterior.prequential_pit().cpu().numpy().ravel()
        pit = pit[~np.isnan(pit)]
        pit = pit[:: max(1, len(pit) // _MOST_ENTRIES)]
        pictures.append(
            picture(
                lambda axes: plot_calibration(axes, pit),
                "Histogram of probability integral transforms",
                "Predictions one time bin ahead: flat is calibrated, a hill is too wide, a valley too narrow.",
            )
        )
    notes = list(found.advice) or ["Nothing looks bad."]
    return Section("Can the filter be trusted", notes, pictures, text=str(found))


def the_summary(material: Material) -> Section:
    """ArviZ's summary of the latents' means over time, chains being independent runs of the filter."""
    # Deferred: ArviZ takes a second to import, and `plr` must not.
    from pyro_lowrank.export.arviz import summarise

    data = to_arviz(list(material.runs), draws=25, predictive=False, recording=material.recording)
    headings, rows = summarise(data, "z", over=("time",), first={"trial": _SUMMARISED})
    number = len(material.runs)
    return Section(
        "ArviZ summary",
        [
            f"Means over time of each latent, of the first {min(_SUMMARISED, len(material.recording.data))} trials; "
            f"chains are {number} independent runs of the filter, so that R-hat near 1 says that there are enough "
            "particles. `plr.to_arviz` has everything."
        ],
        table=Table(headings, rows),
    )
