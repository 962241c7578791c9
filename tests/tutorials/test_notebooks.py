"""The tutorials run from top to bottom, their claims hold, and what is committed is complete and clean."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

TUTORIALS = Path(__file__).resolve().parents[2] / "tutorials"
NOTEBOOKS = sorted(TUTORIALS.glob("*.ipynb"))
MACHINE_PATH = re.compile(r"(?<![\w.:/])/(work|root|home|tmp|var|usr|opt|mnt|Users)/|[A-Z]:\\Users")

every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def execute(name: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Run a notebook in reduced size, asserting what it asserts, and return its `results`."""
    monkeypatch.setenv("PYRO_LOWRANK_TUTORIAL_SCALE", "reduced")
    # The kernel has one core; more threads than cores slow small tensors down many times.
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    # The first import of ArviZ 0.x of each day says that there is a new one.
    monkeypatch.setenv("PYTHONWARNINGS", "ignore::FutureWarning:arviz")
    notebook = nbformat.read(TUTORIALS / name, as_version=4)
    notebook.cells.append(nbformat.v4.new_code_cell("import json\n\nprint(json.dumps(results, default=float))"))
    NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(TUTORIALS)}}
    ).execute()
    assert not texts(notebook, "stderr")
    return json.loads(notebook.cells[-1].outputs[0]["text"])


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Callable[[str, str | None], None]:
    """Lets a notebook read a shared file, skips where there is none; without a name the notebook makes its own data."""

    def read(variable: str, name: str | None) -> None:
        path = Path("no such file") if name is None else request.getfixturevalue("shared_data") / name
        monkeypatch.setenv(variable, str(path))

    return read


