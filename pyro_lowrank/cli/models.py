"""The models that the command line builds, by the names of its options."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

from pyro_lowrank.cli.recordings import IN_SECONDS
from pyro_lowrank.dynamics.low_rank import LowRankRNN
from pyro_lowrank.guides.base import Guide
from pyro_lowrank.guides.bootstrap import BootstrapGuide
from pyro_lowrank.guides.laplace import LaplaceGuide
from pyro_lowrank.guides.optimal import OptimalGuide
from pyro_lowrank.models.state_space import StateSpaceModel
from pyro_lowrank.observations.base import Observation
from pyro_lowrank.observations.bernoulli import BernoulliObservation
from pyro_lowrank.observations.calcium import CalciumObservation
from pyro_lowrank.observations.gaussian import GaussianObservation
from pyro_lowrank.observations.haemodynamic import HaemodynamicObservation
from pyro_lowrank.observations.negative_binomial import NegativeBinomialObservation
from pyro_lowrank.observations.poisson import PoissonObservation
from pyro_lowrank.observations.student_t import StudentTObservation

OBSERVATIONS: dict[str, Callable[..., Observation]] = {
    "gaussian": GaussianObservation,
    "autoregressive": partial(GaussianObservation, noise="autoregressive"),
    "student-t": StudentTObservation,
    "poisson": PoissonObservation,
    "negative-binomial": NegativeBinomialObservation,
    "bernoulli": BernoulliObservation,
    "calcium": CalciumObservation,
    "bold": HaemodynamicObservation,
}
GUIDES: dict[str, Callable[[StateSpaceModel], Guide]] = {
    "optimal": OptimalGuide,
    "laplace": LaplaceGuide,
    "bootstrap": BootstrapGuide,
}
# Real-valued recordings, whose units do not matter.
GAUSSIAN = ("gaussian", "autoregressive")
SCALED = (*GAUSSIAN, "student-t")


def guide_name(options: argparse.Namespace) -> str:
    """Return the guide asked for, or the one that suits the likelihood."""
    if options.guide is not None:
        return str(options.guide)
    return "optimal" if options.likelihood in (*GAUSSIAN, "bold") else "laplace"


def build(
    options: argparse.Namespace, features: int, inputs: int, bin_size: float | None = None
) -> tuple[StateSpaceModel, Guide]:
    """Return the model and the guide that the options ask for, of a recording with so many seconds per bin."""
    dynamics = LowRankRNN(rank=options.rank, units=options.units, activation=options.activation, inputs=inputs)
    observation = OBSERVATIONS[options.likelihood](rank=options.rank, features=features, **_noise(options, bin_size))
    model = StateSpaceModel(dynamics, observation)
    return model, GUIDES[guide_name(options)](model)


def _noise(options: argparse.Namespace, bin_size: float | None) -> dict[str, Any]:
    """Return what the options say of the observation, beside its kind."""
    found: dict[str, Any] = {}
    if options.likelihood in IN_SECONDS:
        if bin_size is None:
            raise ValueError(
                f"--likelihood {options.likelihood} needs the time from frame to frame, which the file does not tell: "
                "pass `--bin SECONDS`, such as --bin 0.033 at 30 frames per second."
            )
        found["bin_size"] = bin_size
    of_options = (("noise_factors", GAUSSIAN), ("order", ("autoregressive",)), ("indicator", ("calcium",)))
    for name, likelihoods in of_options:
        value = getattr(options, name)
        if value is None:
            continue
        if options.likelihood not in likelihoods:
            raise ValueError(
                f"`--{name.replace('_', '-')}` is of --likelihood {' or '.join(likelihoods)}, got --likelihood "
                f"{options.likelihood}: leave it out, or pass one of these."
            )
        found[name] = value
    return found
