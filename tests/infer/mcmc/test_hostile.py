"""What would end a chain, or spoil it: particles that go to infinity, priors that are none, starts that are dead."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import pytest
import torch
from pyro.infer import MCMC
from pyro.nn import PyroSample
from torch import Tensor

import pyro_lowrank as plr
from tests.infer.mcmc.test_kernels import KERNELS, data, gibbs, model_with_priors, run
from tests.oracles.linear import linear_model


class Cliff(plr.Dynamics):
    """Latents that are no number beyond an edge."""

    def __init__(self) -> None:
        super().__init__(rank=1, noise="scalar", noise_scale=0.5)

    def mean(self, z: Tensor, v: Tensor | None = None) -> Tensor:
        return torch.where(z > 1.5, torch.nan, 0.8 * z)


@pytest.mark.parametrize("sweep", ["ancestor", "backward"])
def test_particles_that_go_to_infinity_are_left_behind(sweep: str) -> None:
    model = plr.StateSpaceModel(Cliff(), plr.GaussianObservation(rank=1, features=2, noise_scale=1.0))
    sampled = plr.with_priors(model, only=["observation.readout.bias"])
    z = torch.zeros(4, 12, 1)
    kernel = gibbs(sampled, plr.BootstrapGuide(sampled), 20, sweep=sweep)
    start = {"observation.readout.bias": torch.zeros(2), "z": z}
    mcmc = MCMC(kernel, 10, 12, initial_params=start, disable_progbar=True)
    mcmc.run(torch.randn(4, 12, 2))
    draws = mcmc.get_samples()["z"]
    assert draws.isfinite().all()
    # Latents get close to the edge, and only a trial's last may be beyond.
    assert 1.0 < draws[:, :, :-1].max() <= 1.5
    found = mcmc.diagnostics()
    assert found["failed sweeps"]["chain 0"] == 0
    assert found["z_1 moved"]["chain 0"] > 0.5


def test_sweeps_that_fail_keep_the_latents(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_with_priors()
    y, u = data()
    kernel = gibbs(model, None, 10)
    kernel.setup(0, y, u)
    before = kernel.initial_params

    def fails(*args: Any, **options: Any) -> Any:
        raise torch.linalg.LinAlgError

    for smc in (kernel._smc, kernel._slow):
        monkeypatch.setattr(smc, "run", fails)
    after = kernel.sample(before)
    assert (after["z"] == before["z"]).all()
    assert kernel.diagnostics()["failed sweeps"] == 1


@pytest.mark.parametrize("kernel", KERNELS)
def test_improper_priors_are_told(kernel: Any) -> None:
    model = linear_model(dtype=torch.float32)
    flat = dist.ImproperUniform(dist.constraints.real, (), (7,))
    with pytest.raises(ValueError, match=r"'dynamics.bias', ImproperUniform, cannot be drawn from.*proper"):
        plr.with_priors(model, only=[], **{"dynamics.bias": flat})
    model.dynamics.bias = PyroSample(flat)
    with pytest.raises(ValueError, match="A prior cannot be drawn from, as improper ones cannot"):
        run(kernel(model, None, 10), torch.randn(2, 5, 4))


@pytest.mark.parametrize("kernel", KERNELS)
def test_priors_that_contradict_the_parameters_are_told(kernel: Any) -> None:
    model = linear_model(dtype=torch.float32)
    model.observation.noise_scale = PyroSample(dist.Normal(-torch.ones(4), 0.01).to_event(1))
    with pytest.raises(ValueError, match="priors contradict what parameters may be, such as negative scales"):
        run(kernel(model, None, 10), torch.randn(2, 5, 4))


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_parameter_without_prior_and_value_is_told(kernel: Any) -> None:
    model = linear_model(dtype=torch.float32)
    model.dynamics.bias = PyroSample(dist.Normal(torch.zeros(7), 1.0).to_event(1))
    with torch.no_grad():
        model.dynamics.left.fill_(torch.nan)
    with pytest.raises(ValueError, match="dynamics.left have neither a prior nor values that are numbers"):
        run(kernel(model, plr.BootstrapGuide(model), 10), torch.randn(2, 5, 4))


@pytest.mark.parametrize("kernel", KERNELS)
def test_more_particles_than_memory_are_told(kernel: Any) -> None:
    model, (y, u) = model_with_priors(), data()
    with pytest.raises(ValueError, match=r"particles of 3 trials x 6 time bins take .* GiB per chain.*at most"):
        run(kernel(model, None, 10**12), y, u)


@pytest.mark.parametrize("kernel", KERNELS)
def test_dead_starts_are_told(kernel: Any) -> None:
    model, (y, u) = model_with_priors(), data()
    dead = {"dynamics.left": torch.full((5, 2), 1e30), "dynamics.noise_scale": torch.zeros(2)}
    with pytest.raises(ValueError, match="No start was found: at the `initial_params`"):
        run(kernel(model, None, 10), y, u, initial_params=dead)


def test_the_conditional_filter_leaves_them_behind_too() -> None:
    model = plr.StateSpaceModel(Cliff(), plr.GaussianObservation(rank=1, features=2, noise_scale=1.0))
    smc = plr.SMCFilter(model, plr.BootstrapGuide(model), 200, backend="plain")
    posterior = smc.run(torch.randn(1, 10, 2), reference=torch.zeros(1, 10, 1))
    assert posterior.log_weights.exp().sum(1).allclose(torch.ones(10, 1), atol=1e-4)
