"""Whether what came lies where the filter expected it: one-step-ahead predictions against the recording."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_lowrank.observations.base import Emission
from pyro_lowrank.observations.driven import DrivenEmission
from pyro_lowrank.smc.transitions import BuiltInTransitions

# Departures from uniformity that are smaller matter to nobody, however long the recording.
_SMALLEST_DISTANCE, _SPREADS, _LARGEST_BIAS = 0.03, (0.95, 1.05), 0.03
# Kolmogorov's distance times the root of the number of independent values is above it in one of a hundred cases.
_CRITICAL = 1.63


@dataclass(frozen=True)
class Calibration:
    """How far probability integral transforms are from uniform.

    Attributes:
        distance: Kolmogorov's, the largest difference of their distribution from the uniform one, all features pooled.
        allowed: what it may be by chance: with as many independent values as there are time bins.
        bias: their mean less one half: above zero the recording lies higher than predicted.
        spread: their standard deviation over the uniform one: above 1 predictions are too narrow, below 1 too wide.
        worst_features: those of largest distance, that first.
        worst_distances: their distances.
    """

    distance: float
    allowed: float
    bias: float
    spread: float
    worst_features: tuple[int, ...]
    worst_distances: tuple[float, ...]

    @property
    def advice(self) -> tuple[str, ...]:
        """What to change, in words; empty if predictions are calibrated."""
        if self.distance <= self.allowed:
            return ()
        rows = []
        if self.spread > _SPREADS[1]:
            rows.append(
                "Predictions are too narrow: give the model more noise or let it learn it, more latents, or counts "
                "that vary more (NegativeBinomialObservation)."
            )
        if self.spread < _SPREADS[0]:
            rows.append("Predictions are too wide: the noise is too large; fit for longer.")
        if abs(self.bias) > _LARGEST_BIAS:
            side = "higher" if self.bias > 0 else "lower"
            rows.append(f"The recording lies {side} than predicted: look for drifts, fit for longer.")
        return tuple(rows) or (
            f"Predictions are off in shape, most at feature {self.worst_features[0]}: draw them with plot_calibration.",
        )

    def __str__(self) -> str:
        worst = ", ".join(f"{f} ({d:.3f})" for f, d in zip(self.worst_features, self.worst_distances, strict=True))
        return (
            f"off by {self.distance:.3f} (by chance up to {self.allowed:.3f}), bias {self.bias:+.3f}, spread "
            f"{self.spread:.3f}; worst features {worst}"
        )


def draw_pit(
    model: BuiltInTransitions, z: Tensor, log_weights: Tensor, *, first: bool, remembered: Tensor | None = None
) -> Tensor:
    """Draw randomised probability integral transforms, `trials x time x features`, NaN where missing.

    Args:
        model: of the run.
        z: particles, `particles x trials x time x rank`.
        log_weights: `time x particles x trials`.
        first: whether the first time bin is that of the trials; if not, it has no prediction, and NaN.
        remembered: what particles remember, `particles x trials x time x features x order`, or None.
    """
    emissions = predicting(model, remembered)
    rows = [torch.full_like(model.data.seen.y[:, 0], torch.nan)]
    # Equal weights at the first bin, whose prediction is the prior.
    weights = torch.full_like(log_weights[0], 1 / len(log_weights[0]))
    if first:
        mean = model.transition.first_mean(model.data.v_at(0)).expand(z.shape[0], z.shape[1], -1)
        drawn = mean + model.transition.initial_noise.colour(torch.randn_like(mean))
        rows = [_pit(model, emissions(0), drawn, weights, 0)]
    for t in range(1, len(log_weights)):
        mean = model.transition.mean(z[:, :, t - 1], model.data.v_at(t - 1))
        drawn = mean + model.transition.noise.colour(torch.randn_like(mean))
        rows.append(_pit(model, emissions(t), drawn, log_weights[t - 1].exp(), t))
    return torch.stack(rows, 1)


def predicting(model: BuiltInTransitions, remembered: Tensor | None) -> Callable[[int], Emission]:
    """Return how particles, of what each remembers, expect a time bin to be seen."""
    emission = model.emission
    if not isinstance(emission, DrivenEmission) or remembered is None:
        return lambda time: emission
    laws, beginning = model.laws(), emission.memory.beginning(remembered.shape[:2])
    return lambda time: emission.at(remembered[:, :, time - 1] if time else beginning, laws[time])


def _pit(model: BuiltInTransitions, emission: Emission, z: Tensor, weights: Tensor, time: int) -> Tensor:
    """Share of the predicted observations below the one that came, ties broken at random, `trials x features`."""
    seen = model.data.seen
    y = seen.y[:, time]
    predicted = emission.distribution(z, model.data.v_at(time)).sample()
    weight = weights.unsqueeze(-1)
    below, equal = (weight * (predicted < y)).sum(0), (weight * (predicted == y)).sum(0)
    pit = below + torch.rand_like(below) * equal
    pit = pit.clamp(0, 1)
    return pit if seen.missing is None else pit.masked_fill(seen.missing[:, time], torch.nan)


def calibration_of(pit: Tensor, num_worst: int) -> Calibration | None:
    """Summarise probability integral transforms, `trials x time x features`; None if there is none.

    Example::

        >>> even = ((torch.arange(1000) + 0.5) / 1000).reshape(10, 100, 1)
        >>> found = calibration_of(even, 1)
        >>> found.distance < 1e-2, abs(found.bias) < 1e-6, round(found.spread, 3), found.advice
        (True, True, 1.0, ())
    """
    there = ~pit.isnan()
    if not there.any():
        return None
    pooled = pit[there].double()
    by_feature = [_distance(column[~column.isnan()].double()) for column in pit.flatten(0, 1).unbind(-1)]
    order = sorted(range(len(by_feature)), key=lambda feature: -by_feature[feature])[:num_worst]
    # Features share their latents, so that only time bins count as independent.
    bins = int(there.any(-1).sum())
    return Calibration(
        distance=_distance(pooled),
        allowed=max(_SMALLEST_DISTANCE, _CRITICAL / math.sqrt(bins)),
        bias=float(pooled.mean()) - 0.5,
        spread=float(pooled.std(correction=0)) * math.sqrt(12),
        worst_features=tuple(order),
        worst_distances=tuple(by_feature[feature] for feature in order),
    )


def _distance(values: Tensor) -> float:
    if not len(values):
        return 0.0
    steps = torch.arange(len(values) + 1, dtype=values.dtype, device=values.device) / len(values)
    ordered = values.sort().values
    return float(torch.maximum(steps[1:] - ordered, ordered - steps[:-1]).max())
