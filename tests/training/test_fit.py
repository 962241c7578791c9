"""A fit follows the gradient of the evidence, with random numbers of its own, and leaves everything else alone."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule
from torch import Tensor, nn

import pyro_lowrank as plr
from pyro_lowrank.training.randomness import own_generators, seed_generators, seed_of
from tests.training.builders import assert_same_state, pair, recording, small_fit, state

CPU = torch.device("cpu")
NAN = float("nan")


def test_a_step_follows_the_gradient_of_the_evidence_per_trial_and_bin(dtype: torch.dtype) -> None:
    model, guide = pair(dtype)
    y = recording(dtype)
    expected, other_guide = pair(dtype)
    with own_generators(CPU):
        seed_generators(CPU, seed_of(7, "particles", 0))
        loss = plr.SMC_ELBO(4).differentiable_loss(expected, other_guide, y)
    loss.backward()
    with torch.no_grad():
        for parameter in expected.parameters():
            assert parameter.grad is not None
            parameter -= 0.01 * parameter.grad / (5 * 12)
    result = small_fit(
        model, guide, y, num_steps=1, seed=7, optimizer=torch.optim.SGD, learning_rate=0.01, max_grad_norm=None
    )
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter, dict(expected.named_parameters())[name], rtol=1e-5, atol=1e-7)
    assert result.evidence[0] == pytest.approx(-loss.item() / (5 * 12), rel=1e-6)


def test_a_fit_raises_the_held_out_evidence(dtype: torch.dtype) -> None:
    model, guide = pair(dtype)
    y = recording(dtype, trials=20)
    result = small_fit(
        model, guide, y[:15], held_out=y[15:], num_steps=60, learning_rate=0.03, num_particles=8, batch_size=5
    )
    assert result.held_out_steps.tolist() == [0, 6, 12, 18, 24, 30, 36, 42, 48, 54, 60]
    assert result.held_out_evidence[-1] > result.held_out_evidence[0] + 0.2
    assert result.evidence[-10:].mean() > result.evidence[:10].mean()
    assert ((result.ess > 0.25) & (result.ess <= 1 + 1e-6)).all()
    assert next(model.parameters()).dtype == dtype


def test_the_learning_rate_decays_exponentially() -> None:
    result = small_fit(*pair(), recording(), num_steps=5, learning_rate=1e-2, final_learning_rate=1e-6)
    assert result.learning_rate == pytest.approx([1e-2, 1e-3, 1e-4, 1e-5, 1e-6])
    constant = small_fit(*pair(), recording(), num_steps=3, learning_rate=1e-2, final_learning_rate=1e-2)
    assert constant.learning_rate == pytest.approx([1e-2] * 3)
    assert small_fit(*pair(), recording(), num_steps=1, learning_rate=1e-2).learning_rate == pytest.approx([1e-2])


def test_groups_of_parameters_keep_the_ratio_of_their_rates() -> None:
    seen = []

    class Spy(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            seen.append([group["lr"] for group in self.param_groups])
            return super().step(closure)

    def grouped(parameters: list[nn.Parameter], lr: float) -> torch.optim.Optimizer:
        return Spy([{"params": parameters[:2], "lr": 10 * lr}, {"params": parameters[2:]}], lr=lr)

    small_fit(*pair(), recording(), num_steps=2, learning_rate=1e-3, final_learning_rate=1e-4, optimizer=grouped)
    assert seen == [pytest.approx([1e-2, 1e-3]), pytest.approx([1e-3, 1e-4])]


def test_gradients_are_shortened_to_the_norm_asked_for() -> None:
    model, guide = pair()
    before = state(model)
    result = small_fit(
        model, guide, 100 * recording(), num_steps=1, optimizer=torch.optim.SGD, learning_rate=1.0, max_grad_norm=0.01
    )
    moved = sum(float((after - before[name]).square().sum()) for name, after in model.state_dict().items()) ** 0.5
    assert moved == pytest.approx(0.01, rel=1e-3)
    assert result.gradient_norm[0] > 1, "what is recorded is the norm before"


def test_random_numbers_are_the_fits_own() -> None:
    y = recording()
    one, guide = pair()
    torch.default_generator.manual_seed(11)
    before = torch.get_rng_state()
    first = small_fit(one, guide, y, batch_size=2, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(5)
    other, other_guide = pair()
    second = small_fit(other, other_guide, y, batch_size=2, seed=3)
    assert_same_state(other, state(one))
    assert second.evidence.tolist() == first.evidence.tolist()
    assert small_fit(*pair(), y, batch_size=2, seed=4).evidence[0] != first.evidence[0]


def test_the_generator_is_given_back_after_an_error() -> None:
    before = torch.get_rng_state()

    def fail(_: Any) -> None:
        torch.rand(3)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        small_fit(*pair(), recording(), callback=fail)
    assert torch.equal(torch.get_rng_state(), before)


def test_evaluating_changes_nothing_about_the_training() -> None:
    y = recording()
    (one, guide), (other, other_guide) = pair(), pair()
    small_fit(one, guide, y)
    small_fit(other, other_guide, y, held_out=y[:2], evaluate_every=1, callback=lambda _: torch.rand(7))
    assert_same_state(other, state(one))


def test_held_out_evidence_is_that_of_the_filter_per_observed_bin() -> None:
    model, guide = pair()
    held_out = recording(trials=2, seed=5)
    held_out[1, 7:] = NAN
    result = small_fit(model, guide, recording(), held_out=held_out, num_steps=2, num_particles=500)
    with torch.no_grad():
        expected = -plr.SMC_ELBO(500).loss(model, guide, held_out) / (12 + 7)
    assert result.held_out_evidence[-1] == pytest.approx(expected, abs=0.05)


@pytest.mark.parametrize("local", [False, True])
def test_a_stale_parameter_store_is_neither_read_nor_written(local: bool) -> None:
    y = recording()
    with pyro.settings.context(module_local_params=local):
        clean, guide = pair()
        expected = small_fit(clean, guide, y, held_out=y)
        # Another model leaves its parameters under the names that every model has.
        stale, stale_guide = pair(seed=9)
        pyro.infer.SVI(stale, stale_guide, pyro.optim.Adam({"lr": 0.0}), loss=plr.SMC_ELBO(2)).step(y)
        store = dict(pyro.get_param_store().get_state()["params"])
        assert bool(store) != local
        values = {name: value.clone() for name, value in store.items()}
        model, guide = pair()
        result = small_fit(model, guide, y, held_out=y)
        after = pyro.get_param_store().get_state()["params"]
    assert result.evidence.tolist() == expected.evidence.tolist()
    assert result.held_out_evidence.tolist() == expected.held_out_evidence.tolist()
    assert_same_state(model, state(clean))
    assert after.keys() == values.keys()
    assert all(after[name] is store[name] and torch.equal(after[name], values[name]) for name in values)


@pytest.mark.parametrize("local", [False, True])
def test_frozen_parameters_stay_frozen_and_unchanged(local: bool) -> None:
    with pyro.settings.context(module_local_params=local):
        model, guide = pair()
        frozen = {n: p for n, p in model.named_parameters() if "noise" in n or "left" in n}
        assert len(frozen) == 4
        for parameter in frozen.values():
            parameter.requires_grad_(False)
        before = state(model)
        small_fit(model, guide, recording(), learning_rate=0.1)
    after = model.state_dict()
    for name in after:
        assert torch.equal(after[name], before[name]) == (name in frozen or after[name].numel() == 0), name
    assert not any(p.requires_grad or p.grad is not None for p in frozen.values())


class Walk(PyroModule):
    """A user's own model: a random walk seen through noise, with plain parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.log_step = nn.Parameter(torch.tensor(0.0))
        self.log_noise = nn.Parameter(torch.tensor(1.0))

    def init(self, state: Any, y_t: Tensor | None = None) -> None:
        with pyro.plate("trials", dim=-1, size=5 if y_t is None else y_t.shape[0]):
            state["z"] = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).expand([3]).to_event(1))
            pyro.sample("y", dist.Normal(state["z"], self.log_noise.exp()).to_event(1), obs=y_t)

    def step(self, state: Any, y_t: Tensor | None = None) -> None:
        with pyro.plate("trials", dim=-1, size=5 if y_t is None else y_t.shape[0]):
            state["z"] = pyro.sample("z", dist.Normal(state["z"], self.log_step.exp()).to_event(1))
            pyro.sample("y", dist.Normal(state["z"], self.log_noise.exp()).to_event(1), obs=y_t)


