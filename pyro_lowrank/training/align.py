"""Fitting a new session with the dynamics of an old model."""

from __future__ import annotations

import copy
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from pyro_lowrank.data.recording import Recording
from pyro_lowrank.encoders.sessions import SessionEncoder
from pyro_lowrank.guides.base import Guide
from pyro_lowrank.guides.encoder import EncoderGuide
from pyro_lowrank.guides.forward import ForwardPrediction
from pyro_lowrank.models.state_space import StateSpaceModel
from pyro_lowrank.modules import Module
from pyro_lowrank.observations.base import Observation
from pyro_lowrank.parameters import copy_module
from pyro_lowrank.training.fit import fit
from pyro_lowrank.training.initialise import start_at_means
from pyro_lowrank.training.result import FitResult
from pyro_lowrank.training.tensors import TrialArrays, unpack


@dataclass(frozen=True)
class AlignedSession:
    """A new session, seen through an observation model of its own.

    Attributes:
        model: with a frozen copy of the dynamics.
        guide: for it.
        result: what its fit went through.
    """

    model: StateSpaceModel
    guide: Guide
    result: FitResult

    def __str__(self) -> str:
        return f"AlignedSession: {self.model.observation.features} features\n{self.result}"


def align_session(
    model: StateSpaceModel,
    guide: Guide,
    y: Tensor | Recording | TrialArrays,
    u: Tensor | TrialArrays | None = None,
    *,
    observation: Observation,
    num_steps: int,
    batch_size: int | None = None,
    window: int | None = None,
    num_particles: int | None = None,
    learning_rate: float = 1e-2,
    final_learning_rate: float | None = None,
    seed: int = 0,
    progress: bool = True,
) -> AlignedSession:
    r"""Fit a new session's observation model, and input layer of its encoder, with the dynamics of a fitted model.

    .. math:: \max_{\theta_s} \; E[\log \hat Z(y^{(s)}_{1:T})] \quad \text{with the dynamics as they are}

    so that latents of sessions with other units, or from other days, can be compared. The model and guide given are
    left as they are; the new ones hold frozen copies of what sessions share.

    Args:
        model: a fitted model, of one session or of several.
        guide: its guide; under an `EncoderGuide` the encoder must be a `SessionEncoder`, whose common part is kept.
        y: recording of the new session, as for `fit`.
        u: its inputs.
        observation: observation model of the new session, untrained; it starts at the means of the recording, is
            trained in place, and becomes part of the new model.
        num_steps: as of `fit`.
        batch_size: as of `fit`.
        window: as of `fit`.
        num_particles: as of `fit`.
        learning_rate: as of `fit`.
        final_learning_rate: as of `fit`.
        seed: as of `fit`.
        progress: as of `fit`.

    Raises:
        TypeError: if the guide is not a built-in one.
        ValueError: if the guide is for another model or its encoder has no input layers, or the data do not fit.

    Example::

        >>> import torch
        >>> import pyro_lowrank as plr
        >>> model = plr.StateSpaceModel(plr.LowRankRNN(rank=2, units=50), plr.GaussianObservation(rank=2, features=8))
        >>> y = model.simulate(num_trials=4, num_steps=20).y[..., :5]
        >>> aligned = align_session(model, plr.OptimalGuide(model), y, num_steps=2, progress=False,
        ...                         observation=plr.GaussianObservation(rank=2, features=5))
        >>> torch.equal(aligned.model.dynamics.left, model.dynamics.left)
        True

    References:
        Pandarinath et al. (2018), Nature Methods 15:805.
    """
    if not isinstance(guide, Guide):
        raise TypeError(f"`guide` must be a guide of this library, got {type(guide).__name__}.")
    if guide.model is not model:
        raise ValueError("The guide was built for another model: build it from this one.")
    aligned = StateSpaceModel(_frozen_copy(model.dynamics), observation)
    data, inputs = unpack("y", aligned, y, u)
    aligned.check_data(data, inputs)
    new_guide = _guide_of_session(guide, aligned)
    # One of the user's own starts as it was built.
    with suppress(TypeError):
        start_at_means(observation, data)
    result = fit(
        aligned,
        new_guide,
        data,
        inputs,
        num_steps=num_steps,
        batch_size=batch_size,
        window=window,
        num_particles=num_particles,
        learning_rate=learning_rate,
        final_learning_rate=final_learning_rate,
        seed=seed,
        progress=progress,
    )
    return AlignedSession(aligned, new_guide, result)


def _frozen_copy(module: Any) -> Any:
    """Return a copy that is not trained; of a plain module too."""
    copied = copy_module(module) if isinstance(module, Module) else copy.deepcopy(module)
    for part in copied.parameters():
        part.requires_grad_(False)
    return copied


def _guide_of_session(guide: Guide, model: StateSpaceModel) -> Guide:
    """Return a guide of the same form for the model of one new session."""
    while isinstance(guide, ForwardPrediction):
        guide = guide.guide
    if not isinstance(guide, EncoderGuide):
        return type(guide).of_settings(model, guide.settings())
    encoder: nn.Module = guide.encoder
    if not isinstance(encoder, SessionEncoder):
        raise ValueError(
            "A new session needs an input layer of its own: fit the model with an encoder of type SessionEncoder, or "
            f"pass another guide of the model, such as LaplaceGuide(model); got {type(encoder).__name__}."
        )
    like = next(model.parameters())
    sizes = {"session": model.observation.features}
    return EncoderGuide(
        model, SessionEncoder(sizes, _frozen_copy(encoder.encoder), dtype=like.dtype, device=like.device)
    )
