"""A fit that was stopped and resumed ends in the numbers of one that was not, and no checkpoint is ever lost."""

from __future__ import annotations

import functools
import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import pyro_lowrank as plr
from pyro_lowrank.serialization import read_archive
from pyro_lowrank.training.checkpoint import flatten, unflatten
from tests.training.builders import assert_same_state, pair, recording, small_fit, state


def ctrl_c_after(step: int) -> Any:
    """A callback during which Ctrl-C is pressed."""

    def callback(report: Any) -> None:
        if report.step == step:
            raise KeyboardInterrupt

    return callback


def history(result: plr.FitResult) -> dict[str, list[float]]:
    """All that was recorded."""
    names = ("evidence", "ess", "gradient_norm", "learning_rate", "held_out_steps", "held_out_evidence")
    return {name: getattr(result, name).tolist() for name in names}


OPTIMISERS = {
    "RAdam": torch.optim.RAdam,
    "AMSGrad": functools.partial(torch.optim.Adam, amsgrad=True),
    "momentum": functools.partial(torch.optim.SGD, momentum=0.9),
}


@pytest.mark.parametrize("optimizer", OPTIMISERS.values(), ids=OPTIMISERS)
@pytest.mark.parametrize(("window", "dtype"), [(None, torch.float32), (5, torch.float64)])
def test_stopping_and_resuming_changes_no_bit(
    optimizer: Any, window: int | None, dtype: torch.dtype, tmp_path: Path
) -> None:
    y = recording(dtype)
    options: dict[str, Any] = {
        "num_steps": 9,
        "batch_size": 2,
        "window": window,
        "optimizer": optimizer,
        "learning_rate": 0.02,
        "held_out": recording(dtype, seed=5),
        "evaluate_every": 2,
        "checkpoint_every": 3,
        "seed": 8,
    }
    model, guide = pair(dtype)
    expected = small_fit(model, guide, y, checkpoint=tmp_path / "whole", **options)

    stopped, guide = pair(dtype)
    options["checkpoint"] = tmp_path / "stopped"
    first = small_fit(stopped, guide, y, callback=ctrl_c_after(4), **options)
    assert (first.interrupted, first.steps) == (True, 4)
    torch.rand(11)  # another process: other random numbers, another model object
    second, guide = pair(dtype, seed=77)
    again = small_fit(second, guide, y, resume=True, callback=ctrl_c_after(7), **options)
    assert (again.interrupted, again.steps) == (True, 7)
    third, guide = pair(dtype, seed=78)
    result = small_fit(third, guide, y, resume=True, **options)

    assert not result.interrupted
    assert history(result) == history(expected)
    assert_same_state(third, state(model))
    one, other = (read_archive(tmp_path / name) for name in ("whole", "stopped"))
    assert one.configuration == other.configuration
    assert [n for n in one.tensors if not torch.equal(one.tensors[n], other.tensors[n])] == []