class WalkGuide:
    """A guide that is no module: it proposes from the model."""

    def init(self, state: Any, y_t: Tensor | None = None) -> None:
        pass

    def step(self, state: Any, y_t: Tensor | None = None) -> None:
        pass


def test_a_model_of_the_users_own_is_fitted_and_its_frozen_parameters_stay() -> None:
    model = Walk()
    model.log_step.requires_grad_(False)
    result = small_fit(model, WalkGuide(), recording(), num_steps=30, num_particles=20, learning_rate=0.1)
    assert result.evidence[-5:].mean() > result.evidence[:5].mean()
    assert not model.log_step.requires_grad
    assert model.log_step.item() == 0.0
    assert model.log_noise.item() != 1.0


def test_without_a_guide_the_model_proposes(tmp_path: Path) -> None:
    (model, _), (expected, _), (resumed, _) = pair(), pair(), pair()
    y = recording()
    small_fit(model, None, y)
    small_fit(expected, plr.BootstrapGuide(expected), y)
    assert_same_state(model, state(expected))
    path = tmp_path / "fit.safetensors"
    small_fit(resumed, None, y, checkpoint=path)
    loaded, guide = plr.load(path)
    assert guide is None
    assert_same_state(loaded, state(expected))


def test_windows_of_ragged_recordings_are_fitted() -> None:
    y = recording(trials=4, steps=40)
    y[1, 15:] = NAN
    y[2, :30] = NAN
    y[3, 5, 1] = NAN
    model, guide = pair()
    result = small_fit(model, guide, y, window=8, batch_size=6, num_steps=15, learning_rate=0.05)
    assert result.evidence[-5:].mean() > result.evidence[:5].mean()
    assert all(value.isfinite().all() for value in state(model).values())


