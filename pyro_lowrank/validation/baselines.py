"""What a recording is worth without latent dynamics: the yardsticks of every Gaussian fit, in seconds."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_lowrank.data.recording import Recording
from pyro_lowrank.errors import check_positive_int
from pyro_lowrank.observations.autoregressive import MOST_LAGS, AutoregressiveMemory
from pyro_lowrank.observations.levinson import partials_of_data
from pyro_lowrank.observations.memory import Memory, read
from pyro_lowrank.observations.observed import Observed
from pyro_lowrank.observations.shared_noise import Precision
from pyro_lowrank.training.factors import factor_analysis
from pyro_lowrank.training.standardise import Standardisation
from pyro_lowrank.training.tensors import TrialArrays, as_tensors


@dataclass(frozen=True)
class Baseline:
    """One yardstick.

    Attributes:
        name: what it is.
        nats: log evidence of the held-out data, in nats per observed time bin; NaN where it cannot be had.
        parameters: how many numbers were fitted.
        remark: why it cannot be had, or nothing.
    """

    name: str
    nats: float
    parameters: int
    remark: str = ""


@dataclass(frozen=True)
class Baselines:
    """The yardsticks, from the least to the most that is known; printed as a table.

    Attributes:
        rows: one each.
    """

    rows: tuple[Baseline, ...]

    def __getitem__(self, name: str) -> float:
        """Return the nats per bin of a yardstick by its name."""
        found = {row.name: row.nats for row in self.rows}
        if name not in found:
            raise KeyError(f"No baseline {name!r}; there are {', '.join(map(repr, found))}.")
        return found[name]

    @property
    def best(self) -> Baseline:
        """The one with the highest evidence."""
        return max(self.rows, key=lambda row: row.nats if row.nats == row.nats else -float("inf"))

    def __str__(self) -> str:
        width = max(len(row.name) for row in self.rows)
        lines = [f"{'without latent dynamics':{width}}  nats per bin  parameters"]
        for row in self.rows:
            told = f"{row.nats:12.3f}" if row.nats == row.nats else f"{'-':>12}"
            lines.append(f"{row.name:{width}}  {told}  {row.parameters:10d}  {row.remark}".rstrip())
        return "\n".join(lines)


@torch.no_grad()
def baselines(
    y: Tensor | Recording | TrialArrays, held_out: Tensor | Recording | TrialArrays, *, order: int = 4, factors: int = 3
) -> Baselines:
    r"""Return the log evidence of held-out data without latent dynamics, fitted in closed form to `y`.

    - independent features: each Gaussian, bin by bin;
    - AR(p) features: each predicted from its own last bins (Burg's method);
    - AR(p) with as many static factors as a network has latents: these among the innovations (factor analysis);
    - VAR(1): all features from all of the last bin, with a full covariance of what is left (least squares).

    What a network adds to the third is its dynamics. Trials begin as a network's do: without a past, at the stationary
    law (VAR: at mean and covariance of the data). Missing entries are left out as in `GaussianObservation`; VAR needs
    complete data.

    Args:
        y: recording to fit to, `trials x time x features`, NaN where missing; or a `Recording`; or a list of trials.
        held_out: recording that is judged, likewise.
        order: number of bins p, 1 to 8.
        factors: number of static factors; that of the latents, to compare with a network.

    Raises:
        ValueError: if the two have other features, the order is out of range or longer than the trials, or there are as
            many factors as features.

    Example::

        >>> noise = torch.randn(1, 3000, 3, generator=torch.Generator().manual_seed(0))
        >>> y = noise.clone()
        >>> for t in range(1, 3000):
        ...     y[:, t] += 0.9 * y[:, t - 1]
        >>> found = baselines(y[:, :2000], y[:, 2000:], order=2, factors=1)
        >>> found["AR(2) features"] > found["independent features"] + 2
        True

    References:
        Burg (1967); Lutkepohl (2005), "New introduction to multiple time series analysis".
    """
    train, test = (each if isinstance(each, Tensor) else as_tensors(each)[0] for each in (y, held_out))
    _check(train, test, order, factors)
    # In units of the training data, so that no threshold depends on these; nats are those of the data as they came.
    units = Standardisation.of(train.double())
    shift = float(units.log_scale(test.double()))
    train, test = (units.apply(each.double()) for each in (train, test))
    features, seen = train.shape[-1], Observed.of(train)
    center = seen.y.new_zeros(features)
    rows = [Baseline("independent features", _static(train, test, None, center, 0), 2 * features)]
    memory = AutoregressiveMemory(center, partials_of_data(seen.y, seen.missing, order))
    name, size = f"AR({order}) features", (2 + order) * features
    rows.append(Baseline(name, _static(train, test, memory, center, 0), size))
    name = f"AR({order}), {factors} static factor{'s' if factors > 1 else ''}"
    rows.append(Baseline(name, _static(train, test, memory, center, factors), size + factors * features))
    rows.append(_vector_autoregression(train, test))
    return Baselines(tuple(Baseline(r.name, r.nats - shift, r.parameters, r.remark) for r in rows))


def _check(train: Tensor, test: Tensor, order: int, factors: int) -> None:
    for name, value in (("y", train), ("held_out", test)):
        if value.dim() != 3 or value.isnan().all():
            raise ValueError(
                f"`{name}` must be trials x time x features with something recorded, got shape {tuple(value.shape)}."
            )
    if train.shape[-1] != test.shape[-1]:
        raise ValueError(f"`held_out` must have the {train.shape[-1]} features of `y`, got {test.shape[-1]}.")
    if not check_positive_int("order", order) <= min(MOST_LAGS, train.shape[1] - 1):
        raise ValueError(
            f"`order` must be at most {MOST_LAGS} and below the {train.shape[1]} time bins of the trials, got {order}."
        )
    if check_positive_int("factors", factors) >= train.shape[-1]:
        raise ValueError(f"`factors` must be fewer than the {train.shape[-1]} features, got {factors}.")


def _static(train: Tensor, test: Tensor, memory: Memory | None, center: Tensor, factors: int) -> float:
    """Return nats per bin where innovations have no dynamics: independent, or with so many static factors."""
    seen, _ = read(memory, train)
    residual = _there(seen, seen.y - center)
    rows, there = residual.flatten(0, 1), seen.present.flatten(0, 1)
    if factors:
        pairs = (there.mT @ there).clamp(min=1.0)
        found = factor_analysis(rows.mT @ rows / pairs, factors)
        loadings, variance = found.loadings, found.variance
    else:
        loadings, variance = None, rows.square().sum(0) / there.sum(0).clamp(min=1.0)
    variance = variance.clamp(min=1e-12)
    seen, _ = read(memory, test)
    precision = Precision.of(variance, loadings, seen.missing)
    log_density = -0.5 * (precision.weigh(_there(seen, seen.y - center))[1] + precision.log_normaliser)
    log_density = log_density if seen.log_volume is None else log_density + seen.log_volume
    return float(log_density.sum() / seen.recorded.sum())


def _there(seen: Observed, residual: Tensor) -> Tensor:
    return residual if seen.missing is None else residual.masked_fill(seen.missing, 0.0)


def _vector_autoregression(train: Tensor, test: Tensor) -> Baseline:
    """Return VAR(1), whose first bin has mean and covariance of the training data."""
    features = train.shape[-1]
    size = features * (features + 1) + features * (features + 1) // 2
    before, after = train[:, :-1].flatten(0, 1), train[:, 1:].flatten(0, 1)
    complete = ~(before.isnan() | after.isnan()).any(-1)
    before, after = before[complete], after[complete]
    if test.isnan().any():
        return Baseline("VAR(1)", torch.nan, size, "needs complete held-out data")
    if len(before) < 3 * features:
        return Baseline("VAR(1)", torch.nan, size, f"needs {3 * features} bins to fit to, got {len(before)}")
    design = torch.cat([before, torch.ones_like(before[:, :1])], -1)
    weights = torch.linalg.lstsq(design, after).solution
    left = after - design @ weights
    moved = test[:, 1:] - (test[:, :-1] @ weights[:-1] + weights[-1])
    rows = train.flatten(0, 1)
    rows = rows[~rows.isnan().any(-1)]
    total = _normal(left, moved.flatten(0, 1)) + _normal(rows - rows.mean(0), test[:, 0] - rows.mean(0))
    return Baseline("VAR(1)", total / (test.shape[0] * test.shape[1]), size)


def _normal(sample: Tensor, rows: Tensor) -> float:
    """Return the log density of rows under a centred normal with the covariance of a sample."""
    covariance = sample.mT @ sample / len(sample)
    # Channels after an average reference, say, have no full rank.
    covariance = covariance + 1e-9 * covariance.diagonal().mean() * torch.eye(len(covariance), dtype=sample.dtype)
    normal = torch.distributions.MultivariateNormal(torch.zeros_like(rows[0]), covariance)
    return float(normal.log_prob(rows).sum())
