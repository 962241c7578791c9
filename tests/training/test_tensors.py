"""Recordings, and lists of trials, are fitted as the tensors that they stand for."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

import pyro_lowrank as plr
from pyro_lowrank.data import Recording
from tests.training.builders import pair, recording, small_fit, state

NAN = float("nan")


def test_a_list_of_trials_is_fitted_as_the_padded_tensor(dtype: torch.dtype) -> None:
    y = recording(dtype).contiguous()
    y[1, 9:] = y[3, 5:] = NAN
    trials = [trial[:length] for trial, length in zip(y, (12, 9, 12, 5, 12), strict=True)]
    results = []
    for data in (y, trials, [trial.numpy() for trial in trials], Recording(y.numpy())):
        model, guide = pair(dtype)
        result = small_fit(model, guide, data, held_out=data)
        results.append((result.evidence, result.held_out_evidence, *state(model).values()))
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(one, two)


def test_inputs_of_a_recording_reach_the_model(dtype: torch.dtype) -> None:
    y = recording(dtype).contiguous()
    u = torch.randn(5, 12, 1, dtype=dtype)
    evidence = []
    for data in ((y, u), (Recording(y.numpy(), u.numpy()),), (list(y), list(u)), (list(y), u)):
        model, guide = pair(dtype, inputs=1)
        plr.initialise_from_data(model, *data)
        evidence.append(small_fit(model, guide, *data).evidence)
    assert all((one == evidence[0]).all() for one in evidence)
    model, guide = pair(dtype, inputs=1)
    with pytest.raises(ValueError, match="Inputs came with `y`, a Recording, which holds its own"):
        small_fit(model, guide, Recording(y.numpy(), u.numpy()), u)
    with pytest.raises(ValueError, match="built with inputs=1, but no inputs came"):
        small_fit(model, guide, Recording(y.numpy()))


def test_tensors_are_copies_of_the_models_type(dtype: torch.dtype) -> None:
    model, _ = pair(dtype)
    array = np.zeros((2, 4, 3), dtype=np.float32)
    (y,) = plr.as_tensors(Recording(array), model)
    array[:] = 1.0
    assert y.dtype == dtype
    assert (y == 0).all()
    assert plr.as_tensors(Recording(array))[0].dtype == torch.get_default_dtype()
    assert len(plr.as_tensors(Recording(array, array[..., :1]))) == 2


def test_a_silent_feature_is_fitted_with_a_warning_and_stays_finite(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    y = torch.poisson(torch.full((4, 15, 3), 0.6, dtype=dtype))
    y[..., 1] = 0.0
    y[0, 3] = NAN
    dynamics = plr.LowRankRNN(rank=2, units=6, dtype=dtype)
    model = plr.StateSpaceModel(dynamics, plr.PoissonObservation(rank=2, features=3, dtype=dtype))
    plr.initialise_from_data(model, y)
    with pytest.warns(UserWarning, match="1 of 3 features are zero in every trial, number 1:") as caught:
        result = small_fit(model, plr.BootstrapGuide(model), y)
    assert caught[0].filename == small_fit.__code__.co_filename, "the warning points at the caller's line"
    assert np.isfinite(result.evidence).all()
    assert all(value.isfinite().all() for value in state(model).values())
    rate = model.simulate(50, 20).mean[..., 1].mean()
    assert 0 <= rate < 0.05


def test_a_trial_of_nan_only_changes_nothing_but_warns(dtype: torch.dtype) -> None:
    y = recording(dtype)
    model, guide = pair(dtype)
    with pytest.warns(UserWarning, match="1 of 5 trials hold NaN only, number 2"):
        result = small_fit(model, guide, y.index_fill(0, torch.tensor([2]), NAN))
    assert np.isfinite(result.evidence).all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        small_fit(*pair(dtype), y)
