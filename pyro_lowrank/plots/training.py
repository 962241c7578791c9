"""How a fit went."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Array = NDArray[np.floating[Any]]

# A first held-out point this many times as far below the curve as that is high is told in words.
_FAR = 3.0


def plot_evidence(
    axes: Axes,
    evidence: Array,
    held_out_steps: NDArray[np.integer[Any]],
    held_out_evidence: Array,
    *,
    reference: float | None = None,
) -> Axes:
    """Draw the log evidence of the minibatches, their running mean, and the evidence of held-out data.

    All of the held-out curve is in view, but for a first point far below the others, which an arrow tells of.

    Args:
        axes: to draw on.
        evidence: of each step's minibatch, in nats per time bin, `steps`.
        held_out_steps: after how many steps held-out data were evaluated, `evaluations`; may be empty.
        held_out_evidence: in nats per time bin, `evaluations`.
        reference: of the held-out data without dynamics, in nats per time bin; drawn as a line.
    """
    steps = np.arange(len(evidence))
    axes.plot(steps, evidence, color="0.8", linewidth=0.8, label="minibatch")
    width = min(len(evidence), max(1, len(evidence) // 20))
    if width > 1:
        mean = np.convolve(evidence, np.full(width, 1 / width), mode="valid")
        axes.plot(steps[width // 2 : width // 2 + len(mean)], mean, color="C0", label=f"mean over {width} steps")
    if len(held_out_steps):
        axes.plot(held_out_steps, held_out_evidence, "o-", color="C1", markersize=4, label="held out")
    if reference is not None:
        axes.axhline(reference, color="C3", linestyle="--", linewidth=1.2, label="without dynamics")
    axes.set(xlabel="step", ylabel="log evidence (nats per time bin)")
    curve = held_out_evidence[np.isfinite(held_out_evidence)]
    always = np.concatenate([curve[1:] if len(curve) > 1 else curve, [] if reference is None else [reference]])
    late = evidence[len(evidence) // 20 :]
    # The first steps and single hard windows would squeeze everything else; the held-out curve is never cut.
    shown = np.concatenate([np.percentile(late, [2, 100]) if len(late) else [], always])
    if len(shown):
        low, high = shown.min(), shown.max()
        first = curve[:1][curve[:1] < low]
        if len(first) and low - first[0] <= _FAR * (high - low):
            low = first[0]
        elif len(first):
            told = f"held out, before training: {first[0]:.4g}"
            arrow = {"arrowstyle": "->", "color": "C1"}
            axes.annotate(
                told, (0.02, 0.0), (0.04, 0.06), "axes fraction", color="C1", fontsize="small", arrowprops=arrow
            )
        axes.set_ylim(low - 0.1 * (high - low) - 1e-6, high + 0.1 * (high - low) + 1e-6)
    axes.legend(frameon=False, fontsize="small")
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
