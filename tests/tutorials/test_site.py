"""The documentation site: its Python runs as it stands, its links lead somewhere, no public name is missing."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

import pyro_lowrank as plr
from pyro_lowrank import data, fixed_points, metrics, plots
from tests.interop.checkpoints import newer
from tests.markdown import fenced_blocks, python_blocks, run

ROOT = Path(__file__).resolve().parents[2]
SITE = ROOT / "tutorials" / "site"
PAGES = sorted(SITE.rglob("*.md"))
RUN = [page for page in PAGES if python_blocks(page)]
LINKING = [*PAGES, ROOT / "README.md", ROOT / "tutorials" / "README.md"]

# What is not installed everywhere, and the pages that need it.
EXTRAS = {"spikes_nwb": "pynwb", "eeg_mne": "mne"}

# Files that a page says the reader has.
FILES: dict[str, Callable[[Path], object]] = {"paper_code": lambda folder: newer().write(folder)}

NEWCOMERS_TASKS = {
    "spikes from NWB to smoothed latents and a figure": "spikes_nwb",
    "EEG": "eeg_mne",
    "three sessions": "sessions",
    "ragged trials with a stimulus": "ragged",
    "rank": "rank",
    "own likelihood": "own_likelihood",
    "fixed points of given weights": "fixed_points",
    "posterior in ArviZ": "arviz",
    "a cluster": "cluster",
    "online": "online",
}


# These run what other tests do, for longer.
SLOW = {"report", "mcmc"}


def title_of(page: Path) -> str:
    """A page's path below its folder."""
    return str(page.relative_to(SITE).with_suffix(""))


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=pytest.mark.slow) if page.stem in SLOW else page for page in RUN],
    ids=list(map(title_of, RUN)),
)
def test_the_python_of_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if page.stem in EXTRAS:
        pytest.importorskip(EXTRAS[page.stem], reason=f"the extra for {page.name} is not installed")
    if page.stem in FILES:
        FILES[page.stem](tmp_path)
    run(python_blocks(page), page)


@pytest.mark.parametrize("task", NEWCOMERS_TASKS)
def test_each_task_of_a_newcomer_has_a_page_that_runs(task: str) -> None:
    assert SITE / "howto" / f"{NEWCOMERS_TASKS[task]}.md" in RUN


def documented(page: str) -> set[str]:
    """Names that a page of the reference documents."""
    text = (SITE / "api" / f"{page}.rst").read_text(encoding="utf-8")
    return set(re.findall(r"^\.\. auto(?:class|function|exception):: (\w+)$", text, flags=re.MULTILINE))


def test_the_reference_has_every_public_name_once() -> None:
    own = {
        "data": data.__all__,
        "metrics": metrics.__all__,
        "fixed_points": fixed_points.__all__,
        "plots": plots.__all__,
    }
    for page, names in own.items():
        assert documented(page) == set(names), page
    others = [page.stem for page in (SITE / "api").glob("*.rst") if page.stem not in own]
    listed = [name for page in others for name in sorted(documented(page))]
    assert sorted(listed) == sorted(set(plr.__all__) - {"__version__"})


@pytest.mark.parametrize("page", LINKING, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_within_the_repository_lead_to_files(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for block in fenced_blocks(text):
        text = text.replace(block.code, "")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?:|#", target):
            continue
        assert (page.parent / target.partition("#")[0]).exists(), target


def test_readme_can_be_read_in_minutes() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 130
    assert len(text.split()) <= 1000
