"""What a convolution sees beyond a trial's own time bins."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

_MODES = {"zeros": "constant", "replicate": "replicate", "reflect": "reflect", "circular": "circular"}
MODES = tuple(_MODES)


def last_bins(mask: Tensor) -> Tensor | None:
    """Return each trial's last time bin with anything recorded, `trials`, or None where that is the last bin of all.

    Args:
        mask: one where recorded, `trials x time x features`.

    Example::

        >>> last_bins(torch.tensor([[[1.0], [1.0]], [[1.0], [0.0]]]))
        tensor([1, 0])
    """
    seen = mask.bool().any(-1)
    num_steps = seen.shape[-1]
    if bool(seen[:, -1].all()):
        return None
    return (seen * torch.arange(num_steps, device=seen.device)).amax(-1)


def extend(x: Tensor, reach: tuple[int, int], mode: str, last: Tensor | None) -> Tensor:
    """Return trials with as many bins before their first and after their last one as a convolution reads.

    So that padding changes nothing, what follows the last bin of a trial is what its mode says, not what was padded.

    Args:
        x: `trials x channels x time`.
        reach: number of bins before and after.
        mode: one of `MODES`.
        last: index of each trial's last bin, `trials`; None where it is the last of all.

    Returns:
        `trials x channels x (time + before + after)`.

    Example::

        >>> extend(torch.tensor([[[1.0, 2.0, 9.0]]]), (0, 1), "replicate", torch.tensor([1]))
        tensor([[[1., 2., 2., 2.]]])
    """
    if last is None or (reach[1] == 0 and mode in ("zeros", "replicate")):
        # What follows a trial's last bin reaches none of its own.
        return functional.pad(x, reach, mode=_MODES[mode])
    # Gathered bin by bin, as trials end at different bins.
    before, after = reach
    place = torch.arange(-before, x.shape[-1] + after, device=x.device)
    end = last.unsqueeze(-1)
    outside = (place < 0) | (place > end)
    if mode == "reflect":
        place = end - (end - place.abs()).abs()
    elif mode == "circular":
        place = place % (end + 1)
    source = torch.minimum(place.clamp(min=0), end).unsqueeze(1).expand(-1, x.shape[1], -1)
    extended = x.gather(-1, source)
    return extended.masked_fill(outside.unsqueeze(1), 0.0) if mode == "zeros" else extended
