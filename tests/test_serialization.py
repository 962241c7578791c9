"""A model read back from its file is the model that was written, and a bad file says what is wrong with it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroParam, PyroSample
from safetensors import safe_open
from safetensors.torch import save_file
from torch.distributions import constraints

import pyro_lowrank as plr
from pyro_lowrank.dynamics.activations import Activation
from tests.builders import gaussian_model, shaken

SWISH = Activation("swish", lambda x, h: (x - h) * torch.sigmoid(x - h))
RAMP = plr.PiecewiseLinear(knots=(-1.0, 0.5), slopes=(0.0, 0.7, -0.1), bias_gains=(1.0, 0.5), name="ramp")


def poisson_of_rates(dtype: torch.dtype) -> plr.StateSpaceModel:
    """Build a full-rank network with filtered inputs, seen through spike counts of its rates."""
    dynamics = plr.FullRankRNN(units=4, inputs=2, input_filter=True, activation="tanh", noise="scalar", dtype=dtype)
    readout = plr.UnitReadout(units=4, source="rates", train_bias=False, bias=-1.0, dtype=dtype)
    return plr.StateSpaceModel(dynamics, plr.PoissonObservation(readout=readout, link="exp"))


def ramp_of_inputs(dtype: torch.dtype) -> plr.StateSpaceModel:
    """Build a network with a decay per latent and an activation of knots, read from latents and inputs."""
    dynamics = plr.LowRankRNN(
        rank=2, units=5, activation=RAMP, inputs=1, decay=[0.3, 0.8], noise="diagonal", weights="gaussian", dtype=dtype
    )
    return plr.StateSpaceModel(dynamics, plr.GaussianObservation(rank=2, features=3, inputs=1, dtype=dtype))


def turned(dtype: torch.dtype) -> plr.StateSpaceModel:
    """Build a model in another basis: a copy, whose noise has become full."""
    return gaussian_model(dtype, noise="diagonal").change_basis(torch.tensor([[0.6, 0.8], [-0.8, 0.7]], dtype=dtype))


MODELS = {"poisson_of_rates": poisson_of_rates, "ramp_of_inputs": ramp_of_inputs, "turned": turned}


def state(model: Any) -> dict[str, torch.Tensor]:
    """Every parameter and buffer, by name."""
    return dict(model.state_dict())


def simulated(model: plr.StateSpaceModel) -> torch.Tensor:
    """Data of a model from a fixed seed."""
    torch.manual_seed(3)
    inputs = model.dynamics.num_inputs
    like = model.dynamics.right
    u = torch.linspace(0, 1, 14 * inputs, dtype=like.dtype).reshape(2, 7, inputs) if inputs else None
    return model.simulate(2, 7, u).y


@pytest.mark.parametrize("build", MODELS.values(), ids=MODELS)
def test_round_trip_is_exact(build: Any, dtype: torch.dtype, tmp_path: Path) -> None:
    model = shaken(build(dtype), 0.1)
    guide = plr.BootstrapGuide(model)
    plr.save(tmp_path / "model.safetensors", model, guide)
    again, guide_again = plr.load(tmp_path / "model.safetensors")
    assert state(again).keys() == state(model).keys()
    for name, value in state(model).items():
        assert state(again)[name].dtype == value.dtype == dtype
        assert torch.equal(state(again)[name], value), name
    assert torch.equal(simulated(again), simulated(model))
    assert type(guide_again) is plr.BootstrapGuide
    assert guide_again.model is again
    assert again.settings()["dynamics"].settings().keys() == model.settings()["dynamics"].settings().keys()


def test_the_evidence_of_the_loaded_pair_is_that_of_the_saved_one(tmp_path: Path) -> None:
    model = gaussian_model()
    y = model.simulate(2, 10).y
    plr.save(tmp_path / "m", model, plr.OptimalGuide(model))
    losses = []
    for pair in ((model, plr.OptimalGuide(model)), plr.load(tmp_path / "m")):
        torch.manual_seed(0)
        losses.append(plr.SMC_ELBO(8).loss(*pair, y))
    assert losses[0] == losses[1]


def test_parameters_of_mixed_dtypes_keep_them(tmp_path: Path) -> None:
    model = gaussian_model(torch.float32)
    model.observation.double()
    plr.save(tmp_path / "m", model)
    again, guide = plr.load(tmp_path / "m")
    assert guide is None
    assert {n: v.dtype for n, v in state(again).items()} == {n: v.dtype for n, v in state(model).items()}


def test_frozen_parameters_stay_frozen(tmp_path: Path) -> None:
    model = gaussian_model()
    for parameter in model.observation.parameters():
        parameter.requires_grad_(False)
    plr.save(tmp_path / "m", model)
    again, _ = plr.load(tmp_path / "m")
    assert {n: p.requires_grad for n, p in again.named_parameters()} == {
        n: p.requires_grad for n, p in model.named_parameters()
    }


def test_neither_generator_nor_param_store_is_touched(tmp_path: Path) -> None:
    model = gaussian_model()
    stale = gaussian_model()
    with pyro.poutine.trace():
        stale(num_trials=1, num_steps=2)  # fills the store under the names that the loaded model has too
    before = pyro.get_param_store().get_state()["params"].copy()
    generator = torch.get_rng_state()
    plr.save(tmp_path / "m", model, plr.OptimalGuide(model))
    again, _ = plr.load(tmp_path / "m")
    assert torch.equal(torch.get_rng_state(), generator)
    after = pyro.get_param_store().get_state()["params"]
    assert before
    assert all(after[name] is value for name, value in before.items())
    assert after.keys() == before.keys()
    assert torch.equal(again.dynamics.decay, model.dynamics.decay)


def test_the_file_holds_tensors_and_json(tmp_path: Path) -> None:
    plr.save(tmp_path / "m", gaussian_model())
    with safe_open(tmp_path / "m", framework="pt") as file:
        configuration = json.loads(file.metadata()["configuration"])
    assert configuration["model"]["class"] == "StateSpaceModel"


def test_a_crash_while_writing_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.safetensors"
    old = gaussian_model()
    plr.save(path, old)

    def crash(*_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", crash)
    with pytest.raises(OSError, match="disk full"):
        plr.save(path, gaussian_model())
    assert torch.equal(plr.load(path)[0].dynamics.left, old.dynamics.left)
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"], "nothing half-written is left behind"


def test_a_link_is_followed_not_replaced(tmp_path: Path) -> None:
    plr.save(tmp_path / "real", gaussian_model())
    (tmp_path / "link").symlink_to(tmp_path / "real")
    model = gaussian_model()
    plr.save(tmp_path / "link", model)
    assert (tmp_path / "link").is_symlink()
    assert torch.equal(plr.load(tmp_path / "real")[0].dynamics.left, model.dynamics.left)


# --- what cannot be saved --------------------------------------------------------------------------------------------


class OwnGuide(plr.BootstrapGuide):
    """A guide of the user's."""


