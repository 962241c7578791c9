"""Pictures of recordings, fits and models: each function draws on given axes and returns them.

`plr.plots.flow(axes, ...)` and so on: the functions of this package without their `plot_`. Arrays, tensors and
`Recording`s come in; a `Recording` brings names, units and seconds with it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyro_lowrank.plots.branches import plot_branches as fixed_point_branches
    from pyro_lowrank.plots.comparison import plot_agreement as agreement
    from pyro_lowrank.plots.comparison import plot_rasters_beside as rasters_beside
    from pyro_lowrank.plots.comparison import plot_spectra as spectra
    from pyro_lowrank.plots.comparison import plot_traces_beside as traces_beside
    from pyro_lowrank.plots.conditions import plot_latents_by_condition as latents_by_condition
    from pyro_lowrank.plots.conditions import plot_psth as psth
    from pyro_lowrank.plots.coordinates import in_coordinates as in_coordinates
    from pyro_lowrank.plots.decoding import plot_decoded as decoded
    from pyro_lowrank.plots.figures import new_figure as new_figure
    from pyro_lowrank.plots.figures import save_figure as save_figure
    from pyro_lowrank.plots.figures import share_limits as share_limits
    from pyro_lowrank.plots.interactive import interactive_space as interactive_space
    from pyro_lowrank.plots.noise import plot_noise_ellipse as noise_ellipse
    from pyro_lowrank.plots.phase import new_space as new_space
    from pyro_lowrank.plots.phase import plot_flow as flow
    from pyro_lowrank.plots.posterior import plot_calibration as calibration
    from pyro_lowrank.plots.posterior import plot_ess as ess
    from pyro_lowrank.plots.posterior import plot_latents as latents
    from pyro_lowrank.plots.posterior_points import plot_number_of_attractors as number_of_attractors
    from pyro_lowrank.plots.posterior_points import plot_sampled_branches as sampled_branches
    from pyro_lowrank.plots.posterior_points import plot_sampled_points as sampled_points
    from pyro_lowrank.plots.rates import plot_rates_over_spikes as rates_over_spikes
    from pyro_lowrank.plots.training import plot_effective_size as effective_size
    from pyro_lowrank.plots.training import plot_evidence as evidence
    from pyro_lowrank.plots.trajectories import plot_phase_portrait as phase_portrait
    from pyro_lowrank.plots.trajectories import plot_raster as raster
    from pyro_lowrank.plots.trajectories import plot_traces as traces
    from pyro_lowrank.plots.validation import plot_by_rank as by_rank

# Where each lives, and under which name.
_HOMES = {
    "agreement": "comparison.plot_agreement",
    "by_rank": "validation.plot_by_rank",
    "calibration": "posterior.plot_calibration",
    "decoded": "decoding.plot_decoded",
    "effective_size": "training.plot_effective_size",
    "ess": "posterior.plot_ess",
    "evidence": "training.plot_evidence",
    "fixed_point_branches": "branches.plot_branches",
    "flow": "phase.plot_flow",
    "in_coordinates": "coordinates.in_coordinates",
    "interactive_space": "interactive.interactive_space",
    "latents": "posterior.plot_latents",
    "latents_by_condition": "conditions.plot_latents_by_condition",
    "new_figure": "figures.new_figure",
    "new_space": "phase.new_space",
    "noise_ellipse": "noise.plot_noise_ellipse",
    "number_of_attractors": "posterior_points.plot_number_of_attractors",
    "phase_portrait": "trajectories.plot_phase_portrait",
    "psth": "conditions.plot_psth",
    "raster": "trajectories.plot_raster",
    "rasters_beside": "comparison.plot_rasters_beside",
    "rates_over_spikes": "rates.plot_rates_over_spikes",
    "sampled_branches": "posterior_points.plot_sampled_branches",
    "sampled_points": "posterior_points.plot_sampled_points",
    "save_figure": "figures.save_figure",
    "share_limits": "figures.share_limits",
    "spectra": "comparison.plot_spectra",
    "traces": "trajectories.plot_traces",
    "traces_beside": "comparison.plot_traces_beside",
}

__all__ = [
    "agreement",
    "by_rank",
    "calibration",
    "decoded",
    "effective_size",
    "ess",
    "evidence",
    "fixed_point_branches",
    "flow",
    "in_coordinates",
    "interactive_space",
    "latents",
    "latents_by_condition",
    "new_figure",
    "new_space",
    "noise_ellipse",
    "number_of_attractors",
    "phase_portrait",
    "psth",
    "raster",
    "rasters_beside",
    "rates_over_spikes",
    "sampled_branches",
    "sampled_points",
    "save_figure",
    "share_limits",
    "spectra",
    "traces",
    "traces_beside",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, function = _HOMES[name].partition(".")
    return getattr(importlib.import_module(f"{__name__}.{module}"), function)


def __dir__() -> list[str]:
    return sorted(__all__)