def test_padding_changes_no_evidence() -> None:
    y = recording(trials=2)
    padded = torch.cat([y, torch.full((2, 30, 3), NAN)], 1)
    short = small_fit(*pair(), y, num_steps=1, num_particles=2000).evidence[0]
    assert small_fit(*pair(), padded, num_steps=1, num_particles=2000).evidence[0] == pytest.approx(short, abs=0.03)


def test_inputs_are_cut_with_the_data() -> None:
    y, u = recording(steps=20), torch.randn(5, 20, 2)
    model, guide = pair(inputs=2)
    before = model.dynamics.input_weights.clone()
    result = small_fit(model, guide, y, u, window=6, batch_size=4, held_out=y[:1], held_out_inputs=u[:1])
    assert result.steps == 6
    assert not torch.equal(model.dynamics.input_weights, before)


def test_a_fit_within_no_grad_still_trains_and_leaves_no_gradients() -> None:
    model, guide = pair()
    before = state(model)
    with torch.no_grad():
        small_fit(model, guide, recording())
        assert not torch.is_grad_enabled()
    assert not torch.equal(model.dynamics.left, before["dynamics.left_unconstrained"])
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_constant_stretch_within_a_window_warns_once_at_most(recwarn: pytest.WarningsRecorder) -> None:
    y = recording(steps=30)
    y[:, 3:20, 0] = 0.5
    small_fit(*pair(), y, window=4, batch_size=1, num_steps=20)
    assert not recwarn.list


def test_the_callback_sees_every_step() -> None:
    reports: list[Any] = []
    result = small_fit(*pair(), recording(), held_out=recording(), evaluate_every=2, callback=reports.append)
    assert [report.step for report in reports] == [1, 2, 3, 4, 5, 6]
    assert [report.evidence for report in reports] == result.evidence.tolist()
    assert [report.ess for report in reports] == result.ess.tolist()
    assert reports[2].held_out == result.held_out_evidence[1]
    assert reports[-1].num_steps == 6


def test_the_progress_bar_tells_evidence_and_effective_size(capsys: pytest.CaptureFixture[str]) -> None:
    result = small_fit(*pair(), recording(), held_out=recording(), progress=True)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert f"nats/bin={result.evidence[-1]:.2f}" in shown.err
    assert f"ESS={100 * result.ess[-1]:.0f}%" in shown.err
    assert f"held out={result.held_out_evidence[-1]:.2f}" in shown.err


def test_any_torch_optimiser_serves() -> None:
    for optimizer in (
        torch.optim.Adam,
        functools.partial(torch.optim.SGD, momentum=0.9),
        lambda parameters, lr: torch.optim.AdamW(parameters, lr=lr, weight_decay=0.1),
    ):
        model, guide = pair()
        before = state(model)
        small_fit(model, guide, recording(), num_steps=2, optimizer=optimizer)
        assert not torch.equal(model.dynamics.left, before["dynamics.left_unconstrained"])


def test_an_elbo_with_its_options_serves_in_place_of_particles() -> None:
    y = recording()
    (one, guide), (other, other_guide) = pair(), pair()
    small_fit(one, guide, y, num_particles=4)
    small_fit(other, other_guide, y, num_particles=None, elbo=plr.SMC_ELBO(4))
    assert_same_state(other, state(one))
    elbo = plr.SMC_ELBO(
        4, resampler=plr.MultinomialResampling(), gradient=plr.ScoreFunctionGradient(), ess_threshold=1.0
    )
    other, other_guide = pair()
    small_fit(other, other_guide, y, num_particles=None, elbo=elbo)
    assert not torch.equal(other.dynamics.left, one.dynamics.left)


