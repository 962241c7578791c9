"""Observations beyond the recording, and expected ones within it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_lowrank.errors import check_same_type, check_sequence
from pyro_lowrank.infer.deconvolve import check_whole, deconvolve
from pyro_lowrank.observations.base import mean_if_any
from pyro_lowrank.observations.driven import REMEMBERED, DrivenEmission
from pyro_lowrank.observations.driven_recording import colour, draw_on, expect_on
from pyro_lowrank.observations.joint_distribution import JointDistribution
from pyro_lowrank.observations.memory import roll
from pyro_lowrank.smc.loop import State
from pyro_lowrank.smc.transitions import BuiltInTransitions


class Forecast(NamedTuple):
    """Draws of what comes after the recording.

    Attributes:
        z: latents, `draws x trials x horizon x rank`.
        y: observations, `draws x trials x horizon x features`.
        mean: of the observations given the latents, `draws x trials x horizon x features`; None where there is none.
        start: index of the first forecast time bin of each trial, `trials`.
    """

    z: Tensor
    y: Tensor
    mean: Tensor | None
    start: Tensor


class Replicates(NamedTuple):
    """What the model expects, and draws, along paths of the latents.

    Attributes:
        mean: of the observations given the latents, `draws x trials x time x features`; None where there is none.
        y: new observations, `draws x trials x time x features`.
    """

    mean: Tensor | None
    y: Tensor


def _check_inputs(model: BuiltInTransitions, u: Tensor | None, horizon: int) -> None:
    if (u is None) != (model.data.u is None):
        came = "none came" if u is None else "`u` came"
        raise ValueError(f"The model has {model.transition.num_inputs} inputs, but {came} for the forecast.")
    if u is None:
        return
    check_sequence("u", u, last=model.transition.num_inputs, last_name="inputs")
    check_same_type("u", u, model.transition.initial_mean)
    expected = (model.data.shape[0], horizon)
    if u.shape[:2] != expected:
        raise ValueError(
            f"The inputs of a forecast must have {expected[0]} trials x {expected[1]} time bins, got {tuple(u.shape)}."
        )
    if u.isnan().any():
        raise ValueError("`u` holds NaN: inputs cannot be missing.")


def draw_forecast(
    model: BuiltInTransitions,
    particles: State,
    log_weights: Tensor,
    horizon: int,
    u: Tensor | None,
    num_draws: int,
    *,
    start: int = 0,
) -> Forecast:
    """Draw latents and observations of the time bins after each trial's last one with data.

    Args:
        model: of the run.
        particles: their state, `particles x trials x time x ...`.
        log_weights: `time x particles x trials`.
        horizon: number of time bins.
        u: their inputs, `trials x horizon x inputs`.
        num_draws: number of draws.
        start: time bin of the recording at which the particles begin.
    """
    end = end_of_data(model)
    trials = torch.arange(len(end), device=end.device)
    weights = log_weights[end, :, trials].exp()
    index = torch.multinomial(weights, num_draws, replacement=True).mT
    now, remembered = particles["z"][index, trials, end], particles.get(REMEMBERED)
    past = None if remembered is None else remembered[index, trials, end]
    return go_on(model, now, horizon, u, start=start, past=past)


def end_of_data(model: BuiltInTransitions) -> Tensor:
    """Return the time bin that each trial goes on from, `trials`: its last one with data, the last if there is none."""
    last = model.data.last
    return torch.where(last < 0, model.data.shape[1] - 1, last)


def go_on(
    model: BuiltInTransitions,
    now: Tensor,
    horizon: int,
    u: Tensor | None,
    *,
    start: int = 0,
    past: Tensor | None = None,
) -> Forecast:
    """Draw latents and observations of the time bins after each trial's last one with data.

    Args:
        model: of the run.
        now: latents of those last time bins, `draws x trials x rank`.
        horizon: number of time bins.
        u: their inputs, `trials x horizon x inputs`.
        start: time bin of the recording at which the model's data begin.
        past: what is remembered then, `draws x trials x features x order`, where observations remember the latents.
    """
    _check_inputs(model, u, horizon)
    transition, data, end = model.transition, model.data, end_of_data(model)
    trials = torch.arange(len(end), device=end.device)
    v_now = None if data.v is None else data.v[trials, end]
    u_now = None if data.u is None else data.u[trials, end]
    latents, inputs = [], []
    for step in range(horizon):
        white = torch.randn_like(now)
        now = transition.mean(now, v_now) + transition.noise.colour(white)
        if u is not None and v_now is not None and u_now is not None:
            v_now, u_now = transition.drift.next_input(v_now, u_now, u[:, step]), u[:, step]
            inputs.append(v_now)
        latents.append(now)
    path = torch.stack(latents)
    v = torch.stack(inputs).unsqueeze(1) if inputs else None
    if isinstance(model.emission, DrivenEmission) and past is not None:
        drawn, expected = _driven_on(model, model.emission.drive(path, v).movedim(0, -2), past, end)
        return Forecast(path.movedim(0, -2), drawn, expected, start + end + 1)
    observation = model.emission.distribution(path, v)
    mean = mean_if_any(model.emission, path, v)
    mean = None if mean is None else mean.movedim(0, -2)
    y = observation.sample().movedim(0, -2)
    if data.past is not None:
        lags = data.past.lags_after(end)
        y, mean = roll(data.past.memory, y, lags), None if mean is None else roll(data.past.memory, mean, lags)
    return Forecast(path.movedim(0, -2), y, mean, start + end + 1)


def _driven_on(model: BuiltInTransitions, driven: Tensor, past: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
    """Return observations that features are driven to after what they remember, and their means without noise."""
    emission: Any = model.emission
    # Numbers like the past are drawn in the order in which it lies in memory.
    memory, past = emission.memory, past.contiguous()
    covariances = [law.covariance.expand(len(end), *law.covariance.shape[-3:]) for law in model.laws()]
    covariance = torch.stack(covariances)[end, torch.arange(len(end), device=end.device)]
    drawn = past + colour(covariance, torch.randn_like(past))
    return draw_on(memory, drawn, driven), expect_on(memory, past, driven)


def expected_observations(
    model: BuiltInTransitions, z: Tensor, log_weights: Tensor | None, remembered: Tensor | None = None
) -> Tensor:
    """Return the expected observations, `trials x time x features`.

    Args:
        model: of the run.
        z: latents, `draws x trials x time x rank`.
        log_weights: of the draws, `time x draws x trials`; equal ones if None.
        remembered: what particles remember, `draws x trials x time x features x order`; None for paths of latents given
            the whole recording, or where observations remember none.

    Raises:
        ValueError: if the latents are not those of the recording.
    """
    if isinstance(model.emission, DrivenEmission) and remembered is None:
        return deconvolve(model, z).signal.mean(0)
    bins = []
    # Bin by bin: all features of all particles at all times may not fit in memory.
    for t, (z_t, v_t) in enumerate(_bins(model, z)):
        if isinstance(model.emission, DrivenEmission) and remembered is not None:
            mean: Tensor = model.emission.memory.expected(remembered[:, :, t], model.emission.drive(z_t, v_t))
        else:
            mean = model.emission.mean(z_t, v_t)
        mean = mean if model.data.past is None else model.data.past.expected(mean, t)
        weights = None if log_weights is None else log_weights[t].exp().unsqueeze(-1)
        bins.append(mean.mean(0) if weights is None else (weights * mean).sum(0))
    return torch.stack(bins, 1)


def draw_replicates(model: BuiltInTransitions, z: Tensor) -> Replicates:
    """Draw observations along paths of the latents.

    Args:
        model: of the run.
        z: latents, `draws x trials x time x rank`.

    Raises:
        ValueError: if the latents are not those of the recording.
    """
    bins = list(_bins(model, z))
    if isinstance(model.emission, DrivenEmission):
        check_whole(model)
        recording = model.emission.recording(z, model.data.v)
        return Replicates(recording.mean, recording.sample())
    means, draws = [], []
    for z_t, v_t in bins:
        mean = mean_if_any(model.emission, z_t, v_t)
        means += [] if mean is None else [mean]
        draws.append(model.emission.distribution(z_t, v_t).sample())
    mean, y = torch.stack(means, -2) if means else None, torch.stack(draws, -2)
    past = model.data.past
    if past is None:
        return Replicates(mean, y)
    return Replicates(None if mean is None else roll(past.memory, mean, past.before), roll(past.memory, y, past.before))


def entry_log_likelihood(model: BuiltInTransitions, z: Tensor) -> Tensor:
    """Return the log likelihood of each entry along paths, `draws x trials x time x features`, NaN where missing.

    Args:
        model: of the run.
        z: latents, `draws x trials x time x rank`.

    Raises:
        ValueError: if features are not independent given the latents.
    """
    y = model.data.seen
    if isinstance(model.emission, DrivenEmission):
        check_whole(model)
        found = model.emission.entries(y, model.data.v, z)
        return found if y.missing is None else found.masked_fill(y.missing, torch.nan)
    bins = []
    for t, (z_t, v_t) in enumerate(_bins(model, z)):
        found = _of_entries(model.emission.distribution(z_t, v_t), y.y[:, t])
        found = found if model.data.past is None else found - model.data.past.at(t).scale.log()
        bins.append(found if y.missing is None else found.masked_fill(y.missing[:, t], torch.nan))
    return torch.stack(bins, -2)


def _of_entries(distribution: Any, y: Tensor) -> Tensor:
    if isinstance(distribution, JointDistribution):
        parts = zip(distribution.parts, y.split(distribution.sizes, -1), strict=True)
        return torch.cat([_of_entries(part, piece) for part, piece in parts], -1)
    if not isinstance(distribution, torch.distributions.Independent) or len(distribution.event_shape) > 1:
        raise ValueError(
            f"The entries of a {type(distribution).__name__} have no likelihoods of their own: its features are not "
            "independent given the latents; take those of time bins."
        )
    found: Tensor = distribution.base_dist.log_prob(y)
    return found


def _bins(model: BuiltInTransitions, z: Tensor) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Latents and effective inputs of each time bin."""
    expected = (*model.data.shape, model.transition.rank)
    if z.dim() != 4 or z.shape[1:] != expected:
        raise ValueError(
            f"`z` must have shape draws x trials x time x rank, (draws, {', '.join(map(str, expected))}), got "
            f"{tuple(z.shape)}; `smooth` draws it."
        )
    for t, z_t in enumerate(z.unbind(2)):
        yield z_t, model.data.v_at(t)