def test_ctrl_c_within_a_step_leaves_the_step_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    y, path = recording(), tmp_path / "checkpoint"
    model, guide = pair()
    expected = small_fit(model, guide, y)
    original, calls = plr.SMC_ELBO.loss_and_history, []

    def pressed(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        loss, run = original(*args, **kwargs)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return loss, run

    monkeypatch.setattr(plr.SMC_ELBO, "loss_and_history", pressed)
    stopped, guide = pair()
    first = small_fit(stopped, guide, y, checkpoint=path)
    monkeypatch.undo()
    assert (first.interrupted, first.steps) == (True, 3)
    result = small_fit(stopped, guide, y, checkpoint=path, resume=True)
    assert history(result) == history(expected)
    assert_same_state(stopped, state(model))


@pytest.fixture
def at_a_terminal() -> Iterator[None]:
    """Ctrl-C interrupts, which a shell turns off for what it runs in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("at_a_terminal")
def test_ctrl_c_during_an_update_waits_for_its_end(tmp_path: Path) -> None:
    class Pressed(torch.optim.SGD):
        updates = 0

        def step(self, closure: Any = None) -> Any:
            Pressed.updates += 1
            if Pressed.updates == 3:
                os.kill(os.getpid(), signal.SIGINT)
                for _ in range(1000):  # the signal is handled between two of these
                    pass
            return super().step(closure)

    handler = signal.getsignal(signal.SIGINT)
    y, path = recording(), tmp_path / "checkpoint"
    model, guide = pair()
    first = small_fit(model, guide, y, checkpoint=path, optimizer=Pressed)
    assert (first.interrupted, first.steps) == (True, 3), "the third step is whole"
    assert signal.getsignal(signal.SIGINT) is handler
    result = small_fit(model, guide, y, checkpoint=path, optimizer=Pressed, resume=True)
    expected, guide = pair()
    assert history(result) == history(small_fit(expected, guide, y, optimizer=torch.optim.SGD))
    assert_same_state(model, state(expected))


def test_an_interrupted_fit_says_how_to_go_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "checkpoint"
    result = small_fit(*pair(), recording(), checkpoint=path, callback=ctrl_c_after(2))
    assert f"Interrupted after 2 of 6 steps: go on from {path} with resume=True." in caplog.text
    assert "interrupted" in str(result)
    assert str(path) in str(result)
    result = small_fit(*pair(), recording(), callback=ctrl_c_after(2))
    assert "without a checkpoint" in caplog.text
    assert result.interrupted


def test_a_checkpoint_is_a_model_file_too(tmp_path: Path) -> None:
    model, guide = pair()
    small_fit(model, guide, recording(), checkpoint=tmp_path / "checkpoint", callback=ctrl_c_after(3))
    again, guide_again = plr.load(tmp_path / "checkpoint")
    assert_same_state(again, state(model))
    assert guide_again.model is again


def test_a_crash_while_writing_keeps_the_checkpoint_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    y, path = recording(), tmp_path / "checkpoint"
    original, calls = os.replace, []

    def crash(*args: Any) -> None:
        calls.append(1)
        if len(calls) == 3:
            raise OSError("disk full")
        original(*args)

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(OSError, match="disk full"):
        small_fit(*pair(), y, checkpoint=path, checkpoint_every=2)
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint"]
    model, guide = pair(seed=9)
    steps: list[int] = []
    small_fit(model, guide, y, checkpoint=path, resume=True, callback=lambda report: steps.append(report.step))
    assert steps == [3, 4, 5, 6], "the checkpoint of step 2 was kept"
    expected, guide = pair()
    small_fit(expected, guide, y)
    assert_same_state(model, state(expected))


def test_checkpoints_come_as_often_as_asked(tmp_path: Path) -> None:
    path, found = tmp_path / "checkpoint", []
    small_fit(
        *pair(),
        recording(),
        num_steps=7,
        checkpoint=path,
        checkpoint_every=3,
        callback=lambda _: found.append(read_archive(path).configuration["training"]["step"]),
    )
    assert found == [0, 0, 3, 3, 3, 6, 7]


def test_a_finished_fit_is_read_not_repeated(tmp_path: Path) -> None:
    y, path = recording(), tmp_path / "checkpoint"
    model, guide = pair()
    first = small_fit(model, guide, y, held_out=y, checkpoint=path)
    again, guide = pair(seed=5)
    steps: list[Any] = []
    second = small_fit(again, guide, y, held_out=y, checkpoint=path, resume=True, callback=steps.append)
    assert steps == []
    assert history(second) == history(first)
    assert_same_state(again, state(model))


def test_the_best_on_held_out_data_is_kept_through_a_resumption(tmp_path: Path) -> None:
    y, held_out, path = recording(), recording(seed=9), tmp_path / "checkpoint"
    # Steps this large leave a good start behind.
    options: dict[str, Any] = {"held_out": held_out, "evaluate_every": 1, "learning_rate": 0.5, "num_steps": 8}
    model, guide = pair()
    seen: list[Any] = []
    whole = small_fit(model, guide, y, callback=lambda _: seen.append(state(model)), **options)
    best = int(whole.held_out_evidence.argmax())
    assert whole.kept_step == best < 8
    start = state(pair()[0])
    assert_same_state(model, [start, *seen][best])
    assert ", kept" in str(whole)

    def stop(report: Any) -> None:
        if report.step == best + 2:
            raise KeyboardInterrupt

    parted, guide = pair()
    small_fit(parted, guide, y, checkpoint=path, callback=stop, **options)
    assert_same_state(parted, state(model))
    again, guide = pair(seed=5)
    result = small_fit(again, guide, y, checkpoint=path, resume=True, **options)
    assert result.kept_step == best
    assert_same_state(again, state(model))
    last, guide = pair()
    result = small_fit(last, guide, y, keep_best=False, **options)
    assert result.kept_step == 8
    assert_same_state(last, seen[-1])
    assert_same_state(plr.load(path)[0], seen[-1])


def test_resuming_with_nothing_to_resume_begins_anew(tmp_path: Path) -> None:
    result = small_fit(*pair(), recording(), checkpoint=tmp_path / "checkpoint", resume=True)
    assert result.steps == 6


def test_more_steps_go_on_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    y, path = recording(), tmp_path / "checkpoint"
    model, guide = pair()
    small_fit(model, guide, y, checkpoint=path)
    result = small_fit(model, guide, y, checkpoint=path, resume=True, num_steps=8)
    assert result.steps == 8
    assert "begun with num_steps=6 and goes on to 8" in caplog.text


def test_no_unfinished_checkpoint_and_no_other_file_is_overwritten(tmp_path: Path) -> None:
    y, path = recording(), tmp_path / "checkpoint"
    small_fit(*pair(), y, checkpoint=path, callback=ctrl_c_after(2))
    content = path.read_bytes()
    model, guide = pair()
    before = state(model)
    with pytest.raises(FileExistsError, match=r"stopped after 2 of 6 steps; pass resume=True"):
        small_fit(model, guide, y, checkpoint=path)
    assert path.read_bytes() == content
    plr.save(tmp_path / "model", *pair())
    (tmp_path / "data.npy").write_bytes(b"precious")
    for name in ("model", "data.npy"):
        content = (tmp_path / name).read_bytes()
        with pytest.raises(FileExistsError, match="is no checkpoint"):
            small_fit(model, guide, y, checkpoint=tmp_path / name)
        with pytest.raises(ValueError, match=r"no checkpoint|truncated"):
            small_fit(model, guide, y, checkpoint=tmp_path / name, resume=True)
        assert (tmp_path / name).read_bytes() == content
    assert_same_state(model, before)
    small_fit(*pair(), y, checkpoint=path, resume=True)
    assert small_fit(*pair(), y, checkpoint=path, num_steps=2).steps == 2, "a finished one may be replaced"


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"seed": 1}, "seed was 0, is 1"),
        ({"batch_size": 2}, "batch_size was None, is 2"),
        ({"window": 5}, "window was None, is 5"),
        ({"num_particles": 5}, "num_particles was 4, is 5"),
        ({"learning_rate": 0.5}, "learning_rate was 0.01, is 0.5"),
        ({"optimizer": torch.optim.Adam}, "optimizer was 'RAdam', is 'Adam'"),
        ({"max_grad_norm": None}, "max_grad_norm was '10.0', is 'inf'"),
        ({"elbo": plr.SMC_ELBO(4, ess_threshold=0.5), "num_particles": None}, "ess_threshold was 1.0, is 0.5"),
    ],
)
def test_a_fit_goes_on_only_under_the_same_settings(changed: dict[str, Any], named: str, tmp_path: Path) -> None:
    y, path = recording(), tmp_path / "checkpoint"
    small_fit(*pair(), y, checkpoint=path, num_steps=2, final_learning_rate=1e-6, callback=ctrl_c_after(1))
    model, guide = pair(seed=4)
    before = state(model)
    with pytest.raises(ValueError, match=f"of another fit: .*{named}"):
        small_fit(
            model, guide, y, checkpoint=path, num_steps=2, resume=True, **{"final_learning_rate": 1e-6, **changed}
        )
    assert_same_state(model, before)


def test_a_fit_goes_on_only_with_the_same_data_and_model(tmp_path: Path) -> None:
    y, path = recording(), tmp_path / "checkpoint"
    small_fit(*pair(), y, checkpoint=path, callback=ctrl_c_after(1))
    with pytest.raises(ValueError, match="of another fit: data was"):
        small_fit(*pair(), y + 1e-3, checkpoint=path, resume=True)
    frozen, guide = pair()
    next(frozen.parameters()).requires_grad_(False)
    with pytest.raises(ValueError, match="of another fit: trained was"):
        small_fit(frozen, guide, y, checkpoint=path, resume=True)
    larger = plr.StateSpaceModel(plr.LowRankRNN(rank=2, units=7), plr.GaussianObservation(rank=2, features=3))
    with pytest.raises(ValueError, match=r"does not fit this model: tensor 'model\.dynamics"):
        small_fit(larger, plr.OptimalGuide(larger), y, checkpoint=path, resume=True)


def test_a_place_that_cannot_be_written_is_found_before_the_training(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    model, guide = pair()
    before, steps = state(model), []
    for path in (tmp_path / "no" / "checkpoint", tmp_path / "file" / "checkpoint", tmp_path):
        with pytest.raises(OSError, match=r"folder"):
            small_fit(model, guide, recording(), checkpoint=path, callback=steps.append)
    assert steps == []
    assert_same_state(model, before)


class OwnObservation(plr.Observation):
    """A user's observation model, with a parameter."""

    def __init__(self) -> None:
        super().__init__(features=3)
        self.log_scale = nn.Parameter(torch.zeros(3))

    def distribution(self, z: torch.Tensor, v: torch.Tensor | None = None) -> Any:
        mean = z.sum(-1, keepdim=True).expand(*z.shape[:-1], 3)
        return torch.distributions.Independent(torch.distributions.Laplace(mean, self.log_scale.exp()), 1)


def test_a_model_of_the_users_own_resumes_though_no_file_rebuilds_it(tmp_path: Path) -> None:
    def build(seed: int) -> tuple[plr.StateSpaceModel, Any]:
        network = pair(seed=seed)[0].dynamics
        model = plr.StateSpaceModel(network, OwnObservation())
        return model, plr.BootstrapGuide(model)

    y, path = recording(), tmp_path / "checkpoint"
    expected, guide = build(1)
    small_fit(expected, guide, y)
    small_fit(*build(1), y, checkpoint=path, callback=ctrl_c_after(3))
    model, guide = build(2)
    small_fit(model, guide, y, checkpoint=path, resume=True)
    assert_same_state(model, state(expected))
    with pytest.raises(ValueError, match="parts that are not of this library"):
        plr.load(path)


def test_optimiser_states_survive_as_tensors_and_json() -> None:
    tensors: dict[str, torch.Tensor] = {}
    tree = {0: {"step": torch.tensor(3.0), "none": None, "list": [1, {"x": torch.ones(2)}]}, "lr": 0.1, "flag": True}
    again = unflatten(flatten(tree, "t", tensors), tensors)
    assert again[0]["step"] is tree[0]["step"]  # type: ignore[index]
    assert again[0]["list"][1]["x"] is tree[0]["list"][1]["x"]  # type: ignore[index]
    assert (again["lr"], again["flag"], again[0]["none"]) == (0.1, True, None)
    with pytest.raises(TypeError, match=r"holds a set, at t\.a"):
        flatten({"a": {1}}, "t", {})


@pytest.mark.usefixtures("at_a_terminal")
def test_interrupts_outside_a_fit_are_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="pyro_lowrank"):
        small_fit(*pair(), recording(), num_steps=1)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
