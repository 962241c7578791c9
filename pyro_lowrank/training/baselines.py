"""What a recording is worth without latent dynamics: the yardsticks of every Gaussian fit, in seconds."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_lowrank.data.recording import Recording
from pyro_lowrank.errors import check_positive_int
from pyro_lowrank.models.state_space import StateSpaceModel
from pyro_lowrank.observations.autoregressive import MOST_LAGS
from pyro_lowrank.observations.driven import DrivenObservation
from pyro_lowrank.observations.gaussian import GaussianObservation
from pyro_lowrank.training.batches import Data
from pyro_lowrank.training.independent import without_dynamics
from pyro_lowrank.training.tensors import TrialArrays, as_tensors
from pyro_lowrank.training.yardsticks import Yardstick, fitted_without_dynamics

logger = logging.getLogger(__name__)

# Bins that features of networks without a memory of their own are given in the yardsticks.
_ORDER = 4


@dataclass(frozen=True)
class Baseline:
    """One yardstick.

    Attributes:
        name: what it is.
        nats: log evidence of the held-out data, in nats per observed time bin; NaN where it cannot be had.
        parameters: how many numbers were fitted; None where nobody counted.
        remark: why it cannot be had, or nothing.
    """

    name: str
    nats: float
    parameters: int | None
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

    def records(self) -> list[dict[str, Any]]:
        """Return the rows as JSON has them."""
        return [vars(row) | {"nats": None if row.nats != row.nats else row.nats} for row in self.rows]

    @classmethod
    def of_records(cls, rows: Sequence[Mapping[str, Any]]) -> Baselines:
        """Return what `records` was called on."""
        return cls(
            tuple(Baseline(**{**row, "nats": torch.nan if row["nats"] is None else row["nats"]}) for row in rows)
        )

    def beside(self, network: float | None = None) -> list[str]:
        """Return the lines of a table, the last of which is a network's nats per bin if they are given."""
        rows = [*self.rows, *([] if network is None else [Baseline("the network", network, None)])]
        width = max(len(row.name) for row in rows)
        lines = [f"{'without latent dynamics':{width}}  nats per bin  parameters"]
        for row in rows:
            told = f"{row.nats:12.3f}" if row.nats == row.nats else f"{'-':>12}"
            size = "" if row.parameters is None else row.parameters
            lines.append(f"{row.name:{width}}  {told}  {size:>10}  {row.remark}".rstrip())
        return lines

    def __str__(self) -> str:
        return "\n".join(self.beside())


@torch.no_grad()
def baselines(
    y: Tensor | Recording | TrialArrays, held_out: Tensor | Recording | TrialArrays, *, order: int = 4, factors: int = 3
) -> Baselines:
    r"""Return the log evidence of held-out data without latent dynamics, fitted in closed form to `y`.

    - independent features: each Gaussian, bin by bin;
    - AR(p) features: each predicted from its own last bins (Burg's method);
    - AR(p) with as many static factors as a network has latents: these among the innovations (factor analysis);
    - VAR(1): all features from all of the last bin, with a full covariance of what is left (least squares).

    What a network has more than the third is its dynamics, and what training gains over closed forms; to tell these
    apart train one whose dynamics are frozen. Trials begin as a network's do: without a past, at the stationary law
    (VAR: at mean and covariance of the data). Missing entries are left out as in `GaussianObservation`; VAR needs
    complete data, but for the ends of shorter trials.

    Args:
        y: recording to fit to, `trials x time x features`, NaN where missing; or a `Recording`; or a list of trials.
        held_out: recording that is judged, likewise.
        order: number of bins p, 1 to 8.
        factors: number of static factors; that of the latents, to compare with a network; 0 for none.

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
    return _judged(fitted_without_dynamics(train, order=order, factors=[factors]), test)


def baselines_of(model: Any, train: Tensor, held_out: Tensor) -> Baselines | None:
    """Return the yardsticks that a model is to be compared with, or None where there are none.

    Args:
        model: what is fitted.
        train: `trials x time x features`, NaN where missing.
        held_out: likewise.
    """
    terms = Terms.of(model)
    if terms is None or train.shape[1] < 2 or bool(held_out.isnan().all()):
        return None
    try:
        return _judged(terms.fitted([terms], train), held_out)
    except torch.linalg.LinAlgError as reason:
        logger.warning("What the data are worth without latent dynamics cannot be told: %s", reason)
        return None


class References(NamedTuple):
    """What held-out data are worth without a network; fields as of `FitResult`."""

    without_dynamics: float | None
    baselines: Baselines | None


def references_of(model: Any, data: Data, held_out: Data | None) -> References:
    """Return what there is to compare a model with, of statistics of the data."""
    if held_out is None or not isinstance(model, StateSpaceModel):
        return References(None, None)
    y = data.sample.y, held_out.sample.y
    return References(without_dynamics(model.observation, *y), baselines_of(model, *y))


@dataclass(frozen=True)
class Terms:
    """On what terms a network is compared.

    Attributes:
        order: number of bins that features remember: as many as the network's, or 4.
        factors: number of static factors: of latents and of noise that is shared. A network whose dynamics said nothing
            would have as many.
    """

    order: int
    factors: int

    @classmethod
    def of(cls, model: Any) -> Terms | None:
        """Return those of a model of real numbers, or None for another."""
        observation = model.observation if isinstance(model, StateSpaceModel) else None
        if not isinstance(observation, GaussianObservation | DrivenObservation):
            return None
        memory = getattr(observation, "autoregression", None)
        factors = model.dynamics.rank + getattr(observation, "num_noise_factors", 0)
        return cls(_ORDER if memory is None else memory.order, min(factors, observation.features - 1))

    @staticmethod
    @torch.no_grad()
    def fitted(several: Iterable[Terms], train: Tensor) -> tuple[Yardstick, ...]:
        """Return the yardsticks of several networks, of the highest order, fitted to data of at least two time bins."""
        orders, factors = {terms.order for terms in several}, {terms.factors for terms in several}
        return fitted_without_dynamics(train, order=min(max(orders), train.shape[1] - 1), factors=sorted(factors))


@torch.no_grad()
def _judged(yardsticks: Sequence[Yardstick], test: Tensor) -> Baselines:
    bins = int((~test.isnan()).any(-1).sum())
    nats = [float(each.log_evidence(test).sum()) / bins for each in yardsticks]
    return Baselines(
        tuple(
            Baseline(each.name, value, each.parameters, each.needs if value != value else "")
            for each, value in zip(yardsticks, nats, strict=True)
        )
    )


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
    if check_positive_int("factors", factors, minimum=0) >= train.shape[-1]:
        raise ValueError(f"`factors` must be fewer than the {train.shape[-1]} features, got {factors}.")
