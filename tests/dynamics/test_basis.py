from __future__ import annotations

import pytest
import torch
from pyro import poutine
from torch import Tensor

import pyro_lowrank as plr
from tests.builders import assert_close, gaussian_model, network, shaken, sites


def observed(kind: str, dtype: torch.dtype) -> plr.StateSpaceModel:
    """A model with inputs whose recording is read from latents, currents or rates."""
    if kind == "latents":
        return gaussian_model(dtype, inputs=2, noise="diagonal", activation="clipped_relu")
    dynamics = network(dtype, inputs=2, input_filter=True)
    readout = plr.UnitReadout(units=6, source=kind, dtype=dtype)
    return plr.StateSpaceModel(dynamics, shaken(plr.GaussianObservation(readout=readout, noise_scale=0.5, dtype=dtype)))


def given(model: plr.StateSpaceModel, z: Tensor) -> object:
    """The model with its latents given."""
    return poutine.condition(model, {"z": z})


@pytest.mark.parametrize("kind", ["latents", "currents", "rates"])
def test_a_change_of_basis_leaves_weights_and_law_unchanged(kind: str, dtype: torch.dtype) -> None:
    model = observed(kind, dtype)
    matrix = torch.tensor([[1.5, 0.4], [-0.3, 0.8]], dtype=dtype)
    changed = model.change_basis(matrix)
    assert_close(changed.dynamics.recurrent_weights, model.dynamics.recurrent_weights, factor=5)
    u = torch.randn(4, 6, 2, dtype=dtype)
    z, y, mean = model.simulate(u=u)
    turned = z @ matrix.mT
    before, after = sites(given(model, z), y, u), sites(given(changed, turned), y, u)
    # A density over z' = A z, per time bin.
    jacobian = 6 * torch.linalg.slogdet(matrix)[1]
    assert_close(after["z"]["log_prob"] + jacobian, before["z"]["log_prob"], factor=50)
    assert_close(after["y"]["log_prob"], before["y"]["log_prob"], factor=50)
    effective = model.dynamics.transition().drift.effective_inputs(u)
    assert_close(changed.observation.mean(turned, effective), mean, factor=50)


def test_moments_of_the_latents_change_with_the_basis(dtype: torch.dtype) -> None:
    dynamics = network(dtype, noise="scalar", initial_noise="diagonal")
    matrix = torch.tensor([[1.5, 0.4], [-0.3, 0.8]], dtype=dtype)
    changed = dynamics.change_basis(matrix)
    assert_close(changed.noise_covariance, matrix @ dynamics.noise_covariance @ matrix.mT, factor=5)
    assert_close(changed.initial_covariance, matrix @ dynamics.initial_covariance @ matrix.mT, factor=5)
    assert_close(changed.initial_mean, matrix @ dynamics.initial_mean, factor=5)
    z = torch.randn(4, 2, dtype=dtype)
    assert_close(changed(z @ matrix.mT), dynamics(z) @ matrix.mT, factor=20)


def test_a_matrix_of_another_type_is_turned_into_the_models() -> None:
    matrix = torch.tensor([[1.5, 0.5], [-0.25, 0.75]])
    for model in (gaussian_model(torch.float64), gaussian_model(torch.float32)):
        turned = model.change_basis(matrix.double()).dynamics.initial_mean
        assert_close(turned, matrix.to(turned.dtype) @ model.dynamics.initial_mean, factor=5)


def test_a_rotation_and_its_inverse_give_the_network_back(dtype: torch.dtype) -> None:
    dynamics = network(dtype, rank=3)
    rotation = torch.linalg.qr(torch.randn(3, 3, dtype=dtype)).Q
    again = dynamics.change_basis(rotation).change_basis(rotation.mT)
    for name in ("left", "right", "initial_mean", "noise_covariance", "initial_covariance", "decay", "bias"):
        assert_close(getattr(again, name), getattr(dynamics, name), factor=20)


