"""The gradient along smoothed paths: the density that it differentiates, and the score that it estimates."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import pyro_lowrank as plr
from pyro_lowrank.smc.joint import log_joint, log_proposal
from pyro_lowrank.smc.pair import Pair, detached
from tests.builders import network, shaken
from tests.observations.test_families import model_of
from tests.oracles.linear import exact_log_evidence, linear_model
from tests.oracles.quadrature import log_evidence_on_a_grid


def with_gaps(y: Tensor) -> Tensor:
    """A recording with missing entries, a missing bin, and a trial that ends early."""
    y = y.clone()
    y[0, 1, 0] = y[1, 2] = y[-1, 3:] = torch.nan
    return y


def observation_of(kind: str, inputs: int) -> Any:
    if kind == "gaussian":
        return shaken(plr.GaussianObservation(rank=2, features=3, inputs=inputs, dtype=torch.float64))
    if kind == "rates":
        return plr.GaussianObservation(readout=plr.UnitReadout(units=6, source="rates", dtype=torch.float64))
    return shaken(plr.PoissonObservation(rank=2, features=3, inputs=inputs, dtype=torch.float64))


@pytest.mark.parametrize("kind", ["gaussian", "rates", "poisson"])
@pytest.mark.parametrize("inputs", [0, 2])
def test_log_joint_is_that_of_the_pyro_program(kind: str, inputs: int) -> None:
    dynamics = network(inputs=inputs, input_filter=inputs > 0, activation="tanh")
    model = plr.StateSpaceModel(dynamics, observation_of(kind, inputs))
    u = torch.randn(4, 6, inputs, dtype=torch.float64) if inputs else None
    y = model.simulate(4, 6, u).y
    y[0, 1, 0] = y[1, 2] = torch.nan
    pair = Pair.of(model, plr.BootstrapGuide(model))
    paths = torch.randn(3, 4, 6, 2, dtype=torch.float64)
    found = log_joint(pair, pair.read(y, u), paths, pair.transition.mean)
    expected = []
    for z in paths:
        trace = pyro.poutine.trace(pyro.poutine.condition(model, data={"z": z})).get_trace(y, u)
        trace.compute_log_prob()
        expected.append(trace.nodes["z"]["log_prob"] + trace.nodes["y"]["log_prob"])
    torch.testing.assert_close(found, torch.stack(expected).mean(0))


def test_what_comes_after_the_last_data_of_a_trial_does_not_count() -> None:
    model = linear_model()
    pair, z = Pair.of(model, plr.OptimalGuide(model)), torch.randn(2, 3, 6, 2, dtype=torch.float64)
    y = model.simulate(3, 6).y
    y[1, 4:] = torch.nan
    found = log_joint(pair, pair.read(y), z, pair.transition.mean)
    short = log_joint(pair, pair.read(y[1:2, :4]), z[:, 1:2, :4], pair.transition.mean)
    torch.testing.assert_close(found[1:2], short)


def test_log_proposal_is_the_density_that_particles_are_drawn_from() -> None:
    model = model_of("poisson softplus", rank=2)
    guide = plr.EncoderGuide(model, plr.ConvEncoder(3, 2, (3, 1), (4,), padding="centred", dtype=torch.float64))
    y = with_gaps(model.simulate(3, 5).y)
    pair = Pair.of(model, guide)
    data, z = pair.read(y), torch.randn(2, 3, 5, 2, dtype=torch.float64)
    means = pair.transition.mean(z[:, :, :-1])
    encoding, total = pair.proposal.encode(data.seen, None, first=True), torch.zeros(2, 3, dtype=torch.float64)
    found = log_proposal(pair, data, z, means, encoding)
    for t in range(5):
        noise = pair.transition.noise if t else pair.transition.initial_noise
        mean = means[:, :, t - 1] if t else pair.transition.first_mean().expand(2, 3, 2)
        density = pair.proposal.distribution(noise, mean, {name: value[:, t] for name, value in encoding.items()})
        total += density.log_prob(z[:, :, t]) * (data.last >= t)
    torch.testing.assert_close(found, total.mean(0))


def test_the_proposal_teaches_the_model_nothing() -> None:
    model = model_of("poisson softplus", rank=2)
    guide = plr.EncoderGuide(model, plr.ConvEncoder(3, 2, (1,), (), dtype=torch.float64))
    pair = Pair.of(model, guide, through_proposal=False)
    data, z = pair.read(model.simulate(3, 5).y), torch.randn(2, 3, 5, 2, dtype=torch.float64)
    encoding = pair.proposal.encode(data.seen, None, first=True)
    log_proposal(pair, data, z, pair.transition.mean(z[:, :, :-1]), encoding).sum().backward()
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(parameter.grad.abs().sum() > 0 for parameter in guide.parameters())
    assert detached(pair).transition.noise.scale.requires_grad is False


def score(model: plr.StateSpaceModel, value: Tensor) -> Tensor:
    """Return the gradient with respect to all parameters of the model, as one vector."""
    found = torch.autograd.grad(value, list(model.parameters()), allow_unused=True)
    pairs = zip(found, model.parameters(), strict=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in pairs])


@pytest.mark.parametrize(("guide_of", "rank"), [(plr.OptimalGuide, 2), (plr.BootstrapGuide, 1)])
def test_it_is_the_score_of_a_linear_model(guide_of: Any, rank: int) -> None:
    """Where each particle has many neighbours within the noise, so that paths have many ancestors to choose from."""
    model = linear_model(rank=rank, noise_scale=2.0 / rank)
    y = model.simulate(4, 6).y
    exact = score(model, exact_log_evidence(model, y).sum())
    elbo = plr.SMC_ELBO(1000, gradient=plr.FisherGradient(num_paths=50), backend="plain")
    found = torch.stack([-score(model, elbo.differentiable_loss(model, guide_of(model), y)) for _ in range(60)])
    error = (found.mean(0) - exact) / (found.std(0) / 60**0.5 + 1e-9)
    assert error.abs().max() < 4.5
    assert (found.mean(0) - exact).norm() < 0.1 * exact.norm()


@pytest.mark.parametrize("family", ["poisson exp", "bernoulli"])
def test_it_is_the_score_on_a_grid(family: str) -> None:
    """Where data are missing, too; the exact score by finite differences of the evidence by quadrature."""
    model = model_of(family, rank=1)
    y = with_gaps(model.simulate(3, 5).y.clamp(max=5.0))
    parameters = {name: model.get_parameter(name) for name in ("dynamics.initial_mean_unconstrained",)}
    parameters["dynamics.noise_scale_unconstrained"] = model.get_parameter("dynamics.noise_scale_unconstrained")
    elbo = plr.SMC_ELBO(2000, gradient=plr.FisherGradient(num_paths=200), backend="plain")
    losses = [elbo.differentiable_loss(model, plr.BootstrapGuide(model), y) for _ in range(20)]
    sizes = []
    for parameter in parameters.values():
        exact, flat, step = [], parameter.data.view(-1), 1e-4
        for i in range(flat.numel()):
            values = []
            for sign in (1, -1):
                flat[i] += sign * step
                values.append(log_evidence_on_a_grid(model, y).sum())
                flat[i] -= sign * step
            exact.append((values[0] - values[1]) / (2 * step))
        grads = [torch.autograd.grad(loss, parameter, retain_graph=True)[0].flatten() for loss in losses]
        found, expected = -torch.stack(grads), torch.stack(exact)
        error = found.std(0) / len(losses) ** 0.5
        assert ((found.mean(0) - expected).abs() < 4.5 * error).all()
        assert (error < 0.1).all()
        sizes.append(expected.abs().max())
    assert max(sizes) > 0.2


def test_a_bootstrap_filter_that_the_pathwise_gradient_misleads() -> None:
    """Of the noise of one latent: Fisher's is within a seventh of the score, pathwise is off by more than it."""
    model = linear_model(rank=1, features=3, noise_scale=0.5)
    y = model.simulate(10, 20).y
    noise = model.get_parameter("dynamics.noise_scale_unconstrained")
    guide = plr.BootstrapGuide(model)
    exact = torch.autograd.grad(exact_log_evidence(model, y).sum(), noise)[0].squeeze()
    found = {}
    for gradient in (plr.FisherGradient(), plr.PathwiseGradient()):
        elbo = plr.SMC_ELBO(64, gradient=gradient, backend="plain")
        grads = [torch.autograd.grad(-elbo.differentiable_loss(model, guide, y), noise)[0] for _ in range(40)]
        found[type(gradient).__name__] = torch.stack(grads).mean()
    size = exact.abs().clamp(min=10.0)
    assert (found["FisherGradient"] - exact).abs() < 0.15 * size
    assert (found["PathwiseGradient"] - exact).abs() > size


