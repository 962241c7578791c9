"""The filter on another device than the CPU: what it holds lies there, and the loop over time never waits for it.

Where there is no such device, torch's fake tensors stand in for one. They have shapes and devices but no values; they
refuse operations between devices, and what asks for a value is counted.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import pyro_lowrank as plr

# Of the devices that torch knows by name, the one whose fake tensors can be indexed without a build for it.
DEVICE = torch.device("lazy:0")
aten = torch.ops.aten


class CountsWaits(FakeTensorMode):
    """Counts how often the host waits for a value, and answers that all is well: `all` is true, nothing is found."""

    def __init__(self) -> None:
        super().__init__()
        self.number, self.true = 0, []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is aten._local_scalar_dense.default:
            self.number += 1
            return any(args[0] is each for each in self.true)
        if func is aten.nonzero.default:
            self.number += 1
            return args[0].new_zeros(0, args[0].dim(), dtype=torch.int64)
        found = super().__torch_dispatch__(func, types, args, kwargs or {})
        if func.overloadpacket is aten.all:
            self.true.append(found)
        return found


def gaussian() -> plr.GaussianObservation:
    return plr.GaussianObservation(rank=2, features=5, device=DEVICE)


def poisson() -> plr.PoissonObservation:
    return plr.PoissonObservation(rank=2, features=5, device=DEVICE)


def encoder_guide(model: plr.StateSpaceModel) -> plr.EncoderGuide:
    with DEVICE:
        encoder = plr.ConvEncoder(features=5, rank=2, kernel_sizes=(3, 1), channels=(4,))
    return plr.EncoderGuide(model, encoder)


PAIRS: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "optimal": (gaussian, plr.OptimalGuide),
    "bootstrap": (poisson, plr.BootstrapGuide),
    "laplace": (poisson, plr.LaplaceGuide),
    "encoder": (poisson, encoder_guide),
}
SCHEMES: dict[str, dict[str, Any]] = {
    "always": {"ess_threshold": 1.0},
    "sometimes": {"ess_threshold": 0.5},
    "never": {"resampler": plr.NoResampling()},
    "score function": {"resampler": plr.MultinomialResampling(), "gradient": plr.ScoreFunctionGradient()},
}


def waits(pair: str, scheme: dict[str, Any], num_steps: int) -> int:
    """Train for one step; return how often the host waited."""
    observation, guide_of = PAIRS[pair]
    with CountsWaits() as counted:
        model = plr.StateSpaceModel(plr.LowRankRNN(rank=2, units=20, inputs=3, device=DEVICE), observation())
        guide = guide_of(model)
        y, u = torch.zeros(4, num_steps, 5, device=DEVICE), torch.zeros(4, num_steps, 3, device=DEVICE)
        loss = plr.SMC_ELBO(8, **scheme).differentiable_loss(model, guide, y, u)
        loss.backward()
        left: Tensor = model.dynamics.left.grad
        assert loss.device == left.device == DEVICE
    return counted.number


@pytest.fixture(scope="module", autouse=True)
def _what_waits_once_in_a_process() -> None:
    waits("bootstrap", SCHEMES["always"], 2)


@pytest.mark.parametrize(
    ("pair", "scheme"),
    [
        (p, s)
        if (p, s) == ("optimal", "score function") or s == "always"
        else pytest.param(p, s, marks=pytest.mark.slow)
        for p, s in itertools.product(PAIRS, SCHEMES)
    ],
)
def test_the_loop_over_time_never_waits_for_the_device(pair: str, scheme: str) -> None:
    # Some checks of the data come before it, and one for dead particles after it.
    assert waits(pair, SCHEMES[scheme], 2) == waits(pair, SCHEMES[scheme], 3) > 0


def test_what_waits_is_counted() -> None:
    with CountsWaits() as counted:
        x = torch.zeros(3, device=DEVICE)
        assert not (x > 0).any()
        assert (x == 0).all()
        assert x.nonzero().shape == (0, 1)
        with pytest.raises(RuntimeError, match="same device"):
            x + torch.zeros(3)
    assert counted.number == 3


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
def test_evidence_on_a_gpu_is_that_on_the_cpu() -> None:
    model = plr.StateSpaceModel(plr.LowRankRNN(rank=2, units=20), plr.GaussianObservation(rank=2, features=5))
    y = model.simulate(num_trials=20, num_steps=30).y
    found = {}
    for device in ("cpu", "cuda"):
        model.to(device)
        smc = plr.SMCFilter(model, plr.OptimalGuide(model), 1000)
        found[device] = torch.stack([smc.run(y.to(device)).log_evidence.cpu() for _ in range(10)])
    difference = found["cuda"].mean(0) - found["cpu"].mean(0)
    error = (sum(each.var(0) for each in found.values()) / 10).sqrt()
    assert (difference.abs() < 5 * error + 1e-3).all()
