"""Rates inferred from the fluorescence of single cells, against the spikes that an electrode recorded from them.

Two-photon recordings of GCaMP6f in the zebrafish's telencephalon (area Dp), 8 cells, 23 recordings of 120 s at 30
frames per second (Rupprecht et al. 2021, Nat. Neurosci. 24:1324). One cell at a time: a network of rank 1 drives it,
trained on all recordings of the cell, which know nothing of the spikes; its rate given the whole recording, and the
spikes that AR(1) deconvolution by OASIS (Friedrich et al. 2017, the package oasis-deconv with its defaults) puts there,
are summed over 0.1 s and correlated with the number of spikes, recording by recording; a cell's number is the mean of
its recordings, and the last ones the mean of cells.

That there is a rise was chosen on cell 2, where the correlation was 0.37 without one and 0.42 with one that starts at
0.2 s; the number of steps was chosen by the time they take, and cell 0 was looked at too. So means are of the six other
cells (`others`), and of all.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from shared import DataMissing, data_file, fitted, tensor

import pyro_lowrank as plr

REFERENCE = {"correlation_network_all": "0.367 (OASIS)"}
# That of OASIS on the same files, with the defaults of the package oasis-deconv.
GOAL = {"correlation_network_all": 0.367}

CHOSEN_ON = (0, 2)
FRAMES = 3  # of 1/30 s, which are counted together
PATHS = 50


@dataclass(frozen=True)
class Settings:
    """The model, and its training."""

    cells: int = 8
    frames: int = 3600
    units: int = 16
    decay: float = 0.5
    rise: float = 0.2
    num_particles: int = 16
    judging_particles: int = 100
    num_steps: int = 100
    window: int = 100
    batch_size: int = 16
    learning_rate: float = 3e-2
    final_learning_rate: float = 3e-3


FULL, REDUCED = Settings(), Settings(cells=1, frames=900, num_steps=2, window=50, judging_particles=10)
SEEDS = range(1)


def recordings(cell: int, frames: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Return fluorescence and spikes per frame, `recordings x frames`, and the frame rate."""
    with np.load(data_file("ca_truth_zebrafish_dp.npz")) as file:
        data = {name: file[name] for name in file.files}
    fluorescence, spikes = [], []
    for i in np.flatnonzero(data["rec_cell"] == cell):
        y = data["dff"][data["rec_offsets"][i] : data["rec_offsets"][i + 1]]
        times = data["t0"][i] + np.arange(len(y)) / data["fs"][i]
        own = data["spike_times"][data["spike_offsets"][i] : data["spike_offsets"][i + 1]]
        spikes.append(np.histogram(own, np.r_[times - 1 / data["fs"][i], times[-1]])[0][:frames])
        fluorescence.append(y[:frames])
    return np.stack(fluorescence), np.stack(spikes), float(data["fs"][0])


def deconvolved(fluorescence: np.ndarray) -> np.ndarray:
    """Return the spikes of AR(1) deconvolution by OASIS, of each recording."""
    try:
        from oasis.functions import deconvolve
    except ModuleNotFoundError as error:
        raise DataMissing("The yardstick needs the package oasis-deconv: pip install oasis-deconv.") from error
    return np.stack([deconvolve(row.astype(np.float64), penalty=1)[1] for row in fluorescence])


def correlation(found: np.ndarray, spikes: np.ndarray) -> float:
    """Return the mean correlation of recordings, after both are summed over some frames."""
    length = spikes.shape[1] // FRAMES * FRAMES
    pairs = zip(*(each[:, :length].reshape(len(each), -1, FRAMES).sum(-1) for each in (found, spikes)), strict=True)
    return float(np.mean([np.corrcoef(*pair)[0, 1] for pair in pairs]))


def inferred(
    fluorescence: np.ndarray, rate: float, settings: Settings, seed: int
) -> tuple[np.ndarray, dict[str, float]]:
    """Return rates given whole recordings, `recordings x frames`, and what was learnt."""
    y = tensor(fluorescence)[..., None]
    torch.manual_seed(seed)
    observation = plr.CalciumObservation(
        rank=1, features=1, bin_size=1 / rate, indicator="GCaMP6f", rise=settings.rise or False, rate_noise=False
    )
    model = plr.StateSpaceModel(plr.LowRankRNN(rank=1, units=settings.units, decay=settings.decay), observation)
    guide = plr.LaplaceGuide(model)
    fitted(model, guide, settings, seed, y, window=settings.window)
    torch.manual_seed(seed)
    posterior = plr.SMCFilter(model, guide, settings.judging_particles).run(y)
    found = posterior.deconvolve(posterior.smooth(PATHS))
    learnt = {name: getattr(observation, f"{name}_time")[0].item() for name in ("decay", "rise")}
    return found.drive.mean(0)[..., 0].numpy(), learnt


def run(seed: int, settings: Settings) -> dict[str, float]:
    """Train on each cell by itself, and compare."""
    row: dict[str, float] = {}
    for cell in range(settings.cells):
        fluorescence, spikes, rate = recordings(cell, settings.frames)
        rates, learnt = inferred(fluorescence, rate, settings, seed)
        row |= {f"{name}_seconds_cell_{cell}": value for name, value in learnt.items()}
        row[f"correlation_network_cell_{cell}"] = correlation(rates, spikes)
        row[f"correlation_oasis_cell_{cell}"] = correlation(deconvolved(fluorescence), spikes)
    for method in ("network", "oasis"):
        every = {cell: row[f"correlation_{method}_cell_{cell}"] for cell in range(settings.cells)}
        row[f"correlation_{method}_all"] = float(np.mean(list(every.values())))
        others = [value for cell, value in every.items() if cell not in CHOSEN_ON]
        if others:
            row[f"correlation_{method}_others"] = float(np.mean(others))
    return row


def draw(figure, record: dict) -> None:
    """Draw the correlation of each cell."""
    axes = figure.subplots()
    cells = range(record["settings"]["cells"])
    for place, (method, label) in enumerate((("network", "rate of the network"), ("oasis", "OASIS, AR(1)"))):
        values = [np.median([row[f"correlation_{method}_cell_{c}"] for row in record["rows"]]) for c in cells]
        axes.scatter(cells, values, color=f"C{place}", label=label, s=24)
    axes.set(xlabel="cell", ylabel="correlation with spikes in 0.1 s", xticks=list(cells), ylim=(0, None))
    axes.legend(frameon=False)
