"""What the course of a fit says about the next one, in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from pyro_lowrank.training.baselines import Baseline
    from pyro_lowrank.training.result import FitResult

# Below this share of the particles a gradient rests on a few of them.
_SMALL_SHARE = 0.1
# Of what held-out evidence gained since the first evaluation: less is no reason to do anything.
_STILL_RISING = 0.02
# Of the same gain: so much between few and many particles is worth their cost.
_MUCH = 0.05
# A best model from before this share of the steps came too early for the steps that followed.
_EARLY = 0.7


def _of_baselines(best: Baseline, network: float) -> list[str]:
    """Return what is to be said of a network that models without latent dynamics are as good as."""
    if network > best.nats:
        return []
    return [
        f"{best.name}, without latent dynamics, has {best.nats:.3f} nats per bin of held-out evidence, the network "
        f"{network:.3f}: train longer (num_steps) or with more latents (rank), or let features remember "
        '(noise="autoregressive") and share noise (noise_factors); or the dynamics add little here.'
    ]


def advice_on(result: FitResult) -> tuple[str, ...]:
    """Return sentences that each name what was seen and what to change; empty if nothing stands out."""
    rows: list[str] = []
    held_out, steps = result.held_out_evidence, result.held_out_steps
    finished = result.steps and not result.interrupted
    gain = held_out.max() - held_out[0] if len(held_out) else 0.0
    if finished and len(held_out) > 2:
        best = int(held_out.argmax())
        if best == len(held_out) - 1 and held_out[-1] - held_out[-2] > _STILL_RISING * gain > 0:
            rows.append(
                f"Held-out evidence still rose when the fit ended: more steps (num_steps={2 * result.num_steps}) may "
                "give a better model."
            )
        elif steps[best] < _EARLY * result.steps and held_out[best] - held_out[-1] > _STILL_RISING * gain:
            rows.append(
                f"Held-out evidence was best after {steps[best]} of {result.steps} steps and fell since: fewer steps, "
                "a lower rank or more data fit better; keep_best=True ends with the best."
            )
    reference = result.without_dynamics
    if finished and len(held_out) and reference is not None and held_out.max() <= reference:
        rows.append(
            "The model is not better on the held-out data than independent features: train longer (num_steps), with "
            "more particles or another learning rate; or there are no dynamics to find."
        )
    elif finished and result.baselines is not None and result.held_out is not None:
        rows += _of_baselines(result.baselines.best, result.held_out)
    last = result.ess[-max(1, result.steps // 10) :]
    if finished and len(last) and np.nan_to_num(last, nan=1.0).mean() < _SMALL_SHARE:
        rows.append(
            f"Only {100 * float(np.nanmean(last)):.1f} % of the particles carried weight at the end: more of them "
            "(num_particles), or another guide, make steadier gradients."
        )
    checked = result.particles
    if checked is not None and checked.parts and abs(checked.gap) > _MUCH * gain:
        first, last = checked.num_particles[[0, -1]]
        rows.append(
            f"The evidence at {first} particles, as trained, is not that at {last}: it is {checked.gap:+.3f} nats per "
            f"bin off, and what was maximised is another function. Go on with more particles (num_particles={last}), "
            "or with a guide that aims better."
        )
    return tuple(rows)
