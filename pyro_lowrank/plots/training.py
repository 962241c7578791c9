"""How a fit went."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Array = NDArray[np.floating[Any]]


def plot_evidence(
    axes: Axes, evidence: Array, held_out_steps: NDArray[np.integer[Any]], held_out_evidence: Array
) -> Axes:
    """Draw the log evidence of the minibatches, their running mean, and the evidence of held-out data.

    Args:
        axes: to draw on.
        evidence: of each step's minibatch, in nats per time bin, `steps`.
        held_out_steps: after how many steps held-out data were evaluated, `evaluations`; may be empty.
        held_out_evidence: in nats per time bin, `evaluations`.
    """
    steps = np.arange(len(evidence))
    axes.plot(steps, evidence, color="0.8", linewidth=0.8, label="minibatch")
    width = min(len(evidence), max(1, len(evidence) // 20))
    if width > 1:
        mean = np.convolve(evidence, np.full(width, 1 / width), mode="valid")
        axes.plot(steps[width // 2 : width // 2 + len(mean)], mean, color="C0", label=f"mean over {width} steps")
    if len(held_out_steps):
        axes.plot(held_out_steps, held_out_evidence, "o-", color="C1", markersize=4, label="held out")
    axes.set(xlabel="step", ylabel="log evidence (nats per time bin)")
    shown = np.concatenate([evidence[len(evidence) // 20 :], held_out_evidence])
    if len(shown):
        # The first steps and single hard windows would squeeze everything else.
        low, high = np.percentile(shown, 2), shown.max()
        axes.set_ylim(low - 0.1 * (high - low) - 1e-6, high + 0.1 * (high - low) + 1e-6)
    axes.legend(frameon=False)
    return axes


def plot_effective_size(axes: Axes, ess: Array) -> Axes:
    """Draw the effective sample size, as a percentage of the particles, over steps.

    Args:
        axes: to draw on.
        ess: effective sample size at each step as a share of the particles, `steps`.
    """
    axes.plot(np.arange(len(ess)), 100 * ess, color="C2", linewidth=0.8)
    axes.set(xlabel="step", ylabel="effective particles (%)", ylim=(0, 105))
    return axes
