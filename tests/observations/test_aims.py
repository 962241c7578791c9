"""Where the data would have the readout."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import pyro_lowrank as plr
from pyro_lowrank.observations.aims import aims
from tests.observations.test_scalar import Inflated, LaplaceNoise

COUNTS = torch.tensor([[0.0, 1.0, 2.0, 3.0], [10.0, 100.0, 1e4, 1e6]])


@pytest.mark.parametrize("link", ["softplus", "exp"])
@pytest.mark.parametrize("kind", [plr.PoissonObservation, plr.NegativeBinomialObservation])
def test_the_most_likely_readout_is_found_as_its_closed_form_says(kind: Any, link: str) -> None:
    density = kind(rank=1, features=4, link=link).family().density
    parameters = () if kind is plr.PoissonObservation else (torch.tensor([0.1, 0.2, 1.0, 2.0]).double(),)
    y = COUNTS.double()
    found = aims(lambda *values: density._values(*values)[0], y, parameters, counts=False)
    expected = density.aims(y, *parameters)
    sought = y > 0
    torch.testing.assert_close(found[sought], expected[sought], rtol=2e-3, atol=2e-3)
    # No spike is likelier the lower the rate: half a nat below that.
    value = density.log_prob(y, found, *parameters)[~sought]
    torch.testing.assert_close(value, torch.full_like(value, -0.5), rtol=5e-3, atol=0)


def test_a_table_of_counts_gives_what_each_entry_does() -> None:
    density = Inflated(rank=1, features=3).family().density
    y, gate = torch.randint(0, 5, (7, 11, 3)).double(), torch.tensor([0.1, 0.3, 0.6]).double()

    def log_prob(*values: Any) -> Any:
        return density._values(*values)[0]

    assert torch.equal(aims(log_prob, y, (gate,), counts=True), aims(log_prob, y, (gate,), counts=False))


def test_numbers_have_theirs_whatever_their_size(dtype: torch.dtype) -> None:
    density = LaplaceNoise(rank=1, features=3).family().density
    y = torch.tensor([[-1e5, -3.0, 1e-2], [0.0, 7.5, 1e6]], dtype=dtype)
    found = density.aims(y, torch.tensor([0.5], dtype=dtype))
    torch.testing.assert_close(found, y, rtol=1e-3, atol=1e-3)


def test_likelihoods_that_say_how_far_a_step_goes_have_none() -> None:
    density = plr.GaussianObservation(rank=1, features=3).bind(None).density
    assert not density.is_stiff
    assert torch.equal(density.aims(COUNTS, torch.ones(4)), torch.zeros(2, 4))
