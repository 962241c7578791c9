"""What the experiments on recorded spikes share: recordings as trials, training, latents, baselines."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from scipy.ndimage import gaussian_filter1d
from shared import data_file, fitted
from sklearn.decomposition import PCA, FactorAnalysis
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import PoissonRegressor, RidgeCV
from sklearn.metrics import r2_score

import pyro_lowrank as plr
from pyro_lowrank import metrics
from pyro_lowrank.data import Recording
from pyro_lowrank.guides.base import Guide

GENERATIONS = 20
SMOOTHING = (1.0, 2.0, 3.0, 5.0, 8.0)  # Standard deviations of the baselines' Gaussian kernels, in bins.


@dataclass(frozen=True)
class Training:
    """The network and how it is trained; the same for all recordings of spikes."""

    rank: int = 4
    units: int = 128
    num_steps: int = 1200
    batch_size: int = 20
    window: int | None = None
    num_particles: int = 16
    learning_rate: float = 1e-2
    final_learning_rate: float = 1e-3
    test_particles: int = 300
    num_draws: int = 100


def reaches(bin_ms: int = 20) -> Recording:
    """Return 112 delayed reaches to two targets: trials of different lengths, 61 premotor units."""
    with np.load(data_file("pmd_reach_2targets.npz")) as d:
        spikes, offsets, condition = d["spikes"], d["trial_offsets"], d["condition"]
    trials = [spikes[:, start:end] for start, end in pairwise(offsets)]
    counts = [t[:, : t.shape[1] // bin_ms * bin_ms].reshape(len(t), -1, bin_ms).sum(2).T.astype(float) for t in trials]
    return Recording.from_trials(counts, bin_size=bin_ms / 1000, conditions=condition)


def delays(bin_ms: int = 20) -> Recording:
    """Return 210 delay periods before reaches to seven targets, 61 premotor units."""
    with np.load(data_file("pmd_delay_7targets.npz")) as d:
        spikes, condition = d["spikes"], d["condition"]
    counts = spikes.reshape(*spikes.shape[:2], -1, bin_ms).sum(3).swapaxes(1, 2)
    return Recording(counts.astype(float), bin_size=bin_ms / 1000, conditions=condition)


def trained(
    recording: Recording, guide_of: type[Guide] | object, training: Training, seed: int
) -> tuple[plr.StateSpaceModel, Guide]:
    """Return a network trained on a recording of spikes, and its guide."""
    torch.manual_seed(seed)
    features = recording.data.shape[-1]
    dynamics = plr.LowRankRNN(
        rank=training.rank,
        units=training.units,
        activation="clipped_relu",
        noise="diagonal",
        inputs=0 if recording.inputs is None else recording.inputs.shape[-1],
    )
    model = plr.StateSpaceModel(dynamics, plr.PoissonObservation(rank=training.rank, features=features))
    plr.initialise_from_data(model, recording)
    guide = guide_of(model)
    fitted(model, guide, training, seed, recording, window=training.window)
    return model, guide


def posterior_of(
    model: plr.StateSpaceModel, guide: Guide, recording: Recording, training: Training, seed: int
) -> tuple[plr.SMCPosterior, torch.Tensor]:
    """Return the filter's posterior, and latents given all of each trial, draws x trials x time x rank."""
    torch.manual_seed(seed)
    posterior = plr.SMCFilter(model, guide, training.test_particles).run(*plr.as_tensors(recording, model))
    return posterior, posterior.smooth(training.num_draws)


def evidence_per_spike(posterior: plr.SMCPosterior, recording: Recording) -> float:
    """Return the log evidence in bits per spike."""
    return float(posterior.log_evidence.sum()) / np.log(2) / float(np.nansum(recording.data))


def smoothed_counts(recording: Recording, sd: float) -> list[np.ndarray]:
    """Return each trial's counts under a Gaussian kernel, time x features."""
    return [gaussian_filter1d(np.nan_to_num(trial), sd, axis=0, mode="nearest") for trial in recording.trials()]


