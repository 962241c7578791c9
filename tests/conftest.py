"""Fixtures every test has: fixed seeds, an empty parameter store, both floating-point types, the shared recordings."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

# Each xdist worker has one core to itself; torch reads this when it is first imported, subprocesses inherit it.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import pyro
import pytest
import torch

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Keep the tests of a file on one worker, where the fixtures and compiled loops that they share are made once."""
    from xdist.scheduler import LoadFileScheduling

    return LoadFileScheduling(config, log) if config.getvalue("dist") == "load" else None


@pytest.fixture(autouse=True)
def _fixed_seed_and_empty_param_store() -> None:
    pyro.set_rng_seed(20240624)
    pyro.clear_param_store()


@pytest.fixture(params=[torch.float32, torch.float64], ids=["float32", "float64"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    """Each floating-point type the library supports."""
    return request.param


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the benchmark recordings, which lie beside the checkout where there are any."""
    if not SHARED_DATA.is_dir():
        pytest.skip("the benchmark recordings are not here: ../shared/data, seen from the repository, is not a folder")
    return SHARED_DATA
