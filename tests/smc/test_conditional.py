"""Conditional sequential Monte Carlo: the smoothing distribution is invariant, and every path moves.

Trials are copies of one recording, so that they are thousands of independent chains, which start from draws of the
exact smoothing distribution: an invariant law is one in which they still are after the kernel.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

import pyro_lowrank as plr
from pyro_lowrank.errors import NoCompiledForm
from pyro_lowrank.smc.kernels import bind
from pyro_lowrank.smc.loop import take
from pyro_lowrank.smc.plain import PlainKernel
from pyro_lowrank.smc.resampling import NoConditionalForm, PositionResampling, Resampler
from tests.oracles.linear import LinearSystem, linear_model, linear_system

SCHEMES = [plr.SystematicResampling(), plr.StratifiedResampling(), plr.MultinomialResampling()]
IDS = ["systematic", "stratified", "multinomial"]
CHAINS = 6000


def joint_smoother(system: LinearSystem, y: Tensor) -> torch.distributions.MultivariateNormal:
    """Return the exact law of one trial's latents, all time bins in one vector, from dense linear algebra."""
    num_steps, rank = y.shape[-2], system.transition.shape[0]
    # H z = b + noise: what each latent is but for what the one before makes of it.
    step = torch.eye(num_steps * rank, dtype=y.dtype)
    for t in range(1, num_steps):
        step[t * rank : (t + 1) * rank, (t - 1) * rank : t * rank] = -system.transition
    offset = system.transition_offset[0].clone()
    offset[0] = system.initial_mean.reshape(-1, rank)[0]
    noise = torch.block_diag(system.initial_noise, *[system.noise] * (num_steps - 1))
    seen = ~y.isnan().flatten()
    readout = torch.block_diag(*[system.readout] * num_steps)[seen]
    inverse = torch.linalg.inv(torch.block_diag(*[system.readout_noise] * num_steps)[seen][:, seen])
    residual = (y - system.readout_offset[0]).flatten()[seen]
    prior = step.mT @ torch.linalg.inv(noise)
    precision = prior @ step + readout.mT @ inverse @ readout
    linear = prior @ offset.flatten() + readout.mT @ inverse @ residual
    precision = 0.5 * (precision + precision.mT)
    return torch.distributions.MultivariateNormal(torch.linalg.solve(precision, linear), precision_matrix=precision)


def case(
    num_steps: int = 7, inputs: int = 0, dtype: torch.dtype = torch.float64
) -> tuple[Any, Tensor, Tensor | None, torch.distributions.MultivariateNormal]:
    """Return a model, one recording with gaps, its inputs, and the exact smoothing distribution."""
    model = linear_model(dtype=dtype, inputs=inputs, noise_scale=0.8)
    u = torch.randn(1, num_steps, inputs, dtype=dtype) if inputs else None
    y = model.simulate(1, num_steps, u).y
    y[0, 2] = y[0, 3, 1] = torch.nan
    # A ragged trial: its end is padding.
    y[0, num_steps - 1 :] = torch.nan
    with torch.no_grad():
        return model, y, u, joint_smoother(linear_system(model, num_steps, u), y[0])


def apply_kernel(smc: plr.SMCFilter, y: Tensor, u: Tensor | None, z: Tensor, method: str, **options: Any) -> Tensor:
    u = None if u is None else u.expand(len(z), -1, -1)
    return smc.run(y.expand(len(z), -1, -1), u, reference=z, **options).smooth(1, method=method)[0]


def check_moments(z: Tensor, exact: torch.distributions.MultivariateNormal) -> None:
    """Raise unless means and covariances of chains `chains x time x rank` are the exact ones, in standard errors."""
    flat, covariance = z.flatten(1).double(), exact.covariance_matrix.double()
    spread = covariance.diagonal()
    errors = (flat.mean(0) - exact.mean) / (spread / len(flat)).sqrt()
    assert errors.abs().max() < 4.5, errors
    outer = (spread[:, None] * spread + covariance.square()) / len(flat)
    errors = (torch.cov(flat.mT) - covariance) / outer.sqrt()
    # All covariances, so those of neighbouring bins among them: 105 numbers of a symmetric matrix.
    assert errors.abs().max() < 4.8, errors


