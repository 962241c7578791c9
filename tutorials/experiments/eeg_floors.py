"""How well three shared latents and independent noise can do on the EEG measures, however they move: bounds of `eeg`.

A factor analysis of the raw recording gives loadings, noise of each channel, and latents of every bin. From these the
recording is generated with its own latents (`own`: nothing about them is left to learn), and with Gaussian latents that
have their spectra and cross-spectra, smoothed over 41 frequencies, but random amplitudes and phases (`gaussian`: what
the best linear network would do), both with white noise; and with its own latents and noise that has the lag-1
autocorrelation of what they leave over in each channel (`coloured`). All are judged as in `eeg`. The kurtosis of the
own latents tells how far they are from Gaussian, the autocorrelation of what the factors leave over how far that is
from white.
"""

from __future__ import annotations

from dataclasses import dataclass

import eeg
import numpy as np
from scipy.signal import lfilter
from scipy.stats import kurtosis
from sklearn.decomposition import FactorAnalysis

REFERENCE = {}
GOAL = {}

HALF_WIDTH = 20  # frequencies


@dataclass(frozen=True)
class Settings:
    """How many latents."""

    rank: int = 3


FULL = REDUCED = Settings()


def gaussian_copy(z: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a Gaussian process with the smoothed spectra of latents `time x rank`."""
    spectrum = np.fft.rfft(z, axis=0)
    copy = np.zeros_like(spectrum)
    for shift in range(-HALF_WIDTH, HALF_WIDTH + 1):
        white = (rng.standard_normal(len(spectrum)) + 1j * rng.standard_normal(len(spectrum))) / np.sqrt(2)
        copy += np.roll(spectrum, shift, axis=0) * white[:, None]
    return np.fft.irfft(copy / np.sqrt(2 * HALF_WIDTH + 1), len(z), axis=0)


def run(seed: int, settings: Settings) -> dict[str, float]:
    """Judge both."""
    raw, smoothed = eeg.recordings()
    rng = np.random.default_rng(seed)
    analysis = FactorAnalysis(settings.rank, random_state=0).fit(raw)
    own = analysis.transform(raw)
    left = raw - own @ analysis.components_
    row = {
        "smallest_excess_kurtosis": float(kurtosis(own).min()),
        "largest_excess_kurtosis": float(kurtosis(own).max()),
        "lag_1_of_what_is_left": float((left[1:] * left[:-1]).mean(0).sum() / (left**2).mean(0).sum()),
    }
    white = np.sqrt(analysis.noise_variance_) * rng.standard_normal((3, *raw.shape))
    parts = {"own": (own, white[0]), "gaussian": (gaussian_copy(own, rng), white[1])}
    parts["coloured"] = own, coloured(white[2], left)
    for name, (z, noise) in parts.items():
        found = eeg.measures(smoothed[: len(raw)], z @ analysis.components_ + noise, seed)
        row |= {f"{measure}_{name}": value for measure, value in found.items()}
    return row


def coloured(white: np.ndarray, like: np.ndarray) -> np.ndarray:
    """Return noise of the same variances, channel by channel with the lag-1 autocorrelation of `like`."""
    memory = (like[1:] * like[:-1]).mean(0) / (like**2).mean(0)
    innovations = np.sqrt(1 - memory**2) * white
    innovations[0] = white[0]
    return np.stack([lfilter([1], [1, -a], x) for a, x in zip(memory, innovations.T, strict=True)], -1)


def draw(figure, record: dict) -> None:
    """Draw both measures."""
    axes = figure.subplots()
    labels = ("own latents", "Gaussian latents of its spectra", "own latents, coloured noise")
    for name, label in zip(("own", "gaussian", "coloured"), labels, strict=True):
        x, y = ([row[f"{measure}_{name}"] for row in record["rows"]] for measure in ("d_stsp", "d_h"))
        axes.scatter(x, y, s=18, label=label)
    axes.axvline(eeg.GOAL["d_stsp"], color="C3", lw=0.8)
    axes.axhline(eeg.GOAL["d_h"], color="C3", lw=0.8)
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    axes.set(xlabel="D_stsp (nats), no draw left out", ylabel="D_H", title="three latents and independent noise")
