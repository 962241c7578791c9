"""Recordings of several kinds: each part as it would be by itself, and the evidence of all of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from torch import Tensor

import pyro_lowrank as plr
from tests.builders import assert_close, network, shaken, sites
from tests.guides.test_laplace import evidence
from tests.oracles.quadrature import log_evidence_on_a_grid


def parts_of(dtype: torch.dtype, rank: int = 2) -> dict[str, Any]:
    """Spikes, a field potential read from the last latent alone, and a behaviour of zeros and ones."""
    lfp = plr.AffineReadout(rank=rank, features=3, latents=(rank - 1,), dtype=dtype)
    return {
        "spikes": shaken(plr.PoissonObservation(rank=rank, features=4, dtype=dtype), 0.2),
        "lfp": shaken(plr.GaussianObservation(readout=lfp, noise_scale=0.5, dtype=dtype), 0.2),
        "licks": shaken(plr.BernoulliObservation(rank=rank, features=1, dtype=dtype), 0.2),
    }


def model_of(dtype: torch.dtype = torch.float64, rank: int = 2) -> plr.StateSpaceModel:
    return plr.StateSpaceModel(network(dtype, rank=rank), plr.JointObservation(parts_of(dtype, rank)))


def with_gaps(y: Tensor) -> Tensor:
    """The recording with a missing cell, a missing part and a missing bin."""
    y = y.clone()
    y[0, 1, 0] = y[1, 0, 4:7] = y[1, 2] = torch.nan
    return y


def test_its_density_is_that_of_its_parts(dtype: torch.dtype) -> None:
    model = model_of(dtype)
    y = with_gaps(model.simulate(3, 5).y)
    found = sites(model, y)
    z, total = found["z"]["value"], torch.zeros(3, dtype=dtype)
    for name, part in model.observation.parts.items():
        piece = model.observation.split(y)[name]
        entries = part.distribution(z).base_dist.log_prob(piece.nan_to_num(nan=0.0))
        total = total + torch.where(piece.isnan(), 0.0, entries).sum((1, 2))
        assert_close(model.observation.split(model.observation.mean(z))[name], part.mean(z))
    assert_close(found["y"]["log_prob"], total, factor=5)


def test_draws_have_the_moments_of_the_parts() -> None:
    model = model_of()
    z = torch.randn(2, dtype=torch.float64).expand(50_000, 2)
    distribution = model.observation.distribution(z)
    y = distribution.sample()
    error = (distribution.variance[0] / 50_000).sqrt()
    assert ((y.mean(0) - distribution.mean[0]).abs() < 5 * error).all()
    torch.testing.assert_close(y.var(0), distribution.variance[0], rtol=0.1, atol=0)
    assert distribution.support.check(y).all()
    assert not distribution.support.check(y - 0.5).any()


@pytest.mark.parametrize("guide", [plr.LaplaceGuide, plr.BootstrapGuide])
def test_evidence_equals_quadrature(guide: Any) -> None:
    model = model_of(rank=1)
    y = with_gaps(model.simulate(2, 3).y)
    exact = log_evidence_on_a_grid(model, y)
    found = evidence(model, guide(model), y, particles=5000, backend="plain")
    torch.testing.assert_close(found, exact, rtol=2e-3, atol=1e-2)


def test_gaussian_parts_together_are_one_gaussian_model() -> None:
    dynamics = network(inputs=1)
    readouts = [
        plr.AffineReadout(rank=2, features=3, inputs=1, dtype=torch.float64),
        plr.AffineReadout(rank=2, features=2, latents=(1,), dtype=torch.float64),
    ]
    parts = {
        name: shaken(plr.GaussianObservation(readout=readout, noise_scale=0.5, dtype=torch.float64))
        for name, readout in zip("ab", readouts, strict=True)
    }
    joint = plr.StateSpaceModel(dynamics, plr.JointObservation(parts))
    whole = plr.GaussianObservation(rank=2, features=5, inputs=1, dtype=torch.float64)
    bound = joint.bind().affine_gaussian
    assert bound is not None
    with torch.no_grad():
        whole.readout.weight.copy_(bound.readout.weight)
        whole.readout.input_weight.copy_(bound.readout.input_weight)
        whole.readout.bias.copy_(bound.readout.bias)
        whole.noise_scale = bound.variance.sqrt()
    assert bound.readout.weight[3:, 0].abs().sum() == 0
    assert bound.readout.input_weight[3:].abs().sum() == 0
    other = plr.StateSpaceModel(dynamics, whole)
    u = torch.randn(2, 6, 1, dtype=torch.float64)
    y = joint.simulate(u=u).y
    y[0, 2, 1] = torch.nan
    z = torch.randn(2, 6, 2, dtype=torch.float64)
    assert_close(joint.observation.mean(z, u), other.observation.mean(z, u))
    losses = []
    for model in (joint, other):
        torch.manual_seed(0)
        losses.append(plr.SMC_ELBO(8).loss(model, plr.OptimalGuide(model), y, u))
    assert losses[0] == pytest.approx(losses[1])


@pytest.mark.parametrize("local", [False, True])
def test_svi_trains_all_parts_wherever_parameters_are(local: bool) -> None:
    with pyro.settings.context(module_local_params=local):
        model = model_of(torch.float32)
        y = with_gaps(model.simulate(4, 6).y)
        before = {name: value.detach().clone() for name, value in model.named_parameters()}
        guide = plr.BootstrapGuide(model)
        pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), plr.SMC_ELBO(8, backend="plain")).step(y)
        assert all(not torch.equal(value, before[name]) for name, value in model.named_parameters())


def test_guides_that_a_part_does_not_allow_are_refused() -> None:
    dynamics = network(torch.float32)
    rates = plr.PoissonObservation(readout=plr.UnitReadout(units=6, source="rates"))
    lfp = plr.GaussianObservation(rank=2, features=3)
    model = plr.StateSpaceModel(dynamics, plr.JointObservation({"spikes": rates, "lfp": lfp}))
    y = model.simulate(2, 4).y
    assert plr.SMCFilter(model, plr.BootstrapGuide(model), 5).run(y).log_evidence.isfinite().all()
    for guide in (plr.LaplaceGuide, plr.OptimalGuide):
        with pytest.raises(ValueError, match="JointObservation"):
            guide(model)


def test_svi_trains_all_parts_and_names_them(tmp_path: Path) -> None:
    model = model_of(torch.float32)
    y = with_gaps(model.simulate(4, 6).y)
    guide = plr.LaplaceGuide(model)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), plr.SMC_ELBO(8, backend="plain"))
    svi.step(y)
    assert "observation.parts.lfp.readout.weight" in pyro.get_param_store()
    assert all(not torch.equal(value, before[name]) for name, value in model.named_parameters())
    assert "(lfp): GaussianObservation" in repr(model)
    plr.save(tmp_path / "m", model, guide)
    again = plr.load(tmp_path / "m")
    assert list(again[0].observation.parts) == ["spikes", "lfp", "licks"]
    losses = []
    for pair in ((model, guide), again):
        torch.manual_seed(0)
        losses.append(plr.SMC_ELBO(8, backend="plain").loss(*pair, y))
    assert losses[0] == losses[1]


def test_it_starts_at_the_data() -> None:
    model = model_of(torch.float32)
    y = model.simulate(20, 40).y
    plr.initialise_from_data(model, y)
    at_zero = model.observation.mean(torch.zeros(1, 2))[0]
    torch.testing.assert_close(at_zero.detach(), y.mean((0, 1)), rtol=1e-3, atol=1e-4)
    lfp = model.observation.parts["lfp"]
    torch.testing.assert_close(lfp.noise_scale, y[..., 4:7].std((0, 1)), rtol=1e-2, atol=0)
    weight = lfp.readout.weight.clone()
    plr.initialise_from_data(model, y)
    assert torch.equal(lfp.readout.weight, weight), "of a region the weights stay as they were drawn"
    whole = plr.StateSpaceModel(
        network(torch.float32),
        plr.JointObservation(
            {
                "spikes": plr.PoissonObservation(rank=2, features=4),
                "lfp": plr.GaussianObservation(rank=2, features=4),
            }
        ),
    )
    plr.initialise_from_data(whole, y)
    alone = plr.StateSpaceModel(whole.dynamics, plr.GaussianObservation(rank=2, features=4))
    plr.initialise_from_data(alone, y[..., 4:])
    found, expected = whole.observation.parts["lfp"].readout.weight, alone.observation.readout.weight
    assert_close(found.detach(), expected.detach(), factor=5)


def test_posteriors_forecasts_and_replicates() -> None:
    model = model_of(torch.float32)
    y = with_gaps(model.simulate(3, 8).y)
    posterior = plr.SMCFilter(model, plr.BootstrapGuide(model), 100, backend="plain").run(y)
    assert model.observation.split(posterior.predict())["spikes"].min() > 0
    later = posterior.forecast(4, num_draws=7)
    assert later.y.shape == (7, 3, 4, 8)
    counts = later.y[..., :4]
    assert torch.equal(counts, counts.round())
    assert posterior.replicate(posterior.smooth(5)).y.shape == (5, 3, 8, 8)


def test_a_region_in_another_basis_is_refused() -> None:
    with pytest.raises(ValueError, match=r"latents \[1\] alone fixes their basis"):
        model_of().change_basis(torch.eye(2, dtype=torch.float64))
    whole = plr.JointObservation({"a": plr.PoissonObservation(rank=2, features=3, dtype=torch.float64)})
    model = plr.StateSpaceModel(network(), whole)
    matrix = torch.tensor([[0.6, 0.8], [-0.8, 0.7]], dtype=torch.float64)
    z = torch.randn(5, 2, dtype=torch.float64)
    assert_close(model.change_basis(matrix).observation.mean(z @ matrix.mT), model.observation.mean(z))


def test_bad_parts_and_data_are_refused() -> None:
    part = plr.PoissonObservation(rank=2, features=3)
    with pytest.raises(ValueError, match="`parts` must hold observation models by name"):
        plr.JointObservation({})
    with pytest.raises(TypeError, match="Part 'a' must be an Observation, got int"):
        plr.JointObservation({"a": 3})  # type: ignore[dict-item]
    for name in ("keys", "a.b", "training"):
        with pytest.raises(ValueError, match=f"words like 'spikes' or 'region_1', got '{name}'"):
            plr.JointObservation({name: part})
    with pytest.raises(ValueError, match="In part 'a': The observation model reads rank=3"):
        plr.StateSpaceModel(
            network(torch.float32), plr.JointObservation({"a": plr.PoissonObservation(rank=3, features=3)})
        )
    model = model_of(torch.float32)
    y = torch.zeros(2, 4, 8)
    y[0, 0, 1] = 0.5
    y[..., 4:7] = torch.randn(2, 4, 3)
    with pytest.raises(ValueError, match="In part 'spikes': PoissonObservation takes counts"):
        model.check_data(y)
    with pytest.raises(ValueError, match="must have 8 features"):
        model.check_data(y[..., :7])
    observation = model.observation
    with pytest.raises(ValueError, match=r"The parts are \['spikes', 'lfp', 'licks'\], got \['emg'\]"):
        observation.join({"emg": y})
    with pytest.raises(ValueError, match="Part 'lfp' has 3 features, got 8"):
        observation.join({"lfp": y})
    with pytest.raises(ValueError, match="same trials and time bins"):
        observation.join({"lfp": y[..., 4:7], "licks": y[:, :3, :1]})
    with pytest.raises(ValueError, match="8 features of all parts"):
        observation.split(y[..., :3])
    for latents, expected in (((2,), "from 0 to 1, got 2"), ((), "at least one"), ((0, 0), "distinct")):
        with pytest.raises(ValueError, match=expected):
            plr.AffineReadout(rank=2, features=3, latents=latents)
    with pytest.raises(TypeError, match="sequence of indices, got int 1"):
        plr.AffineReadout(rank=2, features=3, latents=1)  # type: ignore[arg-type]
