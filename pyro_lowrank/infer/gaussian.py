"""The extended Kalman filter: over whole sequences, and its evidence as an objective."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_lowrank.errors import check_choice, check_positive_int
from pyro_lowrank.handlers import Surroundings, check_one_draw
from pyro_lowrank.infer.gaussian_posterior import GaussianPosterior
from pyro_lowrank.infer.programs import TensorLoss, check_data, entered, unwrap
from pyro_lowrank.kalman.evidence import differentiable_evidence, log_evidence_increments
from pyro_lowrank.kalman.filter import Problem, check_observations, run_filter
from pyro_lowrank.models.state_space import StateSpaceModel
from pyro_lowrank.modules import check_priors_are_handled, own_values, warn_of_shadowed
from pyro_lowrank.smc.kernels import is_built_in_model
from pyro_lowrank.smc.runs import BACKENDS
from pyro_lowrank.smc.transitions import BuiltInTransitions


class ExtendedKalmanFilter:
    r"""The Gaussian filter and smoother: one mean and one covariance per trial in place of particles.

    .. math::

        m_t = f(\mu_{t-1}), \quad P_t = F_t \Sigma_{t-1} F_t^T + Q, \quad
        (\mu_t, \Sigma_t) = \text{mode and curvature of } p(y_t \mid z)\, N(z; m_t, P_t)

    with F the Jacobian of the dynamics f at :math:`\mu_{t-1}`. It is exact for linear dynamics and affine-Gaussian
    observations. Else it is an approximation, good where the dynamics are nearly linear over the width of the Gaussians
    (small noise, informative data), and blind to posteriors with several peaks: `SMCFilter` tells how good. Missing
    entries are left out. Heavy-tailed transition noise counts by its covariance, which must exist.

    Args:
        model: a `StateSpaceModel` with affine-Gaussian observations, or with any that have a `curvature`: counts,
            Bernoulli, Student-t, several kinds side by side.
        backend: as of `SMCFilter`: what runs the loops over time.

    Raises:
        NoCompiledForm: by `run`, if the backend is `"compiled"` and there is none.
        TypeError: if the model is written by the user.
        ValueError: if its observations have no curvature.

    Example::

        >>> import pyro_lowrank as plr
        >>> model = plr.StateSpaceModel(plr.LowRankRNN(rank=2, units=50), plr.PoissonObservation(rank=2, features=8))
        >>> posterior = ExtendedKalmanFilter(model).run(model.simulate(5, 20).y)
        >>> posterior.log_evidence.shape, posterior.filtered_mean.shape, posterior.smoothed_covariance.shape
        (torch.Size([5]), torch.Size([5, 20, 2]), torch.Size([5, 20, 2, 2]))

    References:
        Anderson and Moore (1979), "Optimal Filtering", ch. 8; Fahrmeir (1992), J. Am. Stat. Assoc. 87:501.
    """

    def __init__(self, model: StateSpaceModel, *, backend: str = "auto") -> None:
        _check_model(model)
        self.backend = check_choice("backend", backend, BACKENDS)
        with torch.no_grad():
            check_observations(model.bind())
        self.model = model

    @torch.no_grad()
    def run(self, y: Tensor, u: Tensor | None = None) -> GaussianPosterior:
        """Filter whole sequences; the smoother runs when its results are first asked for.

        Args:
            y: recording, `trials x time x features`, NaN where missing.
            u: inputs, `trials x time x inputs`.

        Raises:
            SMCFailed: if the evidence is not finite, naming trial and time.
            ValueError: if the data do not fit the model.
        """
        self.model.check_data(y, u)
        with own_values(self.model):
            check_priors_are_handled(self.model)
            bound = self.model.bind()
            problem = Problem.of(bound, y, u, beyond=True, backend=self.backend)
            found = run_filter(problem)
            transitions = BuiltInTransitions(bound.transition, bound.emission, problem.data, "auto").kept()
            return GaussianPosterior(log_evidence_increments(problem, found), found, transitions)


@dataclass(frozen=True)
class EvidenceRecord:
    """What `EKFEvidence` leaves of a run.

    Attributes:
        increments: of the log evidence, `time x trials`.
        ess: NaN, `time x trials`: there are no particles.
    """

    increments: Tensor
    ess: Tensor


class EKFEvidence(TensorLoss):
    r"""The log evidence of `ExtendedKalmanFilter` as an objective: minus its sum over trials, in nats.

    .. math:: -\log \hat p(y) = -\sum_t \log \hat p(y_t \mid y_{<t}), \qquad \hat p(y) \approx p(y)

    An approximation of the evidence, NOT a bound, despite Pyro's name for what an `SVI` takes: where the linearisation
    or Laplace's approximation is poor it may lie on either side, and parameters that make it err upwards look good to
    it. It has no noise, and its gradient passes through gain and covariance, so it serves as the first stage of a fit:
    go on with `SMC_ELBO`, and compare models by `SMCFilter`. It can be differentiated once. Where units have kinks
    (`relu`, `clipped_relu`), the Jacobian's jumps as a unit crosses one are not seen by the gradient.

    `SVI(model, None, optim, loss=EKFEvidence())`, or with a torch optimiser, `EKFEvidence()(model, None)(y, u)`, or
    `fit(model, None, y, elbo=EKFEvidence())`. `poutine.scale` and subsampled plates scale it.

    Args:
        max_plate_nesting: as of Pyro's ELBOs.
        backend: as of `SMCFilter`: what runs the loops over time.

    Raises:
        NoCompiledForm: if the backend is `"compiled"` and there is none.
        SMCFailed: if the evidence is not finite, naming trial and time.
        TypeError: if the model is written by the user, or a guide comes.
        ValueError: if the data do not fit the model, or its observations have no curvature.

    Example::

        >>> import pyro_lowrank as plr
        >>> model = plr.StateSpaceModel(plr.LowRankRNN(rank=2, units=50), plr.GaussianObservation(rank=2, features=8))
        >>> loss = EKFEvidence()(model, None)
        >>> loss(torch.randn(5, 20, 8)).backward()

    References:
        Anderson and Moore (1979), "Optimal Filtering", ch. 8; Sarkka (2013), "Bayesian Filtering and Smoothing", ch.
        12.
    """

    def __init__(self, *, max_plate_nesting: int = 1, backend: str = "auto") -> None:
        super().__init__(max_plate_nesting=check_positive_int("max_plate_nesting", max_plate_nesting, minimum=0))
        self.backend = check_choice("backend", backend, BACKENDS)

    def log_evidence(self, model: Any, guide: None, y: Tensor, u: Tensor | None = None) -> Tensor:
        """Return the log evidence of each trial, `trials`, differentiably (once).

        Args:
            model: the model.
            guide: None.
            y: recording, `trials x time x features`.
            u: inputs, `trials x time x inputs`.
        """
        check_one_draw()
        return self._checked_evidence(model, guide, (y, u), {})[0]

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Return the loss as a tensor to differentiate.

        Raises:
            ValueError: if a plate is around it in a Pyro program, which would count the sum once per trial or draw.
        """
        check_one_draw(summed=True)
        return -self._checked_evidence(model, guide, args, kwargs)[0].sum()

    def _checked_evidence(
        self, model: Any, guide: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Tensor, EvidenceRecord]:
        model, handlers = unwrap(model)
        with entered(handlers) as around:
            self.check(model, guide)
            check_data(model, args, kwargs)
            warn_of_shadowed(model)
            check_priors_are_handled(model)
            return _evidence(model, args, kwargs, around, self.backend)

    def loss_and_history(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> tuple[Tensor, EvidenceRecord]:
        """Return the loss as a tensor to differentiate and the increments behind it, for data checked before."""
        with entered(()) as around:
            evidence, record = _evidence(model, args, kwargs, around, self.backend)
            return -evidence.sum(), record

    def check(self, model: Any, guide: Any) -> None:
        """Raise unless the objective can be had of the model; a guide has no part in it."""
        if guide is not None:
            raise TypeError(
                f"EKFEvidence proposes nothing: pass None as the guide, got {type(guide).__name__}, none of whose "
                "parameters would be trained."
            )
        _check_model(model)

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Any:
        raise NotImplementedError("A Gaussian filter has no trace; run ExtendedKalmanFilter for its moments.")


def _evidence(
    model: StateSpaceModel, args: tuple[Any, ...], kwargs: dict[str, Any], around: Surroundings, backend: str
) -> tuple[Tensor, EvidenceRecord]:
    """Return the log evidence, `trials`, to differentiate once, and its increments."""
    with own_values(model):
        problem = Problem.of(model.bind(), *args, **kwargs, beyond=False, backend=backend)
        with torch.no_grad():
            found = run_filter(problem)
            increments = log_evidence_increments(problem, found)
        record = EvidenceRecord(increments, torch.full_like(increments, torch.nan))
        wanted = torch.is_grad_enabled() and any(parameter.requires_grad for parameter in model.parameters())
        evidence = differentiable_evidence(problem, found, increments) if wanted else increments.sum(0)
    return around.applied_to(evidence), record


def _check_model(model: Any) -> None:
    if not is_built_in_model(model):
        raise TypeError(
            "A Gaussian filter needs a StateSpaceModel whose `init`, `step` and `bind` are its own: it reads the mean "
            f"and noise of the latents, not draws. Got {type(model).__name__}; use SMCFilter and SMC_ELBO."
        )
