"""Tiny checkpoints in both generations of the format of the paper's code, with random weights."""

from __future__ import annotations

import pickle
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

RANK, UNITS, INPUTS, FEATURES = 2, 5, 1, 4


@dataclass
class Checkpoint:
    """What the files of a checkpoint hold."""

    params: dict[str, Any]
    weights: dict[str, Tensor]
    encoder: dict[str, Tensor] | None = None
    training: dict[str, Any] | None = field(default_factory=dict)

    def write(self, folder: Path) -> Path:
        """Write the files; return their common beginning."""
        prefix = folder / "student"
        for name, content in (("vae_params", self.params), ("training_params", self.training)):
            if content is not None:
                (folder / f"student_{name}.pkl").write_bytes(pickle.dumps(content))
        torch.save(self.weights, folder / "student_state_dict_rnn.pkl")
        if self.encoder is not None:
            torch.save(self.encoder, folder / "student_state_dict_enc.pkl")
        return prefix


def noise(kind: str, dim: int) -> Tensor:
    """Random logarithms of variances as they are stored."""
    return torch.randn({"full": (dim, dim), "diag": (dim,), "scalar": (1,)}[kind])


def transition(inputs: int) -> dict[str, Tensor]:
    """Random weights of a low-rank network, without its decay."""
    weights = {"m": torch.randn(UNITS, RANK), "n": torch.randn(RANK, UNITS), "h": torch.rand(UNITS)}
    return weights | ({"Wu": torch.randn(UNITS, inputs)} if inputs else {})


def newer(
    *,
    inputs: int = 0,
    source: str = "z",
    likelihood: str = "Gauss",
    noises: tuple[str, str, str] = ("full", "full", "diag"),
    **options: Any,
) -> Checkpoint:
    """A checkpoint of the newer generation: every setting among those of the network, no particle dims."""
    one_to_one = source in ("currents", "rates")
    features = UNITS if one_to_one else FEATURES
    rnn = {
        "transition": "low_rank",
        "observation": "one_to_one" if one_to_one else "affine",
        "readout_from": source,
        "activation": "relu",
        "obs_nonlinearity": "identity" if likelihood == "Gauss" else "softplus",
        "obs_likelihood": likelihood,
        "simulate_input": False,
        "initial_state": "trainable",
        **dict(zip(("noise_z", "noise_z_t0", "noise_x"), noises, strict=True)),
        **options,
    }
    rows = RANK + (inputs if source == "z_and_v" else 0)
    weights = {f"transition.{name}": value for name, value in transition(inputs).items()}
    weights |= {
        "transition.decay_param": torch.tensor([-2.0]),
        "initial_state": torch.randn(RANK),
        "R_z": noise(noises[0], RANK),
        "R_z_t0": noise(noises[1], RANK),
        "R_x": noise(noises[2], features),
        "observation.B": torch.randn(UNITS) if one_to_one else torch.randn(rows, FEATURES),
        "observation.Bias": torch.randn(features),
    }
    params = {"dim_x": features, "dim_z": RANK, "dim_N": UNITS, "dim_u": inputs, "rnn_params": rnn}
    return Checkpoint(params, weights, training=None)


def older(
    *,
    inputs: int = 0,
    source: Any = False,
    likelihood: str = "Gauss",
    noises: tuple[str, str, str] = ("full", "full", "diag"),
    sim_v: bool = False,
    decay: str = "AW",
    step: str = "transition",
    **options: Any,
) -> Checkpoint:
    """A checkpoint of the older generation: other names, particle dims, some settings elsewhere."""
    one_to_one = source in ("currents", "rates", True)
    features = UNITS if one_to_one else FEATURES
    kinds = {"full": "Cov", "diag": False, "scalar": True}
    rnn = {
        "identity_readout": one_to_one,
        "readout_rates": source,
        "activation": "relu",
        "clipped": True,
        "exp_par": True,
        "shared_tau": 0.9,
        "weight_scaler": 1,
        "orth": False,
        "m_norm": False,
        "initial_state": "trainable",
        "out_nonlinearity": "identity" if likelihood == "Gauss" else "exp",
        **{f"scalar_noise_{name}": kinds[kind] for name, kind in zip(("z", "z_t0", "x"), noises, strict=True)},
        **options,
    }
    if "readout_from" in options:
        del rnn["readout_rates"]
    rows = RANK + (inputs if options.get("readout_from") == "z_and_v" else 0)
    weights = {f"{step}.{name}": value for name, value in transition(inputs).items()}
    weights |= {
        f"{step}.{decay}": torch.full((1, 1, 1, 1), -2.0),
        f"{step}.hz": torch.zeros(RANK),
        "initial_state": torch.randn(RANK),
        "R_z": noise(noises[0], RANK),
        "R_z_t0": noise(noises[1], RANK),
        "R_x": noise(noises[2], features),
        "observation.B": torch.diag(torch.randn(UNITS)) if one_to_one else torch.randn(rows, FEATURES),
        "observation.Bias": torch.randn(1, features, 1, 1),
    }
    params = {"dim_x": features, "dim_z": RANK, "dim_N": UNITS, "prior_params": rnn}
    if inputs:
        params["dim_u"] = inputs
    training = {"loss_f": "opt_VGTF", "ll": [0.5], "noise_z": [torch.ones(2)]}
    training |= {"sim_v": sim_v} if sim_v else {}
    training |= {"observation_likelihood": likelihood} if likelihood != "Gauss" else {}
    return Checkpoint(params, weights, training=training)


def with_encoder(
    checkpoint: Checkpoint, *, sizes: tuple[int, ...] = (4, 3), constant: bool = False, **options: Any
) -> Checkpoint:
    """Add an encoder with one hidden layer of three channels."""
    features = checkpoint.params["dim_x"]
    checkpoint.params["enc_architecture"] = "CNN"
    checkpoint.params["enc_params"] = {
        "kernel_sizes": list(sizes),
        "n_channels": [3],
        "nonlinearity": "gelu",
        "padding_mode": "constant",
        "init_scale": 0.1,
        "constant_var": constant,
        **options,
    }
    layers = {"initial_stack.1": (3, features, sizes[0]), "mean_conv": (RANK, 3, sizes[1])}
    if not constant:
        layers["logvar_conv"] = (RANK, 3, sizes[1])
    checkpoint.encoder = {"logvar": torch.randn(RANK)}
    for name, shape in layers.items():
        checkpoint.encoder |= {f"{name}.weight": torch.randn(shape), f"{name}.bias": torch.randn(shape[0])}
    return checkpoint