def exact_draws(exact: torch.distributions.MultivariateNormal, rank: int = 2, chains: int = CHAINS) -> Tensor:
    return exact.sample((chains,)).unflatten(-1, (-1, rank))


@pytest.mark.parametrize("threshold", [0.6, 1.0], ids=["adaptive", "always"])
@pytest.mark.parametrize("method", ["ancestor", "backward", "genealogy"])
@pytest.mark.parametrize("scheme", SCHEMES, ids=IDS)
def test_the_smoothing_distribution_is_invariant(scheme: Resampler, method: str, threshold: float) -> None:
    model, y, _, exact = case()
    smc = plr.SMCFilter(model, plr.BootstrapGuide(model), 4, resampler=scheme, ess_threshold=threshold)
    z = exact_draws(exact)
    start = z
    for _ in range(2):
        smoother = "genealogy" if method != "backward" else "backward"
        z = apply_kernel(smc, y, None, z, smoother, ancestor_sampling=method == "ancestor")
    check_moments(z, exact)
    moved = (z != start).any(-1).double().mean(0)
    assert moved[-1] > 0.8
    assert moved.min() > (0.0 if method == "genealogy" else 0.3)


@pytest.mark.parametrize("threshold", [0.6, 1.0], ids=["adaptive", "always"])
def test_chains_from_far_away_reach_the_smoothing_distribution(threshold: float) -> None:
    model, y, _, exact = case()
    smc = plr.SMCFilter(model, plr.BootstrapGuide(model), 5, ess_threshold=threshold)
    z = exact_draws(exact) + 2.0
    with pytest.raises(AssertionError):
        check_moments(z, exact)
    for _ in range(15):
        z = apply_kernel(smc, y, None, z, "genealogy")
    check_moments(z, exact)


@pytest.mark.parametrize(
    ("guide", "inputs"),
    [
        pytest.param(guide, inputs, marks=[] if inputs == (guide in ("optimal", "laplace")) else pytest.mark.slow)
        for guide, inputs in itertools.product(("bootstrap", "optimal", "laplace", "encoder"), (0, 1))
    ],
)
def test_every_guide_and_inputs(guide: str, inputs: int, dtype: torch.dtype) -> None:
    model, y, u, exact = case(inputs=inputs, dtype=dtype)
    guides = {
        "bootstrap": plr.BootstrapGuide,
        "optimal": plr.OptimalGuide,
        "laplace": plr.LaplaceGuide,
        "encoder": lambda m: plr.EncoderGuide(m, plr.ConvEncoder(rank=2, features=4, dtype=dtype)),
    }
    smc = plr.SMCFilter(model, guides[guide](model), 5)
    z = exact_draws(exact)
    found = apply_kernel(smc, y, u, z, "genealogy")
    assert found.dtype == dtype
    assert (found != z).any(-1).double().mean() > 0.3
    check_moments(found, exact)


def test_without_resampling_it_is_importance_sampling_of_paths() -> None:
    model, y, _, exact = case(5)
    smc = plr.SMCFilter(model, plr.OptimalGuide(model), 5, resampler=plr.NoResampling())
    for sampling in (True, False):
        check_moments(apply_kernel(smc, y, None, exact_draws(exact), "genealogy", ancestor_sampling=sampling), exact)


def test_a_kernel_that_keeps_no_particle_fails_this_test() -> None:
    """The filter's own paths, of few particles and without a pinned one, are biased."""
    model, y, _, exact = case()
    with pytest.raises(AssertionError):
        check_moments(
            plr.SMCFilter(model, plr.BootstrapGuide(model), 4, backend="plain")
            .run(y.expand(CHAINS, -1, -1))
            .smooth(1, method="genealogy")[0],
            exact,
        )