def test_the_original_is_left_as_it_was() -> None:
    model = gaussian_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    changed = model.change_basis(torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64))
    with torch.no_grad():
        for parameter in changed.parameters():
            parameter.add_(1.0)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_a_readout_of_units_in_the_copy_reads_the_copied_network() -> None:
    model = observed("currents", torch.float64)
    changed = model.change_basis(torch.eye(2, dtype=torch.float64))
    with torch.no_grad():
        changed.dynamics.left.mul_(2.0)
    z = torch.randn(4, 2, dtype=torch.float64)
    bias, changed_bias = model.observation.readout.bias, changed.observation.readout.bias
    assert_close(changed.observation.mean(z) - changed_bias, 2 * (model.observation.mean(z) - bias))


@pytest.mark.parametrize("from_data", [False, True], ids=["simulated", "given"])
def test_orthogonalising_makes_left_vectors_orthonormal_and_latents_uncorrelated(
    from_data: bool, dtype: torch.dtype
) -> None:
    model = gaussian_model(dtype, rank=3, units=8, activation="tanh", noise="full")
    latents = model.simulate(num_trials=20, num_steps=500).z
    result = model.orthogonalise(latents if from_data else None)
    left = result.dynamics.left
    assert_close(left.mT @ left, torch.eye(3, dtype=dtype), factor=5)
    assert_close(result.dynamics.recurrent_weights, model.dynamics.recurrent_weights, factor=20)
    if from_data:
        basis = model.dynamics.orthogonal_basis(latents)
        covariance = torch.cov((latents.reshape(-1, 3) @ basis.mT).mT)
    else:
        covariance = torch.cov(result.simulate(num_trials=40, num_steps=1000).z.reshape(-1, 3).mT)
    variances = covariance.diagonal()
    # Where other latents ordered them, sampling error remains.
    slack = 1e-4 if from_data else 0.1
    assert (covariance - torch.diag(variances)).abs().max() < slack * variances.max()
    assert (variances.diff() < slack * variances.max()).all()


def test_orthogonalising_keeps_the_law_of_the_recording(dtype: torch.dtype) -> None:
    model = gaussian_model(dtype, activation="tanh")
    z, y, _ = model.simulate(num_trials=4, num_steps=6)
    basis = model.dynamics.orthogonal_basis(z)
    before, after = sites(given(model, z), y), sites(given(model.orthogonalise(z), z @ basis.mT), y)
    assert_close(after["y"]["log_prob"], before["y"]["log_prob"], factor=50)
    jacobian = 6 * torch.linalg.slogdet(basis)[1]
    assert_close(after["z"]["log_prob"] + jacobian, before["z"]["log_prob"], factor=100)


def test_a_network_with_inputs_is_orthogonalised_at_rest() -> None:
    left = network(inputs=2, rank=2).orthogonalise().left
    assert_close(left.mT @ left, torch.eye(2, dtype=torch.float64))


@pytest.mark.parametrize("matrix", [torch.ones(2, 2), torch.eye(3), torch.tensor([[1.0, 0.0], [0.0, 0.0]])])
def test_a_matrix_that_is_no_basis_is_refused(matrix: Tensor) -> None:
    with pytest.raises(ValueError, match="`matrix` must be invertible, 2 x 2, got tensor"):
        network(torch.float32).change_basis(matrix)


def test_latents_with_a_decay_each_have_no_other_basis() -> None:
    with pytest.raises(ValueError, match="Latents with a decay each cannot change their basis"):
        network(torch.float32, decay=(0.5, 0.9)).change_basis(torch.eye(2))


def test_other_models_have_no_basis_to_change() -> None:
    full = plr.StateSpaceModel(plr.FullRankRNN(units=4), plr.GaussianObservation(rank=4, features=3))
    with pytest.raises(TypeError, match="Only a LowRankRNN .* got FullRankRNN"):
        full.change_basis(torch.eye(4))
    with pytest.raises(TypeError, match="Only a LowRankRNN can be orthogonalised, got FullRankRNN"):
        full.orthogonalise()
