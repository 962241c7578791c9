"""The objective inside torch's DistributedDataParallel: gradients and random numbers of one process."""

from __future__ import annotations

from pathlib import Path

import pyro
import pytest
import torch

import pyro_lowrank as plr
from tests.training.builders import pair, recording
from tests.training.test_team import run_two

PROGRAM = """
import pyro
from torch.nn.parallel import DistributedDataParallel
torch.distributed.init_process_group("gloo")
torch.manual_seed(rank)
model, guide = pair(double, seed=1 + rank)
y, found = recording(double, trials=6), []
# Parameters are those of the first process from here on.
loss = DistributedDataParallel(plr.SMC_ELBO(7, gradient={gradient})(model, guide), find_unused_parameters=True)
optimizer = torch.optim.SGD(loss.parameters(), lr=1e-3)
rows = slice(3 * rank, 3 * rank + 3)
for step in range(3):
    pyro.set_rng_seed(step)
    optimizer.zero_grad()
    with plr.rows_of(rows, len(y)):
        value = loss(y[rows]) / 3
        value.backward()
    found.append([value.item(), [parameter.grad.clone() for parameter in model.parameters()]])
    optimizer.step()
torch.save(found, f"{{folder}}/{{rank}}.pt")
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "gradient", ["plr.FisherGradient()", pytest.param("plr.PathwiseGradient()", marks=pytest.mark.slow)]
)
def test_gradients_are_those_of_one_process(gradient: str, tmp_path: Path) -> None:
    for code, told in run_two(PROGRAM.format(gradient=gradient), tmp_path):
        assert code == 0, told
    kept = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    model, guide = pair(torch.float64)
    y = recording(torch.float64, trials=6)
    loss = plr.SMC_ELBO(7, gradient=eval(gradient, {"plr": plr}))(model, guide)
    optimizer = torch.optim.SGD(loss.parameters(), lr=1e-3)
    for step in range(3):
        pyro.set_rng_seed(step)
        optimizer.zero_grad()
        value = loss(y) / 6
        value.backward()
        assert (kept[0][step][0] + kept[1][step][0]) / 2 == pytest.approx(value.item(), rel=1e-10)
        for rank in range(2):
            for mine, whole in zip(kept[rank][step][1], model.parameters(), strict=True):
                torch.testing.assert_close(mine, whole.grad, rtol=1e-8, atol=1e-9)
        optimizer.step()