class Careless(plr.SystematicResampling):
    """Puts the pinned particle in place of whichever came first: the others have not their law given it."""

    def conditional(self, log_weights: Tensor, random: Tensor, pinned: Tensor) -> tuple[Tensor, Tensor]:
        drawn, place = self.ancestors(log_weights, random), torch.zeros_like(pinned)
        assert drawn is not None
        return drawn.scatter(0, place[None], pinned[None]), place


def test_a_careless_conditional_form_fails_this_test() -> None:
    model, y, _, exact = case()
    smc = plr.SMCFilter(model, plr.BootstrapGuide(model), 3, resampler=Careless(), ess_threshold=1.0)
    z = exact_draws(exact)
    for _ in range(4):
        z = apply_kernel(smc, y, None, z, "genealogy")
    with pytest.raises(AssertionError):
        check_moments(z, exact)


def test_the_reference_is_a_path_of_the_run() -> None:
    model, y, _, exact = case()
    z = exact_draws(exact, chains=20)
    posterior = plr.SMCFilter(model, plr.BootstrapGuide(model), 6).run(
        y.expand(20, -1, -1), reference=z, ancestor_sampling=False
    )
    # The genealogy of the particle that ends where the reference ends is the reference, whole.
    last = (posterior.particles["z"][:, :, -1] == z[:, -1]).all(-1).long().argmax(0)
    for t in reversed(range(z.shape[1])):
        assert (posterior.particles["z"][last, torch.arange(20), t] == z[:, t]).all()
        last = posterior.ancestors[t][last, torch.arange(20)] if t else last


def update_rates(num_steps: int, **options: Any) -> Tensor:
    """Return how often the first latents move, over 40 chains of 2 sweeps."""
    torch.manual_seed(3)
    model = linear_model(noise_scale=0.8)
    y = model.simulate(1, num_steps).y.expand(40, -1, -1)
    smc = plr.SMCFilter(model, plr.OptimalGuide(model), 20, ess_threshold=1.0)
    z, moved = smc.run(y).smooth(1)[0], []
    for _ in range(2):
        new = smc.run(y, reference=z, **options).smooth(1, method="genealogy")[0]
        moved.append((new[:, 0] != z[:, 0]).any(-1).double().mean())
        z = new
    return torch.stack(moved).mean()


def test_ancestor_sampling_moves_the_first_latent() -> None:
    assert update_rates(200) > 0.85
    assert update_rates(200, ancestor_sampling=False) < 0.1


@pytest.mark.slow
def test_ancestor_sampling_moves_the_first_latent_of_long_recordings() -> None:
    assert update_rates(1000) > 0.85
    assert update_rates(1000, ancestor_sampling=False) < 0.05


def test_seeds_fix_the_run_and_other_trials_do_not_change_it() -> None:
    model, y, _, exact = case()
    z = exact_draws(exact, chains=3)
    smc = plr.SMCFilter(model, plr.OptimalGuide(model), 6)
    runs = []
    for _ in range(2):
        torch.manual_seed(5)
        runs.append(smc.run(y.expand(3, -1, -1), reference=z).particles["z"])
    assert (runs[0] == runs[1]).all()
    assert smc.run(y, reference=z[:1]).rerun().num_particles == 6


class WithoutConditionalForm(Resampler):
    def draw(self, num_steps: int, num_particles: int, batch: torch.Size, **factory: Any) -> Tensor:
        return torch.rand(num_steps, num_particles, *batch, **factory)

    def ancestors(self, log_weights: Tensor, random: Tensor) -> Tensor:
        return plr.MultinomialResampling().ancestors(log_weights, random)


class OwnPositions(PositionResampling):
    def draw(self, num_steps: int, num_particles: int, batch: torch.Size, **factory: Any) -> Tensor:
        return torch.rand(num_steps, num_particles, *batch, **factory)

    def positions(self, random: Tensor, num_particles: int) -> Tensor:
        return random.movedim(0, -1)