def test_padded_recordings_have_the_gradient_of_the_shorter_ones() -> None:
    """For the same random numbers: those of one time bin do not depend on how many come after it."""
    model = linear_model()
    guide = plr.OptimalGuide(model)
    y = model.simulate(1, 7).y
    found = []
    for data in (y, torch.cat([y, y.new_full((1, 5, y.shape[-1]), torch.nan)], 1)):
        torch.manual_seed(3)
        white = torch.randn(12, 20, 1, 2, dtype=torch.float64)
        uniform = torch.rand(12, 20, 1, dtype=torch.float64)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("pyro_lowrank.smc.plain.PlainKernel.draw_white", lambda _, steps, __, w=white: w[:steps])
            patch.setattr(torch, "rand", lambda steps, number, *_, u=uniform, **__: u[:steps, :number])
            loss = plr.SMC_ELBO(20, backend="plain").differentiable_loss(model, guide, data)
        found.append((loss.detach(), score(model, loss)))
    torch.testing.assert_close(*found)


def test_without_gradients_no_paths_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("paths were drawn")

    monkeypatch.setattr("pyro_lowrank.smc.runs.BuiltInRun.paths", refuse)
    model = linear_model()
    assert plr.SMC_ELBO(10, backend="plain").loss(model, plr.OptimalGuide(model), model.simulate(2, 4).y) != 0


