"""What the convolutional encoder sees."""

from __future__ import annotations

import pytest
import torch

from pyro_lowrank.encoders.convolutional import ConvEncoder

TIME, AT = 30, 15


@pytest.mark.parametrize("mode", ["zeros", "replicate", "reflect"])
@pytest.mark.parametrize(
    ("padding", "window"), [("causal", (-6, 0)), ("acausal", (0, 6)), ("centred", (-3, 3))], ids=lambda v: str(v)
)
def test_it_looks_as_far_as_its_padding_says_and_no_further(
    padding: str, window: tuple[int, int], mode: str, dtype: torch.dtype
) -> None:
    encoder = ConvEncoder(4, 2, (5, 3), (6,), padding=padding, padding_mode=mode, dtype=dtype)
    y = torch.randn(1, TIME, 4, dtype=dtype, requires_grad=True)
    mean, log_variance = encoder(y)
    (grad,) = torch.autograd.grad((mean + log_variance)[0, AT].sum(), y)
    seen = grad[0].abs().sum(-1).nonzero().flatten() - AT
    assert (int(seen.min()), int(seen.max())) == window == (-encoder.lookback, encoder.lookahead)


def test_a_circular_one_sees_the_other_end_and_is_not_for_use_online(dtype: torch.dtype) -> None:
    encoder = ConvEncoder(4, 2, (5, 3), (6,), padding_mode="circular", activation="leaky_relu", dtype=dtype)
    y = torch.randn(1, TIME, 4, dtype=dtype)
    mean, log_variance = encoder(y)
    turned = encoder(y.roll(7, 1))
    torch.testing.assert_close(turned[0], mean.roll(7, 1))
    torch.testing.assert_close(turned[1], log_variance.roll(7, 1))
    assert (encoder.lookback, encoder.lookahead) == (None, None)
    with pytest.raises(ValueError, match="wrapped around"):
        encoder(y[:, :4])
