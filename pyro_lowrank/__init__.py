"""Stochastic low-rank recurrent networks as a Pyro prior, fitted by variational sequential Monte Carlo."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyro_lowrank import data as data
    from pyro_lowrank import metrics as metrics
    from pyro_lowrank import plots as plots
    from pyro_lowrank.dynamics.activations import Activation as Activation
    from pyro_lowrank.dynamics.base import Dynamics as Dynamics
    from pyro_lowrank.dynamics.full_rank import FullRankRNN as FullRankRNN
    from pyro_lowrank.dynamics.low_rank import LowRankRNN as LowRankRNN
    from pyro_lowrank.dynamics.trajectory import Trajectory as Trajectory
    from pyro_lowrank.encoders.convolutional import ConvEncoder as ConvEncoder
    from pyro_lowrank.encoders.held_in import HeldIn as HeldIn
    from pyro_lowrank.encoders.recurrent import GRUEncoder as GRUEncoder
    from pyro_lowrank.encoders.sessions import SessionEncoder as SessionEncoder
    from pyro_lowrank.errors import NoCompiledForm as NoCompiledForm
    from pyro_lowrank.export.from_pyro import from_pyro as from_pyro
    from pyro_lowrank.export.posterior import to_arviz as to_arviz
    from pyro_lowrank.generators import drawn_from as drawn_from
    from pyro_lowrank.guides.bootstrap import BootstrapGuide as BootstrapGuide
    from pyro_lowrank.guides.encoder import EncoderGuide as EncoderGuide
    from pyro_lowrank.guides.forward import ForwardPrediction as ForwardPrediction
    from pyro_lowrank.guides.laplace import LaplaceGuide as LaplaceGuide
    from pyro_lowrank.guides.optimal import OptimalGuide as OptimalGuide
    from pyro_lowrank.infer.diagnose import diagnose as diagnose
    from pyro_lowrank.infer.elbo import SMC_ELBO as SMC_ELBO
    from pyro_lowrank.infer.filter import SMCFilter as SMCFilter
    from pyro_lowrank.infer.gaussian import EKFEvidence as EKFEvidence
    from pyro_lowrank.infer.gaussian import ExtendedKalmanFilter as ExtendedKalmanFilter
    from pyro_lowrank.infer.gaussian_posterior import GaussianPosterior as GaussianPosterior
    from pyro_lowrank.infer.mcmc.convergence import Convergence as Convergence
    from pyro_lowrank.infer.mcmc.convergence import convergence as convergence
    from pyro_lowrank.infer.mcmc.determined import Determined as Determined
    from pyro_lowrank.infer.mcmc.determined import determined as determined
    from pyro_lowrank.infer.mcmc.fixed_points import fixed_points_along_input as fixed_points_along_input
    from pyro_lowrank.infer.mcmc.fixed_points import posterior_fixed_points as posterior_fixed_points
    from pyro_lowrank.infer.mcmc.particle_gibbs import ParticleGibbs as ParticleGibbs
    from pyro_lowrank.infer.mcmc.pmmh import PMMH as PMMH
    from pyro_lowrank.infer.mcmc.pmmh import LangevinSteps as LangevinSteps
    from pyro_lowrank.infer.posterior import SMCPosterior as SMCPosterior
    from pyro_lowrank.infer.reparam import TrajectoryReparam as TrajectoryReparam
    from pyro_lowrank.interop.smc_rnns import load_smc_rnns as load_smc_rnns
    from pyro_lowrank.models.priors import ColumnShrinkage as ColumnShrinkage
    from pyro_lowrank.models.priors import prior_table as prior_table
    from pyro_lowrank.models.priors import with_priors as with_priors
    from pyro_lowrank.models.state_space import StateSpaceModel as StateSpaceModel
    from pyro_lowrank.observations.base import Observation as Observation
    from pyro_lowrank.observations.bernoulli import BernoulliObservation as BernoulliObservation
    from pyro_lowrank.observations.calcium import CalciumObservation as CalciumObservation
    from pyro_lowrank.observations.coloured import ColouredNoiseObservation as ColouredNoiseObservation
    from pyro_lowrank.observations.gaussian import GaussianObservation as GaussianObservation
    from pyro_lowrank.observations.haemodynamic import HaemodynamicObservation as HaemodynamicObservation
    from pyro_lowrank.observations.joint import JointObservation as JointObservation
    from pyro_lowrank.observations.negative_binomial import NegativeBinomialObservation as NegativeBinomialObservation
    from pyro_lowrank.observations.poisson import PoissonObservation as PoissonObservation
    from pyro_lowrank.observations.readout import AffineReadout as AffineReadout
    from pyro_lowrank.observations.readout import UnitReadout as UnitReadout
    from pyro_lowrank.observations.scalar import FeatureParameter as FeatureParameter
    from pyro_lowrank.observations.scalar import ScalarObservation as ScalarObservation
    from pyro_lowrank.observations.sessions import MultiSession as MultiSession
    from pyro_lowrank.observations.student_t import StudentTObservation as StudentTObservation
    from pyro_lowrank.piecewise import PiecewiseLinear as PiecewiseLinear
    from pyro_lowrank.reports.report import report as report
    from pyro_lowrank.serialization import load as load
    from pyro_lowrank.serialization import save as save
    from pyro_lowrank.smc.draws import rows_of as rows_of
    from pyro_lowrank.smc.gradients import FisherGradient as FisherGradient
    from pyro_lowrank.smc.gradients import PathwiseGradient as PathwiseGradient
    from pyro_lowrank.smc.gradients import ScoreFunctionGradient as ScoreFunctionGradient
    from pyro_lowrank.smc.gradients import StopGradient as StopGradient
    from pyro_lowrank.smc.resampling import MultinomialResampling as MultinomialResampling
    from pyro_lowrank.smc.resampling import NoConditionalForm as NoConditionalForm
    from pyro_lowrank.smc.resampling import NoResampling as NoResampling
    from pyro_lowrank.smc.resampling import Resampled as Resampled
    from pyro_lowrank.smc.resampling import Resampler as Resampler
    from pyro_lowrank.smc.resampling import StratifiedResampling as StratifiedResampling
    from pyro_lowrank.smc.resampling import SystematicResampling as SystematicResampling
    from pyro_lowrank.training.align import AlignedSession as AlignedSession
    from pyro_lowrank.training.align import align_session as align_session
    from pyro_lowrank.training.baselines import Baselines as Baselines
    from pyro_lowrank.training.baselines import baselines as baselines
    from pyro_lowrank.training.fit import fit as fit
    from pyro_lowrank.training.initialise import initialise_from_data as initialise_from_data
    from pyro_lowrank.training.memory import memory_of as memory_of
    from pyro_lowrank.training.result import FitResult as FitResult
    from pyro_lowrank.training.tensors import as_tensors as as_tensors
    from pyro_lowrank.validation.cross_validate import cross_validate as cross_validate
    from pyro_lowrank.validation.halving import Halving as Halving
    from pyro_lowrank.validation.result import CrossValidation as CrossValidation
    from pyro_lowrank.validation.sweep import Sweep as Sweep
    from pyro_lowrank.validation.sweep import sweep as sweep

__version__ = "0.1.0"

# Where each public name lives; a name is imported when it is first used (PEP 562).
_HOMES = {
    "Activation": "dynamics.activations",
    "AffineReadout": "observations.readout",
    "AlignedSession": "training.align",
    "Baselines": "training.baselines",
    "BernoulliObservation": "observations.bernoulli",
    "BootstrapGuide": "guides.bootstrap",
    "CalciumObservation": "observations.calcium",
    "ColouredNoiseObservation": "observations.coloured",
    "ColumnShrinkage": "models.priors",
    "Convergence": "infer.mcmc.convergence",
    "ConvEncoder": "encoders.convolutional",
    "CrossValidation": "validation.result",
    "Determined": "infer.mcmc.determined",
    "Dynamics": "dynamics.base",
    "EKFEvidence": "infer.gaussian",
    "EncoderGuide": "guides.encoder",
    "ExtendedKalmanFilter": "infer.gaussian",
    "FeatureParameter": "observations.scalar",
    "FisherGradient": "smc.gradients",
    "FitResult": "training.result",
    "ForwardPrediction": "guides.forward",
    "FullRankRNN": "dynamics.full_rank",
    "GRUEncoder": "encoders.recurrent",
    "GaussianObservation": "observations.gaussian",
    "GaussianPosterior": "infer.gaussian_posterior",
    "HaemodynamicObservation": "observations.haemodynamic",
    "Halving": "validation.halving",
    "HeldIn": "encoders.held_in",
    "JointObservation": "observations.joint",
    "LangevinSteps": "infer.mcmc.pmmh",
    "LaplaceGuide": "guides.laplace",
    "LowRankRNN": "dynamics.low_rank",
    "MultiSession": "observations.sessions",
    "MultinomialResampling": "smc.resampling",
    "NegativeBinomialObservation": "observations.negative_binomial",
    "NoCompiledForm": "errors",
    "NoConditionalForm": "smc.resampling",
    "NoResampling": "smc.resampling",
    "Observation": "observations.base",
    "OptimalGuide": "guides.optimal",
    "PMMH": "infer.mcmc.pmmh",
    "ParticleGibbs": "infer.mcmc.particle_gibbs",
    "PathwiseGradient": "smc.gradients",
    "PiecewiseLinear": "piecewise",
    "PoissonObservation": "observations.poisson",
    "Resampled": "smc.resampling",
    "Resampler": "smc.resampling",
    "SMCFilter": "infer.filter",
    "SMCPosterior": "infer.posterior",
    "SMC_ELBO": "infer.elbo",
    "ScalarObservation": "observations.scalar",
    "ScoreFunctionGradient": "smc.gradients",
    "SessionEncoder": "encoders.sessions",
    "StateSpaceModel": "models.state_space",
    "StopGradient": "smc.gradients",
    "StratifiedResampling": "smc.resampling",
    "StudentTObservation": "observations.student_t",
    "Sweep": "validation.sweep",
    "SystematicResampling": "smc.resampling",
    "Trajectory": "dynamics.trajectory",
    "TrajectoryReparam": "infer.reparam",
    "UnitReadout": "observations.readout",
    "align_session": "training.align",
    "as_tensors": "training.tensors",
    "baselines": "training.baselines",
    "convergence": "infer.mcmc.convergence",
    "cross_validate": "validation.cross_validate",
    "determined": "infer.mcmc.determined",
    "diagnose": "infer.diagnose",
    "drawn_from": "generators",
    "fit": "training.fit",
    "fixed_points_along_input": "infer.mcmc.fixed_points",
    "from_pyro": "export.from_pyro",
    "initialise_from_data": "training.initialise",
    "load": "serialization",
    "load_smc_rnns": "interop.smc_rnns",
    "memory_of": "training.memory",
    "posterior_fixed_points": "infer.mcmc.fixed_points",
    "prior_table": "models.priors",
    "report": "reports.report",
    "rows_of": "smc.draws",
    "save": "serialization",
    "sweep": "validation.sweep",
    "to_arviz": "export.posterior",
    "with_priors": "models.priors",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name in ("data", "metrics", "plots"):
        return importlib.import_module(f"{__name__}.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