class Written(nn.Module):
    """A user's pair member around a built-in one, whose parameters it holds."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner

    def init(self, state: Any, *args: Any, **kwargs: Any) -> Any:
        return self.inner.init(state, *args, **kwargs)

    def step(self, state: Any, *args: Any, **kwargs: Any) -> Any:
        return self.inner.step(state, *args, **kwargs)


class Encoding(Written):
    def encode(self, *args: Any) -> Any:
        return self.inner.encode(*args)


@pytest.mark.parametrize("num_particles", [60, pytest.param(300, marks=pytest.mark.slow)])
@pytest.mark.parametrize("guide_type", [plr.OptimalGuide, None])
def test_a_users_own_model_follows_the_exact_score(guide_type: Any, num_particles: int) -> None:
    model = linear_model(rank=1, noise_scale=1.0)
    y = model.simulate(6, 5).y
    exact = score(model, -exact_log_evidence(model, y).sum())
    guide = None if guide_type is None else Written(guide_type(model))
    written = Written(model)
    elbo = plr.SMC_ELBO(num_particles)
    found = torch.stack([score(model, elbo.differentiable_loss(written, guide, y)) for _ in range(25)])
    error = found.std(0) / 5
    assert ((found.mean(0) - exact).abs() < 4 * error + 0.05 * exact.abs().max()).all()
    assert exact.abs().max() > 1


def test_a_users_own_guide_learns_as_a_built_in_one() -> None:
    model = model_of("poisson softplus", rank=1)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        encoder = plr.ConvEncoder(3, 1, (2, 1), (2,), dtype=torch.float64)
    guide = plr.EncoderGuide(model, encoder)
    y = model.simulate(4, 4).y
    found = {}
    parameters = list(guide.parameters())
    for name, (a, b) in {"built in": (model, guide), "written": (Written(model), Encoding(guide))}.items():
        elbo = plr.SMC_ELBO(60, backend="plain")
        draws = []
        for _ in range(40):
            loss = elbo.differentiable_loss(a, b, y)
            draws.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)]))
        found[name] = torch.stack(draws)
    error = (sum(draws.var(0) for draws in found.values()) / 40).sqrt()
    difference = found["built in"].mean(0) - found["written"].mean(0)
    assert (difference.abs() <= 4 * error).all()
    assert (found["built in"].mean(0).abs() > 10 * error).sum() > 5


def test_parameters_of_the_model_learn_nothing_from_the_proposal() -> None:
    """A guide that reads the model's own parameters: its density must not pull at them."""
    model = linear_model(rank=1, noise_scale=1.0)
    y = model.simulate(3, 4).y

    class Both(Written):
        def __init__(self, inner: Any) -> None:
            super().__init__(inner)
            self.own = nn.Parameter(torch.zeros((), dtype=torch.float64))

    found = []
    for guide in (Written(plr.OptimalGuide(model)), Both(plr.OptimalGuide(model))):
        torch.manual_seed(3)
        loss = plr.SMC_ELBO(20).differentiable_loss(Written(model), guide, y)
        found.append(score(model, loss))
    torch.testing.assert_close(*found)


