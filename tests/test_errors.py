from __future__ import annotations

import copy
import importlib
import pickle
import pkgutil
import warnings
from typing import Any

import numpy as np
import pyro
import pytest
import torch

import pyro_lowrank
import pyro_lowrank as plr
from pyro_lowrank.errors import (
    NoCompiledForm,
    check_choice,
    check_no_infinities,
    check_positive,
    check_positive_int,
    check_same_type,
    check_sequence,
    said_of,
    warn_user,
)
from pyro_lowrank.smc.loop import ParticlesDied


def test_integers_of_python_and_numpy_pass() -> None:
    assert check_positive_int("rank", 3) == 3
    value = check_positive_int("rank", np.int64(4))
    assert (value, type(value)) == (4, int)
    assert check_positive_int("inputs", 0, minimum=0) == 0


@pytest.mark.parametrize("value", [1.0, "3", True, None])
def test_what_is_no_integer_is_refused_by_type(value: Any) -> None:
    with pytest.raises(TypeError, match=f"`rank` must be an integer, got {type(value).__name__} {value!r}"):
        check_positive_int("rank", value)


@pytest.mark.parametrize(("value", "minimum"), [(0, 1), (-1, 0)])
def test_an_integer_below_the_minimum_is_refused(value: int, minimum: int) -> None:
    with pytest.raises(ValueError, match=f"`rank` must be at least {minimum}, got rank={value}"):
        check_positive_int("rank", value, minimum=minimum)


def test_positive_numbers_pass_as_floats() -> None:
    assert [check_positive("scale", value) for value in (2, 0.5, np.float32(0.25))] == [2.0, 0.5, 0.25]


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_numbers_that_are_not_finite_and_positive_are_refused(value: float) -> None:
    with pytest.raises(ValueError, match=f"`scale` must be finite and above zero, got scale={value}"):
        check_positive("scale", value)


@pytest.mark.parametrize("value", ["1", None, False])
def test_what_is_no_number_is_refused_by_type(value: Any) -> None:
    with pytest.raises(TypeError, match="`scale` must be a number, got"):
        check_positive("scale", value)


def test_a_misspelt_choice_is_refused_with_the_choices() -> None:
    assert check_choice("noise", "full", ("scalar", "full")) == "full"
    with pytest.raises(ValueError, match="`noise` must be one of 'scalar', 'full', got 'ful'"):
        check_choice("noise", "ful", ("scalar", "full"))


