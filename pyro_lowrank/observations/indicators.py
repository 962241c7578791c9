"""How fast calcium indicators are: published constants that a fit starts at."""

from __future__ import annotations

from typing import NamedTuple

from pyro_lowrank.errors import check_choice


class Indicator(NamedTuple):
    """Time constants of an indicator's response to an action potential.

    Attributes:
        decay: in seconds: the time scale that the documentation of Suite2p recommends for deconvolution (`tau` among
            its settings), the middle of it where that is a range.
        rise: in seconds: the middle of the range of rise times in mouse visual cortex, Chen et al. (2013), Nature
            499:295, figure 3f and the text beside it.
    """

    decay: float
    rise: float


INDICATORS = {
    "GCaMP6f": Indicator(decay=0.7, rise=0.0625),
    "GCaMP6m": Indicator(decay=1.0, rise=0.0875),
    "GCaMP6s": Indicator(decay=1.375, rise=0.125),
}


def indicator_of(name: str) -> Indicator:
    """Return the constants of an indicator.

    Raises:
        ValueError: if none are known.

    Example::

        >>> indicator_of("GCaMP6s").decay
        1.375
    """
    return INDICATORS[check_choice("indicator", name, tuple(INDICATORS))]
