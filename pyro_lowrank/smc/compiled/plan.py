"""What the compiled loops run on: a model and guide at fixed parameter values, as arrays and compile-time tuples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_lowrank.dynamics.compiled.network import kind_of, number_of, weights_of
from pyro_lowrank.dynamics.transition import Transition
from pyro_lowrank.observations.gaussian import GaussianEmission
from pyro_lowrank.observations.poisson import PoissonEmission
from pyro_lowrank.observations.readout import AffineMap, RatesMap
from pyro_lowrank.smc.compiled import emissions
from pyro_lowrank.smc.compiled.tables import Tables, tables_of


@dataclass(frozen=True)
class Code:
    """What is fixed when a loop is compiled, see `forward.run_forward`."""

    zero: tuple[Any, ...]
    zero_in: tuple[Any, ...]
    square: tuple[Any, ...]
    weighing: tuple[int, ...]
    kind: tuple[int, ...]
    hinges: tuple[Any, ...]
    link: tuple[int, ...]
    readout: tuple[int, ...]

    @property
    def arguments(self) -> tuple[Any, ...]:
        """In the order of the loops."""
        proposal = self.zero, self.zero_in, self.square, self.weighing
        return *proposal, self.kind, self.hinges, self.link, self.readout


@dataclass(frozen=True)
class EmissionTensors:
    """A likelihood for `emissions.log_likelihood`: the differentiable tensors, and `link` and `readout` of the code.

    Attributes:
        weight: `features x rank`.
        bias: of the units read, `features`.
        scale: of their rates, `features`.
        shift: `features`.
        precision: `features`.
        offset: `trials x time x features`.
    """

    weight: Tensor
    bias: Tensor
    scale: Tensor
    shift: Tensor
    precision: Tensor
    offset: Tensor
    link: tuple[int, ...]
    reads_rates: bool

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The differentiable tensors."""
        return self.weight, self.bias, self.scale, self.shift, self.precision, self.offset


def likelihood_of(emission: Any, y: Tensor, v: Tensor | None) -> EmissionTensors | None:
    """Return the likelihood of an emission for recordings `trials x time x features`, or None if it has none."""
    if isinstance(emission, GaussianEmission):
        link = emissions.GAUSSIAN
        precision = emission.scale.square().reciprocal()
    elif isinstance(emission, PoissonEmission):
        link = emissions.POISSON_SOFTPLUS if emission.link == "softplus" else emissions.POISSON_EXP
        precision = y.new_ones(())
    else:
        return None
    readout, features = emission.readout, y.shape[-1]
    one, zero = y.new_ones(()).expand(features), y.new_zeros(()).expand(features)
    precision = precision.expand(features)
    if isinstance(readout, AffineMap):
        offset = readout.offset(v).expand(y.shape)
        return EmissionTensors(readout.weight, zero, one, zero, precision, offset, link, reads_rates=False)
    if not isinstance(readout, RatesMap) or not isinstance(readout.units, Transition):
        return None
    network = readout.units
    weight = torch.eye(features, dtype=y.dtype) if network.left is None else network.left
    offset = y.new_zeros(())
    if v is not None and network.num_inputs:
        offset = v @ network.input_weights.mT
    return EmissionTensors(
        weight, network.bias, readout.scale, readout.bias, precision, offset.expand(y.shape), link, reads_rates=True
    )


def constant_of(emission: Any, y: Tensor, missing: Tensor) -> Tensor:
    """Return what the log likelihood adds that does not depend on the latents, `trials x time`."""
    if isinstance(emission, GaussianEmission):
        each = -emission.scale.log() - 0.5 * float(np.log(2 * np.pi))
    else:
        each = -torch.lgamma(y + 1)
    return torch.where(missing, 0.0, each.expand(y.shape)).sum(-1)


@dataclass(frozen=True)
class Plan:
    """One run of the filter: compile-time code, and tensors that gradients flow to.

    Attributes:
        code: what is fixed when the loops are compiled.
        network: (decay `rank`, left `units x (rank + inputs)`, right `rank x units`, bias `units`,
            first mean `trials x rank`, inputs `trials x time x inputs`).
        tables: of the proposal.
        likelihood: of the observations, or None where the tables hold all of it.
        y: the recording, zero where missing.
        present: 1 where it is there, `trials x time x features`.
    """

    code: Code
    network: tuple[Tensor, ...]
    tables: Tables
    likelihood: EmissionTensors | None
    y: Tensor
    present: Tensor

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The differentiable tensors: 6 of the network, 7 of the tables, 6 of the likelihood if there is one."""
        extra = () if self.likelihood is None else self.likelihood.tensors
        return (*self.network, *self.tables.tensors, *extra)


def network_of(transition: Transition, num_trials: int, num_steps: int, v: Tensor | None) -> tuple[Tensor, ...]:
    """Return the tensors of the network: its weights, first mean and inputs."""
    rank, inputs = transition.rank, transition.right.new_zeros(num_trials, num_steps, 0)
    if v is not None and transition.num_inputs:
        inputs = v
    first = transition.first_mean(None if v is None else v[:, 0]).expand(num_trials, rank)
    return *weights_of(transition, with_inputs=inputs.shape[-1] > 0), first, inputs


def make_plan(transition: Transition, emission: Any, proposal: Any, y: Tensor, v: Tensor | None) -> Plan | str:
    """Return the plan of a run over recordings `trials x time x features`, or why there is none."""
    kind = kind_of(transition.activation, transition.right.dtype)
    assert kind is not None
    tables = tables_of(proposal, transition, y, v)
    if tables is None:
        return f"{type(proposal).__name__} has no compiled form"
    likelihood, missing = None, y.isnan()
    filled = y.nan_to_num(nan=0.0)
    network = network_of(transition, y.shape[0], y.shape[1], v)
    number = number_of(transition.right.dtype)
    if tables.needs_likelihood:
        likelihood = likelihood_of(emission, filled, v)
        if likelihood is None:
            return f"{type(emission).__name__} has no compiled form"
        tables = tables.with_constant(constant_of(emission, filled, missing))
    code = Code(
        zero=(number(0),) * transition.rank,
        zero_in=(number(0),) * network[1].shape[1],
        square=(number(0),) * transition.rank**2,
        weighing=tables.weighing,
        kind=kind[0],
        hinges=kind[1],
        link=emissions.NO_LIKELIHOOD if likelihood is None else likelihood.link,
        readout=kind[0] if likelihood is not None and likelihood.reads_rates else (),
    )
    return Plan(code, network, tables, likelihood, filled, (~missing).to(y.dtype))