def own_activation() -> plr.StateSpaceModel:
    """Build a model with an activation that is a function."""
    return plr.StateSpaceModel(
        plr.LowRankRNN(rank=1, units=3, activation=SWISH), plr.GaussianObservation(rank=1, features=2)
    )


def with_prior() -> plr.StateSpaceModel:
    """Build a model with a prior in place of a parameter."""
    model = gaussian_model()
    model.dynamics.bias = PyroSample(dist.Normal(torch.zeros(6, dtype=torch.float64), 1.0).to_event(1))
    return model


def with_other_constraint() -> plr.StateSpaceModel:
    """Build a model whose decay is bounded otherwise."""
    model = gaussian_model()
    model.dynamics.decay = PyroParam(torch.tensor(0.8, dtype=torch.float64), constraints.interval(0.5, 1.0))
    return model


@pytest.mark.parametrize(
    ("build", "named"), [(own_activation, "swish"), (with_prior, "bias"), (with_other_constraint, "decay")]
)
def test_a_model_that_no_file_could_rebuild_is_refused(build: Any, named: str, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=f"(?s){named}.*load_state_dict"):
        plr.save(tmp_path / "m", build())
    assert not (tmp_path / "m").exists()


def test_classes_of_the_users_are_refused_with_what_to_do(tmp_path: Path) -> None:
    model = gaussian_model()
    with pytest.raises(TypeError, match=r"OwnGuide is not a class of this library.*state_dict"):
        plr.save(tmp_path / "m", model, OwnGuide(model))
    with pytest.raises(TypeError, match="must be a StateSpaceModel, got LowRankRNN"):
        plr.save(tmp_path / "m", model.dynamics)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="built for another model"):
        plr.save(tmp_path / "m", model, plr.OptimalGuide(gaussian_model()))


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="folder of .* does not exist"):
        plr.save(tmp_path / "no" / "m", gaussian_model())
    with pytest.raises(IsADirectoryError, match="is a folder"):
        plr.save(tmp_path, gaussian_model())


