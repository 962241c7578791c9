"""Online steps with compiled proposals give the numbers of plain ones, for the same noise."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import pyro_lowrank as plr
from tests.smc.compiled.test_equals_plain import build, recording

pytest.importorskip("numba")


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(3)


def filtered(model: Any, guide: Any, y: Tensor, u: Tensor | None, backend: str) -> plr.SMCFilter:
    """A filter that has seen a recording time bin by time bin."""
    torch.manual_seed(7)
    smc = plr.SMCFilter(model, guide, 70, backend=backend, ess_threshold=0.6)
    for t in range(y.shape[1]):
        (smc.step if t else smc.init)(*(each[:, t] for each in (y, u) if each is not None))
    return smc


def assert_equal_online(model: Any, guide: Any, y: Tensor, u: Tensor | None = None) -> None:
    """Compare evidence, latents and weights after the last time bin."""
    compiled, plain = (filtered(model, guide, y, u, backend) for backend in ("compiled", "plain"))
    tolerance = 1e-9 if y.dtype == torch.float64 else 2e-4
    for found, expected in (
        (compiled.log_evidence, plain.log_evidence),
        (compiled.state["z"], plain.state["z"]),
        (compiled.log_weights, plain.log_weights),
    ):
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("emission", ["softplus", "exp", "currents"])
@pytest.mark.parametrize("missing", [False, True])
def test_for_laplace_proposals(emission: str, missing: bool) -> None:
    model = build(emission=emission)
    assert_equal_online(model, plr.LaplaceGuide(model), *recording(model, 0, missing=missing))


def test_for_laplace_proposals_with_inputs_and_gaussian_draws() -> None:
    model = build("relu", "diagonal", "softplus", inputs=2, input_filter=True)
    assert_equal_online(model, plr.LaplaceGuide(model, freedom=None), *recording(model, 2, missing=True))


def test_in_float32() -> None:
    # Few bins: a rounding error that moves one particle to another ancestor is not undone.
    model = build(emission="softplus", dtype=torch.float32)
    y, _ = recording(model, 0, missing=True)
    assert_equal_online(model, plr.LaplaceGuide(model), y[:, :3])


@pytest.mark.parametrize("emission", ["gaussian", "gaussian rates", "softplus", "exp", "currents", "rates"])
def test_for_bootstrap_proposals(emission: str) -> None:
    model = build("tanh", "diagonal", emission)
    assert_equal_online(model, plr.BootstrapGuide(model), *recording(model, 0, missing=True))


class Rounded(plr.Observation):
    """Seen to the next whole number."""

    def __init__(self) -> None:
        super().__init__(features=3)
        self.readout = plr.AffineReadout(rank=2, features=3, dtype=torch.float64)

    def distribution(self, z: Tensor, v: Tensor | None = None) -> Any:
        return dist.Normal(self.readout.bind(None)(z).round(), 1.0).to_event(1)


def test_what_has_no_compiled_form_is_refused_or_proposed_by_tensor_operations() -> None:
    model = plr.StateSpaceModel(build(noise="full").dynamics, Rounded())
    y = model.simulate(num_trials=3, num_steps=6).y
    guide = plr.EncoderGuide(model, plr.ConvEncoder(3, 2, (1,), (), dtype=torch.float64))
    with pytest.raises(plr.NoCompiledForm, match="Rounded has no compiled form"):
        filtered(model, guide, y, None, "compiled")
    auto, plain = (filtered(model, guide, y, None, backend) for backend in ("auto", "plain"))
    torch.testing.assert_close(auto.log_evidence, plain.log_evidence)


def test_threads_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(emission="softplus")
    y, _ = recording(model, 0, missing=False)
    one = filtered(model, plr.LaplaceGuide(model), y, None, "compiled")
    # Whatever number of threads this machine has.
    alone = [slice(b, b + 1) for b in range(len(y))]
    monkeypatch.setattr("pyro_lowrank.smc.compiled.run.chunks", lambda size, work: alone)
    two = filtered(model, plr.LaplaceGuide(model), y, None, "compiled")
    assert torch.equal(one.log_evidence, two.log_evidence)


def test_encoders_online_are_refused_or_left_to_tensor_operations() -> None:
    model = build(emission="softplus")
    y, _ = recording(model, 0, missing=False)
    guide = plr.EncoderGuide(model, plr.ConvEncoder(5, 2, (3, 1), (4,), dtype=torch.float64))
    with pytest.raises(plr.NoCompiledForm, match="online, tensor operations propose what an encoder reads"):
        filtered(model, guide, y, None, "compiled")
    auto, plain = (filtered(model, guide, y, None, backend) for backend in ("auto", "plain"))
    torch.testing.assert_close(auto.log_evidence, plain.log_evidence)
