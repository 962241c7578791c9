"""How a fit went."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Array = NDArray[np.floating[Any]]

# What lies further off than this many times the height of the curves is told in words.
_FAR = 1.0


def plot_evidence(
    axes: Axes,
    evidence: Array,
    held_out_steps: NDArray[np.integer[Any]],
    held_out_evidence: Array,
    *,
    reference: float | None = None,
) -> Axes:
    """Draw the log evidence of the minibatches, their running mean, and the evidence of held-out data.

    All of the held-out curve is in view, but for a first point far below the others; of that, and of a reference that
    is far off, words tell.

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
    # The first steps and single hard windows would squeeze everything else; the held-out curve is never cut.
    late = evidence[len(evidence) // 20 :]
    shown = np.concatenate([np.percentile(late, [2, 100]) if len(late) else [], curve[1:] if len(curve) > 1 else curve])
    beside = {"held out, before training": curve[0]} if len(curve) else {}
    beside |= {} if reference is None else {"without dynamics": reference}
    _limit(axes, shown, beside)
    # Above the axes: over steps there is no empty corner.
    axes.legend(frameon=False, fontsize="small", ncols=2, loc="lower left", bbox_to_anchor=(0.0, 1.0))
    return axes


def _limit(axes: Axes, shown: Array, beside: dict[str, float]) -> None:
    """Show some numbers, and others beside them if they are not far off; words tell of those that are."""
    if not len(shown):
        return
    low, high = float(shown.min()), float(shown.max())
    reach = _FAR * (high - low) + 1e-6
    near = [value for value in beside.values() if low - reach <= value <= high + reach]
    far = [f"{name}: {value:.4g}" for name, value in beside.items() if value < low - reach or value > high + reach]
    low, high = min([low, *near]), max([high, *near])
    axes.set_ylim(low - 0.1 * (high - low) - 1e-6, high + 0.1 * (high - low) + 1e-6)
    if far:
        axes.text(0.03, 0.03, "\n".join([*far, "(beyond the axis)"]), transform=axes.transAxes, fontsize="small")


def plot_effective_size(axes: Axes, ess: Array) -> Axes:
    """Draw the effective sample size, as a percentage of the particles, over steps.

    Args:
        axes: to draw on.
        ess: effective sample size at each step as a share of the particles, `steps`.
    """
    axes.plot(np.arange(len(ess)), 100 * ess, color="C2", linewidth=0.8)
    axes.set(xlabel="step", ylabel="effective particles (%)", ylim=(0, 105))
    return axes
