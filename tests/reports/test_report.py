"""The report is one small page that needs nothing else, tells true numbers, and opens in a browser without errors."""

from __future__ import annotations

import base64
import dataclasses
import html
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pyro_lowrank as plr
from pyro_lowrank.data import Recording
from pyro_lowrank.training.independent import independent_evidence, normal

pytest.importorskip("jinja2", reason="the extra `report` is not installed")
pytest.importorskip("matplotlib", reason="the extra `report` is not installed")

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SMALL: dict[str, Any] = {"num_particles": 20, "num_draws": 10}


def uris(page: str) -> list[str]:
    """The pictures of a page."""
    return re.findall(r'<img src="(data:image/png;base64,[^"]+)"', page)


@pytest.fixture(scope="module")
def spikes(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A page on spikes of trials with conditions, behaviour and the course of a fit."""
    torch.manual_seed(0)
    model = plr.StateSpaceModel(plr.LowRankRNN(rank=2, units=8), plr.PoissonObservation(rank=2, features=5))
    counts = model.simulate(num_trials=8, num_steps=25).y.numpy()
    counts[3, 15:] = np.nan
    recording = Recording(
        counts,
        trial_lengths=np.array([25, 25, 25, 15, 25, 25, 25, 25]),
        bin_size=0.05,
        feature_units=("counts",) * 5,
        feature_names=tuple(f"<unit {index}>" for index in range(5)),
        conditions=np.array(["left", "right"] * 4),
    )
    guide = plr.BootstrapGuide(model)
    fitted = plr.fit(
        model, guide, recording, held_out=recording, num_steps=4, num_particles=8, progress=False, evaluate_every=1
    )
    path = tmp_path_factory.mktemp("report") / "page.html"
    behaviour = np.random.default_rng(0).normal(size=(8, 25, 1))
    state = torch.random.get_rng_state()
    found = plr.report(
        path,
        model,
        guide,
        recording,
        fit=dataclasses.replace(fitted, without_dynamics=-3.25),
        behaviour=behaviour,
        behaviour_names=("speed (m/s)",),
        title="Spikes & more",
        **SMALL,
    )
    assert found == path
    assert torch.equal(state, torch.random.get_rng_state()), "the caller's generator is left alone"
    return path.read_text(encoding="utf-8"), path


@pytest.fixture(scope="module")
def signals(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, torch.Tensor, plr.StateSpaceModel]:
    """A page on one trial of real-valued data, of rank 3, of a tensor."""
    torch.manual_seed(0)
    model = plr.StateSpaceModel(plr.LowRankRNN(rank=3, units=8), plr.GaussianObservation(rank=3, features=4))
    y = model.simulate(num_trials=1, num_steps=60).y
    path = tmp_path_factory.mktemp("report") / "page.html"
    plr.report(path, model, plr.OptimalGuide(model), y, **SMALL)
    return path.read_text(encoding="utf-8"), y, model


def test_the_page_stands_alone(spikes: tuple[str, Path], signals: tuple[str, Any, Any]) -> None:
    for page in (spikes[0], signals[0]):
        assert len(page.encode()) < 3e6
        assert "<script" not in page
        assert not re.search(r'(src|href)="(?!data:|#)', page), "nothing outside of the page is needed"
        assert "prefers-color-scheme: dark" in page
        for uri in uris(page):
            assert base64.b64decode(uri.partition(",")[2]).startswith(b"\x89PNG")
        images = re.findall("<img ", page)
        assert len(images) == len(uris(page)) > 8
        assert len(re.findall(r'<img [^>]*alt="[^"]{8,}', page)) == len(images)
        anchors = re.findall(r'<a href="#([^"]+)"', page)
        assert anchors == re.findall(r'<section id="([^"]+)"', page)


def test_every_part_is_there(spikes: tuple[str, Path], signals: tuple[str, Any, Any]) -> None:
    titles = re.findall(r"<h2>([^<]+)</h2>", spikes[0])
    assert titles == [
        "Model and recording",
        "How the fit went",
        "Inferred rates over the recording",
        "Latents over time",
        "Latents by condition",
        "Flow and fixed points",
        "Recorded against generated",
        "Mean activity over trials by condition",
        "Behaviour decoded",
        "Can the filter be trusted",
        "ArviZ summary",
    ]
    titles = re.findall(r"<h2>([^<]+)</h2>", signals[0])
    assert "Inferred means over the recording" in titles
    assert "Latents together" in titles
    # One trial has no average over trials, and no behaviour came.
    assert not {"Mean activity over trials", "Behaviour decoded"} & set(titles)


def test_names_are_escaped_and_the_reference_is_told(spikes: tuple[str, Path]) -> None:
    page = spikes[0]
    assert "<title>Spikes &amp; more</title>" in page
    assert "<unit" not in page
    assert "&lt;unit" in page
    assert "than without dynamics (-3.250)" in page
    assert "speed (m/s)" in page


def test_its_numbers_are_those_of_the_recording(signals: tuple[str, torch.Tensor, plr.StateSpaceModel]) -> None:
    page, y, model = signals
    told = re.search(r"This recording has (-?[\d.]+) nats of log evidence per time bin, and (-?[\d.]+) without", page)
    assert told is not None
    exact = plr.SMCFilter(model, plr.OptimalGuide(model), 3000).run(y).log_evidence.item() / 60
    assert float(told[1]) == pytest.approx(exact, abs=0.3)
    assert float(told[2]) == pytest.approx(independent_evidence(y, y, normal), abs=1e-3)
    certificate = model.dynamics.fixed_points().certificate
    assert ("there are no others, which is proved" in page) == certificate.complete
    rows = re.findall(r"z\[\d+, \d+\]|z\[trial_0, [^\]]+\]", html.unescape(page))
    assert len(rows) == 3


def test_models_without_dynamics_stand_beside_the_network(
    signals: tuple[str, torch.Tensor, plr.StateSpaceModel], spikes: tuple[str, Path]
) -> None:
    page, y, _ = signals
    expected = plr.baselines(y, y, order=4, factors=3)
    assert "<th>nats per bin, this recording</th>" in page
    for row in expected.rows:
        assert f"<td>{row.name}</td><td>{row.nats:.3f}</td>" in page
    assert f"{expected.best.nats:.3f} nats/bin, {expected.best.name}" in page
    # Counts have none.
    assert "VAR(1)" not in spikes[0]


def test_what_does_not_fit_is_refused_before_any_work(tmp_path: Path) -> None:
    model = plr.StateSpaceModel(plr.LowRankRNN(rank=1, units=4), plr.GaussianObservation(rank=1, features=2))
    y, path = torch.randn(3, 10, 2), tmp_path / "page.html"
    with pytest.raises(ValueError, match="`behaviour` must be trials x time x targets"):
        plr.report(path, model, None, y, behaviour=np.zeros((3, 9, 1)))
    with pytest.raises(ValueError, match="one per target, 1, got 2"):
        plr.report(path, model, None, y, behaviour=np.zeros((3, 10)), behaviour_names=("a", "b"))
    with pytest.raises(TypeError, match="A report is of a StateSpaceModel, got Linear"):
        plr.report(path, torch.nn.Linear(1, 1), None, y)  # type: ignore[arg-type]
    with pytest.raises(OSError, match="nowhere"):
        plr.report(tmp_path / "nowhere" / "page.html", model, None, y)
    assert not path.exists()


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")
@pytest.mark.parametrize("width", [360, 1200])
def test_chromium_opens_it_without_errors(spikes: tuple[str, Path], tmp_path: Path, width: int) -> None:
    page = spikes[0]
    assert CHROMIUM is not None
    # In a frame as wide as a phone or a screen, looked at from within: every picture decoded, nothing wider than it.
    probe = """<body><iframe style="width:WIDTHpx;height:900px"></iframe><script>
      const frame = document.querySelector("iframe");
      frame.onload = () => { const page = frame.contentDocument;
        const there = [...page.images].filter(image => image.complete && image.naturalWidth > 0).length;
        document.title = JSON.stringify([there, page.documentElement.scrollWidth <= WIDTH]); };
      frame.srcdoc = PAGE;</script>"""
    probed = tmp_path / "probed.html"
    content = json.dumps(page).replace("</", "<\\/")
    probed.write_text(probe.replace("WIDTH", str(width)).replace("PAGE", content), encoding="utf-8")
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=5000", "--dump-dom"]
    options += ["--enable-logging=stderr", f"--user-data-dir={tmp_path}"]
    done = subprocess.run(
        [CHROMIUM, *options, f"file://{probed}"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=os.environ | {"HOME": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    title = re.search(r"<title>([^<]+)</title>", done.stdout)
    assert title is not None
    assert title[1] == f"[{len(uris(page))},true]"
    assert not [line for line in done.stderr.splitlines() if "CONSOLE" in line], done.stderr[-2000:]
