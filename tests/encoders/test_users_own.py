"""Encoders that a user writes: any module from a recording to mean and log variance."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyro
import pytest
import torch
from torch import Tensor, nn

import pyro_lowrank as plr
from tests.oracles.linear import kalman_filter, linear_model


class Own(nn.Module):
    """Plain layers, one inside the other, and a parameter of its own; no word of how far it looks."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
        # Modest: an untrained encoder that is sure of itself misleads the particles.
        self.log_variance = nn.Parameter(torch.full((2,), 3.0))
        self.double()

    def forward(self, y: Tensor) -> tuple[Tensor, Tensor]:
        mean = self.layers(y)
        return mean, self.log_variance.expand_as(mean)


class WithMask(Own):
    """The same, shown the mask and how far it looks."""

    lookback = lookahead = 0

    def forward(self, y: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        assert mask is not None
        mean, log_variance = super().forward(y)
        return mean, log_variance - mask.mean(-1, keepdim=True)


@pytest.fixture(params=[False, True], ids=["global_params", "module_local_params"])
def _either_place_of_parameters(request: pytest.FixtureRequest) -> Iterator[None]:
    with pyro.settings.context(module_local_params=request.param):
        yield


@pytest.mark.usefixtures("_either_place_of_parameters")
@pytest.mark.parametrize("encoder_type", [Own, WithMask])
def test_svi_and_fit_train_it(encoder_type: type[Own]) -> None:
    model = linear_model(noise_scale=1.0)
    guide = plr.EncoderGuide(model, encoder_type())
    y = model.simulate(4, 6).y
    y[0, 1, 2] = torch.nan
    for train in (
        lambda: pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), plr.SMC_ELBO(8)).step(y),
        lambda: plr.fit(model, guide, y, num_steps=2, num_particles=8, learning_rate=0.01, progress=False),
    ):
        before = {name: value.detach().clone() for name, value in guide.named_parameters()}
        train()
        assert len(before) == 5
        assert all(not torch.equal(value, before[name]) for name, value in guide.named_parameters())


@pytest.mark.usefixtures("_either_place_of_parameters")
def test_evidence_converges_to_the_exact_one() -> None:
    model = linear_model(noise_scale=1.0)
    y = model.simulate(3, 6).y
    y[0, 2] = y[1, 3:5, 1] = y[2, 4:] = torch.nan
    exact = kalman_filter(model, y).increments.sum(0)
    guide = plr.EncoderGuide(model, WithMask())
    smc = plr.SMCFilter(model, guide, 20_000)
    torch.testing.assert_close(smc.run(y).log_evidence, exact, rtol=0, atol=0.15)
    smc.init(y[:, 0])
    for t in range(1, 6):
        smc.step(y[:, t])
    torch.testing.assert_close(smc.log_evidence, exact, rtol=0, atol=0.15)


def test_it_is_not_trained_in_place_of_anothers_without_a_warning() -> None:
    """Pyro keeps a plain module's parameters under `encoder$$$layers.0.weight`: the second model's is the first's."""
    y = torch.randn(2, 5, 4, dtype=torch.float64)
    for number in range(2):
        model = linear_model()
        guide = plr.EncoderGuide(model, Own())
        if number:
            # The model's own parameters are out of the way: it is the encoder's that clash.
            names = [name for name in pyro.get_param_store() if not name.startswith("encoder")]
            for name in names:
                del pyro.get_param_store()[name]
        svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), plr.SMC_ELBO(8))
        if not number:
            svi.step(y)
            assert "encoder$$$layers.0.weight" in pyro.get_param_store()
            continue
        with pytest.warns(UserWarning, match=r"another value under the name 'encoder\$\$\$log_variance'"):
            svi.step(y)


def test_outside_handlers_it_keeps_its_own_parameters() -> None:
    model = linear_model()
    first, second = (plr.EncoderGuide(model, Own()) for _ in range(2))
    y = model.simulate(2, 5).y
    pyro.infer.SVI(model, first, pyro.optim.Adam({"lr": 0.01}), plr.SMC_ELBO(8)).step(y)
    stored = {name: value.detach().clone() for name, value in pyro.get_param_store().items()}
    before = {name: value.detach().clone() for name, value in second.named_parameters()}
    plr.fit(model, second, y, num_steps=1, num_particles=8, learning_rate=0.01, progress=False)
    assert all(not torch.equal(value, before[name]) for name, value in second.named_parameters())
    assert torch.equal(pyro.get_param_store()["encoder$$$layers.0.weight"], stored["encoder$$$layers.0.weight"])


def test_it_cannot_be_saved_but_its_tensors_can(tmp_path: Path) -> None:
    model = linear_model()
    guide = plr.EncoderGuide(model, Own())
    with pytest.raises(TypeError, match=r"Own is not a class of this library.*state_dict"):
        plr.save(tmp_path / "m", model, guide)
    assert "encoder.layers.0.weight" in guide.state_dict()


def test_bad_encoders_are_refused() -> None:
    model = linear_model()
    with pytest.raises(TypeError, match="`encoder` must be a torch.nn.Module, got function"):
        plr.EncoderGuide(model, lambda y: y)  # type: ignore[arg-type]

    class Single(Own):
        def forward(self, y: Tensor) -> Tensor:  # type: ignore[override]
            return self.layers(y)

    with pytest.raises(ValueError, match=r"must return \(mean, log_variance\), each of shape \(2, 5, 2\), got Tensor"):
        plr.SMCFilter(model, plr.EncoderGuide(model, Single()), 5).run(torch.randn(2, 5, 4, dtype=torch.float64))
    with pytest.raises(ValueError, match="The encoder has features=3, the model features=4"):
        plr.EncoderGuide(model, plr.GRUEncoder(3, 2))