def predicted_rates(
    train: Recording, test: Recording, held_in: np.ndarray, held_out: np.ndarray, *, sd: float, factors: int | None
) -> np.ndarray:
    """Return rates of held-out units by Poisson regression on the smoothed counts of the others, or on factors of them.

    Factors are those of a factor analysis of the square roots of the smoothed counts.
    """
    x_train, x_test = (
        np.concatenate([np.sqrt(trial[:, held_in]) for trial in smoothed_counts(part, sd)]) for part in (train, test)
    )
    if factors is not None:
        analysis = FactorAnalysis(factors, random_state=0).fit(x_train)
        x_train, x_test = analysis.transform(x_train), analysis.transform(x_test)
    y_train = np.concatenate(train.trials())[:, held_out]
    rates = np.full((*test.data.shape[:2], len(held_out)), np.nan)
    there = np.arange(test.data.shape[1]) < test.trial_lengths[:, None]
    for unit in range(len(held_out)):
        regression = PoissonRegressor(alpha=1e-2, max_iter=300).fit(x_train, y_train[:, unit])
        rates[there, unit] = regression.predict(x_test)
    return rates


def generated(model: plr.StateSpaceModel, recording: Recording, seed: int, times: int = 1) -> np.ndarray:
    """Return so many times the recorded trials, of the same lengths and with the same inputs, NaN in padding."""
    torch.manual_seed(seed)
    u = None if recording.inputs is None else plr.as_tensors(recording, model)[1]
    shape = {"num_trials": recording.num_trials, "num_steps": recording.data.shape[1]}
    drawn = [model.simulate(**shape, u=u).y.numpy() for _ in range(times)]
    return np.concatenate([np.where(np.isnan(recording.data), np.nan, y) for y in drawn])


def generated_agreement(model: plr.StateSpaceModel, recording: Recording, seed: int) -> dict[str, float]:
    """Return how far statistics of generated trials agree with those of as many recorded ones.

    Mean intervals of few spikes differ much from one generation to the next, and so do correlations. `pooled` are those
    of `GENERATIONS` times as many trials: what the network does, without the chance of its draws.
    """
    found = {}
    for name, times in (("generated", 1), ("pooled", GENERATIONS)):
        agreement = agreements(recording.data, generated(model, recording, seed, times))
        found |= {f"{name}_{key}_r": value for key, value in agreement.items()}
    return found


def agreements(counts: np.ndarray, others: np.ndarray) -> dict[str, float]:
    """Return correlations over units of mean rates and mean intervals, and over pairs of their correlations."""
    pairs = {
        "rates": (metrics.mean_rates(counts), metrics.mean_rates(others)),
        "intervals": (metrics.isi_statistics(counts).mean, metrics.isi_statistics(others).mean),
        "correlations": (metrics.pairwise_correlations(counts), metrics.pairwise_correlations(others)),
    }
    return {name: metrics.agreement(*pair).correlation for name, pair in pairs.items()}


def windows(sequences: np.ndarray, num_bins: int, width: int) -> np.ndarray:
    """Return the means over windows of the first time bins of each trial, joined: trials x (windows x features)."""
    trials = len(sequences)
    return sequences[:, :num_bins].reshape(trials, num_bins // width, width, -1).mean(2).reshape(trials, -1)


def classified(x_train: np.ndarray, train: np.ndarray, x_test: np.ndarray, test: np.ndarray) -> float:
    """Return the share of trials whose condition a linear discriminant analysis gets right."""
    return float(LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto").fit(x_train, train).score(x_test, test))


def decoded(x_train: list, train: list, x_test: list, test: list) -> tuple[float, np.ndarray]:
    """Return the coefficient of determination on the test trials, and what a ridge regression decodes there.

    It is one less the squared distance of decoded and true values over that of true ones and their mean: of several
    coordinates, the mean over them weighted by their variance. Each argument is a list of trials, time x numbers.
    """
    ridge = RidgeCV(np.logspace(-3, 4, 15)).fit(np.concatenate(x_train), np.concatenate(train))
    predicted = ridge.predict(np.concatenate(x_test)).reshape(-1, train[0].shape[1])
    return float(r2_score(np.concatenate(test), predicted, multioutput="variance_weighted")), predicted


def decoded_from_counts(train: Recording, test: Recording, where: list, rank: int) -> dict[str, float]:
    """Return the same for smoothed counts of all units and as many principal components as latents, the best kernels.

    `where` are the values in the trials of both recordings.
    """
    scores = {"counts_r2": [], "components_r2": []}
    for sd in SMOOTHING:
        counts = [smoothed_counts(part, sd) for part in (train, test)]
        scores["counts_r2"].append(decoded(counts[0], where[0], counts[1], where[1])[0])
        analysis = PCA(rank).fit(np.concatenate(counts[0]))
        components = [[analysis.transform(trial) for trial in part] for part in counts]
        scores["components_r2"].append(decoded(components[0], where[0], components[1], where[1])[0])
    return {name: max(values) for name, values in scores.items()}
