"""The evidence lower bound of variational sequential Monte Carlo, as a Pyro ELBO."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pyro_lowrank.errors import CannotBeReplayed, check_choice, check_positive_int
from pyro_lowrank.handlers import Surroundings, check_one_draw
from pyro_lowrank.infer.programs import TensorLoss, check_data, entered, unwrap
from pyro_lowrank.modules import check_priors_are_handled, own_values, warn_of_shadowed
from pyro_lowrank.smc.gradients import FisherGradient, GradientEstimator, PathwiseGradient
from pyro_lowrank.smc.kernels import bind
from pyro_lowrank.smc.loop import FilterHistory, Scheme
from pyro_lowrank.smc.pair import Pair
from pyro_lowrank.smc.resampling import Resampler, SystematicResampling
from pyro_lowrank.smc.runs import BACKENDS, BuiltInRun, UsersRun, say_once


class SMC_ELBO(TensorLoss):
    r"""The filtering ELBO: minus the particle filter's estimate of the log evidence, summed over trials, in nats.

    .. math:: -E[\log \hat Z], \qquad \log \hat Z = \sum_t \log \sum_k W_{t-1}^k w_t^k \le \log p(y_{1:T})

    in expectation. Works wherever Pyro takes an ELBO: `SVI(model, guide, optim, loss=SMC_ELBO(...))`, or with a torch
    optimiser, `SMC_ELBO(...)(model, guide)(y, u).backward()`. Every tensor given is cut at its time dim, -2; the model
    and guide are built-in ones, or any pair with `init(state, ...)` and `step(state, ...)`, as for
    `pyro.infer.SMCFilter`; with None as guide, all latents are proposed from the model. `poutine.scale`, `poutine.mask`
    and subsampled plates scale and mask log Z, never the particle weights. Inside a Pyro program they are left to the
    site that takes log Z up, `pyro.factor("evidence", elbo.log_evidence(model, guide, y))`; of what the filter samples
    and observes the program sees nothing, but for parameters and those of them that have priors.

    Args:
        num_particles: number of particles, K.
        ess_threshold: trials resample when their effective sample size falls below this share of the particles; at 1,
            as in the paper, always.
        resampler: how ancestors are drawn; systematic if None.
        gradient: what is differentiated. If None, `FisherGradient`; with `cut_every`, and for models and guides that
            the user has written and that cannot be run along paths, `PathwiseGradient`.
        max_plate_nesting: number of nested plates, that over trials included, of a user-written model.
        cut_every: gradients do not pass from a time bin that is a multiple of this to the one before, which bounds
            how far back they reach in long recordings; None for never.
        backend: `"compiled"` loops, `"plain"` tensor operations, or `"auto"`: compiled where there is a compiled form
            (the reason is logged where there is none). Gradients along the particles run on plain operations.

    Raises:
        NoCompiledForm: if the backend is `"compiled"` and there is none; a ValueError.
        SMCFailed: if all particles of a trial are dead, naming trial and time.
        ValueError: if the data do not fit the model.

    Example::

        >>> import pyro_lowrank as plr
        >>> model = plr.StateSpaceModel(plr.LowRankRNN(rank=2, units=50), plr.GaussianObservation(rank=2, features=8))
        >>> loss = SMC_ELBO(num_particles=16)(model, plr.OptimalGuide(model))
        >>> loss(torch.randn(5, 20, 8)).backward()

    References:
        Maddison et al. (2017), "Filtering variational objectives"; Le et al. (2018); Naesseth et al. (2018);
        Pals et al. (2024), NeurIPS.
    """

    def __init__(
        self,
        num_particles: int = 64,
        *,
        ess_threshold: float = 1.0,
        resampler: Resampler | None = None,
        gradient: GradientEstimator | None = None,
        max_plate_nesting: int = 1,
        cut_every: int | None = None,
        backend: str = "auto",
    ) -> None:
        super().__init__(
            num_particles=check_positive_int("num_particles", num_particles),
            max_plate_nesting=check_positive_int("max_plate_nesting", max_plate_nesting, minimum=0),
        )
        if gradient is None:
            gradient = FisherGradient() if cut_every is None else PathwiseGradient()
            self._otherwise: GradientEstimator | None = PathwiseGradient()
        else:
            self._otherwise = None
        self._not_along_paths: set[tuple[type, type]] = set()
        self.scheme = Scheme(
            resampler=SystematicResampling() if resampler is None else resampler,
            ess_threshold=ess_threshold,
            gradient=gradient,
            cut_every=None if cut_every is None else check_positive_int("cut_every", cut_every),
        )
        self.backend = check_choice("backend", backend, BACKENDS)

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Return the loss as a tensor to differentiate.

        Raises:
            ValueError: if a plate is around it in a Pyro program, which would count the sum once per trial or draw.
        """
        check_one_draw(summed=True)
        return -self._checked_evidence(model, guide, args, kwargs, self.scheme)[0].sum()

    def log_evidence(self, model: Any, guide: Any, *args: Any, allow_dead: bool = False, **kwargs: Any) -> Tensor:
        r"""Return the estimates of the log evidence of each trial, in nats, to differentiate.

        .. math:: \log \hat Z^b, \qquad E[\hat Z^b] = p(y^b_{1:T})

        Shapes: `trials`; none for a user's model without a plate "trials".

        Args:
            model: the model.
            guide: its guide, or None.
            args: the data, as of the model: `y`, and `u` if there are inputs.
            allow_dead: whether trials whose particles all die have -inf, and no gradient; else they raise.
            kwargs: as `args`.

        Raises:
            SMCFailed: if all particles of a trial are dead, naming trial and time.
            ValueError: if the data do not fit the model, or several draws of a Pyro program are made at once.

        Example::

            >>> import pyro_lowrank as plr
            >>> observation = plr.GaussianObservation(rank=2, features=3)
            >>> model = plr.StateSpaceModel(plr.LowRankRNN(rank=2, units=9), observation)
            >>> plr.SMC_ELBO(16).log_evidence(model, plr.OptimalGuide(model), torch.randn(5, 20, 3)).shape
            torch.Size([5])
        """
        check_one_draw()
        scheme = replace(self.scheme, allow_dead=bool(allow_dead))
        return self._checked_evidence(model, guide, args, kwargs, scheme)[0]

    def _checked_evidence(
        self, model: Any, guide: Any, args: tuple[Any, ...], kwargs: dict[str, Any], scheme: Scheme
    ) -> tuple[Tensor, FilterHistory]:
        """Return log evidences of trials under the handlers around and those of the model, and the run behind them."""
        model, handlers = unwrap(model)
        guide, _ = unwrap(guide)
        with entered(handlers) as around:
            check_data(model, args, kwargs)
            warn_of_shadowed(model, guide)
            check_priors_are_handled(model, guide)
            return self._evidence(model, guide, args, kwargs, scheme, around)

    def loss_and_history(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> tuple[Tensor, FilterHistory]:
        """Return the loss as a tensor to differentiate and the run behind it, for data that were checked before."""
        with entered(()) as around:
            evidence, history = self._evidence(model, guide, args, kwargs, self.scheme, around)
            return -evidence.sum(), history

    def _evidence(
        self,
        model: Any,
        guide: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        scheme: Scheme,
        around: Surroundings,
    ) -> tuple[Tensor, FilterHistory]:
        """Return what is differentiated, per trial, and the run behind it."""
        with own_values(model, guide):
            log_evidence, history, scale = self._estimate(model, guide, args, kwargs, scheme)
        if scheme.allow_dead:
            log_evidence = torch.where(history.increments.isneginf().any(0), -torch.inf, log_evidence)
        return replace(around, scale=around.scale * scale).applied_to(log_evidence), history

    def _estimate(
        self, model: Any, guide: Any, args: tuple[Any, ...], kwargs: dict[str, Any], scheme: Scheme
    ) -> tuple[Tensor, FilterHistory, float | Tensor]:
        """Return what is differentiated, the run behind it, and the scale that the handlers inside it ask for."""
        through_proposal = scheme.gradient.along_particles
        bound = bind(model, guide, self.num_particles, self.max_plate_nesting, through_proposal=through_proposal)
        if isinstance(bound, Pair):
            run = BuiltInRun(bound, bound.read(*args, **kwargs), self.num_particles, scheme, self.backend)
            return *scheme.gradient.estimate(run), 1.0
        kind = type(model), type(guide)
        if self._otherwise is not None and kind in self._not_along_paths:
            scheme = replace(scheme, gradient=self._otherwise)
        try:
            found = scheme.gradient.estimate(UsersRun(bound, (args, kwargs), scheme, self.backend))
        except CannotBeReplayed as reason:
            if self._otherwise is None:
                raise
            say_once(f"Gradients are those along the particles (PathwiseGradient): {reason}")
            self._not_along_paths.add(kind)
            scheme = replace(scheme, gradient=self._otherwise)
            found = scheme.gradient.estimate(UsersRun(bound, (args, kwargs), scheme, self.backend))
        return *found, 1.0 if bound.scale is None else bound.scale

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Any:
        raise NotImplementedError("A particle filter has no single trace; run SMCFilter for its particles.")
