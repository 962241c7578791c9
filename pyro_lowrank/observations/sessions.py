"""Several sessions of one network, each with recorded units of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_lowrank.observations.base import Observation
from pyro_lowrank.observations.joint import JointObservation

Trials = Tensor | Sequence[Tensor]


class SessionTrials(NamedTuple):
    """The trials of several sessions, one after the other.

    Attributes:
        y: recording, `trials x time x features of all sessions`; NaN in features of other sessions and where padded.
        u: inputs, `trials x time x inputs`, or None.
        session: number of each trial's session, `trials`.
    """

    y: Tensor
    u: Tensor | None
    session: Tensor


class MultiSession(JointObservation):
    r"""Sessions that share their dynamics, and see them through observation models of their own.

    .. math:: p(y_t \mid z_t) = p_{s}(y_t \mid z_t) \quad \text{for a trial of session } s

    The features of all sessions stand side by side, and those of the other sessions are missing, so that trials of all
    sessions run in one loop, with evidence per trial, in whatever minibatches. Each session has its own number of
    features, readout, bias and noise, and kind of observation; the guides are those of `JointObservation`, with a
    `SessionEncoder` for `EncoderGuide`. A step costs as much as if all units had been recorded in all trials.

    Args:
        sessions: observation models by name of the session.

    Example::

        >>> import pyro_lowrank as plr
        >>> sessions = MultiSession({
        ...     "monday": plr.PoissonObservation(rank=2, features=40),
        ...     "tuesday": plr.PoissonObservation(rank=2, features=25),
        ... })
        >>> model = plr.StateSpaceModel(plr.LowRankRNN(rank=2, units=50), sessions)
        >>> trials = sessions.pool({"monday": torch.zeros(10, 30, 40), "tuesday": torch.zeros(8, 20, 25)})
        >>> trials.y.shape, trials.session.bincount()
        (torch.Size([18, 30, 65]), tensor([10,  8]))
        >>> loss = plr.SMC_ELBO(num_particles=8).loss(model, plr.BootstrapGuide(model), trials.y)
    """

    def __init__(self, sessions: Mapping[str, Observation]) -> None:
        super().__init__(sessions)

    def pool(self, recordings: Mapping[str, Trials], inputs: Mapping[str, Trials] | None = None) -> SessionTrials:
        """Return the trials of sessions as one recording, in the order of the sessions.

        Args:
            recordings: by session, `trials x time x features`, or a list of trials, `time x features` each.
            inputs: by session, likewise; padded with zeros.

        Raises:
            ValueError: if a session is unknown or without trials, or numbers of features, trials or bins do not fit.
        """
        trials = {name: _listed("recordings", name, recordings[name]) for name in recordings}
        self._check_names({name: listed[0] for name, listed in trials.items()})
        present = [name for name in self.parts if name in trials]
        num_steps = max(len(trial) for listed in trials.values() for trial in listed)
        blocks, numbers = [], []
        for number, name in enumerate(self.parts):
            if name not in trials:
                continue
            padded = torch.stack([_padded(trial, num_steps, torch.nan) for trial in trials[name]])
            blocks.append(self.join({name: padded}))
            numbers.append(torch.full((len(padded),), number))
        y = torch.cat(blocks)
        if inputs is None:
            return SessionTrials(y, None, torch.cat(numbers))
        if set(inputs) != set(trials):
            raise ValueError(f"Inputs must come for the same sessions as recordings, {present}, got {sorted(inputs)}.")
        padded_inputs = []
        for name in present:
            listed = _listed("inputs", name, inputs[name])
            lengths = [len(trial) for trial in trials[name]]
            if [len(trial) for trial in listed] != lengths:
                raise ValueError(f"Inputs of session {name!r} must have the trials and time bins of its recording.")
            padded_inputs += [_padded(trial, num_steps, 0.0) for trial in listed]
        return SessionTrials(y, torch.stack(padded_inputs), torch.cat(numbers))

    def check_data(self, y: Tensor) -> None:
        """Raise unless `y` is a recording of which each trial holds features of one session."""
        super().check_data(y)
        recorded = torch.stack([(~piece.isnan()).any(-1).any(-1) for piece in y.split(self.sizes, -1)], -1)
        mixed = (recorded.sum(-1) > 1).nonzero().flatten().tolist()
        if mixed:
            names = [name for name, there in zip(self.parts, recorded[mixed[0]].tolist(), strict=True) if there]
            raise ValueError(
                f"Each trial must hold features of one session, but trial {mixed[0]} holds some of {', '.join(names)}; "
                "join recordings by `MultiSession.pool`, or use JointObservation for parts recorded at once."
            )

    def settings(self) -> dict[str, Any]:
        """Return the arguments that build an observation model of the same form."""
        return {"sessions": dict(self._named_parts())}


def _listed(what: str, name: str, trials: Trials) -> list[Tensor]:
    listed = list(trials)
    if not listed:
        raise ValueError(f"Session {name!r} has no trials in `{what}`; leave it out.")
    for trial in listed:
        if not isinstance(trial, Tensor) or trial.dim() != 2 or not len(trial):
            shape = tuple(trial.shape) if isinstance(trial, Tensor) else type(trial).__name__
            raise ValueError(
                f"Session {name!r} in `{what}` must be trials x time x features, or a list of trials, time x features, "
                f"with at least one time bin, got a trial of {shape}."
            )
    return listed


def _padded(trial: Tensor, num_steps: int, value: float) -> Tensor:
    return torch.nn.functional.pad(trial, (0, 0, 0, num_steps - len(trial)), value=value)