def texts(notebook: Any, stream: str) -> list[str]:
    """Return what the cells of a notebook wrote to a stream."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return [output["text"] for output in outputs if output.get("name") == stream]


@pytest.mark.slow
@pytest.mark.parametrize("source", ["recording", "simulated"])
def test_the_eeg_fit_raises_held_out_evidence(
    source: str, monkeypatch: pytest.MonkeyPatch, reads: Callable[[str, str | None], None]
) -> None:
    reads("PYRO_LOWRANK_EEG", "eeg_s001r01_smoothed.npy" if source == "recording" else None)
    results = execute("01_fit_eeg.ipynb", monkeypatch)
    assert results["held_out_after"] > results["held_out_before"]
    assert results["held_out_after"] > results["static"]
    assert results["by_hand"][1] > results["by_hand"][0]
    assert 0.9 < results["coverage"] <= 1.0
    assert results["correlations"] > 0.6


@pytest.mark.slow
def test_three_inferences_of_a_users_own_model_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    results = execute("02_your_own_pyro_model.ipynb", monkeypatch)
    evidence = results["evidence"]
    assert evidence["before"] < evidence["StopGradient"] < evidence["true model"] + 0.1
    for name in ("particle filter", "NUTS"):
        assert results["latents"][name]["error"] < 0.4
        assert results["drift"][name] < 0.2
    assert results["apart"] < 0.25
    assert max(results["filters"]["Pyro, 1 trial"], results["filters"]["ours, 1 trial"]) < 0.1
    assert results["evidence_apart"] < 0.25
    assert 0.05 < results["drift_scale"] < 0.2
    # Parts of one's own.
    silent, coupling, neural = (results[name] for name in ("silent", "coupling", "neural"))
    assert silent["PoissonObservation"] + 1 < silent["SilentAtTimes"] < silent["true model"] + 0.1
    assert results["gates_off"] < 0.1
    assert coupling["found"]["A to B"] > 0.05 > abs(coupling["found"]["B to A"])
    assert neural["evidence"][0] > 0.5 * neural["evidence"][1]
    assert results["exported"]["posterior"] == 50


@pytest.mark.slow
@pytest.mark.parametrize("source", ["trained", "drawn"])
def test_every_method_finds_what_is_proved_to_be_all(
    source: str, monkeypatch: pytest.MonkeyPatch, reads: Callable[[str, str | None], None]
) -> None:
    reads("PYRO_LOWRANK_REACH", "teacher_reach_rnn.npz" if source == "trained" else None)
    results = execute("03_fixed_points.ipynb", monkeypatch)
    assert results["complete"]
    assert results["index_sum"] == results["large"]["index_sum"] == 1
    assert results["evidence"]["student"] > 20
    assert sorted(results["truth"]) == ["attractor", "attractor", "repeller", "saddle", "saddle"]
    assert max(results["apart"]["attractor"]) < 1
    assert results["ring"]["complete"]
    solves = {name: [value for value in needed if value] for name, needed in results["needed"].items()}
    assert solves["certified"] == [results["ring"]["solves"]]
    assert all(value > 5 * results["ring"]["solves"] for value in solves["enumerate"])
    assert results["open"] > 0
    assert results["counts"][0] == results["ring"]["points"]
    if source == "trained":
        assert results["ring"]["points"] == 17
        assert results["ring"]["solves"] <= 400
        assert all(solves.values())
        assert results["counts"][-1] == 1


@pytest.mark.slow
@pytest.mark.parametrize("source", ["recording", "simulated"])
def test_a_posterior_reaches_arviz_and_ranks_are_compared(
    source: str, monkeypatch: pytest.MonkeyPatch, reads: Callable[[str, str | None], None]
) -> None:
    reads("PYRO_LOWRANK_SPIKES", "pmd_reach_2targets.npz" if source == "recording" else None)
    results = execute("04_posterior_in_arviz.ipynb", monkeypatch)
    assert results["first"] == f"rank {results['best']}"
    assert results["simplest"] <= results["best"]
    assert results["held_out"][1] > results["held_out"][0]
    assert results["calibration"] < 0.1
    assert 1.0 <= results["rhat"] < 2.5
    assert len(results["co_smoothing"]) == len(results["evidence"]) == 2


@pytest.mark.slow
def test_the_reproduction_shows_what_full_runs_left(monkeypatch: pytest.MonkeyPatch) -> None:
    results = execute("05_reproduction.ipynb", monkeypatch)
    assert results["fixed_points"] == {"points": 17, "solves": results["fixed_points"]["solves"]}
    assert results["teacher_gaussian"]["noise_off"] < 0.01
    assert results["teacher_input"] > 0.97
    assert results["d_h"] < 0.13
    assert results["d_stsp_published"] < results["d_stsp"]


@pytest.mark.slow
def test_parts_of_ones_own_do_what_they_claim(monkeypatch: pytest.MonkeyPatch) -> None:
    results = execute("07_extending.ipynb", monkeypatch)
    # A likelihood.
    assert set(results["apart"]) == {"BootstrapGuide", "LaplaceGuide"}
    assert max(results["apart"].values()) < 1e-5
    counts = results["counts"]
    assert counts["Poisson"] + 3 < counts["zero-inflated Poisson"] < counts["true model"] + 0.1
    assert results["gate_error"]["mean"] < 0.12
    # A resampling scheme.
    descendants, turns, spread = (results[name] for name in ("descendants", "turns", "spread"))
    assert max(scheme["off"] for scheme in descendants.values()) < 4.5
    assert descendants["SSP"]["beyond"] == 0 < descendants["stratified"]["beyond"]
    assert turns["SSP"][-1] < 0.4 * turns["SSP"][0]
    assert turns["systematic"][-1] > 0.9 * turns["systematic"][0]
    assert spread["SSP"][0] < 0.85 * spread["multinomial"][0]
    assert spread["SSP"][0] < 1.2 * spread["systematic"][0]
    assert results["off"] < 0.3
    # Dynamics.
    evidence = results["evidence"]
    assert max(evidence["low-rank"], evidence["diagonal"]) + 0.1 < evidence["low-rank plus diagonal"]
    assert evidence["low-rank plus diagonal"] < evidence["true model"] + 0.1
    assert results["smoothing_error"][0] < 0.85 * results["smoothing_error"][1]
    assert 0.82 < results["coverage"] < 0.98
    errors = results["forecast_errors"]
    assert errors["low-rank plus diagonal"][0] < min(errors["low-rank"][0], errors["mean of the data"][0])


@pytest.mark.slow
def test_attractors_have_probabilities_with_proofs(monkeypatch: pytest.MonkeyPatch) -> None:
    results = execute("08_how_many_attractors.ipynb", monkeypatch)
    assert results["complete"] == 1.0
    assert 0.0 <= results["few"] <= 1.0
    assert 0.0 <= results["many"] <= 1.0


@pytest.mark.slow
@pytest.mark.parametrize("source", ["recording", "simulated"])
def test_networks_stand_beside_what_remembers_without_them(
    source: str, monkeypatch: pytest.MonkeyPatch, reads: Callable[[str, str | None], None]
) -> None:
    reads("PYRO_LOWRANK_RAW_EEG", "eeg_s001r01_raw.npz" if source == "recording" else None)
    results = execute("09_eeg_that_remembers.ipynb", monkeypatch)
    evidence = results["evidence"]
    assert evidence["independent features"] < evidence["AR(4) features"] < evidence["network, memory"]
    assert evidence["network, white noise"] < evidence["network, memory"]
    assert results["complete"]


@pytest.mark.slow
@pytest.mark.parametrize("source", ["recording", "simulated"])
def test_rates_follow_the_spikes_that_were_recorded(
    source: str, monkeypatch: pytest.MonkeyPatch, reads: Callable[[str, str | None], None]
) -> None:
    reads("PYRO_LOWRANK_CALCIUM", "ca_truth_zebrafish_dp.npz" if source == "recording" else None)
    results = execute("10_calcium.ipynb", monkeypatch)
    assert results["evidence"]["independent features"] < results["evidence"]["AR(4) features"]
    assert results["rise"] < results["decay"]
    assert results["complete"]
    assert all(-1 < value < 1 for value in results["correlation"].values())
    if source == "simulated":
        # After three steps the rate is no better than the inverse filter, yet nearer to the spikes than what it is of.
        assert results["correlation"]["fluorescence"] < results["correlation"]["rate of the network"]


@every_notebook
def test_committed_notebooks_were_run_from_top_to_bottom(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 5
    assert not [output for output in outputs if output.output_type == "error"]
    assert not texts(notebook, "stderr")


@every_notebook
def test_committed_notebooks_are_small_and_tell_nothing_of_a_machine(path: Path) -> None:
    assert path.stat().st_size < 400_000
    notebook = nbformat.read(path, as_version=4)
    assert notebook.metadata.kernelspec.name == "python3"
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    for cell in notebook.cells:
        shown = [output.get("text", output.get("data", {}).get("text/plain", "")) for output in cell.get("outputs", [])]
        for text in (cell.source, *shown):
            assert not MACHINE_PATH.search(text), text


def test_the_readme_lists_every_notebook() -> None:
    listed = re.findall(r"\]\((\w+\.ipynb)\)", (TUTORIALS / "README.md").read_text(encoding="utf-8"))
    assert listed == [path.name for path in NOTEBOOKS]
