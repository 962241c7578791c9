"""The programs of the page about clusters run as they stand: a job array's copies, Dask, submitit, MPI, torchrun."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import pyro_lowrank as plr
from tests.markdown import fenced_blocks

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "tutorials" / "site" / "howto" / "cluster.md"
PYTHON = [sys.executable]
COMMANDS: dict[str, tuple[str | None, list[str], str]] = {
    "sweep.py": (None, [*PYTHON, "-m", "pyro_lowrank", "sweep", "."], "Sweep: 4 points, 2 folds"),
    "dask_sweep.py": ("distributed", [*PYTHON, "dask_sweep.py"], "Sweep: 2 points, 2 folds"),
    "submitit_sweep.py": ("submitit", [*PYTHON, "submitit_sweep.py"], "Sweep: 1 points, 2 folds"),
    "mpi_sweep.py": (
        "mpi4py",
        ["mpiexec", "-n", "2", *PYTHON, "-m", "mpi4py.futures", "mpi_sweep.py"],
        "Sweep: 2 points, 2 folds",
    ),
    "fit.py": (None, [*PYTHON, "-m", "torch.distributed.run", "--nproc-per-node", "2", "fit.py"], ""),
}


def programs() -> dict[str, str]:
    """Programs of the page by the names that their first lines give them."""
    blocks = [block.code for block in fenced_blocks(PAGE.read_text(encoding="utf-8")) if block.language == "text"]
    return {code.splitlines()[0].removeprefix("# "): code for code in blocks}


def test_every_program_of_the_page_is_run_here() -> None:
    assert programs().keys() == COMMANDS.keys()


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_programs_run_as_they_stand(name: str, tmp_path: Path) -> None:
    library, command, expected = COMMANDS[name]
    if library is not None:
        pytest.importorskip(library, reason=f"{library} is not installed")
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    (tmp_path / name).write_text(programs()[name], encoding="utf-8")
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    # Open MPI wants to be told by whom it is run in a container.
    environment |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    # Two copies of an array's job at once.
    running = [
        subprocess.Popen(
            command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for _ in range(2 if name == "sweep.py" else 1)
    ]
    try:
        for child in running:
            told, _ = child.communicate(timeout=500)
            assert child.returncode == 0, told
            assert expected in told
    finally:
        for child in running:
            child.kill()
    if name == "fit.py":
        model, _ = plr.load(tmp_path / "fit.safetensors")
        assert model.observation.features == 4
    if name == "sweep.py":
        assert len(list((tmp_path / "records").glob("*.json"))) == 8
