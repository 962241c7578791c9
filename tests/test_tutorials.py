"""The tutorials: committed with their outputs, and executed in a reduced size."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest

nbclient = pytest.importorskip("nbclient", reason="the tutorials are executed with nbclient, which is not installed")

FOLDER = Path(__file__).resolve().parents[1] / "tutorials"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


def test_there_are_tutorials_and_the_readme_lists_them() -> None:
    listed = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert len(NOTEBOOKS) >= 2
    assert all(f"({path.name})" in listed for path in NOTEBOOKS)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_committed_notebooks_show_clean_outputs(path: Path) -> None:
    cells = [cell for cell in read(path).cells if cell.cell_type == "code"]
    outputs = [output for cell in cells for output in cell.outputs]
    assert all(cell.execution_count for cell in cells), "every cell was run"
    assert any("image/png" in output.get("data", {}) for output in outputs), "there are figures"
    assert not any(output.output_type == "error" for output in outputs)
    assert not any(output.get("name") == "stderr" for output in outputs), "no warnings"
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"/(home|root|work|Users|tmp)/", text), "no paths of one machine"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_run_in_a_reduced_size(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every claim of a notebook is an assertion in it, so that running it checks it."""
    monkeypatch.setenv("PYRO_LOWRANK_TUTORIAL_SCALE", "reduced")
    notebook = read(path)
    client = nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(FOLDER)}})
    client.execute()
    assert all(cell.execution_count for cell in notebook.cells if cell.cell_type == "code")
