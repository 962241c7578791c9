"""What both kernels take, what they leave behind, and what they say of bad input."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import MCMC
from pyro.nn import PyroSample
from torch import Tensor

import pyro_lowrank as plr
from tests.oracles.linear import linear_model


def gibbs(*args: Any, **options: Any) -> plr.ParticleGibbs:
    """Build the kernel with few gradients per draw: what it draws does not matter here."""
    return plr.ParticleGibbs(*args, max_tree_depth=2, **options)


KERNELS = [gibbs, plr.PMMH]


def model_with_priors(**options: Any) -> plr.StateSpaceModel:
    dynamics = plr.LowRankRNN(rank=2, units=5, inputs=1, noise="diagonal", **options)
    model = plr.StateSpaceModel(dynamics, plr.PoissonObservation(rank=2, features=3, inputs=1))
    model.dynamics.noise_scale = PyroSample(dist.LogNormal(-torch.ones(2), 0.3).to_event(1))
    model.dynamics.left = PyroSample(dist.Normal(torch.zeros(5, 2), 0.4).to_event(2))
    return model


def data(trials: int = 3, steps: int = 6) -> tuple[Tensor, Tensor]:
    y, u = torch.poisson(torch.ones(trials, steps, 3)), torch.randn(trials, steps, 1)
    y[0, 2] = y[1, 3, 1] = torch.nan
    y[2, -2:] = torch.nan
    return y, u


def run(kernel: Any, *args: Any, num_samples: int = 4, warmup_steps: int = 3, **options: Any) -> MCMC:
    mcmc = MCMC(kernel, num_samples, warmup_steps, disable_progbar=True, **options)
    mcmc.run(*args)
    return mcmc


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("guide", [None, plr.BootstrapGuide, plr.LaplaceGuide])
def test_counts_inputs_gaps_and_ragged_trials(kernel: Any, guide: Any) -> None:
    model = model_with_priors()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    y, u = data()
    mcmc = run(kernel(model, None if guide is None else guide(model), 20), y, u)
    draws = mcmc.get_samples()
    shapes = {name: tuple(value.shape) for name, value in draws.items()}
    assert shapes == {"dynamics.left": (4, 5, 2), "dynamics.noise_scale": (4, 2), "z": (4, 3, 6, 2)}
    assert (draws["dynamics.noise_scale"] > 0).all()
    assert all(value.isfinite().all() for value in draws.values())
    # The model, its other parameters and Pyro's store are as they were.
    assert list(pyro.get_param_store().keys()) == []
    assert all((value == before[name]).all() for name, value in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("kernel", KERNELS)
def test_what_the_parameter_store_holds_is_neither_read_nor_changed(kernel: Any) -> None:
    model = model_with_priors()
    draws = []
    for junk in (None, torch.tensor(5.0)):
        if junk is not None:
            pyro.param("dynamics.bias", torch.full((5,), 5.0))
        pyro.set_rng_seed(4)
        draws.append(run(kernel(model, None, 20), *data()).get_samples()["z"])
    assert (draws[0] == draws[1]).all()
    assert (pyro.param("dynamics.bias") == 5.0).all()


@pytest.mark.parametrize("kernel", KERNELS)
def test_seeds_fix_the_chains(kernel: Any) -> None:
    model, (y, u) = model_with_priors(), data()
    found = []
    for seed in (1, 1, 2):
        pyro.set_rng_seed(seed)
        found.append(run(kernel(model, None, 10), y, u).get_samples()["dynamics.left"])
    assert (found[0] == found[1]).all()
    assert (found[0] != found[2]).any()


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.filterwarnings("ignore:num_chains")
def test_chains_start_apart_and_are_exported(kernel: Any) -> None:
    pytest.importorskip("arviz")
    model, (y, u) = model_with_priors(), data()
    # More chains than there are processors run one after the other, here.
    mcmc = run(kernel(model, None, 10), y, u, num_chains=2, mp_context="fork")
    draws = mcmc.get_samples(group_by_chain=True)
    assert draws["z"].shape == (2, 4, 3, 6, 2)
    assert (draws["dynamics.left"][0] != draws["dynamics.left"][1]).all()
    exported: Any = plr.from_pyro(mcmc)
    assert exported["posterior"]["z"].shape == (2, 4, 3, 6, 2)
    assert exported["sample_stats"]["acceptance_rate"].shape == (2,)
    assert exported["log_likelihood"]["y"].shape[:3] == (2, 4, 3)
    assert mcmc.diagnostics()["acceptance rate"].keys() == {"chain 0", "chain 1"}


@pytest.mark.parametrize("kernel", KERNELS)
def test_chains_start_where_they_are_told(kernel: Any) -> None:
    model, (y, u) = model_with_priors(), data()
    start = {"dynamics.left": torch.full((5, 2), 0.1), "dynamics.noise_scale": torch.full((2,), -30.0)}
    mcmc = run(kernel(model, None, 10), y, u, num_samples=1, warmup_steps=0, initial_params=start)
    # With hardly any noise next to nothing is accepted, whatever moves.
    assert (mcmc.get_samples()["dynamics.noise_scale"] < 1e-3).all()
    with pytest.raises(ValueError, match=r"`initial_params` must hold.*'dynamics.left': \(5, 2\).*got"):
        run(kernel(model, None, 10), y, u, initial_params={"dynamics.left": torch.zeros(5, 2)})


@pytest.mark.parametrize("kernel", KERNELS)
def test_priors_that_depend_on_others_are_followed(kernel: Any) -> None:
    model = model_with_priors()
    model.dynamics.bias = PyroSample(lambda self: dist.Normal(self.left.sum(-1), 0.3).to_event(1))
    draws = run(kernel(model, None, 10), *data()).get_samples()
    assert set(draws) == {"dynamics.left", "dynamics.bias", "dynamics.noise_scale", "z"}


@pytest.mark.parametrize("kernel", KERNELS)
def test_models_that_cannot_be_sampled_are_told(kernel: Any) -> None:
    plain = linear_model()
    with pytest.raises(ValueError, match="No parameter of the model has a prior"):
        kernel(plain, plr.OptimalGuide(plain))
    with pytest.raises(TypeError, match="StateSpaceModel"):
        kernel(lambda y: y)
    with pytest.raises(TypeError, match=r"made from another model; make one from this, OptimalGuide\(model\)"):
        kernel(model_with_priors(), plr.OptimalGuide(plain))
    model = model_with_priors()
    with pytest.raises(ValueError, match="num_particles"):
        kernel(model, None, 0)
    y, u = data()
    with pytest.raises(ValueError, match="3 features in its last dim"):
        run(kernel(model, None, 10), y[..., :2], u)
    model.dynamics.decay = PyroSample(dist.Bernoulli(0.5))
    with pytest.raises(ValueError, match="'dynamics.decay' has a discrete prior"):
        run(kernel(model, None, 10), y, u)


@pytest.mark.parametrize("kernel", KERNELS)
def test_priors_of_another_type_are_told(kernel: Any) -> None:
    model = linear_model(dtype=torch.float64)
    model.dynamics.bias = PyroSample(dist.Normal(torch.zeros(7), 1.0).to_event(1))
    with pytest.raises(TypeError, match=r"prior of dynamics.bias.*float32"):
        run(kernel(model, plr.BootstrapGuide(model), 10), torch.randn(2, 5, 4, dtype=torch.float64))


@pytest.mark.parametrize("kernel", KERNELS)
def test_chains_without_a_start_are_told_before_the_warm_up(kernel: Any) -> None:
    model = linear_model(dtype=torch.float32)
    model.dynamics.bias = PyroSample(dist.Normal(torch.zeros(7), 1.0).to_event(1))
    with torch.no_grad():
        model.dynamics.left.mul_(torch.nan)
    with pytest.raises(ValueError, match="No start was found: at 100 draws of the prior"):
        run(kernel(model, plr.BootstrapGuide(model), 10), torch.randn(2, 5, 4))


def test_pmmh_rejects_where_the_filter_dies() -> None:
    model = linear_model(dtype=torch.float32)
    y = model.simulate(2, 5).y
    model.dynamics.bias = PyroSample(dist.Normal(torch.zeros(7), 1.0).to_event(1))
    kernel = plr.PMMH(model, plr.BootstrapGuide(model), 20, step_size=1e30)
    mcmc = run(kernel, y, num_samples=6, warmup_steps=0)
    assert mcmc.diagnostics()["acceptance rate"]["chain 0"] == 0.0
    assert len(mcmc.get_samples()["dynamics.bias"].unique(dim=0)) == 1


def test_bad_settings_are_told() -> None:
    model = model_with_priors()
    with pytest.raises(ValueError, match="`sweep` must be one of 'ancestor', 'backward'"):
        plr.ParticleGibbs(model, sweep="forward")
    with pytest.raises(ValueError, match="`num_particles` must be at least 2"):
        plr.ParticleGibbs(model, None, 1)
    with pytest.raises(ValueError, match="`target_accept_prob` must be below 1"):
        plr.PMMH(model, target_accept_prob=1.0)
    with pytest.raises(ValueError, match="`backend` must be one of 'auto', 'plain'"):
        plr.ParticleGibbs(model, backend="compiled")


def test_encoders_of_the_users_own_leave_nothing_in_the_store() -> None:
    model = linear_model(dtype=torch.float32)
    y = model.simulate(2, 5).y
    model.dynamics.bias = PyroSample(dist.Normal(torch.zeros(7), 1.0).to_event(1))
    guide = plr.EncoderGuide(model, plr.ConvEncoder(rank=2, features=4))
    run(gibbs(model, guide, 10), y)
    assert list(pyro.get_param_store().keys()) == []


def test_how_often_the_first_latents_move_is_told() -> None:
    model = model_with_priors()
    mcmc = run(gibbs(model, None, 20, num_sweeps=2), *data(), num_samples=10)
    assert 0.5 < mcmc.diagnostics()["z_1 moved"]["chain 0"] <= 1.0


class Own(plr.Dynamics):
    """Dynamics of the user's own, with a plain torch module."""

    def __init__(self) -> None:
        super().__init__(rank=2)
        self.net = torch.nn.Linear(2, 2)

    def mean(self, z: Tensor, v: Tensor | None = None) -> Tensor:
        return 0.8 * z + 0.1 * torch.tanh(self.net(z))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kernel", KERNELS)
def test_dynamics_of_the_users_own_are_sampled_without_a_warning(kernel: Any) -> None:
    model = plr.StateSpaceModel(Own(), plr.GaussianObservation(rank=2, features=3))
    y = model.simulate(2, 5).y
    sampled = plr.with_priors(model, only=["observation.readout.bias"])
    draws = run(kernel(sampled, plr.OptimalGuide(sampled), 10), y).get_samples()
    assert draws["observation.readout.bias"].shape == (4, 3)
    assert sampled.training
    assert list(pyro.get_param_store().keys()) == []
