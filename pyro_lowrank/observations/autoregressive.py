"""Features that remember their own past: autoregression on the data, stationary by construction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.distributions import constraints
from torch.nn.functional import pad

from pyro_lowrank.errors import check_positive_int
from pyro_lowrank.modules import Module
from pyro_lowrank.observations.memory import Lags, Outlook
from pyro_lowrank.observations.observed import Observed
from pyro_lowrank.parameters import parameter

MOST_LAGS = 8
# Nearer to 1 the stationary variance has no digits left in float32.
_LARGEST_PARTIAL = 1 - 1e-6


def predictors_of(partial: Tensor) -> list[Tensor]:
    r"""Return the coefficients of the best linear predictors from the last 1, 2, ... bins, `... x lags` each.

    .. math:: \phi^{(m)}_m = r_m, \qquad \phi^{(m)}_k = \phi^{(m-1)}_k - r_m\, \phi^{(m-1)}_{m-k}

    for partial autocorrelations r, `... x order`: Levinson's recursion.

    Example::

        >>> predictors_of(torch.tensor([0.5, 0.2]))[-1]
        tensor([0.4000, 0.2000])

    References:
        Levinson (1947); Durbin (1960); Barndorff-Nielsen and Schou (1973), J. Multivar. Anal. 3:408.
    """
    found = [partial[..., :1]]
    for lag in range(1, partial.shape[-1]):
        last, r = found[-1], partial[..., lag : lag + 1]
        found.append(torch.cat([last - r * last.flip(-1), r], -1))
    return found


def partials_of(coefficients: Tensor) -> Tensor:
    """Return the partial autocorrelations, `... x order`, of coefficients; beyond 1 in size where not stationary.

    Example::

        >>> partials_of(torch.tensor([0.4, 0.2]))
        tensor([0.5000, 0.2000])
    """
    found, rest = [], coefficients
    while rest.shape[-1]:
        r, shorter = rest[..., -1:], rest[..., :-1]
        found.append(r)
        rest = (shorter + r * shorter.flip(-1)) / (1 - r.square())
    return torch.cat(found[::-1], -1)


@dataclass(frozen=True)
class AutoregressiveMemory:
    r"""Autoregression at fixed parameter values: the expected next bin of each feature, given its own past.

    .. math:: y_t = d + \sum_k \rho_k (y_{t-k} - d) + x_t - d

    with innovations x. Where past bins are missing, or there are none yet, a Kalman filter of each feature by itself
    carries their mean and variance, as if innovations were white, from the stationary law on; the innovation is then
    scaled by what the prediction is worse.

    Attributes:
        center: d, `features`.
        partial: partial autocorrelations, `features x order`.
    """

    center: Tensor
    partial: Tensor

    @property
    def order(self) -> int:
        """How many bins are remembered."""
        return self.partial.shape[-1]

    @cached_property
    def predictors(self) -> list[Tensor]:
        """The coefficients of the best predictors from fewer bins, and last of the process itself."""
        return predictors_of(self.partial)

    @cached_property
    def _scales(self) -> Tensor:
        """Standard deviations of the prediction from 0, 1, ... bins, and from all, `... x features x (order + 1)`."""
        remains = (1 - self.partial) * (1 + self.partial)
        variance = remains.flip(-1).cumprod(-1).flip(-1).reciprocal()
        return pad(variance.sqrt(), (0, 1), value=1.0)

    @cached_property
    def _stationary(self) -> Tensor:
        """Covariance of `order` bins in units of the innovation's variance, `... x features x order x order`."""
        found = [self._scales[..., 0].square()]
        for predictor in self.predictors[:-1]:
            found.append((predictor * torch.stack(found[::-1], -1)).sum(-1))
        lags = torch.arange(self.order, device=self.partial.device)
        return torch.stack(found, -1)[..., (lags - lags.unsqueeze(-1)).abs()]

    @cached_property
    def _shift(self) -> Tensor:
        """The companion matrix, `... x features x order x order`."""
        lower = torch.eye(self.order, dtype=self.partial.dtype, device=self.partial.device)[:-1]
        lower = lower.expand(*self.partial.shape[:-1], *lower.shape)
        return torch.cat([self.predictors[-1].unsqueeze(-2), lower], -2)

    def beginning(self, batch_shape: Sequence[int]) -> Lags:
        """Return what is known before anything was recorded: the stationary law."""
        covariance = self._stationary
        batch = torch.broadcast_shapes(tuple(batch_shape), covariance.shape[:-3])
        covariance = covariance.expand(*batch, *covariance.shape[-3:])
        return Lags(torch.zeros_like(covariance[..., 0]), covariance)

    def _ahead(self, lags: Lags) -> Lags:
        """Return what is known of the lags of the next bin, that bin included, before it is seen."""
        mean = (self._shift @ lags.mean.unsqueeze(-1)).squeeze(-1)
        covariance = self._shift @ lags.covariance @ self._shift.mT
        innovation = torch.zeros_like(covariance[..., :1, :1]) + 1.0
        return Lags(mean, covariance + pad(innovation, (0, self.order - 1, 0, self.order - 1)))

    def _outlook(self, ahead: Lags) -> Outlook:
        return Outlook(ahead.mean[..., 0], ahead.covariance[..., 0, 0].sqrt())

    def outlook(self, lags: Lags) -> Outlook:
        """Return what is expected of the next time bin."""
        return self._outlook(self._ahead(lags))

    def advance(self, lags: Lags, y: Tensor, missing: Tensor | None) -> Lags:
        """Return what is known after one more time bin, `... x features`."""
        return self._condition(self._ahead(lags), y, missing)

    def _condition(self, ahead: Lags, y: Tensor, missing: Tensor | None) -> Lags:
        column = ahead.covariance[..., 0]
        gain = column / column[..., :1]
        if missing is not None:
            gain = gain.masked_fill(missing.unsqueeze(-1), 0.0)
        surprise = (y - self.center - ahead.mean[..., 0]).unsqueeze(-1)
        mean = ahead.mean + gain * surprise
        return Lags(mean, ahead.covariance - gain.unsqueeze(-1) * column.unsqueeze(-2))

    def outlooks(self, seen: Observed) -> Outlook:
        """Return what is expected of each time bin, `... x time x features`, given those before."""
        if seen.missing is not None and not _ends_only(seen.missing):
            return self._outlooks_past_gaps(seen)
        steps, order = seen.y.shape[-2], self.order
        deviation = seen.y - self.center
        head = min(steps, order)
        # Row t: the best predictor of bin t from the t bins before it, the earliest first.
        rows = [pad(p.flip(-1), (0, head - p.shape[-1])) for p in self.predictors[: head - 1]]
        rows = [torch.zeros_like(self.partial[..., :1]).expand(*self.partial.shape[:-1], head), *rows]
        early = (torch.stack(rows, -3) * deviation[..., :head, :].unsqueeze(-3).mT).sum(-1)
        scales = self._scales[..., :head].mT
        if steps <= order:
            return Outlook(early, scales)
        windows = deviation[..., :-1, :].unfold(-2, order, 1)
        late = (windows * self.predictors[-1].flip(-1).unsqueeze(-3)).sum(-1)
        scale = pad(scales, (0, 0, 0, steps - order), value=1.0)
        return Outlook(torch.cat([early.expand(*late.shape[:-2], -1, -1), late], -2), scale)

    def _outlooks_past_gaps(self, seen: Observed) -> Outlook:
        lags, found = self.beginning(seen.y.shape[:-2]), []
        for bin_t in seen.bins():
            ahead = self._ahead(lags)
            found.append(self._outlook(ahead))
            lags = self._condition(ahead, bin_t.y, bin_t.missing)
        shift, scale = (torch.stack(each, -2) for each in zip(*found, strict=True))
        return Outlook(shift, scale)

    def lags_after(self, seen: Observed, last: Tensor) -> Lags:
        """Return what is known after time bin `last`, `trials`, of trials `trials x time x features`."""
        lags = known = self.beginning(seen.y.shape[:-2])
        if bool((last >= self.order).all()) and self._all_known(seen, last):
            back = last.unsqueeze(-1) - torch.arange(self.order, device=last.device)
            rows = torch.arange(len(last), device=last.device).unsqueeze(-1)
            return Lags((seen.y[rows, back] - self.center).mT, torch.zeros_like(lags.covariance))
        for t, bin_t in enumerate(seen.bins()):
            lags = self.advance(lags, bin_t.y, bin_t.missing)
            after = (last >= t).reshape(-1, 1, 1)
            mean = torch.where(after, lags.mean, known.mean)
            known = Lags(mean, torch.where(after.unsqueeze(-1), lags.covariance, known.covariance))
        return known

    def _all_known(self, seen: Observed, last: Tensor) -> bool:
        if seen.missing is None:
            return True
        back = last.unsqueeze(-1) - torch.arange(self.order, device=last.device)
        rows = torch.arange(len(last), device=last.device).unsqueeze(-1)
        return not bool(seen.missing[rows, back].any())

    @classmethod
    def joined(cls, memories: Sequence[AutoregressiveMemory | None], sizes: Sequence[int]) -> AutoregressiveMemory:
        """Return the memory of groups of features side by side, some of which, but not all, may have none."""
        known = [memory for memory in memories if memory is not None]
        order, like = max(memory.order for memory in known), known[0].center
        centers, partials = [], []
        for memory, size in zip(memories, sizes, strict=True):
            if memory is None:
                centers.append(like.new_zeros(size))
                partials.append(like.new_zeros(size, order))
            else:
                centers.append(memory.center)
                partials.append(pad(memory.partial, (0, order - memory.order)))
        return cls(torch.cat(centers, -1), torch.cat(partials, -2))