# --- what cannot be loaded -------------------------------------------------------------------------------------------


def rewritten(path: Path, *, metadata: dict[str, str] | None = None, edit: Any = None, drop: str = "") -> Path:
    """A saved model with its header or tensors changed, without a digest, as files of earlier releases are."""
    plr.save(path, gaussian_model(), None)
    with safe_open(path, framework="pt") as file:
        header = dict(file.metadata()) | (metadata or {})
        del header["digest"]
        tensors = {name: file.get_tensor(name) for name in file.keys() if name != drop}  # noqa: SIM118
    if edit is not None:
        configuration = json.loads(header["configuration"])
        edit(configuration, tensors)
        header["configuration"] = json.dumps(configuration)
    save_file(tensors, path, header)
    return path


def test_missing_and_foreign_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no file at"):
        plr.load(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match="a folder at"):
        plr.load(tmp_path)
    path = tmp_path / "m"
    for content in (b"", b"\x93NUMPY" + bytes(500), b"PK\x03\x04" + bytes(50)):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="truncated, damaged or of another kind"):
            plr.load(path)
    save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match="not one that `pyro_lowrank.save` wrote"):
        plr.load(path)


@pytest.mark.parametrize("kept", [0.01, 0.5, 0.999])
def test_truncated_files(kept: float, tmp_path: Path) -> None:
    path = tmp_path / "m"
    plr.save(path, gaussian_model())
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(ValueError, match="truncated"):
        plr.load(path)


def test_other_versions_and_damaged_headers(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="version 2, this library reads version 1"):
        plr.load(rewritten(tmp_path / "m", metadata={"version": "2"}))
    for configuration in ("{", "[]"):
        with pytest.raises(ValueError, match="damaged"):
            plr.load(rewritten(tmp_path / "m", metadata={"configuration": configuration}))
    with pytest.raises(ValueError, match="lacks 'model'"):
        plr.load(rewritten(tmp_path / "m", edit=lambda c, _: c.pop("model")))


def test_only_known_classes_are_built(tmp_path: Path) -> None:
    def rename(configuration: Any, _: Any) -> None:
        configuration["model"]["settings"]["dynamics"]["class"] = "Popen"

    with pytest.raises(ValueError, match="unknown class 'Popen'; known are"):
        plr.load(rewritten(tmp_path / "m", edit=rename))

    def reshuffle(configuration: Any, _: Any) -> None:
        configuration["model"] = configuration["model"]["settings"]["dynamics"]

    with pytest.raises(ValueError, match="no StateSpaceModel"):
        plr.load(rewritten(tmp_path / "m", edit=reshuffle))

    def misspell(configuration: Any, _: Any) -> None:
        configuration["model"]["settings"]["dynamics"]["settings"]["ranc"] = 2

    with pytest.raises(ValueError, match="ranc"):
        plr.load(rewritten(tmp_path / "m", edit=misspell))