def test_a_sequence_of_the_right_shape_passes_with_missing_entries(dtype: torch.dtype) -> None:
    y = torch.full((2, 5, 3), torch.nan, dtype=dtype)
    assert check_sequence("y", y, last=3, last_name="features") is y
    check_no_infinities("y", y)


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (np.zeros((2, 5, 3)), TypeError, "must be a torch.Tensor .* got ndarray; convert it with torch.as_tensor"),
        (torch.zeros(5, 3), ValueError, r"must have 3 dims, .*, got 2 with shape \(5, 3\); .* pass y\[None\]"),
        (torch.zeros(1, 2, 5, 3), ValueError, r"must have 3 dims, .*, got 4 with shape \(1, 2, 5, 3\)"),
        (torch.zeros(2, 5, 3, dtype=torch.int64), TypeError, r"must hold floats .*, got torch.int64; use y.float\(\)"),
        (torch.zeros(0, 5, 3), ValueError, r"is empty: expected at least one trial.*, got \(0, 5, 3\)"),
        (torch.zeros(2, 0, 3), ValueError, r"is empty: expected .*time bin.*, got \(2, 0, 3\)"),
        (torch.zeros(2, 5, 4), ValueError, r"must have 3 features in its last dim, .*, got 4 \(shape \(2, 5, 4\)\)\.$"),
        (torch.zeros(2, 3, 5), ValueError, r"must have 3 features .*, got 5 .*time dim may be last: try y\.mT"),
    ],
)
def test_a_sequence_of_another_form_is_refused_with_what_to_do(
    value: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        check_sequence("y", value, last=3, last_name="features")


@pytest.mark.parametrize("infinity", [torch.inf, -torch.inf])
def test_infinities_are_counted_and_the_first_is_located(infinity: float) -> None:
    y = torch.zeros(2, 5, 3)
    y[1, 2, 0] = y[1, 4, 2] = infinity
    with pytest.raises(ValueError, match=r"`y` holds 2 infinite values, the first at index \(1, 2, 0\)"):
        check_no_infinities("y", y)


def test_another_floating_point_type_or_device_than_the_models_is_refused() -> None:
    like = torch.zeros(1)
    check_same_type("y", torch.zeros(2, 5, 3), like)
    with pytest.raises(
        TypeError, match=r"`y` holds torch.float64, the model torch.float32; pass y.to\(torch.float32\)"
    ):
        check_same_type("y", torch.zeros(2, 5, 3, dtype=torch.float64), like)
    with pytest.raises(ValueError, match=r"`y` lies on meta, the model on cpu; pass y.to\('cpu'\)"):
        check_same_type("y", torch.zeros(2, 5, 3, device="meta"), like)


def test_a_warning_points_at_the_line_of_the_caller() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        # `no_grad` puts a frame of torch between the two.
        torch.no_grad()(warn_user)("look here")
    assert [(str(w.message), w.filename) for w in caught] == [("look here", __file__)]


def exceptions() -> list[type[Exception]]:
    """Return every exception class that the package defines."""
    found: set[type[Exception]] = set()
    for module in pkgutil.walk_packages(pyro_lowrank.__path__, "pyro_lowrank."):
        if module.name.endswith("__main__"):
            continue
        for value in vars(importlib.import_module(module.name)).values():
            if isinstance(value, type) and issubclass(value, Exception) and value.__module__ == module.name:
                found.add(value)
    return sorted(found, key=lambda kind: kind.__qualname__)


def test_every_exception_can_be_made_again_from_what_it_says() -> None:
    """As Pyro's trace makes it, and what brings it from another process."""
    kinds = exceptions()
    assert {NoCompiledForm, ParticlesDied} <= set(kinds)
    for kind in kinds:
        error = kind("what went wrong")
        from_pickle = pickle.loads(pickle.dumps(error))  # noqa: S301 (its own)
        for again in (from_pickle, copy.copy(error), kind(str(error))):
            assert type(again) is kind
            assert str(again) == "what went wrong"


def test_dead_particles_keep_their_place_in_copies() -> None:
    error = ParticlesDied.at(7, 3, "why")
    assert str(error) == "All particles of trial 3 are dead at time 7: why."
    from_pickle = pickle.loads(pickle.dumps(error))  # noqa: S301 (its own)
    for again in (from_pickle, copy.copy(error)):
        assert (again.time, again.trial, again.cause, str(again)) == (7, 3, "why", str(error))


def test_dead_particles_in_a_traced_program_are_said_to_be_dead() -> None:
    model = plr.StateSpaceModel(plr.LowRankRNN(rank=2, units=5), plr.GaussianObservation(rank=2, features=3))
    y = torch.zeros(2, 3, 3)
    y[1, 2] = 1e30

    def program() -> None:
        pyro.factor("e", -plr.SMC_ELBO(4).differentiable_loss(model, None, y))

    with pytest.raises(ParticlesDied, match="All particles of trial 1 are dead at time 2"):
        pyro.poutine.trace(program).get_trace()


class _Picky(ValueError):
    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first} {second}")


def test_errors_that_are_said_again_need_no_arguments_of_their_own() -> None:
    class Strange(plr.GaussianObservation):
        def check_data(self, y: torch.Tensor) -> None:
            raise _Picky("no", "data")

    model = plr.StateSpaceModel(plr.LowRankRNN(rank=2, units=5), Strange(rank=2, features=3))
    with pytest.raises(ValueError, match="no data"):
        plr.fit(model, None, torch.zeros(2, 3, 3), num_steps=1)
    parts = {"strange": Strange(rank=2, features=3)}
    with pytest.raises(ValueError, match="In part 'strange': no data"):
        plr.JointObservation(parts).check_data(torch.zeros(2, 3, 3))
    assert type(said_of(TypeError("a"), "b")) is TypeError