def _ends_only(missing: Tensor) -> bool:
    """Whether no feature is recorded again once it is missing, so that no lag of what is there is missing."""
    return not bool((missing[..., :-1, :] & ~missing[..., 1:, :]).any())


class Autoregression(Module):
    r"""How each feature depends on its own last bins.

    .. math:: y_t - d = \sum_{k=1}^{p} \rho_k (y_{t-k} - d) + \ldots

    Stationary whatever its parameters, the partial autocorrelations, which lie between -1 and 1 through a hyperbolic
    tangent; the coefficients follow from them by Levinson's recursion.

    Args:
        features: number of features.
        order: number of bins that are remembered, 1 to 8.
        dtype: of the parameters; torch's default if None.
        device: of the parameters; torch's default if None.

    Raises:
        ValueError: if the order is not from 1 to 8.

    Example::

        >>> memory = Autoregression(features=2, order=2)
        >>> memory.set_coefficients(torch.tensor([[1.5, -0.8], [0.5, 0.0]]))
        >>> memory.coefficients
        tensor([[ 1.5000, -0.8000],
                [ 0.5000,  0.0000]], grad_fn=<CatBackward0>)

    References:
        Barndorff-Nielsen and Schou (1973), J. Multivar. Anal. 3:408; Monahan (1984), Biometrika 71:403.
    """

    partial_autocorrelations: Tensor

    def __init__(
        self,
        *,
        features: int,
        order: int,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.features = check_positive_int("features", features)
        self.order = check_positive_int("order", order)
        if self.order > MOST_LAGS:
            raise ValueError(
                f"`order` must be at most {MOST_LAGS} time bins, got order={order}; slower memory is for the latents."
            )
        start = torch.zeros(self.features, self.order, dtype=dtype, device=device)
        self.partial_autocorrelations = parameter(start, constraints.interval(-1.0, 1.0))

    def bind(self, center: Tensor) -> AutoregressiveMemory:
        """Return the memory at the present parameter values, of features of a mean, `features`."""
        partial = self.partial_autocorrelations.clamp(-_LARGEST_PARTIAL, _LARGEST_PARTIAL)
        return AutoregressiveMemory(center, partial)

    @property
    def coefficients(self) -> Tensor:
        """The weights of the last bins, the latest first, `features x order`."""
        return predictors_of(self.partial_autocorrelations)[-1]

    @torch.no_grad()
    def set_coefficients(self, coefficients: Tensor) -> None:
        """Give the weights of the last bins values, `features x order`.

        Raises:
            ValueError: if their shape is another one, or a feature's are not those of a stationary process.
        """
        like = self.partial_autocorrelations
        if coefficients.shape != like.shape:
            raise ValueError(
                f"`coefficients` must have shape features x order, {tuple(like.shape)}, got "
                f"{tuple(coefficients.shape)}."
            )
        partial = partials_of(coefficients.double())
        bad = (~(partial.abs() < 1).all(-1)).nonzero().flatten().tolist()
        if bad:
            raise ValueError(
                f"`coefficients` must be those of stationary processes, and those of feature {bad[0]}, "
                f"{[round(x, 4) for x in coefficients[bad[0]].tolist()]}, are not: it would grow without bound. Shrink "
                "them until the roots of 1 - sum_k rho_k z^k lie outside the unit circle."
            )
        self.partial_autocorrelations = partial.clamp(-_LARGEST_PARTIAL, _LARGEST_PARTIAL).to(like)


@torch.no_grad()
def partials_of_data(deviation: Tensor, missing: Tensor | None, order: int) -> Tensor:
    r"""Return the partial autocorrelations of data by Burg's method, `features x order`: stationary, whatever the data.

    .. math:: r_m = \frac{2 \sum_t f_t b_{t-1}}{\sum_t f_t^2 + b_{t-1}^2}

    with the errors f and b of the predictions forwards and backwards from m - 1 bins.

    Args:
        deviation: recording less its mean, `trials x time x features`.
        missing: where entries are, or None if nowhere.
        order: number of lags, fewer than time bins.

    Example::

        >>> x = torch.zeros(1, 5000, 1)
        >>> noise = torch.randn(5000, generator=torch.Generator().manual_seed(0))
        >>> for t in range(1, 5000):
        ...     x[0, t] = 0.8 * x[0, t - 1] + noise[t]
        >>> (partials_of_data(x, None, 2) - torch.tensor([[0.8, 0.0]])).abs().max() < 0.05
        tensor(True)

    References:
        Burg (1967), on maximum entropy spectra.
    """
    forward = backward = deviation.double()
    there = torch.ones_like(deviation, dtype=torch.bool) if missing is None else ~missing
    both, found = there, []
    for lag in range(1, order + 1):
        ahead, behind = forward[:, 1:], backward[:, :-1]
        both = there[:, lag:] & there[:, :-lag] & both[:, 1:] & both[:, :-1]
        ahead, behind = (torch.where(both, each, 0.0) for each in (ahead, behind))
        power = (ahead.square() + behind.square()).sum((0, 1))
        r = 2 * (ahead * behind).sum((0, 1)) / torch.where(power > 0, power, 1.0)
        found.append(r)
        forward, backward = ahead - r * behind, behind - r * ahead
    return torch.stack(found, -1).clamp(-_LARGEST_PARTIAL, _LARGEST_PARTIAL)
