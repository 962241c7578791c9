"""The memory of a step, told before it is taken, against peaks that were measured; and fits that cannot fit."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import pyro_lowrank as plr
from pyro_lowrank.training import available, memory
from tests.training.builders import assert_same_state, pair, recording, small_fit, state

ROOT = Path(__file__).resolve().parents[2]

# What takes most: particles that a filter keeps, features along paths, all that particles went through, units.
STEPS: dict[str, tuple[str, str, str, str, tuple[int, ...]]] = {
    "compiled, many particles": ("Gaussian", "Optimal", "Fisher", "auto", (20, 200, 500, 3, 32)),
    "compiled, many features": ("Poisson", "Laplace", "Fisher", "auto", (50, 100, 10, 200, 32)),
    "plain, many units": ("Gaussian", "Optimal", "Fisher", "plain", (50, 100, 10, 3, 512)),
    "along particles": ("Gaussian", "Optimal", "Pathwise", "plain", (20, 100, 200, 3, 256)),
    "compiled, what particles remember": ("Calcium", "Laplace", "Fisher", "auto", (10, 100, 100, 64, 32)),
    "along particles of Laplace's proposal": ("Poisson", "Laplace", "Pathwise", "plain", (10, 50, 100, 10, 32)),
}
FAST = "compiled, many particles"

PROGRAM = """
import gc, json, sys, torch
import pyro_lowrank as plr
observation, guide, gradient, backend, (trials, bins, particles, features, units) = json.loads(sys.argv[1])
dtype = getattr(torch, sys.argv[2])
dynamics = plr.LowRankRNN(rank=3, units=units, activation="clipped_relu", dtype=dtype)
options = {"bin_size": 0.03, "rise": True} if observation == "Calcium" else {}
observation = getattr(plr, observation + "Observation")(rank=3, features=features, dtype=dtype, **options)
model = plr.StateSpaceModel(dynamics, observation)
guide = getattr(plr, guide + "Guide")(model)
gradient = getattr(plr, gradient + "Gradient")()
torch.manual_seed(0)
y = torch.poisson(torch.ones(trials, bins, features, dtype=dtype)) + (0.5 if options else 0.0)
def step(y, particles):
    plr.SMC_ELBO(particles, gradient=gradient, backend=backend)(model, guide)(y).backward()
def status(name):
    return 1024 * int(open("/proc/self/status").read().split(name + ":")[1].split()[0])
# What is imported and compiled for the first step is no step's.
step(y[:2, :5], 4)
told = plr.memory_of(model, guide, trials, bins, particles, gradient=gradient, backend=backend)
gc.collect()
# From here on the peak is that of what follows.
open("/proc/self/clear_refs", "w").write("5")
before = status("VmRSS")
step(y, particles)
print(json.dumps([told, status("VmHWM") - before + y.nbytes]))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks of memory are looked up in /proc")
@pytest.mark.parametrize(
    "name", [name if name == FAST else pytest.param(name, marks=pytest.mark.slow) for name in STEPS]
)
@pytest.mark.parametrize(
    "dtype", [torch.float32, pytest.param(torch.float64, marks=pytest.mark.slow)], ids=["float32", "float64"]
)
def test_what_is_told_is_what_a_step_takes(name: str, dtype: torch.dtype) -> None:
    told = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(STEPS[name]), str(dtype).removeprefix("torch.")],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    expected, measured = json.loads(told.stdout.splitlines()[-1])
    assert 0.6 < expected / measured < 1.7, (expected, measured)


def test_it_grows_with_what_it_is_made_of() -> None:
    for dtype, gradient in ((torch.float32, plr.FisherGradient()), (torch.float64, plr.PathwiseGradient())):
        model, guide = pair(dtype)
        once = plr.memory_of(model, guide, 10, 100, 1000, gradient=gradient)
        for times, sizes in ((2, (20, 100, 1000)), (2, (10, 200, 1000)), (2, (10, 100, 2000)), (4, (20, 200, 1000))):
            assert plr.memory_of(model, guide, *sizes, gradient=gradient) == pytest.approx(times * once, rel=0.05)
    single, double = (plr.memory_of(*pair(kind), 10, 100, 1000) for kind in (torch.float32, torch.float64))
    assert 1.6 < double / single < 2