def test_what_cannot_be_run_along_paths_goes_along_the_particles(caplog: pytest.LogCaptureFixture) -> None:
    from pyro_lowrank.smc import runs

    runs.say_once.cache_clear()
    weight = torch.tensor(0.3, requires_grad=True)

    class Forgets:
        def init(self, state: Any, y: Tensor) -> None:
            self.move(state, torch.zeros(y.shape[0], 1), y)

        def step(self, state: Any, y: Tensor) -> None:
            self.move(state, state["z"], y)

        def move(self, state: Any, before: Tensor, y: Tensor) -> None:
            with pyro.plate("trials", y.shape[0], dim=-1):
                drawn = pyro.sample("z", dist.Normal(weight * before, 1.0).to_event(1))
                state["z"] = 2 * drawn
                pyro.sample("y", dist.Normal(state["z"], 1.0).to_event(1), obs=y)

    y = torch.randn(4, 5, 1)
    with pytest.raises(ValueError, match=r"does not keep the latent site 'z'.*gradient=PathwiseGradient\(\)"):
        plr.SMC_ELBO(9, gradient=plr.FisherGradient()).differentiable_loss(Forgets(), None, y)
    elbo, found = plr.SMC_ELBO(9), []
    with caplog.at_level("INFO", logger="pyro_lowrank"):
        elbo.differentiable_loss(Forgets(), None, y)
    assert (
        "Gradients are those along the particles (PathwiseGradient): The transition density of Forgets" in caplog.text
    )
    for each in (elbo, plr.SMC_ELBO(9, gradient=plr.PathwiseGradient())):
        torch.manual_seed(1)
        found.append(torch.autograd.grad(each.differentiable_loss(Forgets(), None, y), weight)[0])
    torch.testing.assert_close(*found)


def test_a_guide_that_makes_parameters_must_hold_them() -> None:
    class Made:
        def init(self, state: Any, y: Tensor) -> None:
            mean = pyro.param("made", torch.zeros(1))
            with pyro.plate("trials", y.shape[0], dim=-1):
                pyro.sample("z", dist.Normal(mean.expand(y.shape[0], 1), 1.0).to_event(1))

        step = init

    class Model:
        def init(self, state: Any, y: Tensor) -> None:
            with pyro.plate("trials", y.shape[0], dim=-1):
                state["z"] = pyro.sample("z", dist.Normal(torch.zeros(y.shape[0], 1), 1.0).to_event(1))
                pyro.sample("y", dist.Normal(state["z"], 1.0).to_event(1), obs=y)

        step = init

    pyro.clear_param_store()
    with pytest.raises(ValueError, match="Made makes parameters by `pyro.param`, made, and holds none"):
        plr.SMC_ELBO(9, gradient=plr.FisherGradient()).differentiable_loss(Model(), Made(), torch.randn(2, 3, 1))