@pytest.mark.parametrize("scheme", [WithoutConditionalForm(), OwnPositions()])
def test_schemes_without_a_conditional_form_are_told(scheme: Resampler) -> None:
    model, y, _, exact = case()
    smc = plr.SMCFilter(model, plr.OptimalGuide(model), 6, resampler=scheme)
    with pytest.raises(NoConditionalForm, match=r"SystematicResampling\(\)"):
        smc.run(y, reference=exact_draws(exact, chains=1))
    smc.run(y)


def test_bad_references_are_told() -> None:
    model, y, _, exact = case()
    z = exact_draws(exact, chains=1)
    smc = plr.SMCFilter(model, plr.OptimalGuide(model), 6)
    with pytest.raises(ValueError, match=r"trials x time x rank, \(1, 7, 2\), got \(1, 6, 2\)"):
        smc.run(y, reference=z[:, :-1])
    with pytest.raises(ValueError, match=r"take one draw"):
        smc.run(y, reference=z[None])
    with pytest.raises(TypeError, match=r"must be a torch.Tensor"):
        smc.run(y, reference=z.tolist())
    with pytest.raises(TypeError, match="float32"):
        smc.run(y, reference=z.float())
    z[0, 3, 1] = torch.inf
    with pytest.raises(ValueError, match=r"not finite at index \(0, 3, 1\)"):
        smc.run(y, reference=z)


def test_what_cannot_be_compiled_is_told() -> None:
    model, y, _, exact = case()
    careless = plr.SMCFilter(model, plr.OptimalGuide(model), 6, resampler=Careless(), backend="compiled")
    with pytest.raises(NoCompiledForm, match="Careless"):
        careless.run(y, reference=exact_draws(exact)[:1])


@pytest.mark.parametrize("scheme", SCHEMES, ids=IDS)
@pytest.mark.parametrize("method", ["ancestor", "backward"])
def test_the_plain_loop_keeps_the_smoothing_distribution_too(scheme: Resampler, method: str) -> None:
    model, y, _, exact = case()
    smc = plr.SMCFilter(model, plr.BootstrapGuide(model), 4, resampler=scheme, ess_threshold=0.6, backend="plain")
    z = exact_draws(exact)
    smoother = "genealogy" if method != "backward" else "backward"
    check_moments(apply_kernel(smc, y, None, z, smoother, ancestor_sampling=method == "ancestor"), exact)


GUIDES: dict[str, Any] = {
    "bootstrap": plr.BootstrapGuide,
    "laplace": plr.LaplaceGuide,
    "laplace_gaussian": lambda model: plr.LaplaceGuide(model, freedom=None),
    "encoder": lambda model: plr.EncoderGuide(model, plr.ConvEncoder(rank=3, features=4, dtype=torch.float64)),
}


@pytest.mark.parametrize("scheme", [*SCHEMES, plr.NoResampling()], ids=[*IDS, "none"])
@pytest.mark.parametrize("guide", GUIDES)
def test_compiled_weights_are_those_of_the_densities(guide: str, scheme: Resampler) -> None:
    """Of every particle, so of the pinned one too, whose draw the compiled loop has to find."""
    dynamics = plr.LowRankRNN(rank=3, units=8, noise_scale=0.3, dtype=torch.float64)
    model = plr.StateSpaceModel(dynamics, plr.PoissonObservation(rank=3, features=4, dtype=torch.float64))
    y = model.simulate(3, 8).y
    y[0, 3] = y[1, 2, 1] = y[2, -2:] = torch.nan
    smc = plr.SMCFilter(model, GUIDES[guide](model), 5, resampler=scheme, backend="compiled", ess_threshold=0.7)
    z = model.simulate(3, 8).z
    posterior = smc.run(y, reference=z)
    assert (posterior.particles["z"] == z).all(-1).any(0).all()
    kernel = PlainKernel(bind(model, smc.guide, 5, 1), 5)
    carried = torch.full((5, 3), 1 / 5, dtype=y.dtype).log()
    for t, slice_t in enumerate(kernel.slices(kernel.pair.read(y))):
        latents, transition = posterior.particles["z"][:, :, t], kernel.pair.transition
        noise, mean = transition.initial_noise, transition.first_mean(None).expand_as(latents)
        if t:
            before = take(posterior.particles["z"][:, :, t - 1], posterior.ancestors[t], 2)
            noise, mean = transition.noise, transition.mean(before)
            kept = posterior.log_weights[t - 1].gather(0, posterior.ancestors[t])
            carried = torch.where(posterior.resampled[t], -math.log(5), kept)
        moved, bin_t = noise.log_prob(latents - mean), slice_t.bin
        proposed = kernel.pair.proposal.distribution(noise, mean, bin_t.encoding).log_prob(latents)
        weights = carried + bin_t.log_likelihood(kernel.pair.emission, latents) + moved - proposed
        total = weights.logsumexp(0)
        assert torch.allclose(weights - total, posterior.log_weights[t], atol=1e-9, rtol=0), t
        assert torch.allclose(total, posterior.log_evidence_increments[t], atol=1e-9, rtol=0)