def test_missing_unknown_and_misshapen_tensors(tmp_path: Path) -> None:
    name = "model.observation.readout.bias_unconstrained"
    with pytest.raises(ValueError, match=rf"'{name}'\] are missing"):
        plr.load(rewritten(tmp_path / "m", drop=name))
    with pytest.raises(ValueError, match=r"'model\.extra'\] are unknown"):
        plr.load(rewritten(tmp_path / "m", edit=lambda _, tensors: tensors.update({"model.extra": torch.zeros(1)})))
    with pytest.raises(ValueError, match=rf"'{name}' must have shape \(3,\), got \(4,\)"):
        plr.load(rewritten(tmp_path / "m", edit=lambda _, tensors: tensors.update({name: torch.zeros(4)})))


@pytest.mark.parametrize("dtype", [torch.int32, torch.bool])
def test_weights_are_floats(dtype: torch.dtype, tmp_path: Path) -> None:
    name = "model.observation.readout.bias_unconstrained"
    path = rewritten(tmp_path / "m", edit=lambda _, tensors: tensors.update({name: torch.zeros(3, dtype=dtype)}))
    with pytest.raises(ValueError, match=rf"'{name}' must hold floats, got {dtype}"):
        plr.load(path)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_weights_that_are_no_numbers_are_neither_saved_nor_loaded(value: float, tmp_path: Path) -> None:
    name = "model.dynamics.left_unconstrained"
    path = rewritten(tmp_path / "m", edit=lambda _, tensors: tensors[name].fill_(value))
    with pytest.raises(ValueError, match=rf"m does not hold .*{name} hold NaN or infinite"):
        plr.load(path)
    model = gaussian_model()
    with torch.no_grad():
        model.dynamics.left[0, 0] = value
    with pytest.raises(ValueError, match=rf"cannot be saved: {name} hold NaN or infinite numbers\. Fit it anew"):
        plr.save(tmp_path / "new", model)
    assert not (tmp_path / "new").exists()


def same(pair: Any, other: Any) -> bool:
    """Whether two models have the same parameters, all of them as frozen."""
    one, two = (list(model.named_parameters()) for model, _ in (pair, other))
    return all(
        n == m and torch.equal(p, q) and p.requires_grad == q.requires_grad
        for (n, p), (m, q) in zip(one, two, strict=True)
    )


def test_a_flipped_bit_is_noticed_wherever_it_is(tmp_path: Path) -> None:
    path, random = tmp_path / "m", np.random.default_rng(4)
    model = gaussian_model()
    plr.save(path, model, plr.OptimalGuide(model))
    whole = path.read_bytes()
    # The header from byte to byte, the numbers here and there.
    header = 8 + int.from_bytes(whole[:8], "little")
    places = [*range(0, header, 7), *random.integers(header, len(whole), 100).tolist()]
    harmless = 0
    for place in places:
        content = bytearray(whole)
        content[place] ^= 1 << int(random.integers(8))
        path.write_bytes(content)
        try:
            again = plr.load(path)
        except ValueError as error:
            assert str(path) in str(error)  # noqa: PT017 (below, where there is none)
        else:
            # Nothing of the numbers, and no more than spaces.
            assert place < header
            assert same(again, (model, None))
            harmless += 1
    assert harmless < 5


def test_a_file_without_a_digest_is_read_as_those_of_earlier_releases(tmp_path: Path) -> None:
    path = rewritten(tmp_path / "m")
    with safe_open(path, framework="pt") as file:
        assert file.metadata().keys() == {"format", "version", "configuration", "layout"}
    assert isinstance(plr.load(path)[0], plr.StateSpaceModel)
    with pytest.raises(ValueError, match="is damaged: what it holds is not what was written"):
        plr.load(rewritten(path, metadata={"digesu": "0" * 64}))
