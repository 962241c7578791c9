"""Sections on the recording: what is inferred of it, and what the model generates beside it."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyro_lowrank.metrics import autocorrelation, isi_statistics, mean_rates, pairwise_correlations
from pyro_lowrank.plots.comparison import plot_agreement, plot_rasters_beside, plot_spectra, plot_traces_beside
from pyro_lowrank.plots.conditions import plot_psth
from pyro_lowrank.plots.figures import share_limits
from pyro_lowrank.plots.rates import plot_rates_over_spikes
from pyro_lowrank.plots.trajectories import plot_traces, spacing_of
from pyro_lowrank.reports.material import Array, Material
from pyro_lowrank.reports.parts import Picture, Section, picture

# Time bins, features and units that a picture can show without a blur.
_MOST_BINS, _MOST_TRACES, _MOST_UNITS = 400, 6, 60
_PSTHS, _TRIALS_SHOWN = 3, 2


def inferred(material: Material) -> Section:
    """Rates over spikes, or inferred means over recorded traces."""
    recording = material.recording
    pictures = []
    for trial in range(min(_TRIALS_SHOWN, len(recording.data))):
        name = recording.trial_names[trial]
        rows = slice(0, min(_MOST_BINS, int(recording.trial_lengths[trial])))
        y, mean = recording.data[trial, rows], material.expected[trial, rows]
        if material.counts:
            pictures.append(_rates_over(material, y, mean, name))
        else:
            pictures.append(_traces_over(material, y, mean, name))
    kind = "rates" if material.counts else "means"
    return Section(f"Inferred {kind} over the recording", pictures=pictures)


def _rates_over(material: Material, y: Array, mean: Array, name: str) -> Picture:
    units, bin_size = _most_active(material.recording.data), material.recording.bin_size
    return picture(
        lambda axes: plot_rates_over_spikes(axes, y[:, units], mean[:, units], bin_size=bin_size, title=name),
        f"Inferred rates with the spikes of {name} on them",
        "Rates given the whole recording, as colours; ticks are the spikes.",
        height=4.0,
    )


def _traces_over(material: Material, y: Array, mean: Array, name: str) -> Picture:
    features = _spread_over(y.shape[1], _MOST_TRACES)
    labels = _labels(material, features)

    def paint(axes: Any) -> None:
        spacing = 0.8 * spacing_of(y[:, features])
        options: dict[str, Any] = labels | {"spacing": spacing}
        plot_traces(axes, y[:, features], color="0.6", label="recorded", **options)
        plot_traces(axes, mean[:, features], color="C1", label="inferred", **options)
        axes.legend(frameon=False, fontsize="small", ncols=2, loc="lower right", bbox_to_anchor=(1.0, 1.0))
        axes.set_title(name, loc="left")

    return picture(
        paint,
        f"Recorded traces of {name} and what is inferred of them",
        "What the latents explain of each feature, given the whole recording.",
        height=4.0,
    )


def generated(material: Material) -> Section:
    """Recorded and generated data beside each other, and their statistics."""
    recording = material.recording
    rows = slice(0, min(_MOST_BINS, int(recording.trial_lengths[0])))
    pair = recording.data[0, rows], material.generated[0, rows]
    if material.counts:
        units = _most_active(recording.data)
        beside = picture(
            lambda axes: plot_rasters_beside(axes, pair[0][:, units], pair[1][:, units], bin_size=recording.bin_size),
            "Spikes of a recorded trial, and of a generated one below it",
            "Units by their recorded rate, the most active on top.",
            panels=2,
            height=2.8,
        )
    else:
        features = _spread_over(pair[0].shape[1], _MOST_TRACES)
        beside = picture(
            lambda axes: plot_traces_beside(
                axes, pair[0][:, features], pair[1][:, features], **_labels(material, features)
            ),
            "Traces of a recorded trial, and of a generated one below it",
            "At the same scale; generated anew from the model, so that they agree in kind and not in time.",
            panels=2,
            height=2.8,
        )
    notes = ["Dots on the line would be perfect agreement; generated numbers are of many more trials than recorded."]
    return Section("Recorded against generated", notes, [beside, *_statistics(material)])


def _statistics(material: Material) -> list[Picture]:
    y, new, bin_size = material.recording.data, material.repeated, material.recording.bin_size
    size = 1.0 if bin_size is None else bin_size
    pairs: list[tuple[str, Any, Any, bool]] = []
    if material.counts:
        unit = "spikes per bin" if bin_size is None else "Hz"
        time = "bins" if bin_size is None else "s"
        pairs.append((f"mean rate ({unit})", mean_rates(y, bin_size=size), mean_rates(new, bin_size=size), True))
        intervals = [isi_statistics(one, bin_size=size) for one in (y, new)]
        pairs.append((f"mean interval between spikes ({time})", intervals[0].mean, intervals[1].mean, True))
        pairs.append(("variation of intervals", intervals[0].variation, intervals[1].variation, False))
    else:
        spread = [np.nanstd(one, axis=(0, 1)) for one in (y, new)]
        pairs.append((f"standard deviation ({_unit(material)})", *spread, False))
        if y.shape[1] > 2:
            first = [autocorrelation(one, max_lag=1)[1] for one in (y, new)]
            pairs.append(("correlation with the bin before", *first, False))
    if y.shape[2] > 2:
        pairs.append(("pairwise correlations", pairwise_correlations(y), pairwise_correlations(new), False))
    pictures = []
    for what, real, made, log in pairs:
        # What hardly any feature has cannot be compared.
        if not _comparable(real, made, log):
            continue
        dot = "pair of features" if "pair" in what else "feature"
        pictures.append(
            picture(
                partial(plot_agreement, real=real, generated=made, what=what, log=log),
                f"{what}: generated over recorded",
                f"{what[0].upper()}{what[1:]}; a dot is a {dot}.",
                height=4.0,
            )
        )
    spectra = None if material.counts else _spectra(material)
    return pictures if spectra is None else [*pictures, spectra]


def _comparable(real: Any, made: Any, log: bool) -> bool:
    there = np.isfinite(real) & np.isfinite(made)
    there &= (real > 0) & (made > 0) if log else True
    return int(there.sum()) > 2


def _spectra(material: Material) -> Picture | None:
    recording = material.recording
    complete = ~np.isnan(recording.data).any((1, 2))
    if not complete.any() or recording.data.shape[1] < 16:
        return None
    chosen = {"recorded": recording.data[complete], "generated": material.generated[complete]}
    size = 1.0 if recording.bin_size is None else recording.bin_size

    def paint(axes: Any) -> None:
        plot_spectra(axes, chosen, bin_size=size, unit=_unit(material))
        if recording.bin_size is None:
            axes.set_xlabel("frequency (per bin)")

    return picture(
        paint,
        "Power spectra of recorded and generated data",
        "Power spectra: the median over features, and the middle half of them.",
        height=4.0,
    )


def psths(material: Material) -> Section | None:
    """Mean activity by condition: recorded, inferred, generated; None where there are too few trials."""
    recording = material.recording
    trials, time, _ = recording.data.shape
    if trials < 5 or time < 3:
        return None
    scale, unit = 1.0, _unit(material)
    if material.counts:
        scale, unit = (1.0, "spikes per bin") if recording.bin_size is None else (1 / recording.bin_size, "Hz")
    parts = [
        ("recorded", recording.data * scale, _width(time) if material.counts else 0.0),
        ("inferred", material.expected * scale, 0.0),
        ("generated", material.continued * scale, _width(time) if material.counts else 0.0),
    ]
    pictures = []
    for feature in _most_modulated(material):
        name = recording.feature_names[feature]

        def paint(axes: Any, feature: int = feature) -> None:
            for panel, (kind, values, smoothing) in zip(axes, parts, strict=True):
                plot_psth(
                    panel,
                    values,
                    recording.conditions,
                    feature=feature,
                    smoothing=smoothing,
                    bin_size=recording.bin_size,
                    unit=unit,
                    title=kind,
                )
                if kind != "recorded" and panel.get_legend() is not None:
                    panel.get_legend().remove()
                if kind != "generated":
                    panel.set_xlabel("")
            share_limits(axes)

        pictures.append(
            picture(paint, f"Mean activity of {name}: recorded, inferred and generated", name, panels=3, height=1.9)
        )
    bins = f"{material.seen} time bin{'s' * (material.seen > 1)}"
    notes = [
        f"Generated trials begin where the first {bins} of each recorded trial put the latents, and see nothing after "
        "that"
        + (" but the inputs." if recording.inputs is not None else ".")
        + " Bands are standard errors over trials."
    ]
    by = "" if recording.conditions is None else " by condition"
    return Section(f"Mean activity over trials{by}", notes, pictures)


def _width(time: int) -> float:
    """Time bins of a kernel that smooths counts but keeps what trials have in common."""
    return max(1.0, time / 40)


def _spread_over(number: int, most: int) -> NDArray[np.int64]:
    return np.unique(np.linspace(0, number - 1, min(most, number)).round().astype(np.int64))


def _most_active(y: Array) -> NDArray[np.intp]:
    return np.argsort(-np.nansum(y, (0, 1)), kind="stable")[:_MOST_UNITS]


def _most_modulated(material: Material) -> NDArray[np.intp]:
    """Features whose inferred mean over trials changes most, for their noise."""
    mean = np.nanmean(np.where(material.within[..., np.newaxis], material.expected, 0.0), 0)
    noise = np.nanstd(material.recording.data, (0, 1))
    score = np.nanstd(mean, 0) / np.where(noise > 0, noise, np.inf)
    return np.argsort(-score, kind="stable")[:_PSTHS]


def _unit(material: Material) -> str:
    units = set(material.recording.feature_units)
    return units.pop() if len(units) == 1 else "a.u."


def _labels(material: Material, features: NDArray[np.int64]) -> dict[str, Any]:
    recording = material.recording
    return {
        "names": [recording.feature_names[feature] for feature in features],
        "bin_size": recording.bin_size,
        "unit": _unit(material),
    }
