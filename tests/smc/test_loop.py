"""The loop over time: carried weights, independent trials, dead particles."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from pyro.infer.smcfilter import SMCFailed
from torch import Tensor

import pyro_lowrank as plr
from pyro_lowrank.smc.loop import Scheme, run_loop
from pyro_lowrank.smc.pair import Pair
from pyro_lowrank.smc.plain import PlainKernel, Slice
from tests.oracles.linear import linear_model


def incremental_log_weights(posterior: plr.SMCPosterior) -> Tensor:
    """Work out log w_t, `time x particles x trials`, from what a run keeps: weights, ancestors and increments."""
    log_weights, increments = posterior.log_weights, posterior.log_evidence_increments
    uniform = torch.full_like(log_weights[0], 1 / posterior.num_particles).log()
    kept = log_weights[:-1].gather(1, posterior.ancestors[1:])
    carried = torch.where(posterior.resampled[1:, None], uniform, kept)
    return log_weights + increments[:, None] - torch.cat([uniform[None], carried])


@pytest.mark.parametrize("ess_threshold", [1.0, 0.5, 0.1])
def test_trials_resample_when_and_only_when_their_size_falls_below_the_threshold(ess_threshold: float) -> None:
    model = linear_model()
    smc = plr.SMCFilter(model, plr.BootstrapGuide(model), 50, ess_threshold=ess_threshold)
    posterior = smc.run(model.simulate(8, 20).y)
    expected = posterior.ess[:-1] < ess_threshold * 50
    assert torch.equal(posterior.resampled[1:], expected | (ess_threshold == 1.0))
    assert expected.any()
    own = torch.arange(50)[:, None]
    assert (posterior.ancestors[1:] == own).all(1)[~posterior.resampled[1:]].all()


def test_without_resampling_a_run_is_importance_sampling_of_trajectories() -> None:
    model = linear_model()
    y = model.simulate(3, 6).y
    smc = plr.SMCFilter(model, plr.BootstrapGuide(model), 40, resampler=plr.NoResampling())
    posterior = smc.run(y)
    z = posterior.particles["z"]
    likelihood = model.bind().emission.distribution(z).log_prob(y).sum(-1)
    expected = likelihood.logsumexp(0) - torch.tensor(40.0).log()
    torch.testing.assert_close(posterior.log_evidence, expected, check_dtype=False)
    torch.testing.assert_close(posterior.log_weights[-1], likelihood.log_softmax(0))


def test_trials_are_weighed_independently() -> None:
    """A batch gives what its trials give one by one, for the same random numbers."""
    model = linear_model()
    y = model.simulate(4, 7).y
    guide = plr.OptimalGuide(model)
    pair = Pair.of(model, guide)
    kernel = PlainKernel(pair, 30)
    together = kernel.slices(pair.read(y))

    class Fixed(plr.SystematicResampling):
        def draw(self, num_steps: int, num_particles: int, batch: torch.Size, **factory: object) -> Tensor:
            return torch.full((num_steps, 1, *batch), 0.4, dtype=torch.float64)

    scheme = Scheme(Fixed(), 0.5, plr.PathwiseGradient())
    expected = run_loop(kernel, together, scheme, store=False).increments
    for trial in range(4):
        alone = [
            Slice(s.bin, None, whole.white[:, trial : trial + 1])
            for s, whole in zip(kernel.slices(pair.read(y[trial : trial + 1])), together, strict=True)
        ]
        found = run_loop(kernel, alone, scheme, store=False).increments
        torch.testing.assert_close(found[:, 0], expected[:, trial])


def test_stored_weights_are_those_of_the_guide() -> None:
    model = linear_model()
    y = model.simulate(3, 6).y
    posterior = plr.SMCFilter(model, plr.BootstrapGuide(model), 40).run(y)
    likelihood = model.bind().emission.distribution(posterior.particles["z"]).log_prob(y)
    torch.testing.assert_close(incremental_log_weights(posterior), likelihood.movedim(-1, 0))


@pytest.mark.parametrize("run", ["filter", "elbo"])
def test_dead_particles_are_reported_with_trial_and_time(run: str) -> None:
    model = plr.StateSpaceModel(plr.LowRankRNN(rank=1, units=5), plr.GaussianObservation(rank=1, features=2))
    guide = plr.BootstrapGuide(model)
    y = torch.zeros(3, 6, 2)
    # Beyond what float32 can square.
    y[1, 4] = 1e30
    run_on = plr.SMCFilter(model, guide, 10).run if run == "filter" else plr.SMC_ELBO(10)(model, guide)
    with pytest.raises(SMCFailed, match=r"particles of trial 1 are dead at time 4.*weight zero"):
        run_on(y)


def test_parameters_that_are_not_finite_are_reported_as_such() -> None:
    model = linear_model()
    with torch.no_grad():
        model.dynamics.right[0, 0] = torch.nan
    with pytest.raises(SMCFailed, match=r"trial 0 .*time 1.*not a number"):
        plr.SMCFilter(model, plr.BootstrapGuide(model), 10).run(torch.randn(2, 3, 4, dtype=torch.float64))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ess_threshold": 0.0}, "above 0 and at most 1, got 0.0.*NoResampling"),
        ({"ess_threshold": 1.5}, "above 0 and at most 1, got 1.5"),
        ({"gradient": plr.ScoreFunctionGradient()}, "ancestors drawn independently.*MultinomialResampling"),
        ({"gradient": plr.FisherGradient(), "cut_every": 5}, "sends none through time.*PathwiseGradient"),
        ({"num_particles": 0}, "at least 1, got num_particles=0"),
    ],
)
def test_impossible_schemes_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plr.SMC_ELBO(**options)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="must be a Resampler, got 'systematic'"):
        plr.SMC_ELBO(resampler="systematic")  # type: ignore[arg-type]


def test_memory_grows_with_particles_and_rank_but_not_with_units() -> None:
    """Nothing of particles x trials x units x time is kept for the backward pass."""
    sizes = []
    for units in (10, 300):
        model = plr.StateSpaceModel(plr.LowRankRNN(rank=2, units=units), plr.GaussianObservation(rank=2, features=3))
        total = 0

        def count(tensor: Tensor) -> Tensor:
            nonlocal total
            total += tensor.numel() if tensor.dim() > 2 else 0
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            plr.SMC_ELBO(20)(model, plr.OptimalGuide(model))(torch.randn(5, 10, 3))
        sizes.append(total)
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize("guide", ["bootstrap", "laplace", "encoder"])
def test_no_rates_of_all_particles_outlive_a_step(guide: str, monkeypatch: pytest.MonkeyPatch) -> None:
    particles, trials, features = 23, 5, 37
    model = plr.StateSpaceModel(plr.LowRankRNN(rank=2, units=9), plr.PoissonObservation(rank=2, features=features))
    proposal = {
        "bootstrap": lambda: plr.BootstrapGuide(model),
        "laplace": lambda: plr.LaplaceGuide(model),
        "encoder": lambda: plr.EncoderGuide(model, plr.ConvEncoder(features, 2, (3, 1), (4,))),
    }[guide]()
    y = model.simulate(trials, 4).y
    step, found = PlainKernel.step, []

    def watched(kernel: Any, state: Any, slice_t: Any) -> Any:
        result = step(kernel, state, slice_t)
        alive = [value for value in gc.get_objects() if issubclass(type(value), Tensor)]
        found.append(sum(tuple(value.shape) == (particles, trials, features) for value in alive))
        return result

    monkeypatch.setattr(PlainKernel, "step", watched)
    # What other tests left alive is not looked through.
    gc.freeze()
    try:
        plr.SMCFilter(model, proposal, particles, backend="plain").run(y)
    finally:
        gc.unfreeze()
    assert found == [0, 0, 0]
