"""Where networks that drive fluorescence start."""

from __future__ import annotations

import torch

import pyro_lowrank as plr


def test_no_cell_starts_without_activity_of_its_own() -> None:
    """Of cells that share nothing a factor takes one for itself, which must not start without activity for that."""
    generator = torch.Generator().manual_seed(0)
    rates = 2.0 + torch.randn(1, 3000, 4, generator=generator) * torch.tensor([6.0, 3.0, 3.0, 3.0])
    keeps = torch.tensor(-0.1 / 0.7).exp()
    level, calcium = 2.0 * 0.7 * torch.ones(4), []
    for rate in rates[0]:
        level = keeps * level + 0.7 * (1 - keeps) * rate
        calcium.append(level)
    y = torch.stack(calcium).unsqueeze(0)
    y = y + 0.02 * torch.randn(y.shape, generator=generator)
    observation = plr.CalciumObservation(rank=2, features=4, bin_size=0.1, decay=0.7, data="ratio")
    plr.initialise_from_data(plr.StateSpaceModel(plr.LowRankRNN(rank=2, units=8), observation), y)
    # In units of the fluorescence, which the scale is a matter of choice for.
    own = (observation.scale * observation.rate_noise).detach()
    assert (own > 0.45 * torch.tensor([6.0, 3.0, 3.0, 3.0])).all(), own
    assert (own < 1.4 * torch.tensor([6.0, 3.0, 3.0, 3.0])).all(), own