def test_the_result_tells_what_happened() -> None:
    result = small_fit(*pair(), recording(), held_out=recording(), num_steps=20)
    lines = str(result).splitlines()
    assert lines[0].startswith("FitResult: 20 of 20 steps in ")
    assert f"{result.evidence[:2].mean():.3f} -> {result.evidence[-2:].mean():.3f}" in lines[1]
    assert f"best {result.held_out_evidence.max():.3f}" in lines[2]
    assert not result.interrupted
    assert result.checkpoint is None
    with pytest.raises(AttributeError):
        result.seconds = 0.0  # type: ignore[misc]


# --- arguments that do not fit ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_steps": 0}, ValueError, "`num_steps` must be at least 1"),
        ({"num_steps": 2.5}, TypeError, "`num_steps` must be an integer"),
        ({"batch_size": 6}, ValueError, "at most the number of trials, 5, got 6"),
        ({"window": 13}, ValueError, "at most the number of time bins, 12, got 13"),
        ({"num_particles": 0}, ValueError, "`num_particles` must be at least 1"),
        ({"elbo": plr.SMC_ELBO(3)}, ValueError, "not both: the elbo has 3 particles"),
        ({"elbo": "smc", "num_particles": None}, TypeError, "`elbo` must be a SMC_ELBO, got str"),
        ({"learning_rate": -1.0}, ValueError, "`learning_rate` must be finite and above zero"),
        ({"final_learning_rate": NAN}, ValueError, "`final_learning_rate` must be finite and above zero"),
        ({"max_grad_norm": 0.0}, ValueError, "`max_grad_norm` must be finite and above zero"),
        ({"optimizer": "adam"}, TypeError, "must be a torch optimiser class or a function"),
        ({"optimizer": torch.optim.LBFGS}, TypeError, "for noisy gradients, got LBFGS"),
        ({"checkpoint_every": 0}, ValueError, "`checkpoint_every` must be at least 1"),
        ({"evaluate_every": -1}, ValueError, "`evaluate_every` must be at least 1"),
        ({"seed": -1}, ValueError, "`seed` must be at least 0"),
        ({"resume": True}, ValueError, "`resume` needs the `checkpoint`"),
        ({"held_out": torch.zeros(2, 4, 5)}, ValueError, "In `held_out`: `y` must have 3 features"),
        ({"held_out": torch.full((1, 3, 3), NAN)}, ValueError, "`held_out` holds NaN only"),
        ({"held_out_inputs": torch.zeros(2, 4, 5)}, ValueError, "came without `held_out`"),
    ],
)
def test_options_that_do_not_fit(options: dict[str, Any], error: type[Exception], message: str) -> None:
    model, guide = pair()
    before = state(model)
    with pytest.raises(error, match=message):
        small_fit(model, guide, recording(), **options)
    assert_same_state(model, before)


def test_data_that_do_not_fit() -> None:
    model, guide = pair()
    y = recording()
    for bad, message in (
        (y[0], "must have 3 dims"),
        (y.mT, "must have 3 features"),
        (y.masked_fill(y > y.median(), float("inf")), "infinite"),
        (torch.full_like(y, NAN), "NaN only"),
    ):
        with pytest.raises(ValueError, match=message):
            small_fit(model, guide, bad)
    with pytest.raises(ValueError, match="inputs=0"):
        small_fit(model, guide, y, torch.zeros(5, 12, 1))
    with pytest.raises(TypeError, match=r"`y` holds torch\.float64, the model torch\.float32"):
        small_fit(model, guide, y.double())
    for own in (y.tolist(), y.int(), y.double()):
        with pytest.raises(TypeError, match="`y` (must|holds)"):
            small_fit(Walk(), WalkGuide(), own)
    with pytest.raises(ValueError, match="trials and time bins of the data"):
        small_fit(Walk(), WalkGuide(), y, torch.zeros(5, 11, 1))


def test_models_that_cannot_be_trained() -> None:
    with pytest.raises(TypeError, match="`model` must be a StateSpaceModel or another torch module, got WalkGuide"):
        small_fit(WalkGuide(), WalkGuide(), recording())
    model, guide = pair()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(ValueError, match="Nothing to train"):
        small_fit(model, guide, recording())
