"""Several sessions in one model: each trial's evidence is that of its own session, and one flow field explains all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from torch import Tensor

import pyro_lowrank as plr
from pyro_lowrank.observations.observed import Observed
from pyro_lowrank.training.teacher import oscillator_teacher
from tests.builders import network, shaken


def model_of(dtype: torch.dtype = torch.float32, *, inputs: int = 0) -> plr.StateSpaceModel:
    """Spikes on one day, a field potential on another."""
    spikes = plr.PoissonObservation(rank=2, features=4, inputs=inputs, dtype=dtype)
    lfp = plr.GaussianObservation(rank=2, features=3, dtype=dtype)
    sessions = plr.MultiSession({"monday": shaken(spikes, 0.1), "tuesday": shaken(lfp, 0.1)})
    return plr.StateSpaceModel(network(dtype, inputs=inputs), sessions)


def pooled(model: plr.StateSpaceModel) -> Any:
    """Trials of both sessions, of different lengths, with their inputs if the network has any."""
    observation, dynamics = model.observation, model.dynamics
    recordings: dict[str, Any] = {"monday": [], "tuesday": []}
    inputs: dict[str, Any] = {"monday": [], "tuesday": []}
    for name, steps in (("monday", 9), ("monday", 6), ("tuesday", 7)):
        u = torch.randn(1, steps, dynamics.num_inputs, dtype=dynamics.right.dtype) if dynamics.num_inputs else None
        recordings[name].append(observation.split(model.simulate(1, steps, u).y)[name][0])
        inputs[name].append(None if u is None else u[0])
    return observation.pool(recordings, inputs if dynamics.num_inputs else None), recordings, inputs


@pytest.mark.parametrize("inputs", [0, 1])
def test_evidence_of_a_trial_is_that_under_its_own_session(inputs: int) -> None:
    model = model_of(torch.float64, inputs=inputs)
    trials, recordings, raw = pooled(model)
    assert trials.session.tolist() == [0, 0, 1]
    assert trials.y.shape == (3, 9, 7)
    for number, (name, index) in enumerate((("monday", 0), ("monday", 1), ("tuesday", 0))):
        alone = plr.StateSpaceModel(model.dynamics, model.observation.parts[name])
        y = recordings[name][index]
        found = []
        for each, data, u in (
            (model, trials.y[number : number + 1, : len(y)], raw[name][index]),
            (alone, y[None], raw[name][index]),
        ):
            torch.manual_seed(0)
            arguments = (data,) if u is None else (data, u[None])
            found.append(plr.SMCFilter(each, plr.BootstrapGuide(each), 50, backend="plain").run(*arguments))
        torch.testing.assert_close(found[0].log_evidence_increments, found[1].log_evidence_increments)


def test_padded_and_pooled_evidence_is_that_of_the_trials_one_by_one() -> None:
    model = model_of(torch.float64)
    trials, recordings, _ = pooled(model)
    together = plr.SMCFilter(model, plr.LaplaceGuide(model), 8_000).run(trials.y).log_evidence
    for number, (name, index) in enumerate((("monday", 0), ("monday", 1), ("tuesday", 0))):
        alone = plr.StateSpaceModel(model.dynamics, model.observation.parts[name])
        found = plr.SMCFilter(alone, plr.LaplaceGuide(alone), 8_000).run(recordings[name][index][None])
        torch.testing.assert_close(together[number], found.log_evidence[0], rtol=0, atol=0.1)


def encoder_guide(model: plr.StateSpaceModel, **options: Any) -> plr.EncoderGuide:
    like = model.dynamics.right.dtype
    inner = plr.ConvEncoder(5, 2, (3, 1), (4,), dtype=like, **options)
    return plr.EncoderGuide(model, plr.SessionEncoder({"monday": 4, "tuesday": 3}, inner, dtype=like))


@pytest.mark.parametrize("options", [{}, {"padding": "centred", "sees_mask": True}, {"padding_mode": "replicate"}])
def test_the_encoder_reads_a_trial_as_if_alone_through_its_sessions_layer(options: dict[str, Any]) -> None:
    model = model_of(torch.float64)
    guide = encoder_guide(model, **options)
    trials, recordings, _ = pooled(model)
    batch = guide.encode(trials.y)["mean"]
    for number, (name, index) in enumerate((("monday", 0), ("monday", 1), ("tuesday", 0))):
        y = recordings[name][index]
        layer = guide.encoder.inputs[number == 2]
        seen = torch.ones(1, len(y), 5, dtype=y.dtype)
        expected, _ = guide.encoder.encoder((y @ layer.weight.mT + layer.bias)[None], seen)
        torch.testing.assert_close(batch[number, : len(y)], expected[0])


def test_online_the_encoder_proposes_what_it_does_offline() -> None:
    model = model_of(torch.float64)
    guide = encoder_guide(model, sees_mask=True)
    y = pooled(model)[0].y.clone()
    y[0, 4] = torch.nan
    proposal = guide.bind(model.bind())
    offline = proposal.encode(Observed.of(y), None, first=True)
    for t in range(9):
        for name, value in proposal.encode_last(Observed.of(y[:, max(0, t - 2) : t + 1]), first=t == 0).items():
            torch.testing.assert_close(value, offline[name][:, t])


def test_svi_fit_minibatches_and_files(tmp_path: Path) -> None:
    model = model_of()
    guide = encoder_guide(model)
    trials, _, _ = pooled(model)
    plr.initialise_from_data(model, trials.y)
    before = {name: value.detach().clone() for part in (model, guide) for name, value in part.named_parameters()}
    pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), plr.SMC_ELBO(8)).step(trials.y)
    after = {name: value for part in (model, guide) for name, value in part.named_parameters()}
    assert all(not torch.equal(value, before[name]) for name, value in after.items())
    assert "observation.parts.monday.readout.weight" in pyro.get_param_store()
    pyro.clear_param_store()
    result = plr.fit(model, guide, trials.y, num_steps=6, batch_size=1, num_particles=8, progress=False)
    assert len(result.evidence) == 6
    plr.save(tmp_path / "m", model, guide)
    again = plr.load(tmp_path / "m")
    assert isinstance(again[0].observation, plr.MultiSession)
    losses = []
    for pair in ((model, guide), again):
        torch.manual_seed(0)
        losses.append(plr.SMC_ELBO(8).loss(*pair, trials.y))
    assert losses[0] == losses[1]


def test_a_fit_of_sessions_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    ends = []
    for stops in ((4,), (2, 4)):
        pyro.set_rng_seed(0)
        model = model_of()
        guide = plr.ForwardPrediction(encoder_guide(model), horizon=2)
        y = pooled(model)[0].y
        file = tmp_path / f"{len(stops)}.safetensors"
        options = {
            "num_particles": 8,
            "batch_size": 2,
            "learning_rate": 1e-3,
            "final_learning_rate": 1e-3,
            "progress": False,
        }
        for number, stop in enumerate(stops):
            plr.fit(model, guide, y, num_steps=stop, checkpoint=file, resume=number > 0, **options)
        again, guide_again = plr.load(file)
        assert isinstance(guide_again.guide.encoder, plr.SessionEncoder)
        ends.append({**again.state_dict(), **guide_again.state_dict()})
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_what_does_not_fit_is_refused() -> None:
    model = model_of()
    sessions = model.observation
    spikes, lfp = torch.zeros(2, 5, 4), torch.randn(3, 6, 3)
    with pytest.raises(ValueError, match="Session 'tuesday' has no trials in `recordings`; leave it out"):
        sessions.pool({"monday": spikes, "tuesday": []})
    with pytest.raises(ValueError, match=r"The parts are \['monday', 'tuesday'\], got \['friday'\]"):
        sessions.pool({"friday": spikes})
    with pytest.raises(ValueError, match="Part 'tuesday' has 3 features, got 4"):
        sessions.pool({"tuesday": spikes})
    with pytest.raises(ValueError, match="Inputs must come for the same sessions"):
        sessions.pool({"monday": spikes, "tuesday": lfp}, {"monday": torch.zeros(2, 5, 1)})
    with pytest.raises(ValueError, match="Inputs of session 'monday' must have the trials and time bins"):
        sessions.pool({"monday": spikes}, {"monday": torch.zeros(2, 4, 1)})
    with pytest.raises(ValueError, match="list of trials, time x features"):
        sessions.pool({"monday": spikes[0]})
    mixed = torch.cat([spikes, torch.randn(2, 5, 3)], -1)
    with pytest.raises(ValueError, match="trial 0 holds some of monday, tuesday; join .* by `MultiSession.pool`"):
        model.check_data(mixed)
    with pytest.raises(ValueError, match="attribute `features`"):
        plr.SessionEncoder({"monday": 4}, torch.nn.Linear(4, 2))
    with pytest.raises(ValueError, match="at least one session"):
        plr.SessionEncoder({}, plr.ConvEncoder(4, 2))


def affine_to_truth(latents: Tensor, truth: Tensor) -> Tensor:
    """The affine map, `(rank + 1) x rank`, that takes inferred latents to the true ones."""
    design = torch.cat([latents, torch.ones_like(latents[..., :1])], -1).flatten(0, 1)
    return torch.linalg.lstsq(design, truth.flatten(0, 1)).solution


def mapped(latents: Tensor, affine: Tensor) -> Tensor:
    return latents @ affine[:2] + affine[2]


def determination(found: Tensor, truth: Tensor) -> float:
    """The share of the variance explained."""
    return float(1 - (found - truth).square().mean() / (truth - truth.mean((0, 1))).square().mean())


@pytest.mark.slow
def test_two_sessions_with_disjoint_units_recover_one_flow_field() -> None:
    teacher = oscillator_teacher(noise_scale=0.1).dynamics
    readouts = {
        name: shaken(plr.GaussianObservation(rank=2, features=features, noise_scale=0.3), 0.2)
        for name, features in (("monday", 12), ("tuesday", 9), ("friday", 10))
    }
    truth, y = {}, {}
    for name, readout in readouts.items():
        draw = plr.StateSpaceModel(teacher, readout).simulate(num_trials=20, num_steps=60)
        truth[name], y[name] = draw.z, draw.y
    sizes = {name: readouts[name].features for name in ("monday", "tuesday")}
    sessions = plr.MultiSession({n: plr.GaussianObservation(rank=2, features=k) for n, k in sizes.items()})
    model = plr.StateSpaceModel(plr.LowRankRNN(rank=2, units=40, activation="tanh"), sessions)
    trials = sessions.pool({name: y[name] for name in sizes})
    plr.initialise_from_data(model, trials.y)
    guide = plr.OptimalGuide(model)
    options = {"num_particles": 10, "batch_size": 10, "learning_rate": 0.02, "progress": False}
    plr.fit(model, guide, trials.y, num_steps=1200, final_learning_rate=0.002, **options)
    posterior = plr.SMCFilter(model, guide, 300).run(trials.y)
    latents = posterior.smooth(100).mean(0)
    monday, tuesday = latents[:20], latents[20:]
    affine = affine_to_truth(monday, truth["monday"])
    assert determination(mapped(monday, affine), truth["monday"]) > 0.97
    assert determination(mapped(tuesday, affine_to_truth(tuesday, truth["tuesday"])), truth["tuesday"]) > 0.97
    # The teacher looks the same from every angle, so a session may see it turned; but the map of one session takes the
    # flow that the other one follows to the true one.
    with torch.no_grad():
        seen = mapped(tuesday, affine)
        flow, true_flow = (model.dynamics(tuesday) - tuesday) @ affine[:2], teacher(seen) - seen
    assert determination(flow, true_flow) > 0.97

    before = {name: value.detach().clone() for name, value in model.state_dict().items()}
    new = plr.GaussianObservation(rank=2, features=10)
    aligned = plr.align_session(
        model, guide, y["friday"], observation=new, num_steps=600, final_learning_rate=0.002, **options
    )
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    for name, value in aligned.model.dynamics.state_dict().items():
        assert torch.equal(value, before[f"dynamics.{name}"]), name
    friday = plr.SMCFilter(aligned.model, aligned.guide, 300).run(y["friday"]).smooth(100).mean(0)
    assert determination(mapped(friday, affine_to_truth(friday, truth["friday"])), truth["friday"]) > 0.97
