"""Student-t transition noise: its density, its draws, and the evidence under every guide that serves it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from scipy import stats
from torch import Tensor

import pyro_lowrank as plr
from pyro_lowrank.dynamics.noise import GaussianNoise, StudentTNoise, noise_of
from tests.builders import assert_close, network, shaken
from tests.guides.test_laplace import evidence
from tests.oracles.quadrature import log_evidence_on_a_grid


def noise(kind: str, dtype: torch.dtype, freedom: float = 3.0) -> GaussianNoise:
    scale = {
        "scalar": torch.tensor(0.7),
        "diagonal": torch.tensor([0.7, 0.3]),
        "full": torch.tensor([[0.7, 0], [0.2, 0.3]]),
    }
    return noise_of(kind, 2, scale[kind].to(dtype), torch.tensor(freedom, dtype=dtype))


def model_of(
    dtype: torch.dtype = torch.float64, *, rank: int = 1, family: str = "poisson", freedom: float = 2.5, **options: Any
) -> plr.StateSpaceModel:
    dynamics = network(dtype, rank=rank, noise_freedom=freedom, noise_scale=0.4, **options)
    kinds: dict[str, Any] = {"poisson": plr.PoissonObservation, "gaussian": plr.GaussianObservation}
    observation = shaken(kinds[family](rank=rank, features=3, dtype=dtype), 0.2)
    if family == "gaussian":
        with torch.no_grad():
            observation.noise_scale = torch.full((3,), 0.8, dtype=dtype)
    return plr.StateSpaceModel(dynamics, observation)


def modest_encoder(model: plr.StateSpaceModel, kernel: tuple[int, ...] = (3, 1)) -> plr.EncoderGuide:
    rank, like = model.dynamics.rank, model.dynamics.right.dtype
    encoder = plr.ConvEncoder(3, rank, kernel, (4,), padding="centred", constant_variance=True, dtype=like)
    with torch.no_grad():
        # An untrained encoder that is sure of itself misleads the particles.
        encoder.log_variance.fill_(1.5)
    return plr.EncoderGuide(model, encoder)


@pytest.mark.parametrize("kind", ["scalar", "diagonal", "full"])
def test_density_is_scipys_multivariate_t(kind: str, dtype: torch.dtype) -> None:
    law = noise(kind, dtype)
    residual = 3 * torch.randn(20, 2, dtype=dtype)
    oracle = stats.multivariate_t([0, 0], law.spread.numpy(), df=3.0)
    expected = torch.as_tensor(oracle.logpdf(residual.numpy()))
    assert_close(law.log_prob(residual), expected, factor=5)
    assert_close(law.around(torch.zeros(2, dtype=dtype)).log_prob(residual), expected, factor=5)
    root = torch.linalg.inv(law.scale_tril)
    squared = (residual @ root.mT).square().sum(-1)
    kernel = law.log_kernel(squared.clone(), 2)
    assert_close(kernel - kernel[0], expected - expected[0], factor=20)


def test_draws_have_its_law() -> None:
    law = noise("full", torch.float64, freedom=5.0)
    draws = law.colour(torch.randn(200_000, 2, dtype=torch.float64))
    torch.testing.assert_close(torch.cov(draws.mT), law.covariance, rtol=0.1, atol=0)
    torch.testing.assert_close(law.covariance, law.spread * 5 / 3)
    white = torch.linalg.solve_triangular(law.scale_tril, draws.mT, upper=False)
    assert stats.kstest(white[0].numpy(), stats.t(5.0).cdf).pvalue > 1e-3
    # One weight for all latents: they jump together.
    assert torch.corrcoef(white.square().log())[0, 1] > 0.05
    assert noise("diagonal", torch.float64, freedom=2.0).covariance.diagonal().isinf().all()
    assert noise("diagonal", torch.float64, freedom=2.0).covariance[0, 1] == 0


def test_draws_carry_the_gradient_of_the_degrees_of_freedom() -> None:
    """E[log eta^2] = E[log chi^2_1] - digamma(nu / 2) + log(nu / 2)."""
    freedom = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    law = noise_of("scalar", 1, torch.tensor(1.0, dtype=torch.float64), freedom)
    eta = law.standard(torch.randn(200_000, 1, dtype=torch.float64))
    (found,) = torch.autograd.grad(eta.square().log().mean(), freedom)
    expected = 1 / freedom - 0.5 * torch.polygamma(1, 0.5 * freedom)
    torch.testing.assert_close(found, expected.detach(), rtol=0.02, atol=0)


def test_many_degrees_of_freedom_are_gaussian(dtype: torch.dtype) -> None:
    residual = torch.randn(20, 2, dtype=dtype)
    gaussian = noise_of("full", 2, noise("full", dtype).scale)
    torch.testing.assert_close(
        noise("full", dtype, 1e6).log_prob(residual), gaussian.log_prob(residual), rtol=0, atol=0.02
    )
    assert isinstance(noise("full", dtype), StudentTNoise)


def test_a_trajectorys_density_is_that_of_its_steps(dtype: torch.dtype) -> None:
    dynamics = network(dtype, noise_freedom=3.0)
    trajectory = dynamics.trajectory(6)
    z = trajectory.sample((4,))
    first = torch.distributions.MultivariateNormal(dynamics.initial_mean, dynamics.initial_covariance)
    expected = first.log_prob(z[:, 0])
    law = stats.multivariate_t(
        [0, 0], dynamics.transition().noise.spread.detach().numpy(), df=dynamics.noise_freedom.item()
    )
    steps = (z[:, 1:] - dynamics(z[:, :-1])).detach()
    expected = expected.detach() + torch.as_tensor(law.logpdf(steps.numpy())).sum(-1)
    assert_close(trajectory.log_prob(z).detach(), expected, factor=20)


@pytest.mark.parametrize("family", ["poisson", "gaussian"])
@pytest.mark.parametrize("guide", [plr.BootstrapGuide, plr.LaplaceGuide, modest_encoder])
def test_evidence_equals_quadrature(guide: Any, family: str) -> None:
    model = model_of(family=family)
    y = model.simulate(num_trials=3, num_steps=3).y.clone()
    y[1, 1, 0] = y[2, 2] = torch.nan
    exact = log_evidence_on_a_grid(model, y, half_width=30.0, points=2001)
    torch.testing.assert_close(evidence(model, guide(model), y, particles=5000), exact, rtol=0, atol=0.03)


@pytest.mark.parametrize("guide", [plr.BootstrapGuide, plr.LaplaceGuide, modest_encoder])
def test_the_evidence_is_unbiased(guide: Any) -> None:
    model = model_of()
    y = model.simulate(num_trials=1, num_steps=3).y
    exact = log_evidence_on_a_grid(model, y, half_width=30.0, points=2001)
    replicates = 20_000
    ratio = (plr.SMCFilter(model, guide(model), 4).run(y.expand(replicates, -1, -1)).log_evidence - exact).exp()
    assert (ratio.mean() - 1).abs() < 3.5 * ratio.std() / replicates**0.5


@pytest.mark.parametrize("guide", [plr.BootstrapGuide, plr.LaplaceGuide, modest_encoder])
def test_pyros_effects_give_the_same_evidence(guide: Any) -> None:
    """Pyro's own filter, and ours by tracing, weigh by the densities of the sites alone."""
    model = model_of(family="gaussian")
    y = model.simulate(num_trials=2, num_steps=3).y
    built = guide(model)

    class Traced(type(built)):  # type: ignore[misc]
        def step(self, *args: Any, **kwargs: Any) -> None:
            super().step(*args, **kwargs)

    traced = Traced(model, **built.settings())
    exact = log_evidence_on_a_grid(model, y, half_width=30.0, points=2001)
    found = plr.SMCFilter(model, traced, 50_000).run(y).log_evidence
    torch.testing.assert_close(found, exact, rtol=0, atol=0.1)


