"""A batch gone through in parts gives the numbers of the whole."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import pyro_lowrank as plr
from tests.training.builders import pair, recording, small_fit


@pytest.mark.parametrize("parts", [2, 5])
@pytest.mark.parametrize("options", [{}, {"window": 5, "batch_size": 7}], ids=["trials", "windows"])
def test_parts_are_the_whole(parts: int, options: dict[str, Any]) -> None:
    y, u = recording(torch.float64), torch.randn(5, 12, 2, dtype=torch.float64)
    y[1, 3], y[2, 8:] = float("nan"), float("nan")
    expected, guide = pair(torch.float64, inputs=2)
    whole = small_fit(expected, guide, y, u, **options)
    model, guide = pair(torch.float64, inputs=2)
    found = small_fit(model, guide, y, u, parts=parts, **options)
    np.testing.assert_allclose(found.evidence, whole.evidence, rtol=1e-10)
    np.testing.assert_allclose(found.ess, whole.ess, rtol=1e-10)
    np.testing.assert_allclose(found.gradient_norm, whole.gradient_norm, rtol=1e-8)
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=1e-9, atol=1e-10)


def test_parts_never_hold_the_whole_batch() -> None:
    shapes: list[int] = []

    class Seen(plr.SMC_ELBO):
        def loss_and_history(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Any:
            shapes.append(len(args[0]))
            return super().loss_and_history(model, guide, *args, **kwargs)

    model, guide = pair()
    small_fit(model, guide, recording(), parts=2, num_steps=1, num_particles=None, elbo=Seen(4))
    assert shapes == [3, 2]


def test_more_parts_than_trials_are_refused() -> None:
    model, guide = pair()
    with pytest.raises(ValueError, match="`parts` must be at most the trials, or windows, of a step in a process, 5"):
        small_fit(model, guide, recording(), parts=6)
    with pytest.raises(ValueError, match="`parts` must be at least 1"):
        small_fit(model, guide, recording(), parts=0)
