"""Where networks that drive fluorescence start."""

from __future__ import annotations

import torch

import pyro_lowrank as plr


def test_no_cell_starts_without_activity_of_its_own() -> None:
    """Of a pair that shares a rate a factor may take one cell for itself: nothing is then left of it (Heywood)."""
    generator = torch.Generator().manual_seed(0)
    rates = torch.randn(1000, 4, generator=generator)
    rates[:, 1] = 0.6 * rates[:, 0] + 0.8 * rates[:, 1]
    keeps = torch.tensor(-0.1 / 0.7).exp()
    level, calcium = 1.4 * torch.ones(4), []
    for rate in 2 + 3 * rates:
        level = keeps * level + 0.7 * (1 - keeps) * rate
        calcium.append(level)
    y = torch.stack(calcium).unsqueeze(0) + 0.02 * torch.randn(1, 1000, 4, generator=generator)
    observation = plr.CalciumObservation(rank=1, features=4, bin_size=0.1, decay=0.7, data="ratio")
    plr.initialise_from_data(plr.StateSpaceModel(plr.LowRankRNN(rank=1, units=8), observation), y)
    # In units of the fluorescence, since the scale is a matter of choice; 3 if nothing were shared.
    own = (observation.scale * observation.rate_noise).detach()
    assert (own > 0.9).all()
    assert (own < 3.3).all()
