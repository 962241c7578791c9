"""The settings of the paper's checkpoints, both generations of them, as one set of names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

_NOT_KNOWN_HERE = "this reader does not know what that stands for."


@dataclass(frozen=True)
class EncoderSettings:
    """How a convolutional encoder was built."""

    kernel_sizes: tuple[int, ...]
    channels: tuple[int, ...]
    features: int
    padding: str
    padding_mode: str
    activation: str
    constant_variance: bool


@dataclass(frozen=True)
class Settings:
    """How a model was built, in the words of this library.

    Attributes:
        rank: number of latents.
        units: number of units.
        features: number of features.
        inputs: number of input channels.
        full_rank: whether the latents are the units.
        activation: of the units.
        likelihood: `"Gauss"` or `"Poisson"`.
        link: from readout to mean.
        source: `"latents"`, `"currents"` or `"rates"`.
        input_filter: whether inputs pass the network's leak.
        exponential_decay: whether the stored decay x stands for exp(-exp(x)), or for itself.
        weight_scale: that the right vectors are multiplied with.
        latents_first: the order of latents and inputs in the readout's weights.
        bias_is_start: whether the first latent is minus the units' bias.
        frozen: parameters that were not trained, by their names here.
        encoder: of the guide, if it has one.
    """

    rank: int
    units: int
    features: int
    inputs: int
    full_rank: bool
    activation: str
    likelihood: str
    link: str
    source: str
    input_filter: bool
    exponential_decay: bool
    weight_scale: float
    latents_first: bool
    bias_is_start: bool
    frozen: frozenset[str]
    encoder: EncoderSettings | None


def read_settings(model: Mapping[str, Any], training: Callable[[], Mapping[str, Any]]) -> Settings:
    """Return the settings of a checkpoint.

    Args:
        model: what `PREFIX_vae_params.pkl` holds.
        training: returns what `PREFIX_training_params.pkl` holds, empty if it is not there. Only the older generation
            keeps the likelihood and the input's leak there.

    Raises:
        ValueError: if the model has a part that this library has no counterpart for, which is named.
        KeyError: if a setting is missing.
    """
    rnn = model["rnn_params"] if "rnn_params" in model else model["prior_params"]
    for name in ("orth", "m_norm"):
        if rnn.get(name):
            raise ValueError(f"its left vectors are reparametrised ({name}={rnn[name]!r}), which is not supported.")
    likelihood, input_filter = _from_training(rnn, training)
    full_rank = bool(rnn.get("full_rank")) or rnn.get("transition", "low_rank") == "full_rank"
    inputs = int(model.get("dim_u", 0))
    if full_rank and inputs:
        raise ValueError(
            "it is a full-rank network with inputs, added to the latents there; here they pass the activation."
        )
    return Settings(
        rank=int(model["dim_z"]),
        units=int(model["dim_z"] if full_rank else model["dim_N"]),
        features=int(model.get("dim_x_hat", model["dim_x"])),
        inputs=inputs,
        full_rank=full_rank,
        activation=_activation(rnn),
        likelihood=likelihood,
        link=_link(model, rnn, likelihood),
        source=_source(rnn),
        input_filter=input_filter and inputs > 0,
        exponential_decay=bool(rnn.get("exp_par", True)),
        weight_scale=float(rnn.get("weight_scaler", 1)) if "observation" not in rnn else 1.0,
        latents_first="observation" not in rnn,
        bias_is_start=not full_rank and rnn["initial_state"] == "bias",
        frozen=_frozen(rnn, full_rank),
        encoder=_encoder(model),
    )


def _from_training(rnn: Mapping[str, Any], training: Callable[[], Mapping[str, Any]]) -> tuple[str, bool]:
    """Return the likelihood, and whether inputs are filtered."""
    if "obs_likelihood" in rnn and "simulate_input" in rnn:
        likelihood, input_filter = rnn["obs_likelihood"], rnn["simulate_input"]
    else:
        older = training()
        likelihood = older.get("observation_likelihood", rnn.get("obs_likelihood", "Gauss"))
        input_filter = older.get("sim_v", rnn.get("simulate_input", False))
    return _known("obs_likelihood", likelihood, {"Gauss": "Gauss", "Poisson": "Poisson"}), bool(input_filter)


def _activation(rnn: Mapping[str, Any]) -> str:
    name = rnn["activation"]
    names = {known: known for known in ("relu", "clipped_relu", "tanh", "identity")}
    return "clipped_relu" if name == "relu" and rnn.get("clipped") else _known("activation", name, names)


def _link(model: Mapping[str, Any], rnn: Mapping[str, Any], likelihood: str) -> str:
    default = "identity" if likelihood == "Gauss" else model.get("obs_rectify")
    name = rnn.get("obs_nonlinearity", rnn.get("out_nonlinearity", default))
    links = {"identity": "identity"} if likelihood == "Gauss" else {"softplus": "softplus", "exp": "exp"}
    return _known(f"obs_nonlinearity (of {likelihood} observations)", name, links)


def _source(rnn: Mapping[str, Any]) -> str:
    one_to_one = rnn["observation"] == "one_to_one" if "observation" in rnn else bool(rnn["identity_readout"])
    declared = rnn.get("readout_from", rnn.get("readout_rates"))
    source = {True: "rates", False: "latents", "z": "latents", "z_and_v": "latents"}.get(declared, declared)
    _known("readout_from", source, dict.fromkeys(("latents", "currents", "rates")))
    if one_to_one == (source == "latents"):
        raise ValueError(
            f"its readout of {source} is {'one to one' if one_to_one else 'dense'}; here, units are read one to one, "
            "latents densely."
        )
    return str(source)


def _frozen(rnn: Mapping[str, Any], full_rank: bool) -> frozenset[str]:
    older = {"train_noise_x": "train_noise_obs", "train_noise_z": "train_noise_prior"}
    older["train_noise_z_t0"] = "train_noise_prior_t0"
    names = {
        "train_noise_x": "noise_scale",
        "train_noise_z": "dynamics.noise_scale",
        "train_noise_z_t0": "dynamics.initial_noise_scale",
        "train_neuron_bias": "dynamics.bias",
        "train_obs_bias": "readout.bias",
        "train_obs_weights": "readout.weight",
    }
    frozen = {here for name, here in names.items() if not rnn.get(name, rnn.get(older.get(name, ""), True))}
    if not full_rank and rnn["initial_state"] == "zero":
        frozen.add("dynamics.initial_mean")
    return frozenset(frozen)


def _encoder(model: Mapping[str, Any]) -> EncoderSettings | None:
    if model.get("enc_architecture") not in ("CNN", "CNN_causal"):
        return None
    encoder = model["enc_params"]
    for name in ("strides", "dilations"):
        if any(step != 1 for step in encoder.get(name, ())):
            raise ValueError(f"its encoder has {name} {encoder[name]}, which are not supported.")
    sizes = tuple(int(size) for size in encoder.get("init_kernel_sizes", encoder.get("kernel_sizes", ())))
    location = encoder.get("padding_location", "causal")
    if location == "windowed" and any(size % 2 for size in sizes):
        raise ValueError(
            f"its encoder pads windows of odd sizes, {list(sizes)}, by one time bin too few, and says nothing of "
            "the last bins; such a guide has no counterpart here."
        )
    return EncoderSettings(
        kernel_sizes=sizes,
        channels=tuple(int(number) for number in encoder["n_channels"]),
        features=int(model["dim_x"]),
        padding=_known("padding_location", location, {"causal": "causal", "acausal": "acausal", "windowed": "centred"}),
        padding_mode=_known(
            "padding_mode",
            encoder["padding_mode"],
            {"constant": "zeros", "reflect": "reflect", "replicate": "replicate", "circular": "circular"},
        ),
        activation=_known("nonlinearity", encoder["nonlinearity"], {"gelu": "gelu", "leaky_relu": "leaky_relu"}),
        constant_variance=bool(encoder["constant_var"]),
    )


def _known(name: str, value: Any, names: Mapping[str, Any]) -> Any:
    if value not in names:
        raise ValueError(f"its {name} is {value!r}, known are {', '.join(map(repr, names))}: {_NOT_KNOWN_HERE}")
    return names[value]
