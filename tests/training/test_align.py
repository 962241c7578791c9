"""A new session with the dynamics of an old model: what is frozen, what is trained, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import pyro_lowrank as plr
from tests.observations.test_sessions import encoder_guide, model_of, pooled


def aligned_of(model: plr.StateSpaceModel, guide: Any, y: Any, **options: Any) -> plr.AlignedSession:
    settings = {"num_steps": 3, "num_particles": 8, "learning_rate": 0.05, "progress": False, **options}
    return plr.align_session(model, guide, y, **settings)


@pytest.mark.parametrize("kind", ["encoder", "laplace", "bootstrap", "forward"])
def test_dynamics_and_shared_encoder_stay_bit_identical(kind: str, tmp_path: Path) -> None:
    model = model_of()
    _, recordings, _ = pooled(model)
    guides = {
        "encoder": encoder_guide(model),
        "laplace": plr.LaplaceGuide(model, num_iterations=3),
        "bootstrap": plr.BootstrapGuide(model),
        "forward": plr.ForwardPrediction(encoder_guide(model), horizon=2),
    }
    guide = guides[kind]
    before = {**model.state_dict(), **{f"guide.{k}": v for k, v in guide.state_dict().items()}}
    before = {name: value.clone() for name, value in before.items()}
    y = [trial[:, :3] for trial in recordings["monday"]]
    new = plr.PoissonObservation(rank=2, features=3)
    aligned = aligned_of(model, guide, y, observation=new)
    after = {**model.state_dict(), **{f"guide.{k}": v for k, v in guide.state_dict().items()}}
    assert all(torch.equal(value, before[name]) for name, value in after.items())
    assert all(
        torch.equal(value, before[f"dynamics.{name}"]) for name, value in aligned.model.dynamics.state_dict().items()
    )
    assert aligned.model.observation is new
    assert not any(parameter.requires_grad for parameter in aligned.model.dynamics.parameters())
    assert all(parameter.requires_grad for parameter in new.parameters())
    if kind in ("encoder", "forward"):
        trained = [name for name, parameter in aligned.guide.named_parameters() if parameter.requires_grad]
        assert sorted(trained) == ["encoder.inputs.0.bias_unconstrained", "encoder.inputs.0.weight_unconstrained"]
    assert type(aligned.guide) is (plr.EncoderGuide if kind == "forward" else type(guide))
    assert getattr(aligned.guide, "num_iterations", 3) == 3
    assert str(aligned).startswith("AlignedSession: 3 features\nFitResult: 3 of 3 steps")
    plr.save(tmp_path / "m", aligned.model, aligned.guide)
    again, _ = plr.load(tmp_path / "m")
    assert not any(parameter.requires_grad for parameter in again.dynamics.parameters())


def test_the_new_readout_is_trained_from_the_means_of_the_recording() -> None:
    model = model_of()
    y = torch.poisson(torch.full((5, 20, 3), 2.0))
    new = plr.PoissonObservation(rank=2, features=3)
    weight = new.readout.weight.detach().clone()
    aligned = aligned_of(model, plr.LaplaceGuide(model), y, observation=new, num_steps=5)
    assert aligned.result.evidence[-1] != aligned.result.evidence[0]
    assert not torch.equal(new.readout.weight, weight)
    assert new.readout.bias.min() > 1


def test_what_cannot_be_aligned_is_refused() -> None:
    model = model_of()
    y, new = torch.zeros(2, 5, 3), plr.PoissonObservation(rank=2, features=3)
    with pytest.raises(TypeError, match="`guide` must be a guide of this library, got int"):
        aligned_of(model, 3, y, observation=new)
    with pytest.raises(ValueError, match="built for another model"):
        aligned_of(model, plr.BootstrapGuide(model_of()), y, observation=new)
    with pytest.raises(ValueError, match="encoder of type SessionEncoder, or pass another guide.*got ConvEncoder"):
        aligned_of(model, plr.EncoderGuide(model, plr.ConvEncoder(7, 2)), y, observation=new)
    with pytest.raises(ValueError, match="must have 3 features"):
        aligned_of(model, plr.BootstrapGuide(model), torch.zeros(2, 5, 4), observation=new)
    with pytest.raises(ValueError, match="reads rank=3 latents, the dynamics have rank=2"):
        aligned_of(model, plr.BootstrapGuide(model), y, observation=plr.PoissonObservation(rank=3, features=3))
