"""The compiled filter gives the plain one's numbers, and the gradient of every parameter, for the same noise."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest
import torch
from torch import Tensor

import pyro_lowrank as plr

pytest.importorskip("numba")

TRIALS, TIME, UNITS, RANK, FEATURES, PARTICLES = 3, 12, 21, 2, 5, 9
OTHERS = ["binomial softplus", "binomial exp", "bernoulli", "student"]
LEAKY = plr.PiecewiseLinear(knots=(-0.5, 0.5), slopes=(0.1, 1.0, 0.2), bias_gains=(1.0, 0.5), name="kinked")
STRAIGHT = plr.PiecewiseLinear(knots=(), slopes=(0.5,), name="straight")


def observation(kind: str, inputs: int, dtype: torch.dtype) -> Any:
    shape: dict[str, Any] = {"rank": RANK, "inputs": inputs, "dtype": dtype}
    if kind == "gaussian":
        return plr.GaussianObservation(features=FEATURES, **shape)
    if kind == "gaussian rates":
        return plr.GaussianObservation(readout=plr.UnitReadout(units=UNITS, source="rates", dtype=dtype), dtype=dtype)
    if kind in ("currents", "rates"):
        return plr.PoissonObservation(readout=plr.UnitReadout(units=UNITS, source=kind, scale=0.5, dtype=dtype))
    family, _, link = kind.partition(" ")
    if family == "binomial":
        return plr.NegativeBinomialObservation(features=FEATURES, link=link, dispersion=0.7, **shape)
    if family == "bernoulli":
        return plr.BernoulliObservation(features=FEATURES, **shape)
    if family == "student":
        return plr.StudentTObservation(features=FEATURES, freedom=3.0, **shape)
    return plr.PoissonObservation(features=FEATURES, link=kind, **shape)


def build(
    activation: Any = "clipped_relu",
    noise: str = "full",
    emission: str = "gaussian",
    inputs: int = 0,
    input_filter: bool = False,
    dtype: torch.dtype = torch.float64,
) -> plr.StateSpaceModel:
    dynamics = plr.LowRankRNN(
        rank=RANK,
        units=UNITS,
        activation=activation,
        noise=noise,
        inputs=inputs,
        input_filter=input_filter,
        noise_scale=0.4,
        dtype=dtype,
    )
    return plr.StateSpaceModel(dynamics, observation(emission, inputs, dtype))


def recording(model: plr.StateSpaceModel, inputs: int, *, missing: bool) -> tuple[Tensor, Tensor | None]:
    dtype = next(model.parameters()).dtype
    u = torch.randn(TRIALS, TIME, inputs, dtype=dtype) if inputs else None
    y = model.simulate(num_trials=TRIALS, num_steps=TIME, u=u).y.clone()
    if missing:
        y[0, 3, 1] = y[1, 5] = y[2, 0] = torch.nan
    return y, u


def value_and_gradients(
    model: plr.StateSpaceModel, guide: Any, y: Tensor, u: Tensor | None, backend: str, **options: Any
) -> tuple[Tensor, dict[str, Tensor]]:
    parameters = dict(model.named_parameters()) | {f"guide.{n}": p for n, p in guide.named_parameters()}
    elbo = plr.SMC_ELBO(PARTICLES, backend=backend, **options)
    torch.manual_seed(7)
    loss = elbo.differentiable_loss(model, guide, *((y,) if u is None else (y, u)))
    found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    grads = zip(parameters.items(), found, strict=True)
    return loss.detach(), {name: torch.zeros_like(p) if g is None else g for (name, p), g in grads}


def assert_equal(model: plr.StateSpaceModel, guide: Any, y: Tensor, u: Tensor | None = None, **options: Any) -> None:
    plain, plain_grads = value_and_gradients(model, guide, y, u, "plain", **options)
    compiled, grads = value_and_gradients(model, guide, y, u, "compiled", **options)
    tolerance = 1e-9 if y.dtype == torch.float64 else 2e-4
    torch.testing.assert_close(compiled, plain, rtol=tolerance, atol=tolerance)
    for name, expected in plain_grads.items():
        scale = expected.abs().max().clamp(min=1.0)
        torch.testing.assert_close(grads[name] / scale, expected / scale, rtol=tolerance, atol=tolerance, msg=name)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(3)


@pytest.mark.parametrize("activation", ["relu", "clipped_relu", "tanh", "softplus", "identity", LEAKY, STRAIGHT])
@pytest.mark.parametrize("guide", [plr.OptimalGuide, plr.BootstrapGuide])
def test_for_every_activation(activation: Any, guide: Any) -> None:
    model = build(activation)
    assert_equal(model, guide(model), *recording(model, 0, missing=False))


EMISSIONS = ["gaussian", "gaussian rates", "softplus", "exp", "currents", "rates", *OTHERS]


@pytest.mark.parametrize(
    ("emission", "dtype"),
    [
        *((emission, torch.float64) for emission in EMISSIONS),
        *(
            pytest.param(
                emission, torch.float32, marks=() if emission in ("gaussian", "softplus") else pytest.mark.slow
            )
            for emission in EMISSIONS
        ),
    ],
)
def test_for_every_likelihood(emission: str, dtype: torch.dtype) -> None:
    model = build("tanh", "diagonal", emission, dtype=dtype)
    assert_equal(model, plr.BootstrapGuide(model), *recording(model, 0, missing=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("noise", "emission"), [("full", "gaussian"), ("diagonal", "softplus"), ("scalar", "rates")])
def test_for_encoder_proposals(noise: str, emission: str, dtype: torch.dtype) -> None:
    model = build("clipped_relu", noise, emission, inputs=2, dtype=dtype)
    features = model.observation.features
    encoder = plr.ConvEncoder(features, RANK, kernel_sizes=(3, 1), channels=(6,), padding="centred", dtype=dtype)
    assert_equal(model, plr.EncoderGuide(model, encoder), *recording(model, 2, missing=True), ess_threshold=0.6)


LAPLACE = [("softplus", 2, torch.float64), ("softplus", 2, torch.float32), ("exp", 2, torch.float64)]


@pytest.mark.parametrize(
    ("emission", "iterations", "dtype"),
    [*LAPLACE, ("currents", 1, torch.float64), *((emission, 2, torch.float64) for emission in ("gaussian", *OTHERS))],
)
@pytest.mark.parametrize("missing", [False, True])
def test_for_laplace_proposals(emission: str, iterations: int, missing: bool, dtype: torch.dtype) -> None:
    model = build("clipped_relu", "full", emission, dtype=dtype)
    guide = plr.LaplaceGuide(model, num_iterations=iterations)
    assert_equal(model, guide, *recording(model, 0, missing=missing), ess_threshold=0.6)


def test_for_laplace_proposals_with_inputs_and_gaussian_draws() -> None:
    model = build("relu", "diagonal", "softplus", inputs=2, input_filter=True)
    assert_equal(model, plr.LaplaceGuide(model, freedom=None), *recording(model, 2, missing=True))


@pytest.mark.parametrize("emission", ["softplus", "exp"])
def test_for_laplace_proposals_far_from_the_data(emission: str) -> None:
    # Rates near zero or far above the data, counts far above them, and readouts that lie where the data have them.
    model = build(emission=emission)
    with torch.no_grad():
        model.observation.readout.bias.copy_(torch.tensor([-50.0, -5.0, 0.0, 12.0, 1.0]))
    y, _ = recording(model, 0, missing=False)
    y[0, 2, 1], y[1, 4, 3] = 40.0, 300.0
    assert_equal(model, plr.LaplaceGuide(model), y, resampler=plr.NoResampling())


@pytest.mark.parametrize("particles", [1, 16, 63, 64, 65, 130])
def test_for_laplace_proposals_of_any_number_of_particles(particles: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.PARTICLES", particles)
    model = build(emission="softplus")
    assert_equal(model, plr.LaplaceGuide(model), *recording(model, 0, missing=True))


def test_a_likelihood_without_a_compiled_form_is_told_by_name() -> None:
    class Laplace(plr.Observation):
        def distribution(self, z: Tensor, v: Tensor | None = None) -> Any:
            return torch.distributions.Laplace(z, 1.0)

    model = plr.StateSpaceModel(plr.LowRankRNN(rank=RANK, units=UNITS), Laplace(features=RANK))
    smc = plr.SMCFilter(model, plr.BootstrapGuide(model), PARTICLES, backend="compiled")
    with pytest.raises(plr.NoCompiledForm, match="Laplace has no compiled form"):
        smc.run(torch.ones(TRIALS, TIME, RANK))


@pytest.mark.parametrize("particles", [1, 15, 16, 17, 40])
def test_for_numbers_of_particles_that_fill_blocks_or_do_not(particles: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.PARTICLES", particles)
    model = build()
    assert_equal(model, plr.OptimalGuide(model), *recording(model, 0, missing=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("noise", "missing"), list(itertools.product(["scalar", "diagonal", "full"], [False, True])))
def test_for_every_noise_and_missing_data(noise: str, missing: bool, dtype: torch.dtype) -> None:
    model = build(noise=noise, dtype=dtype)
    assert_equal(model, plr.OptimalGuide(model), *recording(model, 0, missing=missing))


@pytest.mark.parametrize("input_filter", [False, True])
@pytest.mark.parametrize("emission", ["gaussian", "softplus", "rates"])
def test_with_inputs(emission: str, input_filter: bool) -> None:
    model = build("relu", emission=emission, inputs=2, input_filter=input_filter)
    guide = plr.OptimalGuide(model) if emission == "gaussian" else plr.BootstrapGuide(model)
    assert_equal(model, guide, *recording(model, 2, missing=True))


@pytest.mark.parametrize(
    "resampler",
    [plr.SystematicResampling(), plr.StratifiedResampling(), plr.MultinomialResampling(), plr.NoResampling()],
)
@pytest.mark.parametrize("ess_threshold", [0.6, 1.0])
def test_for_every_resampling_scheme(resampler: Any, ess_threshold: float) -> None:
    model = build()
    y, _ = recording(model, 0, missing=False)
    assert_equal(model, plr.OptimalGuide(model), y, resampler=resampler, ess_threshold=ess_threshold)


@pytest.mark.parametrize("gradient", [plr.PathwiseGradient(), plr.StopGradient(), plr.ScoreFunctionGradient()])
@pytest.mark.parametrize("inputs", [0, 2])
def test_along_particles_with_compiled_means(gradient: Any, inputs: int) -> None:
    model = build("tanh", emission="softplus", inputs=inputs, input_filter=inputs > 0)
    y, u = recording(model, inputs, missing=True)
    options = {"gradient": gradient, "resampler": plr.MultinomialResampling()}
    plain, plain_grads = value_and_gradients(model, plr.BootstrapGuide(model), y, u, "plain", **options)
    auto, grads = value_and_gradients(model, plr.BootstrapGuide(model), y, u, "auto", **options)
    torch.testing.assert_close(auto, plain)
    torch.testing.assert_close(grads, plain_grads)


def test_a_cut_stops_gradients_from_the_bins_after_it() -> None:
    model = build()
    guide = plr.OptimalGuide(model)
    y, _ = recording(model, 0, missing=False)
    first = dict(model.named_parameters())["dynamics.initial_mean_unconstrained"]
    torch.manual_seed(7)
    pathwise = plr.SMC_ELBO(PARTICLES, gradient=plr.PathwiseGradient(), backend="plain")
    _, history = pathwise.loss_and_history(model, guide, y)
    (expected,) = torch.autograd.grad(-history.increments[:5].sum(), first)
    for backend in ("plain", "auto"):
        # The first latent has no other way to the time bins from the cut on than through those before it.
        torch.manual_seed(7)
        loss = plr.SMC_ELBO(PARTICLES, cut_every=5, backend=backend).differentiable_loss(model, guide, y)
        torch.testing.assert_close(torch.autograd.grad(loss, first)[0], expected)


@pytest.mark.parametrize("emission", ["gaussian", "rates"])
def test_cut_into_threads(emission: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyro_lowrank.dynamics.compiled.arrays._WORTH_A_THREAD", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    model = build(emission=emission, inputs=2, input_filter=True)
    guide = plr.OptimalGuide(model) if emission == "gaussian" else plr.BootstrapGuide(model)
    assert_equal(model, guide, *recording(model, 2, missing=True))


def test_of_a_copied_model() -> None:
    model = build("tanh").change_basis(torch.tensor([[1.0, 0.5], [0.0, 2.0]], dtype=torch.float64))
    assert_equal(model, plr.OptimalGuide(model), *recording(model, 0, missing=False))


def test_of_a_full_rank_network() -> None:
    dynamics = plr.FullRankRNN(units=6, activation="tanh", dtype=torch.float64)
    model = plr.StateSpaceModel(dynamics, plr.GaussianObservation(rank=6, features=FEATURES, dtype=torch.float64))
    assert_equal(model, plr.OptimalGuide(model), *recording(model, 0, missing=False))


def test_of_a_single_particle_and_a_single_bin() -> None:
    model = build()
    y, _ = recording(model, 0, missing=False)
    assert_equal(model, plr.OptimalGuide(model), y[:, :1])


@pytest.mark.parametrize(("emission", "guide_of"), [("gaussian", plr.OptimalGuide), ("softplus", plr.LaplaceGuide)])
def test_posterior_of_a_filter_run(emission: str, guide_of: Any) -> None:
    model = build(emission=emission)
    guide = guide_of(model)
    y, _ = recording(model, 0, missing=True)
    posteriors = []
    for backend in ("plain", "compiled"):
        torch.manual_seed(5)
        posteriors.append(plr.SMCFilter(model, guide, 30, backend=backend).run(y))
    plain, compiled = posteriors
    assert torch.equal(plain.ancestors, compiled.ancestors)
    assert torch.equal(plain.resampled, compiled.resampled)
    for name in ("log_weights", "log_evidence_increments", "ess"):
        torch.testing.assert_close(getattr(compiled, name), getattr(plain, name))
    torch.testing.assert_close(compiled.particles["z"], plain.particles["z"])


EVERYTHING = {
    "activation": ["relu", "clipped_relu", "tanh", "softplus", "identity", LEAKY, STRAIGHT],
    "noise": ["scalar", "diagonal", "full"],
    "emission": ["gaussian", "gaussian rates", "softplus", "exp", "currents", "rates"],
    "guide": ["bootstrap", "optimal", "encoder", "laplace"],
    "resampler": [plr.SystematicResampling, plr.StratifiedResampling, plr.MultinomialResampling, plr.NoResampling],
    "ess_threshold": [0.6, 1.0],
    "inputs": [0, 2],
    "missing": [False, True],
    "dtype": [torch.float32, torch.float64],
}


def possible(one: dict[str, Any]) -> bool:
    """Whether there is such a filter: optimal and Laplace guides are for some observations only."""
    served = {"optimal": ("gaussian",), "laplace": ("softplus", "exp", "currents")}.get(one.get("guide", ""))
    return served is None or one.get("emission", served[0]) in served


def cover_of_everything() -> list[dict[str, Any]]:
    """Combinations in which every two choices that can meet do meet: most bugs of a product need no more than two."""
    choose = random.Random(0).choice
    pairs = [
        {a: x, b: y} for a, b in itertools.combinations(EVERYTHING, 2) for x in EVERYTHING[a] for y in EVERYTHING[b]
    ]
    left, cover = [pair for pair in pairs if possible(pair)], []
    while left:
        candidates = []
        for _ in range(50):
            # Starts from a pair that is still to be seen, the rest at random; the best of some is kept.
            one = {name: choose(values) for name, values in EVERYTHING.items()} | choose(left)
            if possible(one):
                candidates.append((sum(pair.items() <= one.items() for pair in left), len(candidates), one))
        best = max(candidates)[2] if candidates else None
        if best is not None:
            cover.append(best)
            left = [pair for pair in left if not pair.items() <= best.items()]
    return cover


@pytest.mark.slow
@pytest.mark.parametrize("one", cover_of_everything(), ids=lambda one: f"{one['emission']}-{one['guide']}")
def test_for_combinations_of_everything(one: dict[str, Any]) -> None:
    model = build(one["activation"], one["noise"], one["emission"], one["inputs"], one["inputs"] > 0, one["dtype"])
    guides = {"bootstrap": plr.BootstrapGuide, "optimal": plr.OptimalGuide, "laplace": plr.LaplaceGuide}
    if one["guide"] == "encoder":
        encoder = plr.ConvEncoder(model.observation.features, RANK, (3, 1), (6,), dtype=one["dtype"])
        guide = plr.EncoderGuide(model, encoder)
    else:
        guide = guides[one["guide"]](model)
    y, u = recording(model, one["inputs"], missing=one["missing"])
    # Few bins: in float32 a draw at a tie parts the two for good.
    y, u = y[:, :6], None if u is None else u[:, :6]
    if one["guide"] == "laplace":
        # Nor do huge counts, under an exponential link, leave float32 enough digits.
        y = y.clamp(max=30.0)
    assert_equal(model, guide, y, u, resampler=one["resampler"](), ess_threshold=one["ess_threshold"])


@pytest.mark.parametrize("activation", ["clipped_relu", "tanh"])
@pytest.mark.parametrize("inputs", [0, 2])
def test_online_means(activation: str, inputs: int) -> None:
    model = build(activation, inputs=inputs, input_filter=inputs > 0)
    y, u = recording(model, inputs, missing=True)
    found = []
    for backend in ("plain", "compiled"):
        torch.manual_seed(5)
        smc = plr.SMCFilter(model, plr.OptimalGuide(model), 25, backend=backend)
        for t in range(TIME):
            (smc.step if t else smc.init)(*((y[:, t],) if u is None else (y[:, t], u[:, t])))
        found.append((smc.log_evidence, smc.state["z"]))
    torch.testing.assert_close(found[1], found[0])
