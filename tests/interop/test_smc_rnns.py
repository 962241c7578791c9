"""Checkpoints of the paper's code become models of the same law, whatever their generation; evil ones stay unread."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import pyro_lowrank as plr
from tests.interop.checkpoints import FEATURES, INPUTS, RANK, UNITS, Checkpoint, newer, older, with_encoder

DECAY = torch.exp(-torch.exp(torch.tensor(-2.0)))


def load(checkpoint: Checkpoint, folder: Path) -> tuple[Any, Any]:
    """Write a checkpoint and read it back."""
    return plr.load_smc_rnns(checkpoint.write(folder))


def phi(x: Tensor, h: Tensor, *, clipped: bool) -> Tensor:
    """The activations, as the paper defines them."""
    return (x + h).clamp(min=0) - x.clamp(min=0) if clipped else (x - h).clamp(min=0)


def covariance(stored: Tensor, dim: int) -> Tensor:
    """The covariance that stored logarithms of variances stand for."""
    if stored.dim() < 2:
        return torch.diag(stored.exp().expand(dim))
    factor = stored.tril(-1) + torch.diag((stored.diagonal() / 2).exp())
    return factor @ factor.T


@pytest.mark.parametrize("step", ["transition", "latent_step"])
@pytest.mark.parametrize("decay", ["AW", "decay"])
@pytest.mark.parametrize("generation", ["newer", "older"])
def test_the_latents_move_as_they_did(generation: str, decay: str, step: str, tmp_path: Path) -> None:
    made = newer(inputs=INPUTS) if generation == "newer" else older(inputs=INPUTS, decay=decay, step=step)
    w = {name.split(".")[1]: value for name, value in made.weights.items() if name.startswith((step, "transition"))}
    model, guide = load(made, tmp_path)
    z, v = torch.randn(7, RANK), torch.randn(7, INPUTS)
    expected = DECAY * z + phi(z @ w["m"].T + v @ w["Wu"].T, w["h"], clipped=generation == "older") @ w["n"].T
    torch.testing.assert_close(model.dynamics(z, v), expected)
    start = made.weights["initial_state"] + v @ (torch.linalg.pinv(w["m"]) @ w["Wu"]).T
    torch.testing.assert_close(model.dynamics.transition().first_mean(v), start)
    assert isinstance(guide, plr.OptimalGuide)


@pytest.mark.parametrize("kind", ["scalar", "diag", "full"])
@pytest.mark.parametrize("make", [newer, older])
def test_noises_have_the_covariances_they_had(make: Any, kind: str, tmp_path: Path) -> None:
    made = make(noises=(kind, kind, kind))
    model, _ = load(made, tmp_path)
    found = model.dynamics.noise_covariance, model.dynamics.initial_covariance, model.observation.noise_variance
    torch.testing.assert_close(found[0], covariance(made.weights["R_z"], RANK))
    torch.testing.assert_close(found[1], covariance(made.weights["R_z_t0"], RANK))
    torch.testing.assert_close(found[2], covariance(made.weights["R_x"], FEATURES).diagonal())


@pytest.mark.parametrize("filtered", [False, True])
def test_inputs_leak_where_they_did(filtered: bool, tmp_path: Path) -> None:
    u = torch.randn(2, 4, INPUTS)
    v = [torch.zeros(2, INPUTS)]
    for t in range(1, 4):
        v.append(DECAY * v[-1] + (1 - DECAY) * u[:, t - 1])
    for number, made in enumerate((newer(inputs=1, simulate_input=filtered), older(inputs=1, sim_v=filtered))):
        folder = tmp_path / str(number)
        folder.mkdir()
        model, _ = load(made, folder)
        effective = model.dynamics.transition().drift.effective_inputs(u)
        torch.testing.assert_close(effective, torch.stack(v, 1) if filtered else u)


@pytest.mark.parametrize("make", [newer, older])
@pytest.mark.parametrize("source", ["currents", "rates"])
def test_units_are_read_as_they_were(make: Any, source: str, tmp_path: Path) -> None:
    made = make(inputs=INPUTS, source=source)
    model, guide = load(made, tmp_path)
    z, v = torch.randn(7, RANK), torch.randn(7, INPUTS)
    w = made.weights
    x = z @ w["transition.m"].T + v @ w["transition.Wu"].T
    if source == "rates":
        x = phi(x, w["transition.h"], clipped=make is older)
    scale = w["observation.B"] if make is newer else w["observation.B"].diagonal() ** 2
    torch.testing.assert_close(model.observation.mean(z, v), scale * x + w["observation.Bias"].flatten())
    assert isinstance(guide, plr.OptimalGuide if source == "currents" else plr.BootstrapGuide)


@pytest.mark.parametrize("generation", ["newer", "older"])
def test_latents_and_inputs_are_read_in_the_order_they_had(generation: str, tmp_path: Path) -> None:
    made = newer(inputs=1, source="z_and_v") if generation == "newer" else older(inputs=1, readout_from="z_and_v")
    model, _ = load(made, tmp_path)
    z, v = torch.randn(7, RANK), torch.randn(7, INPUTS)
    stacked = torch.cat([v, z] if generation == "newer" else [z, v], 1)
    expected = stacked @ made.weights["observation.B"] + made.weights["observation.Bias"].flatten()
    torch.testing.assert_close(model.observation.mean(z, v), expected)


@pytest.mark.parametrize(("make", "link"), [(newer, functional.softplus), (older, torch.exp)])
def test_counts_have_the_rates_they_had(make: Any, link: Any, tmp_path: Path) -> None:
    made = make(likelihood="Poisson")
    model, guide = load(made, tmp_path)
    z = torch.randn(7, RANK)
    expected = link(z @ made.weights["observation.B"] + made.weights["observation.Bias"].flatten())
    torch.testing.assert_close(model.observation.mean(z), expected)
    assert isinstance(guide, plr.BootstrapGuide)


def test_the_link_of_the_oldest_files_lies_beside_the_network(tmp_path: Path) -> None:
    made = older(likelihood="Poisson")
    del made.params["prior_params"]["out_nonlinearity"]
    made.params["obs_rectify"] = "softplus"
    assert load(made, tmp_path)[0].observation.link == "softplus"


PADDED = {
    "causal": lambda x, size: functional.pad(x, (size - 1, 0)),
    "acausal": lambda x, size: functional.pad(x, (0, size - 1)),
    "windowed": lambda x, size: functional.pad(x, (size // 2, size // 2 - 1)),
    "circular": lambda x, size: functional.pad(x, (size - 1, 0), mode="circular"),
}


@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize("nonlinearity", ["gelu", "leaky_relu"])
@pytest.mark.parametrize("padding", PADDED)
def test_encoders_say_what_they_said(padding: str, nonlinearity: str, constant: bool, tmp_path: Path) -> None:
    sizes = (4, 2) if padding == "windowed" else (4, 3)
    mode, place = ("circular", "causal") if padding == "circular" else ("constant", padding)
    options = {"padding_location": place, "padding_mode": mode, "nonlinearity": nonlinearity}
    made = with_encoder(newer(likelihood="Poisson"), sizes=sizes, constant=constant, **options)
    _, guide = load(made, tmp_path)
    w = made.encoder
    assert isinstance(guide, plr.EncoderGuide)
    assert w is not None
    y = torch.randn(3, 9, FEATURES)
    hidden = functional.conv1d(PADDED[padding](y.mT, sizes[0]), w["initial_stack.1.weight"], w["initial_stack.1.bias"])
    hidden = functional.gelu(hidden) if nonlinearity == "gelu" else functional.leaky_relu(hidden, 0.1)
    hidden = PADDED[padding](hidden, sizes[1])
    mean, log_variance = guide.encoder(y)
    torch.testing.assert_close(mean, functional.conv1d(hidden, w["mean_conv.weight"], w["mean_conv.bias"]).mT)
    if constant:
        torch.testing.assert_close(log_variance, w["logvar"].expand_as(mean))
    else:
        expected = functional.conv1d(hidden, w["logvar_conv.weight"], w["logvar_conv.bias"]).mT
        torch.testing.assert_close(log_variance, expected)


def test_an_encoder_does_not_see_features_that_are_held_out(tmp_path: Path) -> None:
    made = newer(likelihood="Poisson")
    made.params |= {"dim_x": FEATURES - 1, "dim_x_hat": FEATURES}
    model, guide = load(with_encoder(made), tmp_path)
    y = torch.randn(3, 9, FEATURES)
    changed = y.clone()
    changed[..., -1] += 1
    assert torch.equal(guide.encoder(y)[0], guide.encoder(changed)[0])
    changed[..., 0] += 1
    assert not torch.equal(guide.encoder(y)[0], guide.encoder(changed)[0])
    assert model.observation.features == FEATURES


@pytest.mark.parametrize("generation", ["newer", "older"])
def test_full_rank_networks_move_as_they_did(generation: str, tmp_path: Path) -> None:
    made = newer(transition="full_rank") if generation == "newer" else older(full_rank=True)
    w = made.weights
    weight = torch.randn(RANK, RANK)
    for name in ("transition.m", "transition.n"):
        del w[name]
    w |= {"transition.W": weight, "transition.h": torch.rand(RANK)}
    model, _ = load(made, tmp_path)
    z = torch.randn(7, RANK)
    rates = phi(z, w["transition.h"], clipped=generation == "older")
    leak = 1.0 if generation == "newer" else 1 - DECAY
    torch.testing.assert_close(model.dynamics(z), DECAY * z + leak * rates @ weight.T)
    assert isinstance(model.dynamics, plr.FullRankRNN)


def test_older_variants_of_the_dynamics(tmp_path: Path) -> None:
    made = older(exp_par=False, weight_scaler=3.0, clipped=False)
    made.weights["transition.AW"] = torch.tensor([0.3, 0.8])
    model, _ = load(made, tmp_path)
    torch.testing.assert_close(model.dynamics.decay, torch.tensor([0.3, 0.8]))
    torch.testing.assert_close(model.dynamics.right, 3.0 * made.weights["transition.n"])
    assert model.dynamics.activation.name == "relu"


def test_what_was_not_trained_is_frozen(tmp_path: Path) -> None:
    made = older(
        source="currents", initial_state="zero", train_noise_obs=False, train_noise_prior=True, train_obs_weights=False
    )
    made.weights["initial_state"].zero_()
    model, guide = load(made, tmp_path)
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {"dynamics.initial_mean_unconstrained", "observation.noise_scale_unconstrained"}
    before = model.observation.noise_variance.clone()
    y = model.simulate(num_trials=3, num_steps=9).y
    plr.fit(model, guide, y, num_steps=2, num_particles=4, progress=False)
    assert torch.equal(model.observation.noise_variance, before)


def test_a_loaded_model_is_one_of_the_library(tmp_path: Path) -> None:
    state = torch.get_rng_state()
    prefix = with_encoder(older(likelihood="Poisson")).write(tmp_path)
    torch.set_rng_state(state)
    model, guide = plr.load_smc_rnns(str(prefix))
    assert torch.equal(torch.get_rng_state(), state)
    y = model.simulate(num_trials=3, num_steps=12).y
    plr.save(tmp_path / "model.safetensors", model, guide)
    again = plr.load(tmp_path / "model.safetensors")
    found = []
    for pair in ((model, guide), again):
        torch.manual_seed(1)
        found.append(plr.SMCFilter(*pair, num_particles=8, max_plate_nesting=1).run(y).log_evidence)
    torch.testing.assert_close(*found)


class Evil:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        import os

        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("name", ["vae_params", "training_params", "state_dict_rnn", "state_dict_enc"])
def test_no_file_of_a_checkpoint_can_run_anything(name: str, tmp_path: Path) -> None:
    prefix = with_encoder(older(likelihood="Poisson")).write(tmp_path)
    made, path = tmp_path / "made", tmp_path / f"student_{name}.pkl"
    for write in (lambda evil: torch.save(evil, path), lambda evil: path.write_bytes(pickle.dumps(evil))):
        write({"R_z": torch.ones(1), "more": Evil(made)})
        with pytest.raises(ValueError, match=rf"student_{name}.pkl"):
            plr.load_smc_rnns(prefix)
        assert not made.exists()
    with pytest.raises(ValueError, match=r"mkdir|torch\.load|protocol"):
        plr.load_smc_rnns(prefix)


UNSUPPORTED = {
    "bias of the latents": (older, {}, {"transition.hz": torch.ones(RANK)}, "hz"),
    "orthogonal": (older, {"orth": True}, {}, "orth"),
    "activation": (newer, {"activation": "swish"}, {}, "swish"),
    "likelihood": (newer, {"obs_likelihood": "Student"}, {}, "Student"),
    "link": (newer, {"obs_likelihood": "Poisson", "obs_nonlinearity": "relu"}, {}, "relu"),
    "dense rates": (older, {"readout_rates": True, "identity_readout": False}, {}, "dense"),
    "shapes": (newer, {}, {"transition.m": torch.ones(UNITS, RANK + 1)}, "left has shape"),
    "start at the bias": (newer, {"initial_state": "bias"}, {}, "initial_mean has shape"),
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_what_has_no_counterpart_is_named(name: str, tmp_path: Path) -> None:
    make, options, weights, reason = UNSUPPORTED[name]
    made = make(**options)
    made.weights |= weights
    with pytest.raises(ValueError, match=rf"student cannot be read: .*{reason}"):
        load(made, tmp_path)


def test_inputs_of_full_rank_networks_and_odd_windows_have_no_counterpart(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="full-rank network with inputs"):
        load(newer(inputs=1, transition="full_rank"), tmp_path)
    with pytest.raises(ValueError, match="odd sizes"):
        load(with_encoder(newer(), padding_location="windowed"), tmp_path)


@pytest.mark.parametrize(
    "params",
    [[], {}, {"rnn_params": []}, {"rnn_params": {"activation": []}}, newer().params | {"dim_z": None}],
    ids=["list", "empty", "list inside", "no choice", "no number"],
)
def test_settings_of_another_form_are_no_checkpoint(params: Any, tmp_path: Path) -> None:
    made = newer()
    made.params = params
    with pytest.raises(ValueError, match="student"):
        load(made, tmp_path)


def test_missing_parts_are_named(tmp_path: Path) -> None:
    made = with_encoder(newer())
    prefix = made.write(tmp_path)
    del made.weights["R_z"]
    torch.save(made.weights, f"{prefix}_state_dict_rnn.pkl")
    with pytest.raises(ValueError, match="lacks 'R_z'"):
        plr.load_smc_rnns(prefix)
    for name in ("state_dict_enc", "state_dict_rnn", "vae_params"):
        made = with_encoder(newer())
        prefix = made.write(tmp_path)
        Path(f"{prefix}_{name}.pkl").unlink()
        with pytest.raises(FileNotFoundError, match=f"student_{name}.pkl"):
            plr.load_smc_rnns(prefix)