def test_smoothing_weighs_ancestors_by_its_density() -> None:
    """On one latent, a jump: smoothed moments against those on a grid of two steps."""
    model = model_of(family="gaussian")
    y = model.simulate(num_trials=1, num_steps=2).y
    posterior = plr.SMCFilter(model, plr.BootstrapGuide(model), 4000, resampler=plr.NoResampling()).run(y)
    first = posterior.smooth(4000)[:, 0, 0, 0]
    grid = torch.linspace(-30, 30, 4001, dtype=torch.float64).unsqueeze(-1)
    dynamics, observation = model.dynamics, model.observation
    with torch.no_grad():
        start = torch.distributions.Normal(dynamics.initial_mean, dynamics.initial_covariance[0].sqrt()).log_prob(grid)[
            :, 0
        ]
        start = start + observation.distribution(grid).log_prob(y[0, 0])
        step = torch.distributions.StudentT(
            dynamics.noise_freedom, dynamics(grid).mT, dynamics.noise_scale.reshape(-1)
        ).log_prob(grid)
        later = torch.logsumexp(step + observation.distribution(grid).log_prob(y[0, 1]).unsqueeze(-1), 0)
        weights = torch.softmax(start + later, 0)
        mean = (weights * grid[:, 0]).sum()
        scale = ((weights * (grid[:, 0] - mean).square()).sum()).sqrt()
    assert (first.mean() - mean).abs() < 0.1 * scale
    assert (first.std() / scale - 1).abs() < 0.1
    chain = posterior.smooth(4000, method="mcmc")[:, 0, 0, 0]
    assert (chain.mean() - mean).abs() < 0.15 * scale


