"""What a guide is: a proposal for each step, as Pyro sites and as plain tensor functions."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol, runtime_checkable

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_lowrank.dynamics.noise import GaussianNoise
from pyro_lowrank.handlers import leave_out, trials_plate
from pyro_lowrank.models.state_space import BoundModel, ProgramState, StateSpaceModel, mean_of_next, recalled
from pyro_lowrank.modules import Module, effectful
from pyro_lowrank.observations.base import Emission
from pyro_lowrank.observations.driven import DrivenEmission
from pyro_lowrank.observations.gaps import filled_in
from pyro_lowrank.observations.memory import Lags, innovations, read
from pyro_lowrank.observations.observed import Observed

Encoding = dict[str, Tensor]


@dataclass(frozen=True)
class Bin:
    """One time bin, as a proposal sees it.

    Attributes:
        seen: the recording, `trials x features`.
        v: effective inputs, `trials x inputs`, or None.
        encoding: the bin's slice of the proposal's `encode`, each tensor `trials x ...`.
    """

    seen: Observed
    v: Tensor | None
    encoding: Encoding

    def log_likelihood(self, emission: Emission, z: Tensor) -> Tensor:
        """Return the log likelihood of the entries that are there, `particles x trials`, at latents `... x rank`."""
        found = self._log_prob(emission, z)
        return found if self.seen.log_volume is None else found + self.seen.log_volume

    def _log_prob(self, emission: Emission, z: Tensor) -> Tensor:
        if self.seen.missing is None:
            return emission.distribution(z, self.v).log_prob(self.seen.y)
        # A density that overflows where nothing was recorded is left out, but not its gradient, infinity times zero.
        z = torch.where(self.seen.recorded.unsqueeze(-1), z, 0.0)
        density = emission.distribution(z, self.v)
        return leave_out(density, self.seen.missing).log_prob(filled_in(density, self.seen.y, self.seen.missing))


class Proposal(Protocol):
    """A guide at fixed parameter values: pure tensor functions, no Pyro effects."""

    def encode(self, seen: Observed, v: Tensor | None, *, first: bool) -> Encoding:
        """Look at whole sequences `trials x time x ...` once; return tensors `trials x time x ...`.

        `first` tells whether the sequences start at the first time bin of a trial.
        """

    def distribution(self, noise: GaussianNoise, mean: Tensor, encoding: Encoding) -> dist.TorchDistribution:
        """Return the distribution that latents `particles x trials x rank` are proposed from."""

    def propose(self, noise: GaussianNoise, mean: Tensor, white: Tensor, bin_t: Bin) -> tuple[Tensor, Tensor]:
        """Return proposed latents and the log of their incremental weights.

        Args:
            noise: of the transition, or of the first latent.
            mean: of the transition, `particles x trials x rank`.
            white: standard normal numbers, `particles x trials x rank`.
            bin_t: the time bin.

        Returns:
            Latents `particles x trials x rank`; log p(y_t | z_t) p(z_t | z_{t-1}) / q(z_t), `particles x trials`.
        """


def through(proposal: Any, emission: Emission) -> Any:
    """Return a proposal that sees the latents of a bin through another emission, as particles do that remember.

    Raises:
        ValueError: if it sees them through none.
    """
    if isinstance(proposal, WrapsProposals):
        return proposal.through(emission)
    if "emission" not in {each.name for each in fields(proposal)}:
        raise ValueError(
            f"{type(proposal).__name__} cannot propose latents that observations remember: use BootstrapGuide, "
            "LaplaceGuide or EncoderGuide."
        )
    return replace(proposal, emission=emission)


@runtime_checkable
class WrapsProposals(Protocol):
    """A proposal that is made of others."""

    def through(self, emission: Emission) -> Proposal:
        """Return the same of proposals that see latents through another emission."""


@runtime_checkable
class LooksBack(Protocol):
    """What a proposal whose `encode` reads more than one time bin at a time has to be used online."""

    def online_lookback(self) -> int:
        """Return how many time bins before a bin are read.

        Raises:
            ValueError: if bins after it are read too, or it is not known.
        """

    def encode_last(self, seen: Observed, *, first: bool) -> Encoding:
        """Return what `encode` would for the last bin of a recording, given the bins that it reads before, or all.

        `first` tells whether that bin is the first of a trial.
        """


class Guide(Module):
    """Base of the built-in guides: a subclass says, in `bind`, how particles are proposed.

    Args:
        model: the model that the guide is for.
    """

    particles_to_train = 64
    """How many particles a fit takes if it is not told: the better a guide aims, the fewer do."""

    bins_to_train = 1000
    """How many time bins, of all trials together, a step of a fit sees if it is not told."""

    serves_heavy_tails = False
    """Whether particles are weighed rightly where the transition noise is not Gaussian."""

    def __init__(self, model: StateSpaceModel) -> None:
        super().__init__()
        if not isinstance(model, StateSpaceModel):
            raise TypeError(f"`model` must be a StateSpaceModel, got {type(model).__name__}.")
        if model.dynamics.heavy_tailed and not self.serves_heavy_tails:
            raise ValueError(
                f"{type(self).__name__} proposes for Gaussian transition noise, and the dynamics were built with "
                "Student-t noise (`noise_freedom`); use BootstrapGuide, LaplaceGuide or EncoderGuide."
            )
        # As in Pyro's autoguides: not a submodule, or its parameters would be owned (and named) twice.
        self._model = (model,)

    @property
    def model(self) -> StateSpaceModel:
        """The model that the guide is for."""
        return self._model[0]

    @abstractmethod
    def bind(self, bound: BoundModel) -> Proposal:
        """Return the proposal at the present parameter values."""

    @effectful
    def encode(self, y: Tensor, u: Tensor | None = None) -> Encoding:
        """Look at whole sequences, once; the slices reach `init` and `step` as `encoding`."""
        bound = self.model.bind()
        v = None if u is None else bound.transition.drift.effective_inputs(u)
        return self.bind(bound).encode(read(bound.memory, y)[0], v, first=True)

    @effectful
    def init(
        self,
        state: ProgramState,
        y_t: Tensor | None = None,
        u_t: Tensor | None = None,
        *,
        encoding: Encoding | None = None,
    ) -> None:
        """Propose the first latents; the protocol of `pyro.infer.SMCFilter`."""
        bound = self.model.bind()
        v = None if u_t is None else bound.transition.drift.first_input(u_t)
        mean = bound.transition.first_mean(v)
        self._sample(bound, state, bound.transition.initial_noise, mean, y_t, v, encoding, first=True)

    @effectful
    def step(
        self,
        state: ProgramState,
        y_t: Tensor | None = None,
        u_t: Tensor | None = None,
        *,
        encoding: Encoding | None = None,
    ) -> None:
        """Propose the next latents; the protocol of `pyro.infer.SMCFilter`."""
        bound = self.model.bind()
        mean, v = mean_of_next(bound.transition, state, u_t)
        self._sample(bound, state, bound.transition.noise, mean, y_t, v, encoding, first=False)

    def _sample(
        self,
        bound: BoundModel,
        state: ProgramState,
        noise: GaussianNoise,
        mean: Tensor,
        y_t: Tensor | None,
        v: Tensor | None,
        encoding: Encoding | None,
        *,
        first: bool,
    ) -> None:
        if y_t is None:
            raise ValueError(
                f"{type(self).__name__} proposes from the data: pass the time bin `y_t`, trials x features."
            )
        proposal = self.bind(bound)
        if isinstance(bound.emission, DrivenEmission):
            proposal = through(proposal, bound.emission.recalled(state, mean.shape[:-1]))
        if encoding is None:
            one_bin = proposal.encode(
                _now(bound, state, y_t).as_sequence(), None if v is None else v.unsqueeze(-2), first=first
            )
            encoding = {name: value.squeeze(-2) for name, value in one_bin.items()}
        with trials_plate(y_t.shape[-2]):
            pyro.sample("z", proposal.distribution(noise, mean, encoding))

    @classmethod
    def of_settings(cls, model: StateSpaceModel, settings: dict[str, Any]) -> Guide:
        """Return a guide of the form that `settings` tells, for a model."""
        return cls(model, **settings)

    def settings(self) -> dict[str, Any]:
        """Return the arguments, beside the model, that build a guide of the same form."""
        return {}


def _now(bound: BoundModel, state: ProgramState, y_t: Tensor) -> Observed:
    """Return a time bin as the proposal sees it, `trials x features`."""
    seen, memory = Observed.of(y_t), bound.memory
    if memory is None:
        return seen
    # What was observed is the same for all particles.
    mean, covariance = recalled(memory, state)
    lags = Lags(mean[(0,) * max(0, mean.dim() - 3)], covariance[(0,) * max(0, covariance.dim() - 4)])
    return innovations(memory, memory.outlook(lags), seen)
