"""Dynamics of the user's own: where they repeat a network's drift, everything is that network's."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Predictive
from pyro.nn import PyroSample
from pyro.optim import Adam
from torch import Tensor, nn

import pyro_lowrank as plr
from tests.builders import assert_close, network, shaken

BACKENDS = ("plain", "auto")


class Repeated(plr.Dynamics):
    """A network's drift, as somebody else would write it; its parameters are the network's."""

    def __init__(self, like: plr.LowRankRNN) -> None:
        super().__init__(
            rank=like.rank,
            inputs=like.num_inputs,
            noise=like.noise_kind,
            noise_freedom=4.0 if like.heavy_tailed else None,
            dtype=like.left.dtype,
        )
        self.left, self.right, self.bias = (
            nn.Parameter(getattr(like, n).detach().clone()) for n in ("left", "right", "bias")
        )
        self.input_weights = nn.Parameter(like.input_weights.detach().clone())
        self.leak = nn.Parameter(like.decay.detach().clone())
        with torch.no_grad():
            for name in ("initial_mean", "noise_scale", "initial_noise_scale"):
                setattr(self, name, getattr(like, name).clone())

    def mean(self, z: Tensor, v: Tensor | None = None) -> Tensor:
        current = z @ self.left.mT
        if v is not None:
            # Leading dims are the same, or this would fail.
            current = current + torch.cat([z, v], -1)[..., z.shape[-1] :] @ self.input_weights.mT
        return self.leak * z + torch.tanh(current - self.bias) @ self.right.mT


def pair(
    observation: str = "gaussian", dtype: torch.dtype = torch.float64, inputs: int = 0, **options: Any
) -> tuple[plr.StateSpaceModel, plr.StateSpaceModel]:
    """A network and its repetition, seen in the same way."""
    built_in = network(dtype, activation="tanh", inputs=inputs, **options)
    if inputs:
        # The first input also moves a network's first latent, which other dynamics do not know of.
        with torch.no_grad():
            built_in.initial_noise_scale = 0.3 * torch.eye(2, dtype=dtype)
    kinds: dict[str, Any] = {"gaussian": plr.GaussianObservation, "poisson": plr.PoissonObservation}
    seen = shaken(kinds[observation](rank=2, features=4, dtype=dtype))
    model = plr.StateSpaceModel(built_in, seen)
    twin = kinds[observation](rank=2, features=4, dtype=dtype)
    twin.load_state_dict(seen.state_dict())
    return model, plr.StateSpaceModel(Repeated(built_in), twin)


def guide_of(name: str, model: plr.StateSpaceModel) -> Any:
    if name == "encoder":
        encoder = plr.ConvEncoder(4, 2, (3, 1), (4,), dtype=model.observation.readout.weight.dtype)
        return plr.EncoderGuide(model, encoder)
    return {"optimal": plr.OptimalGuide, "laplace": plr.LaplaceGuide, "bootstrap": plr.BootstrapGuide}[name](model)


@pytest.mark.parametrize(
    ("backend", "dtype"),
    # In float32 rounding, which differs between compiled and torch's tanh, turns resampling decisions over.
    [("plain", torch.float32), ("plain", torch.float64), ("auto", torch.float64)],
)
@pytest.mark.parametrize("name", ["optimal", "bootstrap", "laplace", "encoder"])
def test_evidence_paths_and_gradients_are_the_networks(name: str, backend: str, dtype: torch.dtype) -> None:
    model, own = pair("gaussian" if name == "optimal" else "poisson", dtype)
    y = model.simulate(3, 12).y.clone()
    y[1, 8:] = torch.nan
    y[0, 3, 1] = torch.nan
    guide, own_guide = guide_of(name, model), guide_of(name, own)
    if name == "encoder":
        own_guide.load_state_dict(guide.state_dict())
    found = []
    for each, its_guide in ((model, guide), (own, own_guide)):
        pyro.set_rng_seed(3)
        posterior = plr.SMCFilter(each, its_guide, 20, backend=backend).run(y)
        smoothed = posterior.smooth(5)
        forecast = posterior.forecast(4, num_draws=6)
        pyro.set_rng_seed(4)
        loss = plr.SMC_ELBO(20, backend=backend)(each, its_guide)(y)
        loss.backward()
        found.append((posterior.log_evidence, posterior.ess, smoothed, forecast.y, loss.detach()))
    for ours, theirs in zip(found[1], found[0], strict=True):
        assert_close(ours, theirs, factor=20)
    for part in ("left", "right", "bias", "initial_mean", "noise_scale", "initial_noise_scale"):
        ours, theirs = (_stored(each.dynamics, part).grad for each in (own, model))
        assert_close(ours, theirs, factor=200)


def _stored(module: nn.Module, name: str) -> Any:
    return module._parameters.get(name, module._parameters.get(f"{name}_unconstrained"))


@pytest.mark.parametrize("backend", BACKENDS)
def test_inputs_have_the_leading_dims_of_latents(backend: str) -> None:
    model, own = pair(inputs=3)
    u = torch.randn(3, 10, 3, dtype=torch.float64)
    # A network's first latent starts at the projection of the first input.
    u[:, 0] = 0.0
    y = model.simulate(u=u).y
    found = []
    for each in (model, own):
        pyro.set_rng_seed(5)
        posterior = plr.SMCFilter(each, plr.OptimalGuide(each), 15, backend=backend).run(y, u)
        forecast = posterior.forecast(3, u[:, :3], num_draws=4)
        trajectory = each.dynamics.trajectory(10, u)
        z = torch.ones(7, 3, 10, 2, dtype=torch.float64)
        found.append((posterior.log_evidence, posterior.smooth(4), forecast.z, trajectory.log_prob(z)))
    for ours, theirs in zip(found[1], found[0], strict=True):
        assert_close(ours, theirs, factor=20)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["optimal", "bootstrap"])
def test_online_steps_equal_a_run(name: str, backend: str) -> None:
    _, own = pair("gaussian" if name == "optimal" else "poisson")
    y = own.simulate(2, 6).y
    pyro.set_rng_seed(6)
    smc = plr.SMCFilter(own, guide_of(name, own), 4000, backend=backend)
    smc.init(y[:, 0])
    for t in range(1, 6):
        smc.step(y[:, t])
    whole = plr.SMCFilter(own, guide_of(name, own), 4000, backend=backend).run(y)
    assert (smc.log_evidence - whole.log_evidence).abs().max() < 0.2


def test_heavy_tails_run_on_tensors() -> None:
    model, own = pair("poisson", noise_freedom=3.0)
    with torch.no_grad():
        own.dynamics.noise_freedom = model.dynamics.noise_freedom.clone()
    y = model.simulate(2, 8).y
    found = []
    for each in (model, own):
        pyro.set_rng_seed(7)
        found.append(plr.SMCFilter(each, plr.BootstrapGuide(each), 30).run(y).log_evidence)
    assert_close(found[1], found[0], factor=20)


def test_a_subclass_of_a_network_that_moves_otherwise_is_its_own() -> None:
    class Slower(plr.LowRankRNN):
        def mean(self, z: Tensor, v: Tensor | None = None) -> Tensor:
            return 0.5 * super().mean(z, v)

    dynamics = Slower(rank=2, units=8, dtype=torch.float64)
    z = torch.randn(5, 2, dtype=torch.float64)
    like = plr.LowRankRNN(rank=2, units=8, dtype=torch.float64)
    like.load_state_dict(dynamics.state_dict())
    for found in (dynamics(z), dynamics.transition().mean(z), dynamics.mean(z)):
        assert_close(found, 0.5 * like(z))
    with pytest.raises(TypeError, match="knows networks of units, not a `mean` of your own"):
        dynamics.fixed_points()


class Linear(plr.Dynamics):
    """A torch module as the drift."""

    def __init__(self, rank: int = 2, **options: Any) -> None:
        super().__init__(rank=rank, **options)
        self.layer = nn.Linear(rank, rank)

    def mean(self, z: Tensor, v: Tensor | None = None) -> Tensor:
        return self.layer(z)


def linear_model() -> plr.StateSpaceModel:
    pyro.clear_param_store()
    return plr.StateSpaceModel(Linear(), plr.GaussianObservation(rank=2, features=6))


@pytest.mark.slow
def test_fit_finds_a_rotation() -> None:
    teacher = linear_model()
    angle = torch.tensor(0.3)
    turn = 0.97 * torch.stack([torch.stack([angle.cos(), -angle.sin()]), torch.stack([angle.sin(), angle.cos()])])
    with torch.no_grad():
        teacher.dynamics.layer.weight.copy_(turn)
        teacher.dynamics.layer.bias.zero_()
        teacher.observation.noise_scale = torch.full((6,), 0.2)
    y = teacher.simulate(30, 60).y
    student = linear_model()
    plr.initialise_from_data(student, y)
    plr.fit(
        student,
        plr.OptimalGuide(student),
        y,
        num_steps=200,
        num_particles=10,
        learning_rate=0.1,
        final_learning_rate=0.01,
        progress=False,
    )
    found = torch.linalg.eigvals(student.dynamics.layer.weight.detach())
    # The latents' basis is free, the eigenvalues are not.
    torch.testing.assert_close(found.abs(), torch.full((2,), 0.97), atol=0.02, rtol=0)
    torch.testing.assert_close(found.angle().abs(), torch.full((2,), 0.3), atol=0.02, rtol=0)


def test_svi_trains_what_mean_reads() -> None:
    y = linear_model().simulate(4, 6).y
    again = linear_model()
    before = {name: value.detach().clone() for name, value in again.named_parameters()}
    SVI(again, plr.OptimalGuide(again), Adam({"lr": 0.01}), loss=plr.SMC_ELBO(8)).step(y)
    assert all(not torch.equal(value, before[name]) for name, value in again.named_parameters())


def test_as_a_pyro_program_with_priors_of_its_parameters() -> None:
    class Leak(plr.Dynamics):
        def mean(self, z: Tensor, v: Tensor | None = None) -> Tensor:
            return self.leak.unsqueeze(-1) * z

    dynamics = Leak(rank=2)
    dynamics.leak = PyroSample(dist.Beta(2.0, 2.0))
    model = plr.StateSpaceModel(dynamics, plr.GaussianObservation(rank=2, features=3))
    draws = Predictive(model, num_samples=7, parallel=True)(num_trials=3, num_steps=5)
    assert draws["y"].shape == (7, 3, 5, 3)
    with pyro.poutine.trace() as tracer, pyro.plate("many", 7, dim=-2):
        assert dynamics.transition().batch_shape == (7, 1)
    assert tracer.trace.nodes["dynamics.leak"]["value"].shape == (7, 1)


def test_what_does_not_fit_is_told() -> None:
    class Short(plr.Dynamics):
        def mean(self, z: Tensor, v: Tensor | None = None) -> Tensor:
            return z[..., :1]

    model = plr.StateSpaceModel(Short(rank=2), plr.GaussianObservation(rank=2, features=3))
    with pytest.raises(
        ValueError,
        match=r"`mean` must return the next latents, of the shape of those that it is given, \(2,\), got \(1,\)",
    ):
        model.simulate(2, 5)
    with pytest.raises(ValueError, match="4 features and 0 units of Short"):
        plr.StateSpaceModel(Short(rank=2), plr.GaussianObservation(readout=plr.UnitReadout(units=4)))
    nothing = plr.StateSpaceModel(plr.Dynamics(rank=2), plr.GaussianObservation(rank=2, features=3))
    with pytest.raises(ValueError, match="got NoneType"):
        nothing.simulate(2, 5)
    with pytest.raises(TypeError, match="Only a LowRankRNN"):
        model.orthogonalise()
