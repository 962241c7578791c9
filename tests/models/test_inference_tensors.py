"""Data made under `torch.inference_mode`: fine where no gradient is taken, refused in words where one is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import pyro_lowrank as plr
from tests.infer.test_programs import UserModule
from tests.training.builders import pair, recording

MESSAGE = r"is an inference tensor, made under torch.inference_mode\(\).*`.clone\(\)`, made outside"


@pytest.fixture
def y() -> Tensor:
    with torch.inference_mode():
        return recording().clone()


def test_gradients_are_refused_and_clones_are_not(y: Tensor) -> None:
    model, guide = pair()
    users = UserModule()
    elbo = plr.SMC_ELBO(8)
    takers: tuple[Callable[[Tensor], Any], ...] = (
        model,
        elbo(model, guide),
        lambda y: elbo.log_evidence(model, guide, y),
        lambda y: elbo.loss_and_grads(users, None, y[..., :2]),
        lambda y: plr.fit(model, guide, y, num_steps=1, num_particles=4, progress=False),
    )
    for take in takers:
        with pytest.raises(ValueError, match=MESSAGE):
            take(y)
        take(y.clone())
    with torch.no_grad(), pytest.raises(ValueError, match=f"`y` {MESSAGE}"):
        takers[-1](y)


def test_without_gradients_they_give_the_same_numbers(y: Tensor) -> None:
    model, guide = pair()
    found = []
    for data in (y, y.clone()):
        torch.manual_seed(1)
        filtered = plr.SMCFilter(model, guide, 8).run(data)
        found.append((filtered.log_evidence.sum(), plr.SMC_ELBO(8).loss(model, guide, data)))
    assert found[0] == found[1]


def test_fits_and_parameters_under_inference_mode_are_refused() -> None:
    y = recording()
    model, guide = pair()
    with torch.inference_mode(), pytest.raises(RuntimeError, match="none under torch.inference_mode"):
        plr.fit(model, guide, y, num_steps=1, progress=False)
    with torch.inference_mode():
        model, guide = pair()
    with pytest.raises(ValueError, match=f"A parameter of the model or guide {MESSAGE}"):
        plr.fit(model, guide, y, num_steps=1, progress=False)
