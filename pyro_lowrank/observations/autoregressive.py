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
from pyro_lowrank.observations.levinson import LARGEST_PARTIAL, partials_of, predictors_of
from pyro_lowrank.observations.memory import Lags, Outlook
from pyro_lowrank.observations.observed import Observed
from pyro_lowrank.parameters import parameter

MOST_LAGS = 8


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
    def predictors(self) -> Tensor:
        """The coefficients of the best predictors from fewer bins, and last of the process itself."""
        return predictors_of(self.partial)

    @cached_property
    def _log_scales(self) -> Tensor:
        """Logarithms of the standard deviations of the predictions from 0, 1, ... bins, `... x features x order`.

        In units of that from all of them.
        """
        remains = ((1 - self.partial) * (1 + self.partial)).log()
        later = torch.ones(self.order, self.order, dtype=remains.dtype, device=remains.device).tril()
        return -0.5 * (remains @ later)

    @cached_property
    def _stationary(self) -> Tensor:
        """Covariance of `order` bins in units of the innovation's variance, `... x features x order x order`."""
        found = [(2 * self._log_scales[..., 0]).exp()]
        for bins in range(1, self.order):
            predictor = self.predictors[..., bins, :bins]
            found.append((predictor * torch.stack(found[::-1], -1)).sum(-1))
        lags = torch.arange(self.order, device=self.partial.device)
        return torch.stack(found, -1)[..., (lags - lags.unsqueeze(-1)).abs()]

    @cached_property
    def _shift(self) -> Tensor:
        """The companion matrix, `... x features x order x order`."""
        lower = torch.eye(self.order, dtype=self.partial.dtype, device=self.partial.device)[:-1]
        lower = lower.expand(*self.partial.shape[:-1], *lower.shape)
        return torch.cat([self.predictors[..., -1:, :], lower], -2)

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
        known = self._outlooks_of_complete(seen)
        stretches = None if seen.missing is None else Stretches.of(seen.missing, self.order)
        return known if stretches is None else self._past_gaps(seen, known, stretches)

    def _outlooks_of_complete(self, seen: Observed) -> Outlook:
        """Return what is expected where all bins before are there."""
        steps, order = seen.y.shape[-2], self.order
        # The data are constants: gradients pass through the coefficients, and through the mean by its own share alone.
        moved, deviation = self.center.detach() - self.center, seen.y - self.center.detach()
        lags = pad(deviation, (0, 0, order, 0))
        # Bin by bin the best predictor of the bins before.
        bins = torch.arange(steps, device=deviation.device).clamp(max=order)
        weights = self.predictors.index_select(-2, bins).movedim(-2, -3)
        shift = moved * weights.sum(-1)
        for lag, weight in enumerate(weights.unbind(-1), start=1):
            shift = torch.addcmul(shift, weight, lags[..., order - lag : order - lag + steps, :])
        known = min(steps, order)
        scale = pad(self._log_scales[..., :known].mT, (0, 0, 0, steps - known)).exp()
        return Outlook(shift, scale)

    def _past_gaps(self, seen: Observed, known: Outlook, stretches: Stretches) -> Outlook:
        """Return what is expected of each time bin, by the filter in stretches where bins before are missing."""
        batch, steps = seen.y.shape[:-2], seen.y.shape[-2]
        y, there = (x.expand(seen.y.shape).reshape(-1, steps, seen.y.shape[-1]) for x in (seen.y, seen.present))
        if self.partial.dim() > 2:
            raise ValueError("Single entries are missing, which draws of coefficients side by side do not take.")
        bins = (stretches.first.unsqueeze(-1) + torch.arange(stretches.length, device=y.device)).clamp(max=steps - 1)
        rows = stretches.row.unsqueeze(-1)
        lags, found = stretches.beginning(self, y), []
        for y_t, there_t in zip(y[rows, bins].unbind(1), there[rows, bins].unbind(1), strict=True):
            ahead = self._ahead(lags)
            found.append(self._outlook(ahead))
            lags = self._condition(ahead, y_t, there_t == 0)
        parts = (torch.stack(part, 1)[stretches.number, stretches.place] for part in zip(*found, strict=True))
        inside = stretches.inside.unsqueeze(-1)
        pairs = zip(parts, known, strict=True)
        shift, scale = (torch.where(inside, p, k.expand(seen.y.shape).reshape(y.shape)) for p, k in pairs)
        return Outlook(shift.reshape(*batch, *y.shape[1:]), scale.reshape(*batch, *y.shape[1:]))

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


