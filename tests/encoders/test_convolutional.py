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


@pytest.mark.parametrize("sees_mask", [False, True])
@pytest.mark.parametrize("mode", ["zeros", "replicate", "reflect", "circular"])
@pytest.mark.parametrize("padding", ["causal", "acausal", "centred"])
def test_padded_trials_are_read_as_if_each_were_alone(padding: str, mode: str, sees_mask: bool) -> None:
    options = {"padding": padding, "padding_mode": mode, "sees_mask": sees_mask, "dtype": torch.float64}
    encoder = ConvEncoder(4, 2, (5, 4, 3), (6, 7), **options)  # type: ignore[arg-type]
    y, mask = torch.randn(3, 12, 4, dtype=torch.float64), torch.ones(3, 12, 4, dtype=torch.float64)
    lengths = (12, 8, 6)
    for trial, length in enumerate(lengths):
        mask[trial, length:] = 0.0
    mask[1, 3] = mask[1, 5, 2] = 0.0
    batch = encoder(y * mask, mask)
    for trial, length in enumerate(lengths):
        seen = mask[trial : trial + 1, :length]
        alone = encoder(y[trial : trial + 1, :length] * seen, seen)
        for together, single in zip(batch, alone, strict=True):
            torch.testing.assert_close(together[trial, :length], single[0])


@pytest.mark.parametrize("mode", ["zeros", "replicate"])
def test_a_window_may_be_longer_than_the_trial(mode: str) -> None:
    encoder = ConvEncoder(4, 2, padding="centred", padding_mode=mode)
    assert all(part.isfinite().all() for part in encoder(torch.randn(2, 3, 4)))


def test_a_window_longer_than_the_trial_cannot_be_reflected() -> None:
    with pytest.raises(ValueError, match="window of 21 time bins cannot be reflected in trials of 3; use"):
        ConvEncoder(4, 2, padding_mode="reflect")(torch.randn(2, 3, 4))


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
