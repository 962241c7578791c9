"""Starting observations that remember the latents at the data: fluorescence, BOLD, coloured noise."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_lowrank.dynamics.base import Dynamics
from pyro_lowrank.dynamics.rnn import RNNDynamics
from pyro_lowrank.observations.calcium import CalciumObservation
from pyro_lowrank.observations.coloured import ColouredNoiseObservation
from pyro_lowrank.observations.driven import DrivenObservation
from pyro_lowrank.observations.haemodynamic import HaemodynamicObservation
from pyro_lowrank.observations.levinson import partials_of_data
from pyro_lowrank.observations.linear_memory import LinearMemory
from pyro_lowrank.observations.observed import Observed
from pyro_lowrank.observations.readout import AffineReadout
from pyro_lowrank.training.factors import Factors, factor_analysis, slowest_first
from pyro_lowrank.training.setting import set_value

# Where the fluorescence of a cell at rest lies among what was recorded.
_AT_REST = 0.1
# Rates start at one event per second on average: softplus(_BIAS) = 1, where it grows by _SLOPE.
_BIAS, _SLOPE = 0.541324854612918, 0.632120558828558
# The least share of a cell's variance that is its own. A factor that has taken a single cell for itself leaves nothing,
# and training does not find back from there.
_OWN = 0.5
# The least share of a feature's spread that is noise, so that training comes away from it.
_LEAST = 1e-2


def start_driven(observation: DrivenObservation, dynamics: Dynamics, y: Tensor) -> None:
    """Give readout, noise and baseline the values that a recording suggests.

    Args:
        observation: built in.
        dynamics: what drives it.
        y: recording, `trials x time x features`, NaN where missing.

    Raises:
        TypeError: if the observation model is of another kind.
    """
    data = y.double()
    if isinstance(observation, CalciumObservation):
        _start_calcium(observation, dynamics, data)
    elif isinstance(observation, HaemodynamicObservation):
        _start_haemodynamic(observation, dynamics, data)
    elif isinstance(observation, ColouredNoiseObservation):
        _start_coloured(observation, dynamics, data)
    else:
        raise TypeError(f"Only built-in observation models start at the data, got {type(observation).__name__}.")
    if isinstance(dynamics, RNNDynamics):
        # Under the leak alone the latents then have unit variance.
        noise = (1 - dynamics.decay.square()).sqrt()
        kinds = {"full": torch.diag_embed, "diagonal": lambda x: x, "scalar": lambda x: x.square().mean().sqrt()}
        set_value(dynamics, "noise_scale", kinds[dynamics.noise_kind](noise.expand(dynamics.rank)))


def _start_calcium(observation: CalciumObservation, dynamics: Dynamics, y: Tensor) -> None:
    decay = observation.decay_time.detach().double()
    keeps = (-observation.bin_size / decay).exp()
    spread = _spread(y)
    baseline = _filled(y).flatten(0, 1).quantile(_AT_REST, 0)
    # What changes from frame to frame is noise, for the most part.
    steps = y.diff(dim=1).flatten(0, 1)
    noise = 1.4826 * steps.abs().nanmedian(0).values.nan_to_num(nan=0.0) / 2**0.5
    noise = torch.maximum(noise, _LEAST * spread)
    above = y - baseline
    scale = torch.maximum(above.nanmean((0, 1)).nan_to_num(nan=0.0), 0.1 * noise) / decay
    grows = scale * decay * (1 - keeps)
    rates = (above[:, 1:] - keeps * above[:, :-1]) / grows
    # Of half a decay at a time: the noise of neighbouring frames cancels in between.
    length = max(1, min(round(float(decay.median()) / observation.bin_size / 2), rates.shape[1] // 4))
    blocks = rates[:, : rates.shape[1] // length * length].unflatten(1, (-1, length)).nanmean(2)
    for name, value in {
        "baseline": baseline,
        "noise_scale": noise,
        "scale": scale,
        "past_rate": torch.ones_like(scale),
        "past_rate_spread": (spread * (1 - keeps.square()).sqrt() / grows).clamp(0.1, 100.0),
        "drift_scale": torch.maximum(0.1 * spread, noise),
    }.items():
        set_value(observation, name, value.to(observation.baseline))
    set_value(observation.readout, "bias", torch.full_like(observation.readout.bias, _BIAS))
    found = _factors(blocks, dynamics.rank)
    if found is None:
        return
    length_of = found.loadings.norm(dim=-1, keepdim=True).clamp(min=1e-6)
    # No rate falls below zero: weights are at most as large as the mean.
    _set_weight(observation, found.loadings * (1 / length_of).clamp(max=1.0) / _SLOPE)
    own = torch.maximum(found.variance, _OWN * (found.variance + found.loadings.square().sum(-1)))
    private = (length * own - 2 * (noise / grows).square() / length).clamp(min=0.01, max=100.0).sqrt()
    set_value(observation, "rate_noise", private.to(observation.baseline))


def _start_haemodynamic(observation: HaemodynamicObservation, dynamics: Dynamics, y: Tensor) -> None:
    mean = y.nanmean((0, 1)).nan_to_num(nan=0.0)
    set_value(observation, "baseline", mean.to(observation.baseline))
    spread, found = _spread(y), _factors(y, dynamics.rank)
    private = spread if found is None else found.variance.sqrt()
    memory = observation.bind_linear_memory()
    keeps = float(dynamics.decay.detach().mean()) if isinstance(dynamics, RNNDynamics) else 0.9
    slow, white = _passed(memory, keeps), _passed(memory, 0.0)
    if found is not None:
        _set_weight(observation, found.loadings / slow.unsqueeze(-1))
    noise = torch.maximum(private * 0.5**0.5, _LEAST * spread)
    set_value(observation, "noise_scale", noise.to(observation.baseline))
    set_value(observation, "drive_noise", (noise / white).to(observation.baseline))
    set_value(observation, "past_spread", (spread / white).to(observation.baseline))


def _passed(memory: LinearMemory, keeps: float) -> Tensor:
    """Return the spread of what a drive of unit variance and autocorrelation `keeps ** lag` leads to, `features`."""
    state, response = memory.drive.detach(), []
    for _ in range(100):
        response.append((memory.readout * state).sum(-1))
        state = (memory.transition.detach() @ state.unsqueeze(-1)).squeeze(-1)
    rows = torch.stack(response, -1).detach().double()
    lags = torch.arange(rows.shape[-1], device=rows.device)
    correlation = torch.as_tensor(keeps, dtype=rows.dtype, device=rows.device) ** (lags - lags.unsqueeze(-1)).abs()
    return ((rows @ correlation) * rows).sum(-1).clamp(min=1e-12).sqrt()


def _start_coloured(observation: ColouredNoiseObservation, dynamics: Dynamics, y: Tensor) -> None:
    mean = y.nanmean((0, 1)).nan_to_num(nan=0.0)
    readout = observation.readout
    set_value(readout, "bias", mean.to(readout.bias))
    found, spread = _factors(y, dynamics.rank), _spread(y)
    rest = y - mean
    if found is not None:
        _set_weight(observation, found.loadings)
        rest = rest - found.scores(rest.nan_to_num(nan=0.0)) @ found.loadings.mT
    seen = Observed.of(rest)
    partial = partials_of_data(seen.y, seen.missing, min(observation.autoregression.order, max(1, y.shape[1] - 1)))
    wanted = observation.autoregression.order - partial.shape[-1]
    partial = torch.nn.functional.pad(partial, (0, wanted))
    set_value(observation.autoregression, "partial_autocorrelations", partial.to(observation.noise_scale))
    own = torch.maximum(_spread(rest), _LEAST * spread) * (1 - partial.square()).prod(-1).sqrt()
    set_value(observation, "noise_scale", own.to(observation.noise_scale))


def _filled(y: Tensor) -> Tensor:
    """Return a recording with the mean of a feature where it is missing, zero where it is always."""
    return torch.where(y.isnan(), y.nanmean((0, 1)).nan_to_num(nan=0.0), y)


def _spread(y: Tensor) -> Tensor:
    """Return the standard deviation of each feature, 1 of one that never changes."""
    filled = _filled(y).flatten(0, 1)
    spread = filled.std(0, correction=0)
    return torch.where(spread > 1e-9 * filled.abs().amax(0), spread, 1.0)


def _factors(y: Tensor, rank: int) -> Factors | None:
    """Return factors of a recording, the slowest first; None where there are not enough features or bins."""
    filled = _filled(y)
    centred = filled - filled.mean((0, 1))
    rows = centred.flatten(0, 1)
    if rank >= rows.shape[1] or len(rows) <= 2 * rank or y.shape[1] < 2:
        return None
    found = factor_analysis(rows.mT @ rows / len(rows), rank)
    return Factors(found.loadings @ slowest_first(found.scores(centred)), found.variance)


def _set_weight(observation: DrivenObservation, weight: Tensor) -> None:
    readout = observation.readout
    if isinstance(readout, AffineReadout) and readout.latents is None:
        set_value(readout, "weight", weight.to(readout.bias))
        if readout.num_inputs:
            set_value(readout, "input_weight", torch.zeros_like(readout.input_weight))