@dataclass(frozen=True)
class Stretches:
    """Stretches of time in which a lag of what is recorded is missing; all else is predicted without a filter.

    Attributes:
        row: which trial each lies in, `stretches`.
        first: the bin in which each begins, before which all lags are known, or nothing is, `stretches`.
        length: of the longest.
        inside: which bins lie in one, `trials x time`.
        number: of the stretch that a bin lies in, likewise.
        place: of the bin in it, likewise.
    """

    row: Tensor
    first: Tensor
    length: int
    inside: Tensor
    number: Tensor
    place: Tensor

    @classmethod
    def of(cls, missing: Tensor, order: int) -> Stretches | None:
        """Return those of gaps `... x time x features`, or None where no lag of what is recorded is missing."""
        steps, features = missing.shape[-2:]
        gaps = missing.reshape(-1, steps, features)
        # Whether anything of the feature is recorded in the bin or later, and any of its lags is missing.
        later = (~gaps).flip(1).cummax(1).values.flip(1) if gaps.numel() else ~gaps
        recent = pad(gaps, (0, 0, order, 0)).unfold(1, order, 1)[:, :steps].any(-1)
        bad = (later & recent).any(-1)
        if not bool(bad.any()):
            return None
        # A stretch begins one bin early, with the first missing entry, where all lags are known.
        inside = bad | pad(bad, (0, 1))[:, 1:]
        # Of trials that have not been going on for long the filter begins with the trial.
        early = torch.arange(steps, device=gaps.device) <= order
        inside = inside | (early & (inside & early).any(-1, keepdim=True))
        starts = inside & ~pad(inside, (1, 0))[:, :-1]
        row, first = starts.nonzero(as_tuple=True)
        number = (starts.flatten().cumsum(0) - 1).clamp(min=0).reshape(starts.shape)
        place = (torch.arange(steps, device=gaps.device) - first[number]).masked_fill(~inside, 0)
        return cls(row, first, int(place.max()) + 1, inside, number, place)

    def beginning(self, memory: AutoregressiveMemory, y: Tensor) -> Lags:
        """Return what is known at the beginning of each: the bins before, or nothing yet."""
        back = self.first.unsqueeze(-1) - 1 - torch.arange(memory.order, device=y.device)
        mean = (y[self.row.unsqueeze(-1), back.clamp(min=0)] - memory.center).mT
        nothing = memory.beginning((len(self.row),))
        new = (self.first < memory.order).reshape(-1, 1, 1)
        covariance = torch.where(new.unsqueeze(-1), nothing.covariance, 0.0)
        return Lags(torch.where(new, nothing.mean, mean), covariance)


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
        >>> memory.coefficients.detach()
        tensor([[ 1.5000, -0.8000],
                [ 0.5000,  0.0000]])

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
        partial = self.partial_autocorrelations.clamp(-LARGEST_PARTIAL, LARGEST_PARTIAL)
        return AutoregressiveMemory(center, partial)

    @property
    def coefficients(self) -> Tensor:
        """The weights of the last bins, the latest first, `features x order`."""
        return predictors_of(self.partial_autocorrelations)[..., -1, :]

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
        self.partial_autocorrelations = partial.clamp(-LARGEST_PARTIAL, LARGEST_PARTIAL).to(like)
