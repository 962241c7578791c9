"""The noisy-oscillator teacher as a model, and a student of the same form: a fit whose truth is known."""

from __future__ import annotations

import torch

from pyro_lowrank.data.oscillator import noisy_oscillator
from pyro_lowrank.dynamics.low_rank import LowRankRNN
from pyro_lowrank.models.state_space import StateSpaceModel
from pyro_lowrank.observations.gaussian import GaussianObservation
from pyro_lowrank.observations.readout import UnitReadout


def oscillator_student(*, units: int = 20) -> StateSpaceModel:
    """Return an untrained rank-2 network of rectified-linear units whose currents are observed with Gaussian noise.

    Args:
        units: number of units, and of features.
    """
    dynamics = LowRankRNN(rank=2, units=units, activation="relu")
    readout = UnitReadout(units=units, train_scale=False, train_bias=False)
    return StateSpaceModel(dynamics, GaussianObservation(readout=readout, noise="scalar"))


def oscillator_teacher(
    *, units: int = 20, noise_scale: float = 0.2, observation_noise_scale: float = 0.1
) -> StateSpaceModel:
    """Return the noisy oscillator as a model; the noise is that of the paper's teacher unless given.

    Args:
        units: number of units, and of features.
        noise_scale: standard deviation of the transition noise; the latents' circle has radius 2.
        observation_noise_scale: standard deviation of the observation noise.

    Example::

        >>> teacher = oscillator_teacher()
        >>> teacher.simulate(num_trials=200, num_steps=75).y.shape
        torch.Size([200, 75, 20])

    References:
        Pals et al. (2024), "Inferring stochastic low-rank recurrent neural networks from neural data", NeurIPS, fig. 2.
    """
    oscillator = noisy_oscillator(units=units)
    model = oscillator_student(units=units)
    dynamics = model.dynamics
    with torch.no_grad():
        for name in ("decay", "left", "right", "bias"):
            setattr(dynamics, name, torch.tensor(getattr(oscillator, name), dtype=dynamics.right.dtype))
        eye = torch.eye(2, dtype=dynamics.right.dtype)
        dynamics.noise_scale = noise_scale * eye
        dynamics.initial_noise_scale = oscillator.radius / 2**0.5 * eye
        model.observation.noise_scale = torch.tensor(observation_noise_scale, dtype=dynamics.right.dtype)
    return model
