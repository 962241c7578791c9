"""What a fit leaves behind, and what it tells as it goes."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyro_lowrank.training.advice import advice_on
from pyro_lowrank.training.baselines import Baselines, References
from pyro_lowrank.training.particles import ParticleCheck

logger = logging.getLogger(__name__)

Array = NDArray[np.float64]


@dataclass(frozen=True)
class StepReport:
    """One step of a fit, as its `callback` sees it.

    Attributes:
        step: steps taken, this one included.
        num_steps: steps in all.
        evidence: log evidence of the minibatch, before the step, in nats per observed time bin.
        ess: effective sample size, as a share of the particles, averaged over its observed time bins; NaN where
            there are none.
        gradient_norm: of the loss in nats per time bin, before any clipping.
        learning_rate: of the step, for the optimiser's first group of parameters.
        held_out: the latest held-out log evidence in nats per observed time bin, or None.
    """

    step: int
    num_steps: int
    evidence: float
    ess: float
    gradient_norm: float
    learning_rate: float
    held_out: float | None


@dataclass
class History:
    """What was recorded so far: of every step, and of every evaluation on held-out data."""

    evidence: list[float] = field(default_factory=list)
    ess: list[float] = field(default_factory=list)
    gradient_norm: list[float] = field(default_factory=list)
    learning_rate: list[float] = field(default_factory=list)
    held_out_steps: list[int] = field(default_factory=list)
    held_out_evidence: list[float] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.evidence)

    @property
    def held_out(self) -> float | None:
        """The latest held-out evidence, or None."""
        return self.held_out_evidence[-1] if self.held_out_evidence else None

    def to_tensors(self) -> dict[str, Tensor]:
        """Return every record as a tensor of float64."""
        return {name: torch.tensor(values, dtype=torch.float64) for name, values in vars(self).items()}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> History:
        """Return what `to_tensors` was called on."""
        history = cls(**{name: tensor.tolist() for name, tensor in tensors.items()})
        history.held_out_steps = [int(step) for step in history.held_out_steps]
        return history


@dataclass(frozen=True, eq=False)
class FitResult:
    """What a fit went through; the fitted parameters are in the model and guide themselves.

    Attributes:
        evidence: log evidence of the minibatch of each step, in nats per observed time bin, `steps`.
        ess: effective sample size at each step, as a share of the particles, `steps`; NaN where there are none.
        gradient_norm: of the loss in nats per time bin, before any clipping, `steps`.
        learning_rate: at each step, `steps`.
        held_out_steps: after how many steps held-out data were evaluated, `evaluations`.
        held_out_evidence: their log evidence then, in nats per observed time bin, `evaluations`.
        kept_step: after how many steps the model was as it is now: the best on held-out data, or the last.
        num_steps: steps that were asked for.
        interrupted: whether Ctrl-C ended the fit before it had taken them.
        checkpoint: the file to resume from, or None.
        seconds: that this call took.
        without_dynamics: log evidence of the held-out data under features that are independent of each other and of
            time, in nats per observed time bin; None where nothing was held out, or of likelihoods of one's own.
        baselines: log evidence of the held-out data under models without latent dynamics that grow from independent
            features to VAR(1), fitted in closed form; None where nothing was held out, or of data that are no real
            numbers.
        particles: held-out evidence with more and more particles; None where nothing was held out, there are no
            particles, the fit was interrupted, or it was not asked for.

    Example::

        >>> import pyro_lowrank as plr
        >>> model = plr.StateSpaceModel(plr.LowRankRNN(rank=1, units=5), plr.GaussianObservation(rank=1, features=2))
        >>> result = plr.fit(model, plr.OptimalGuide(model), torch.randn(2, 20, 2), num_steps=3, progress=False)
        >>> result.evidence.shape, result.interrupted
        ((3,), False)
    """

    evidence: Array
    ess: Array
    gradient_norm: Array
    learning_rate: Array
    held_out_steps: NDArray[np.int64]
    held_out_evidence: Array
    kept_step: int
    num_steps: int
    interrupted: bool
    checkpoint: Path | None
    seconds: float
    without_dynamics: float | None = None
    baselines: Baselines | None = None
    particles: ParticleCheck | None = None

    @classmethod
    def of(
        cls,
        history: History,
        *,
        kept_step: int,
        num_steps: int,
        interrupted: bool,
        checkpoint: Path | None,
        seconds: float,
        references: References,
        particles: ParticleCheck | None,
    ) -> FitResult:
        """Return the result of a fit with that history, after logging what it advises."""
        result = cls(
            evidence=np.array(history.evidence, dtype=np.float64),
            ess=np.array(history.ess, dtype=np.float64),
            gradient_norm=np.array(history.gradient_norm, dtype=np.float64),
            learning_rate=np.array(history.learning_rate, dtype=np.float64),
            held_out_steps=np.array(history.held_out_steps, dtype=np.int64),
            held_out_evidence=np.array(history.held_out_evidence, dtype=np.float64),
            kept_step=kept_step,
            num_steps=num_steps,
            interrupted=interrupted,
            checkpoint=checkpoint,
            seconds=seconds,
            **references._asdict(),
            particles=particles,
        )
        if particles is not None:
            logger.info("Held-out evidence: %s.", particles)
        for line in result.advice:
            logger.info(line)
        return result

    @property
    def steps(self) -> int:
        """The number of steps taken, those before a resumption included."""
        return len(self.evidence)

    @property
    def held_out(self) -> float | None:
        """Log evidence of the held-out data under the model as it is now, in nats per observed time bin, or None."""
        if not len(self.held_out_evidence):
            return None
        kept = self.held_out_steps == self.kept_step
        return float(self.held_out_evidence[kept][0] if kept.any() else self.held_out_evidence[-1])

    @property
    def advice(self) -> tuple[str, ...]:
        """What to change in the next fit, in words; empty if nothing stands out."""
        return advice_on(self)

    def __str__(self) -> str:
        state = ", interrupted" if self.interrupted else ""
        lines = [f"FitResult: {self.steps} of {self.num_steps} steps in {self.seconds:.1f} s{state}"]
        if self.steps:
            tenth = max(1, self.steps // 10)
            first, last = self.evidence[:tenth].mean(), self.evidence[-tenth:].mean()
            lines.append(f"  evidence        {first:.3f} -> {last:.3f} nats per bin (first and last {tenth} steps)")
        if len(self.held_out_evidence):
            first, last = self.held_out_evidence[[0, -1]]
            best = self.held_out_evidence.argmax()
            lines.append(
                f"  held out        {first:.3f} -> {last:.3f} nats per bin, best {self.held_out_evidence[best]:.3f} "
                f"after {self.held_out_steps[best]} steps{', kept' if self.kept_step < self.steps else ''}"
            )
        if self.baselines is not None:
            table = self.baselines.beside(self.held_out)
            lines += [f"{head:18}{row}" for head, row in zip(["  for scale", *[""] * len(table)], table, strict=False)]
        elif self.without_dynamics is not None:
            lines.append(f"  for scale       {self.without_dynamics:.3f} nats per bin held out, without any dynamics")
        if self.particles is not None:
            lines.append(f"  more particles  {self.particles}")
        if self.steps and not np.isnan(self.ess[-tenth:]).all():
            lines.append(f"  effective size  {100 * self.ess[-tenth:].mean():.0f} % of the particles")
        if self.checkpoint is not None:
            lines.append(f"  checkpoint      {self.checkpoint}")
        return "\n".join([*lines, *(f"  ! {line}" for line in self.advice)])