def test_a_path_far_from_zero_is_weighed_to_the_digits_there_are() -> None:
    """With float32 and latents of thousands of noise scales: the draw that leads there is found by far probes."""
    dynamics = plr.LowRankRNN(rank=2, units=4, noise_scale=0.05, initial_scale=0.05, decay=0.99)
    model = plr.StateSpaceModel(dynamics, plr.GaussianObservation(rank=2, features=3))
    with torch.no_grad():
        model.dynamics.initial_mean.fill_(300.0)
        model.dynamics.right.zero_()
    y = model.simulate(50, 6).y
    smc, exact = (plr.SMCFilter(model, plr.OptimalGuide(model), 4, backend=b) for b in ("compiled", "plain"))
    z = exact.run(y).smooth(1)[0]
    ess = [each.run(y, reference=z).ess[0].mean() for each in (smc, exact)]
    assert abs(ess[0] - ess[1]) < 0.15


def test_models_of_the_users_own_are_told() -> None:
    from tests.smc.test_effects import Delegate

    model, y, _, exact = case()
    smc = plr.SMCFilter(Delegate(model), Delegate(plr.OptimalGuide(model)), 6)
    with pytest.raises(ValueError, match="StateSpaceModel"):
        smc.run(y, reference=exact_draws(exact, chains=1))


@pytest.mark.parametrize("freedom", [None, pytest.param(3.0, marks=pytest.mark.slow)], ids=["gaussian", "heavy_tails"])
def test_a_nonlinear_network_seen_through_counts(freedom: float | None) -> None:
    """Of few particles, from draws of a filter of many: the same means and covariances."""
    dynamics = plr.LowRankRNN(rank=2, units=8, noise="full", noise_scale=0.6, noise_freedom=freedom)
    model = plr.StateSpaceModel(dynamics, plr.PoissonObservation(rank=2, features=3))
    y = model.simulate(1, 5).y.expand(4000, -1, -1).clone()
    y[:, 2, 1] = torch.nan
    z = plr.SMCFilter(model, plr.LaplaceGuide(model), 120, backend="plain").run(y).smooth(1)[0]
    few = plr.SMCFilter(model, plr.BootstrapGuide(model), 4)
    moved = z
    for _ in range(4):
        moved = few.run(y, reference=moved).smooth(1, method="genealogy")[0]
    assert (moved != z).any(-1).double().mean() > 0.5
    # Moments of second order of bounded functions, so that heavy tails have their central limit.
    before, after = (each.flatten(1).double().tanh() for each in (z, moved))
    features = [torch.cat([x, x[:, :-2] * x[:, 2:], x.square()], 1) for x in (before, after)]
    error = (features[0].mean(0) - features[1].mean(0)) / ((features[0].var(0) + features[1].var(0)) / 4000).sqrt()
    assert error.abs().max() < 4.5, error
