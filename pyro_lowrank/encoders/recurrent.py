"""The recurrent encoder: what the whole past of a recording says of the latents."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pyro_lowrank.encoders.calls import with_mask
from pyro_lowrank.errors import check_positive_int
from pyro_lowrank.modules import Module
from pyro_lowrank.parameters import parameter

_WEIGHTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


class GRUEncoder(Module):
    r"""Gated recurrent units, from a recording to the mean and log variance of a Gaussian of each latent.

    .. math::

        r_t, s_t &= \sigma(W y_t + V h_{t-1} + b) \\
        n_t &= \tanh(W_n y_t + b_n + r_t \odot (V_n h_{t-1} + c_n)) \\
        h_t &= (1 - s_t) \odot n_t + s_t \odot h_{t-1}, \qquad (\mu_t, \log s_t^2) = A h_t + a

    It looks at the past and the present only. Online it reads the recording from its first time bin on at every step,
    which takes longer and longer: over long recordings `ConvEncoder` is quicker.

    Args:
        features: number of features.
        rank: number of latents.
        hidden: number of gated units.
        constant_variance: whether the variances are parameters, the same for all data.
        sees_mask: whether one more channel per feature tells the missing entries, which are zero otherwise.
        dtype: of the parameters; torch's default if None.
        device: of the parameters; torch's default if None.

    Example::

        >>> mean, log_variance = GRUEncoder(features=8, rank=2)(torch.randn(5, 30, 8))
        >>> mean.shape, log_variance.shape
        (torch.Size([5, 30, 2]), torch.Size([5, 30, 2]))

    References:
        Cho et al. (2014), EMNLP.
    """

    weight_ih: Tensor
    weight_hh: Tensor
    bias_ih: Tensor
    bias_hh: Tensor
    weight: Tensor
    bias: Tensor
    log_variance: Tensor

    # All time bins before: more than any recording has.
    lookback = 2**31 - 1
    lookahead = 0

    def __init__(
        self,
        features: int,
        rank: int,
        hidden: int = 64,
        *,
        constant_variance: bool = False,
        sees_mask: bool = True,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.features = check_positive_int("features", features)
        self.rank = check_positive_int("rank", rank)
        self.hidden = check_positive_int("hidden", hidden)
        self.constant_variance, self.sees_mask = bool(constant_variance), bool(sees_mask)
        factory: dict[str, Any] = {"dtype": dtype, "device": device}
        units = nn.GRU(features * (2 if sees_mask else 1), hidden, batch_first=True, **factory)
        for name in _WEIGHTS:
            setattr(self, name, parameter(getattr(units, f"{name}_l0").detach()))
        linear = nn.Linear(hidden, rank * (1 if constant_variance else 2), **factory)
        self.weight, self.bias = parameter(linear.weight.detach()), parameter(linear.bias.detach())
        if constant_variance:
            self.log_variance = parameter(torch.zeros(rank, **factory))

    def forward(self, y: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return mean and log variance, each `trials x time x rank`.

        Args:
            y: recording, `trials x time x features`, zero where missing.
            mask: of the same shape, one where recorded and zero where missing; None where nothing is missing.
        """
        if self.sees_mask:
            y = with_mask(y, mask)
        weights = [getattr(self, name) for name in _WEIGHTS]
        start = y.new_zeros(1, y.shape[0], self.hidden)
        # Without `nn.GRU`, whose parameters are no Pyro parameters: they could get no priors and no names of their own.
        hidden, _ = torch.gru(y, start, weights, True, 1, 0.0, False, False, True)
        output = hidden @ self.weight.mT + self.bias
        if self.constant_variance:
            return output, self.log_variance.expand_as(output)
        mean, log_variance = output.chunk(2, -1)
        return mean, log_variance

    def settings(self) -> dict[str, Any]:
        """Return the arguments that build an encoder of the same form."""
        names = ("features", "rank", "hidden", "constant_variance", "sees_mask")
        return {name: getattr(self, name) for name in names}
