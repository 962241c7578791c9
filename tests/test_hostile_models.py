"""A model file whose settings were changed is refused with its name, before anything of its size is built."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import pyro_lowrank as plr
from tests.test_serialization import MODELS, rewritten, same

SIZES = (("dynamics", "units"), ("dynamics", "rank"), ("dynamics", "inputs"), ("readout", "features"))


@pytest.mark.parametrize(("part", "size"), SIZES)
@pytest.mark.parametrize("number", [10**8, 10**18, 10**400])
def test_a_model_larger_than_its_file_is_not_built(part: str, size: str, number: int, tmp_path: Path) -> None:
    def enlarge(configuration: Any, _: Any) -> None:
        settings = configuration["model"]["settings"]
        owner = settings["dynamics"] if part == "dynamics" else settings["observation"]["settings"]["readout"]
        owner["settings"] |= {size: number} if size != "rank" else {"rank": number, "units": number}

    path = rewritten(tmp_path / "m", edit=enlarge)
    started = time.process_time()
    with pytest.raises(ValueError, match="m does not hold .* describes larger tensors than the file has, which are of"):
        plr.load(path)
    assert time.process_time() - started < 0.5


def nodes(tree: Any) -> list[tuple[Any, Any]]:
    """Every place in a JSON tree: a dict or list, and the key there."""
    places = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [place for key, item in places for place in [(tree, key), *nodes(item)]]


VALUES = [None, True, -1, 0, 0.5, 3, 10**9, 1e308, "", "relu", [], [1, [2]], {}, {"class": []}, {"class": "GRUEncoder"}]
VALUES += [{"mapping": 3}, {"activation": {}}, {"piecewise_linear": {"knots": 1}}, {"class": "HeldIn", "settings": []}]


@pytest.mark.parametrize("build", MODELS.values(), ids=MODELS)
def test_every_changed_configuration_is_one_error_with_the_name(build: Any, tmp_path: Path) -> None:
    model = build(torch.float32)
    plr.save(tmp_path / "m", model, plr.BootstrapGuide(model))
    with safe_open(tmp_path / "m", framework="pt") as file:
        header = dict(file.metadata())
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    del header["digest"]
    refused = 0
    for number in range(len(nodes(json.loads(header["configuration"])))):
        for value in VALUES[number % 5 :: 5]:
            configuration = json.loads(header["configuration"])
            owner, key = nodes(configuration)[number]
            owner[key] = value
            save_file(tensors, tmp_path / "m", header | {"configuration": json.dumps(configuration)})
            try:
                plr.load(tmp_path / "m")
            except ValueError as error:
                assert str(tmp_path / "m") in str(error)  # noqa: PT017 (some changes make another model)
                refused += 1
    assert refused > 100


def test_headers_of_any_depth_are_one_error(tmp_path: Path) -> None:
    for name in ("configuration", "layout"):
        for text in ("[" * 100_000 + "]" * 100_000, "3", "null", '{"model.dynamics.left_unconstrained": 3}'):
            with pytest.raises(ValueError, match="m (is damaged|does not hold)"):
                plr.load(rewritten(tmp_path / "m", metadata={name: text}))
    deep = '{"class": "ForwardPrediction", "settings": {"horizon": 2, "guide": ' * 5000 + "null" + "}}" * 5000
    with pytest.raises(ValueError, match="m (is damaged|does not hold)"):
        plr.load(rewritten(tmp_path / "m", metadata={"configuration": '{"model": ' + deep + "}"}))


def test_parameters_that_are_to_be_frozen_are_its_own(tmp_path: Path) -> None:
    for frozen in ("all", 3, [3], [["model"]], ["model.dynamics.lef"]):
        path = rewritten(tmp_path / "m", edit=lambda c, _: c.update(frozen=frozen))  # noqa: B023
        with pytest.raises(ValueError, match="m does not hold .*(to be frozen|unhashable)"):
            plr.load(path)


@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("activation", ["relu", "clipped_relu", "tanh"])
def test_the_bound_on_sizes_is_far_from_what_models_need(rank: int, activation: str, tmp_path: Path) -> None:
    readout = plr.AffineReadout(rank=rank, features=1)
    dynamics = plr.LowRankRNN(rank=rank, units=4096, activation=activation)
    model = plr.StateSpaceModel(dynamics, plr.PoissonObservation(readout=readout))
    plr.save(tmp_path / "m", model, plr.LaplaceGuide(model))
    assert same(plr.load(tmp_path / "m"), (model, None))


@pytest.mark.parametrize("value", [float("nan"), 1, 2**31, "yes", None, [0]])
def test_what_is_on_or_off_is_one_of_the_two(value: Any, tmp_path: Path) -> None:
    for flag in ("train_weight", "train_bias"):

        def edit(configuration: Any, _: Any, flag: str = flag) -> None:
            configuration["model"]["settings"]["observation"]["settings"]["readout"]["settings"][flag] = value

        with pytest.raises(ValueError, match=rf"m does not hold .*`{flag}` must be true or false, got"):
            plr.load(rewritten(tmp_path / "m", edit=edit))
