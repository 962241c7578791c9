"""Behaviour decoded linearly from latents or from smoothed counts."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pyro_lowrank.arrays import label_codes, varies_along
from pyro_lowrank.errors import check_positive_int
from pyro_lowrank.metrics.estimate import Estimate, mean_of
from pyro_lowrank.metrics.recordings import Floats, as_trials, check_complete, largest, mean_seen

PENALTIES = tuple(np.logspace(-4, 4, 17))


def decoding_r2(
    x: ArrayLike,
    targets: ArrayLike,
    *,
    folds: int = 5,
    penalties: ArrayLike = PENALTIES,
    groups: ArrayLike | None = None,
) -> Estimate:
    r"""Return the cross-validated coefficient of determination of a ridge regression, mean over targets.

    .. math:: R^2 = 1 - \frac{\sum (y - \hat y)^2}{\sum (y - \bar y)^2}

    on whole trials that were left out, with the mean of those that were not; averaged over folds, with the standard
    error over folds. The penalty is chosen among `penalties` by cross-validation within the other folds. Time bins with
    a missing target are left out.

    Args:
        x: what is decoded from, `trials x time x features`.
        targets: what is decoded, `trials x time x targets`; NaN is missing.
        folds: number of folds, of whole trials (or groups of them); at most as many as there are.
        penalties: of the squared weights, for standardised features, per time bin times 1e-3.
        groups: a label per trial, `trials`; trials of one label stay together.

    Raises:
        ValueError: if shapes do not fit, or there are fewer than three trials or groups.

    Example::

        >>> rng = np.random.default_rng(0)
        >>> x = rng.normal(size=(20, 30, 3))
        >>> decoding_r2(x, x @ rng.normal(size=(3, 2)) + 0.1 * rng.normal(size=(20, 30, 2))) > 0.95
        True
    """
    inputs, outputs, labels, strengths, parts = _checked(x, targets, folds, penalties, groups)
    scores = []
    for part in parts:
        test = np.isin(labels, part)
        best = _best_penalty(inputs[~test], outputs[~test], labels[~test], strengths, len(parts) - 1)
        scores.append(mean_seen(_scores(inputs, outputs, test, np.array([best])), (0, 1)))
    return mean_of(np.array(scores))


def decode(
    x: ArrayLike,
    targets: ArrayLike,
    *,
    folds: int = 5,
    penalties: ArrayLike = PENALTIES,
    groups: ArrayLike | None = None,
) -> Floats:
    """Return what the ridge regressions of `decoding_r2` predict of the trials they did not see.

    Shapes: `trials x time x targets`.

    Args:
        x: as of `decoding_r2`, as are all that follow.
        targets: what is decoded.
        folds: number of folds.
        penalties: of the squared weights.
        groups: a label per trial.

    Raises:
        ValueError: if shapes do not fit, or there are fewer than three trials or groups.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> x = rng.normal(size=(20, 30, 3))
        >>> bool(np.abs(decode(x, x[..., :1]) - x[..., :1]).max() < 1e-3)
        True
    """
    inputs, outputs, labels, strengths, parts = _checked(x, targets, folds, penalties, groups)
    found = np.full(outputs.shape, np.nan)
    for part in parts:
        test = np.isin(labels, part)
        best = _best_penalty(inputs[~test], outputs[~test], labels[~test], strengths, len(parts) - 1)
        x_train, y_train = inputs[~test].reshape(-1, inputs.shape[-1]), outputs[~test].reshape(-1, outputs.shape[-1])
        here = ~np.isnan(y_train).any(1)
        unit_x, unit_y = largest(inputs.reshape(-1, inputs.shape[-1]), 0), largest(y_train[here], 0)
        x_test = inputs[test].reshape(-1, inputs.shape[-1])
        (predicted,) = _ridge(x_train[here] / unit_x, y_train[here] / unit_y, x_test / unit_x, np.array([best]))
        found[test] = (predicted * unit_y).reshape(found[test].shape)
    return found


def _checked(
    x: ArrayLike, targets: ArrayLike, folds: int, penalties: ArrayLike, groups: ArrayLike | None
) -> tuple[Floats, Floats, NDArray[Any], Floats, list[NDArray[Any]]]:
    """Inputs, targets, a label per trial, penalties, and the labels of each fold."""
    inputs, outputs = as_trials("x", x), as_trials("targets", targets)
    check_complete("x", inputs)
    if inputs.shape[:2] != outputs.shape[:2]:
        raise ValueError(
            f"`x` and `targets` must have the same trials and time bins, got {inputs.shape[:2]} and "
            f"{outputs.shape[:2]}."
        )
    labels = np.arange(len(inputs)) if groups is None else label_codes("groups", groups, len(inputs))
    names = np.unique(labels)
    if len(names) < 3:
        raise ValueError(f"Cross-validation within folds needs three trials or groups or more, got {len(names)}.")
    strengths = np.atleast_1d(np.asarray(penalties, dtype=np.float64))
    parts = np.array_split(names, min(check_positive_int("folds", folds, minimum=2), len(names)))
    return inputs, outputs, labels, strengths, parts


def _best_penalty(x: Floats, y: Floats, labels: NDArray[np.generic], penalties: Floats, folds: int) -> float:
    names = np.unique(labels)
    parts = np.array_split(names, min(max(folds, 2), len(names)))
    scores = [mean_seen(_scores(x, y, np.isin(labels, part), penalties), 1) for part in parts]
    return float(penalties[mean_seen(np.array(scores), 0).argmax()])


def _scores(x: Floats, y: Floats, test: NDArray[np.bool_], penalties: Floats) -> Floats:
    """Coefficients of determination on the trials `test` of regressions on the others, `penalties x targets`."""
    x_train, x_test = (x[which].reshape(-1, x.shape[-1]) for which in (~test, test))
    y_train, y_test = (y[which].reshape(-1, y.shape[-1]) for which in (~test, test))
    here, there = (~np.isnan(part).any(1) for part in (y_train, y_test))
    x_train, y_train, x_test, y_test = x_train[here], y_train[here], x_test[there], y_test[there]
    if not len(x_train) or not len(x_test):
        return np.full((len(penalties), y.shape[-1]), np.nan)
    # In units of the largest: squares of small and large numbers are 0 and infinite.
    for one, other in ((x_train, x_test), (y_train, y_test)):
        unit = largest(np.concatenate([one, other]), 0)
        one /= unit
        other /= unit
    centre = y_train.mean(0)
    predicted = _ridge(x_train, y_train, x_test, penalties)
    total = ((y_test - centre) ** 2).sum(0)
    # Where a target stays at its mean there is nothing to explain.
    varying = varies_along(np.concatenate([y_train, y_test]), 0) & (total > 0)
    total = np.where(varying, total, np.nan)
    return np.array([1 - ((y_test - each) ** 2).sum(0) / total for each in predicted])


def _ridge(x_train: Floats, y_train: Floats, x_test: Floats, penalties: Floats) -> list[Floats]:
    """Predictions of ridge regressions on standardised features, `time x targets` for each penalty."""
    mean, varying = x_train.mean(0), varies_along(x_train, 0)
    # A feature that does not vary in the training tells nothing: its weight is zero.
    spread = np.where(varying, x_train.std(0), np.inf)
    x_train, x_test = (x_train - mean) / spread, (x_test - mean) / spread
    centre = y_train.mean(0)
    # One decomposition serves all penalties.
    values, vectors = np.linalg.eigh(x_train.T @ x_train)
    projected = vectors.T @ (x_train.T @ (y_train - centre))
    rows = []
    for penalty in penalties:
        weights = vectors @ (projected / (np.maximum(values, 0) + 1e-3 * penalty * len(x_train))[:, np.newaxis])
        rows.append(centre + x_test @ weights)
    return rows