def test_gradients_are_exact_and_reach_the_degrees_of_freedom() -> None:
    model = model_of(rank=2, family="gaussian")
    y = model.simulate(num_trials=2, num_steps=3).y
    guide = modest_encoder(model)
    elbo = plr.SMC_ELBO(3, resampler=plr.NoResampling(), gradient=plr.PathwiseGradient())(model, guide)
    name = "model.dynamics.noise_freedom_unconstrained"
    scale = "model.dynamics.noise_scale_unconstrained"

    def loss(freedom: Tensor, spread: Tensor) -> Tensor:
        torch.manual_seed(2)
        return torch.func.functional_call(elbo, {name: freedom, scale: spread}, (y,))

    start = [dict(elbo.named_parameters())[each].detach().clone().requires_grad_() for each in (name, scale)]
    first, second = torch.autograd.grad(loss(*start), start)
    assert first.abs() > 1e-6
    # A Gamma draw is made by rejection, so that no finite difference at one seed sees its gradient.
    direction = torch.randn_like(second)
    h = 1e-5
    numeric = (loss(start[0], start[1] + h * direction) - loss(start[0], start[1] - h * direction)) / (2 * h)
    torch.testing.assert_close((second * direction).sum(), numeric, rtol=1e-4, atol=1e-6)


def test_a_model_with_jumps_is_worth_more_on_data_with_jumps() -> None:
    heavy = model_of(family="gaussian", freedom=2.5)
    plain = model_of(family="gaussian", freedom=2.5)
    plain.load_state_dict(heavy.state_dict())
    with torch.no_grad():
        heavy.dynamics.noise_freedom = torch.tensor(2.5, dtype=torch.float64)
        plain.dynamics.noise_freedom = torch.tensor(200.0, dtype=torch.float64)
    y = heavy.simulate(num_trials=40, num_steps=40).y
    found = [plr.SMCFilter(model, modest_encoder(model), 500).run(y).log_evidence.sum() for model in (heavy, plain)]
    assert found[0] > found[1] + 20


def test_it_runs_in_pyro_and_is_saved(tmp_path: Path) -> None:
    model = model_of(torch.float32, rank=2)
    y = model.simulate(num_trials=3, num_steps=6).y
    before = model.dynamics.noise_freedom.item()
    guide = modest_encoder(model)
    pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), plr.SMC_ELBO(8)).step(y)
    assert model.dynamics.noise_freedom.item() != before
    pyro.clear_param_store()
    auto = AutoNormal(pyro.poutine.block(model, hide=[]))
    pyro.infer.SVI(model, auto, pyro.optim.Adam({"lr": 0.01}), pyro.infer.Trace_ELBO()).step(y)
    pyro.clear_param_store()
    plr.save(tmp_path / "m", model, guide)
    again, guide_again = plr.load(tmp_path / "m")
    losses = []
    for pair in ((model, guide), (again, guide_again)):
        torch.manual_seed(0)
        losses.append(plr.SMC_ELBO(8).loss(*pair, y))
    assert losses[0] == losses[1]
    posterior = plr.SMCFilter(model, guide, 50).run(y)
    assert posterior.forecast(5).z.shape == (100, 3, 5, 2)
    turned = model.change_basis(torch.tensor([[0.6, 0.8], [-0.8, 0.6]]))
    assert_close(turned.dynamics.noise_freedom.detach(), model.dynamics.noise_freedom.detach())
    full = plr.FullRankRNN(units=3, noise_freedom=5.0)
    assert full.settings()["noise_freedom"] is not None
    assert full.trajectory(4).sample((2,)).shape == (2, 4, 3)


def test_what_is_not_supported_says_so(caplog: pytest.LogCaptureFixture) -> None:
    model = model_of(torch.float32, family="gaussian")
    with pytest.raises(ValueError, match=r"OptimalGuide proposes for Gaussian transition noise.*BootstrapGuide"):
        plr.OptimalGuide(model)
    with pytest.raises(ValueError, match="noise_freedom"):
        plr.LowRankRNN(rank=1, units=3, noise_freedom=0.0)
    y = model.simulate(num_trials=2, num_steps=4).y
    reason = "Student-t transition noise has no compiled form"
    with pytest.raises(ValueError, match=reason):
        plr.SMCFilter(model, plr.BootstrapGuide(model), 5, backend="compiled").run(y)
    with caplog.at_level(logging.INFO, logger="pyro_lowrank"):
        from pyro_lowrank.smc import runs

        runs.say_once.cache_clear()
        plr.SMCFilter(model, plr.BootstrapGuide(model), 5).run(y)
    assert reason in caplog.text


def test_ancestors_are_weighed_by_one_density_however_many_there_are() -> None:
    model = model_of(rank=2, family="gaussian")
    posterior = plr.SMCFilter(model, plr.BootstrapGuide(model), 30, backend="plain").run(model.simulate(4, 6).y)
    transitions: Any = posterior.transitions
    before, after = ({"z": posterior.particles["z"][:, :, t]} for t in (2, 3))
    index = torch.randint(30, (30, 4))
    by_table, one_by_one = (transitions.chosen(2, before, uses)(index, after) for uses in (1000, 1))
    torch.testing.assert_close(by_table, one_by_one)
    noise = model.dynamics.transition().noise
    mean = model.dynamics(before["z"].gather(0, index.unsqueeze(-1).expand(-1, -1, 2)))
    exact = noise.log_prob(after["z"] - mean)
    torch.testing.assert_close(by_table - by_table.mean(), exact - exact.mean())
