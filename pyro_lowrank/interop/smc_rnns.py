"""Checkpoints of the paper's own code, read into models and guides of this library."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pyro_lowrank.dynamics.full_rank import FullRankRNN
from pyro_lowrank.dynamics.low_rank import LowRankRNN
from pyro_lowrank.dynamics.rnn import RNNDynamics
from pyro_lowrank.encoders.convolutional import ConvEncoder
from pyro_lowrank.files import SizesOf, check_finite, told_of
from pyro_lowrank.guides.base import Guide
from pyro_lowrank.guides.bootstrap import BootstrapGuide
from pyro_lowrank.guides.encoder import EncoderGuide
from pyro_lowrank.guides.optimal import OptimalGuide
from pyro_lowrank.interop.plain_pickle import read_plain
from pyro_lowrank.interop.smc_rnns_settings import EncoderSettings, Settings, read_settings
from pyro_lowrank.interop.torch_files import read_tensors
from pyro_lowrank.models.state_space import StateSpaceModel
from pyro_lowrank.observations.gaussian import GaussianObservation
from pyro_lowrank.observations.poisson import PoissonObservation
from pyro_lowrank.observations.readout import AffineReadout, UnitReadout

Tensors = Mapping[str, Tensor]


def load_smc_rnns(prefix: str | os.PathLike[str]) -> tuple[StateSpaceModel, Guide]:
    r"""Read a checkpoint of the paper's code (mackelab/smc_rnns) into a model and its guide.

    Both generations of its format are read, with and without particle dims: `PREFIX_state_dict_rnn.pkl`,
    `PREFIX_vae_params.pkl`, for models with an encoder `PREFIX_state_dict_enc.pkl`, and for those of the older
    generation `PREFIX_training_params.pkl`, if it is there. Nothing in the files is executed: they are read by a
    program that knows containers, numbers, strings, numpy arrays and tensors, and makes no more of a file than its
    size lets expect.

    The model has the same law. Its guide is the encoder's, if there is one; else `OptimalGuide` for Gaussian and
    `BootstrapGuide` for Poisson observations. There, rates have 1e-6 (softplus) or 1e-10 (exp) added, and variances
    that enter a filter are kept within 1e-8 and 100; here they are not. Of a full covariance of the observation noise
    the diagonal is taken, as in the authors' likelihood. What was not trained is frozen.

    Args:
        prefix: what the names of the files begin with, their folder included.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if a file asks for anything beyond plain data, which is named and not touched; is damaged; or holds
            a model without a counterpart here.

    Example::

        >>> load_smc_rnns("models/no_such_model")
        Traceback (most recent call last):
        ...
        FileNotFoundError: There is no file models/no_such_model_vae_params.pkl.

    References:
        Pals et al. (2024), NeurIPS; https://github.com/mackelab/smc_rnns.
    """
    name = os.fspath(prefix)
    with told_of(f"The checkpoint {name} cannot be read"):
        settings = read_settings(_mapping(f"{name}_vae_params.pkl"), lambda: _mapping_if_there(name))
        weights = _current_names(read_tensors(f"{name}_state_dict_rnn.pkl"))
        with SizesOf(weights):
            model = _model(settings, weights)
        check_finite("its numbers are no model's", model.state_dict())
        if settings.encoder is not None:
            of_encoder = read_tensors(f"{name}_state_dict_enc.pkl")
            with SizesOf(of_encoder):
                encoder = _encoder(settings, settings.encoder, of_encoder)
            check_finite("its numbers are no encoder's", encoder.state_dict())
            return model, EncoderGuide(model, encoder)
    affine = settings.likelihood == "Gauss" and settings.source != "rates"
    return model, OptimalGuide(model) if affine else BootstrapGuide(model)


def _mapping(path: str) -> Mapping[str, Any]:
    content = read_plain(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a dict of settings.")
    return content


def _mapping_if_there(name: str) -> Mapping[str, Any]:
    path = f"{name}_training_params.pkl"
    return _mapping(path) if Path(path).is_file() else {}


def _current_names(weights: Tensors) -> dict[str, Tensor]:
    """Return the weights under the names of the newer generation."""
    renamed = {name.replace("latent_step", "transition"): value for name, value in weights.items()}
    for older in ("transition.AW", "transition.decay"):
        if older in renamed:
            renamed["transition.decay_param"] = renamed.pop(older)
    return renamed


def _model(settings: Settings, weights: Tensors) -> StateSpaceModel:
    # Drawing weights that are replaced at once shall not move the caller's generator.
    with torch.random.fork_rng(devices=[]):
        model = StateSpaceModel(_dynamics(settings, weights), _observation(settings, weights))
    for name in settings.frozen:
        _freeze(model, name)
    return model


def _dynamics(settings: Settings, weights: Tensors) -> RNNDynamics:
    stored, noise, initial_noise = (weights[key] for key in ("transition.decay_param", "R_z", "R_z_t0"))
    decay = stored.flatten()
    decay = torch.exp(-torch.exp(decay)) if settings.exponential_decay else decay
    if weights.get("transition.hz", decay.new_zeros(1)).any():
        raise ValueError("its latents have a bias (transition.hz), which has no counterpart here.")
    options: dict[str, Any] = {
        "activation": settings.activation,
        "inputs": settings.inputs,
        "input_filter": settings.input_filter,
        "decay": decay.tolist() if decay.numel() > 1 else float(decay),
        "noise": _kind(noise),
        "initial_noise": _kind(initial_noise),
        "dtype": noise.dtype,
    }
    bias = weights["transition.h"]
    dynamics: RNNDynamics
    if settings.full_rank:
        dynamics = FullRankRNN(units=settings.units, **options)
        # Where the decay has no particle dims yet, or no longer, the weights are those of J itself.
        leak = 1.0 if stored.dim() <= 1 else 1 - decay.unsqueeze(-1)
        _set(dynamics, "right", leak * weights["transition.W"])
    else:
        dynamics = LowRankRNN(rank=settings.rank, units=settings.units, **options)
        _set(dynamics, "left", weights["transition.m"])
        _set(dynamics, "right", weights["transition.n"] * settings.weight_scale)
    if settings.inputs:
        _set(dynamics, "input_weights", weights["transition.Wu"])
    _set(dynamics, "decay", decay if decay.numel() > 1 else decay.reshape(()))
    _set(dynamics, "bias", bias)
    _set(dynamics, "initial_mean", -bias if settings.bias_is_start else weights["initial_state"])
    _set(dynamics, "noise_scale", _scale(noise))
    _set(dynamics, "initial_noise_scale", _scale(initial_noise))
    return dynamics


def _observation(settings: Settings, weights: Tensors) -> GaussianObservation | PoissonObservation:
    weight, bias = weights["observation.B"], weights["observation.Bias"].flatten()
    readout: AffineReadout | UnitReadout
    trained = {name: f"readout.{name}" not in settings.frozen for name in ("weight", "bias")}
    if settings.source == "latents":
        inputs = settings.inputs if weight.shape[0] == settings.rank + settings.inputs else 0
        readout = AffineReadout(
            rank=settings.rank,
            features=settings.features,
            inputs=inputs,
            train_weight=trained["weight"],
            train_bias=trained["bias"],
            dtype=weight.dtype,
        )
        latents_first = inputs == 0 or settings.latents_first
        of_latents, of_inputs = weight.split((settings.rank, inputs) if latents_first else (inputs, settings.rank))
        if not latents_first:
            of_latents, of_inputs = of_inputs, of_latents
        _set(readout, "weight", of_latents.mT)
        if inputs:
            _set(readout, "input_weight", of_inputs.mT)
    else:
        if settings.features != settings.units:
            raise ValueError(f"it sees {settings.features} of its {settings.units} units; here all units are seen.")
        readout = UnitReadout(
            units=settings.units,
            source=settings.source,
            train_scale=trained["weight"],
            train_bias=trained["bias"],
            dtype=weight.dtype,
        )
        # As a matrix it was multiplied with its own mask, which shared its memory: the effective weight is the square.
        _set(readout, "scale", weight.square().diagonal() if weight.dim() > 1 else weight)
    _set(readout, "bias", bias)
    if settings.likelihood == "Poisson":
        return PoissonObservation(readout=readout, link=settings.link, dtype=weight.dtype)
    scale = _scale(weights["R_x"])
    if scale.dim() > 1:
        scale = scale.square().sum(1).sqrt()
    noise = "diagonal" if scale.dim() else "scalar"
    observation = GaussianObservation(readout=readout, noise=noise, dtype=weight.dtype)
    _set(observation, "noise_scale", scale)
    return observation


def _kind(stored: Tensor) -> str:
    return "full" if stored.dim() == 2 else "scalar" if stored.numel() == 1 else "diagonal"


def _scale(stored: Tensor) -> Tensor:
    """Return the standard deviation, one or several, or the Cholesky factor, that logarithms of variances stand for."""
    if stored.dim() == 2:
        return stored.tril(-1) + torch.diag_embed((stored.diagonal() / 2).exp())
    return (stored / 2).exp().reshape(() if stored.numel() == 1 else stored.shape)


def _encoder(settings: Settings, found: EncoderSettings, weights: Tensors) -> ConvEncoder:
    stack = sorted(int(name.split(".")[1]) for name in weights if name.startswith("initial_stack") and "weight" in name)
    last = ["mean_conv"] if found.constant_variance else ["mean_conv", "logvar_conv"]
    parts = [[f"initial_stack.{number}"] for number in stack] + [last]
    if len(parts) != len(found.kernel_sizes):
        raise ValueError(f"its encoder has {len(parts)} layers, the settings say {len(found.kernel_sizes)}.")
    windowed = found.padding == "centred"
    with torch.random.fork_rng(devices=[]):
        encoder = ConvEncoder(
            settings.features,
            settings.rank,
            # Windows of even sizes begin one bin earlier there: an odd size with a last weight of zero does the same.
            [size + windowed for size in found.kernel_sizes],
            found.channels,
            padding=found.padding,
            padding_mode=found.padding_mode,
            activation=found.activation,
            constant_variance=found.constant_variance,
            sees_mask=False,
            dtype=weights["mean_conv.weight"].dtype,
        )
    for position, (layer, names) in enumerate(zip(encoder.layers, parts, strict=True)):
        kernel = torch.cat([weights[f"{name}.weight"] for name in names])
        # Features that the encoder does not see, being held out, come last.
        unseen = settings.features - found.features if position == 0 else 0
        _set(layer, "weight", nn.functional.pad(kernel, (0, int(windowed), 0, unseen)))
        _set(layer, "bias", torch.cat([weights[f"{name}.bias"] for name in names]))
    if found.constant_variance:
        _set(encoder, "log_variance", weights["logvar"])
    return encoder


def _set(module: nn.Module, name: str, value: Tensor) -> None:
    """Give a parameter or buffer its value, of the same shape."""
    expected = getattr(module, name).shape
    if value.shape != expected:
        raise ValueError(f"{name} has shape {tuple(value.shape)}, the settings say {tuple(expected)}.")
    if name in module._buffers:
        module._buffers[name] = value.clone()
    else:
        setattr(module, name, value.clone())


def _freeze(model: StateSpaceModel, name: str) -> None:
    """Freeze a parameter of the dynamics or of the observation model; those of a readout are buffers already."""
    part, _, last = name.rpartition(".")
    owner = {"dynamics": model.dynamics, "readout": model.observation.readout, "": model.observation}[part]
    parameter = owner._parameters.get(f"{last}_unconstrained")
    if parameter is not None:
        parameter.requires_grad_(False)