def test_nothing_is_left_of_it() -> None:
    model, guide = pair(inputs=2)
    model.dynamics.requires_grad_(False)
    before, generator = state(model), torch.get_rng_state()
    trained = [parameter.requires_grad for parameter in model.parameters()]
    plr.memory_of(model, guide, 10, 100, 1000, gradient=plr.PathwiseGradient())
    assert_same_state(model, before)
    assert torch.equal(torch.get_rng_state(), generator)
    assert [parameter.requires_grad for parameter in model.parameters()] == trained
    assert all(parameter.grad is None for parameter in model.parameters())


def test_missing_entries_and_programs_count() -> None:
    model, guide = pair()
    y = recording()
    y[0, 1, 1] = float("nan")
    gradient = plr.PathwiseGradient()
    whole = plr.memory_of(model, guide, 10, 100, 100, gradient=gradient)
    assert plr.memory_of(model, guide, 10, 100, 100, gradient=gradient, y=y) > whole

    class Mine(plr.StateSpaceModel):
        def step(self, *args: Any, **kwargs: Any) -> Any:
            return super().step(*args, **kwargs)

    with torch.random.fork_rng():
        mine = Mine(model.dynamics, model.observation)
    assert plr.memory_of(mine, None, 10, 100, 200, y=y) > 1.3 * plr.memory_of(mine, None, 10, 100, 100, y=y)
    with pytest.raises(TypeError, match="`y` must be data that those of the batch are like"):
        plr.memory_of(torch.nn.Linear(1, 1), None, 10, 100, 100)
    with pytest.raises(ValueError, match="`window` must be at least 1"):
        plr.memory_of(model, guide, 10, 0, 100)


def test_a_step_that_does_not_fit_is_refused_before_it_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    model, guide = pair()
    y, before = recording(trials=8), state(model)
    needed = plr.memory_of(model, guide, 8, 12, 4, y=y)
    monkeypatch.setattr(memory, "available_bytes", lambda device: needed - 1)
    with pytest.raises(
        MemoryError, match=r"(?s)takes about .* GB, as `pyro_lowrank\.memory_of` tells .*pass parts=4"
    ) as told:
        small_fit(model, guide, y)
    assert "fewer particles, a smaller `batch_size` or a shorter `window`" in str(told.value)
    assert_same_state(model, before)
    # As it says, so it goes.
    small_fit(model, guide, y, parts=4, num_steps=1)
    monkeypatch.setattr(memory, "available_bytes", lambda device: None)
    small_fit(model, guide, y, num_steps=1)


def test_what_is_available_is_the_least_of_what_is_left(tmp_path: Path) -> None:
    machine = tmp_path / "meminfo"
    machine.write_text("MemTotal:  30 kB\nMemAvailable:   20 kB\n", encoding="utf-8")
    assert available._of_machine(machine) == 20 * 1024
    assert available._of_machine(tmp_path / "none") is None
    own, root = tmp_path / "cgroup", tmp_path / "groups"
    own.write_text("4:memory:/job/step\n3:cpuset:/\n0::/user/job\n", encoding="utf-8")
    for folder, names, values in (
        (root / "user", ("memory.max", "memory.current"), ("1000", "900")),
        (root / "user" / "job", ("memory.max", "memory.current"), ("max", "300")),
        (root / "memory" / "job", ("memory.limit_in_bytes", "memory.usage_in_bytes"), ("700", "100")),
    ):
        folder.mkdir(parents=True)
        for name, value in zip(names, values, strict=True):
            (folder / name).write_text(value + "\n", encoding="utf-8")
        (folder / "memory.stat").write_text("inactive_file 50\ntotal_inactive_file 25\n", encoding="utf-8")
    assert list(available._of_groups(root, own)) == [625, 150]
