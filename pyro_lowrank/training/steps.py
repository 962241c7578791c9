"""One step of a fit, and one evaluation on held-out data."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn, optim

from pyro_lowrank.infer.elbo import SMC_ELBO
from pyro_lowrank.infer.gaussian import EKFEvidence
from pyro_lowrank.smc.loop import ParticlesDied
from pyro_lowrank.training.batches import Batch, Batches, Data
from pyro_lowrank.training.best import Best
from pyro_lowrank.training.failures import gradient_failure, loss_failure
from pyro_lowrank.training.interrupts import interrupts_deferred
from pyro_lowrank.training.randomness import seed_generators, seed_of
from pyro_lowrank.training.result import History
from pyro_lowrank.training.team import Team, draws, rows_of_parts
from pyro_lowrank.training.totals import Totals
from pyro_lowrank.training.window_start import OneStart

_FAILURES = (ParticlesDied, torch.linalg.LinAlgError)


def parameters_of(model: Any, guide: Any, *, trainable: bool) -> dict[str, nn.Parameter]:
    """Return the parameters of a model and guide by name, each once: those that are trained, or those that are not."""
    found: dict[str, nn.Parameter] = {}
    for owner, module in (("model", model), ("guide", guide)):
        if isinstance(module, nn.Module):
            for name, parameter in module.named_parameters():
                if parameter.requires_grad == trainable and all(parameter is not other for other in found.values()):
                    found[f"{owner}.{name}"] = parameter
    return found


class Steps:
    """Takes the steps of a fit and keeps their history.

    A step depends on the parameters, the optimiser's state, its number and the seed alone.

    Args:
        model: what is fitted.
        guide: its guide.
        elbo: the objective.
        optimizer: over the trainable parameters, at the learning rates of the first step.
        batches: the training data.
        held_out: the held-out data, or None.
        decay: factor by which the learning rate falls from one step to the next.
        max_grad_norm: longer gradients are shortened to it; None leaves them as they are.
        seed: of the minibatches and particles.
        scales: of parameters by name, see `scales_of`: the optimiser sees these divided by them.
        team: the processes that take them together.
        parts: a process goes through its share of a batch in so many.
        starts: where the rows of batches start.
    """

    def __init__(
        self,
        model: Any,
        guide: Any,
        elbo: SMC_ELBO | EKFEvidence,
        optimizer: optim.Optimizer,
        batches: Batches,
        held_out: Data | None,
        *,
        decay: float,
        max_grad_norm: float | None,
        seed: int,
        scales: Mapping[str, Tensor],
        team: Team,
        parts: int,
        starts: OneStart,
    ) -> None:
        self.model, self.guide, self.elbo, self.optimizer = model, guide, elbo, optimizer
        self.batches, self.held_out = batches, held_out
        self.decay, self.seed, self.team = decay, seed, team
        self.starts, self.rows = starts, starts.split(rows_of_parts(team, batches.batch_size, parts))
        self.max_grad_norm = math.inf if max_grad_norm is None else max_grad_norm
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        named = parameters_of(model, guide, trainable=True)
        self.scaled = [(named[name], scale) for name, scale in scales.items() if name in named]
        self.frozen = list(parameters_of(model, guide, trainable=False).values())
        self.device = self.parameters[0].device
        self.first_rates = [group["lr"] for group in optimizer.param_groups]
        self.history = History()
        self.best = Best(model, guide)

    def agree(self) -> None:
        """Begin where windows start, and give all processes of the team the parameters of the one that leads."""
        seed_generators(self.device, seed_of(self.seed, "window start", 0))
        with self.team.together(self.device):
            self.starts.begin(self.batches.data.sample)
        self.team.lead_(parameter.data for parameter in self.starts.parameters)
        modules = [part for part in (self.model, self.guide) if isinstance(part, nn.Module)]
        self.team.lead_(value.data for part in modules for value in (*part.parameters(), *part.buffers()))

    def take(self) -> None:
        """Take the next step; raise `SMCFailed`, with nothing changed, if the loss or its gradient is not finite."""
        step = len(self.history)
        batch = self.batches.draw(step)
        reseed = partial(seed_generators, self.device, seed_of(self.seed, "particles", step))
        for group, first_rate in zip(self.optimizer.param_groups, self.first_rates, strict=True):
            group["lr"] = first_rate * self.decay**step
        self.optimizer.zero_grad(set_to_none=True)
        with torch.enable_grad():
            totals = self._differentiate(batch, step, reseed)
            for parameter, scale in self.scaled:
                if parameter.grad is not None:
                    parameter.grad.mul_(scale)
            norm = float(nn.utils.clip_grad_norm_(self.parameters, self.max_grad_norm))
            if not math.isfinite(norm):
                raise gradient_failure(
                    self.elbo, self.model, self.guide, batch, self.parameters, step, reseed, self._start_of
                )
        with interrupts_deferred():
            with torch.no_grad():
                for parameter, scale in self.scaled:
                    parameter.div_(scale)
            self.optimizer.step()
            with torch.no_grad():
                for parameter, scale in self.scaled:
                    parameter.mul_(scale)
            self.history.evidence.append(totals.evidence_per_bin)
            self.history.ess.append(totals.share_of_particles(self.elbo.num_particles))
            self.history.gradient_norm.append(norm)
            self.history.learning_rate.append(float(self.optimizer.param_groups[0]["lr"]))

    def _start_of(self, row: int) -> AbstractContextManager[None]:
        """Let the model start where a row of this process's share of a batch does."""
        row += self.rows[0].start
        return self.starts.of(slice(row, row + 1))

    def _differentiate(self, batch: Batch, step: int, reseed: Callable[[], None]) -> Totals:
        """Add up gradients, and what was observed, over the parts of this process and over all processes."""
        number, found = self.batches.batch_size, []
        with self.team.together(self.device):
            for rows in self.rows:
                reseed()
                part = (
                    batch
                    if len(self.rows) == 1
                    else batch.part(rows.start - self.rows[0].start, rows.stop - rows.start)
                )
                with draws(rows, number), self.starts.of(rows):
                    loss, totals = self._evaluate(part, step, "y")
                    # A mean: neither the learning rate nor `max_grad_norm` need know how long and how many trials are.
                    (loss / (number * batch.y.shape[1])).backward()
                found.append(totals)
        totals = found[0] if len(found) == 1 else Totals.of_all(found)
        if self.team.size > 1:
            for parameter in self.parameters:
                # A parameter that has none here may have one elsewhere.
                parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        self.team.sum_(parameter.grad for parameter in self.parameters if parameter.grad is not None)
        self.team.sum_(totals)
        return totals

    def evaluate(self) -> None:
        """Record the evidence of the held-out data; always with the same random numbers, so that values compare."""
        if self.held_out is None or len(self.history) in self.history.held_out_steps[-1:]:
            return
        value = torch.zeros((), dtype=torch.float64, device=self.device)
        with self.team.together(self.device):
            if self.team.leads:
                value += self._held_out(self.held_out)
        self.team.lead_([value])
        evidence = float(value)
        with interrupts_deferred():
            self.history.held_out_steps.append(len(self.history))
            self.history.held_out_evidence.append(evidence)
            self.best.see(evidence, step=len(self.history))

    def evidence_of(self, batch: Batch, elbo: SMC_ELBO) -> float:
        """Return the evidence of held-out data under another objective, per observed time bin."""
        with torch.no_grad():
            return self._evaluate(batch, len(self.history), "held_out", elbo)[1].evidence_per_bin

    def _held_out(self, data: Data) -> float:
        """Return the evidence of data per observed time bin."""
        seed_generators(self.device, seed_of(self.seed, "held_out", 0))
        with torch.no_grad():
            found = [self._evaluate(piece, len(self.history), "held_out")[1] for piece in data.pieces()]
        return Totals.of_all(found).evidence_per_bin

    def _evaluate(
        self, batch: Batch, step: int, data: str, elbo: SMC_ELBO | EKFEvidence | None = None
    ) -> tuple[Tensor, Totals]:
        """Return the loss, and what was observed on the way."""
        try:
            loss, history = (elbo or self.elbo).loss_and_history(self.model, self.guide, *batch.arguments)
        except _FAILURES as error:
            raise loss_failure(error, batch, step, data) from error
        finally:
            # Pyro makes a plain `nn.Parameter` of a `PyroModule` trainable when it is read.
            for parameter in self.frozen:
                parameter.requires_grad_(False)
        return loss, Totals.of(batch, history)
