"""Gradient estimators: along the particles, with or without a share of resampling, or along smoothed paths."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, Protocol

import torch
from torch import Tensor

from pyro_lowrank.errors import check_positive_int


class Run(Protocol):
    """A particle filter about to be run, as gradient estimators see it."""

    def filter(self, *, with_paths: bool = False) -> Any:
        """Run it; return the history, with what `paths` needs if asked for."""

    def paths(self, history: Any, num_paths: int) -> Any:
        """Draw paths given the whole recording."""

    def log_density(self, paths: Any) -> Tensor:
        """Return what is differentiated along paths, averaged over these, `(trials)`."""


class GradientEstimator(ABC):
    """Says what is differentiated. All estimators share the value of the log evidence; only gradients differ."""

    needs_independent_ancestors = False
    """Whether it is only right where ancestors are drawn independently (`MultinomialResampling`)."""

    along_particles = True
    """Whether gradients pass through the particles, and so through the proposal, or along smoothed paths."""

    @abstractmethod
    def estimate(self, run: Run) -> tuple[Tensor, Any]:
        """Return what is differentiated, per trial, the log evidence in value; and the history of the run."""

    def carried(self, log_weights: Tensor) -> Tensor:
        """Return the log weights after resampling, -log K in value, from the ancestors' normalised ones."""
        return torch.full_like(log_weights, -math.log(log_weights.shape[0]))


class FisherGradient(GradientEstimator):
    r"""Differentiates the log density of latents and data along paths drawn given the whole recording.

    By Fisher's identity that is the gradient of the log evidence itself, not of the particle filter's estimate:

    .. math:: \nabla_\theta \log p(y) = E[\nabla_\theta \log p_\theta(z_{1:T}, y) \mid y]

    The filter runs without gradients, `num_paths` paths are drawn by backward simulation, and nothing is differentiated
    through resampling or through time, so that the compiled loops serve it. It is biased as far as the paths are, which
    more particles mend, whatever the proposal. The parameters of a guide (an encoder's) follow
    :math:`\nabla_\phi E[\log q_\phi(z \mid y) \mid y]` on the same paths: they minimise the inclusive divergence
    from the posterior, not the gap of the bound (reweighted wake-sleep). Where recordings are padded, only what comes
    before each trial's last data counts.

    A model of the user's own is run once more along its paths, which takes that its state keeps every latent site as it
    was drawn, and nothing that remembers states before; of its guide those parameters learn that a module holds and
    that are not the model's.

    Args:
        num_paths: number of paths; the noise of the gradient falls with it.

    Example::

        >>> import pyro_lowrank as plr
        >>> model = plr.StateSpaceModel(plr.LowRankRNN(rank=2, units=50), plr.PoissonObservation(rank=2, features=8))
        >>> elbo = plr.SMC_ELBO(64, gradient=FisherGradient(num_paths=16))
        >>> elbo(model, plr.BootstrapGuide(model))(torch.ones(5, 20, 8)).backward()

    References:
        Cappe, Moulines and Ryden (2005), "Inference in Hidden Markov Models", ch. 10; Poyiadjis, Doucet and Singh
        (2011), Biometrika 98:65; Kantas et al. (2015), Stat. Sci. 30:328; Le et al. (2019), "Revisiting reweighted
        wake-sleep", UAI.
    """

    along_particles = False

    def __init__(self, num_paths: int = 8) -> None:
        self.num_paths = check_positive_int("num_paths", num_paths)

    def estimate(self, run: Run) -> tuple[Tensor, Any]:
        """Return the log evidence, plus terms that are zero in value and carry the score."""
        wanted = torch.is_grad_enabled()
        with torch.no_grad():
            history = run.filter(with_paths=wanted)
            paths = run.paths(history, self.num_paths) if wanted else None
        evidence = history.increments.sum(0)
        if paths is None:
            return evidence, history
        density = run.log_density(paths)
        return evidence + (density - density.detach()), history


class _AlongParticles(GradientEstimator):
    """Base of the estimators that differentiate the run itself."""

    def estimate(self, run: Run) -> tuple[Tensor, Any]:
        """Return what is differentiated, and the history of the run."""
        history = run.filter()
        # Of trials that are allowed to die nothing is differentiated, and infinity times zero is no zero.
        increments = history.increments.masked_fill(history.increments.isneginf(), 0.0)
        return self.objective(increments, history.ancestor_log_probs), history

    @abstractmethod
    def objective(self, increments: Tensor, ancestor_log_probs: Tensor) -> Tensor:
        """Return what is differentiated, per trial; the log evidence in value.

        Args:
            increments: of the log evidence, `time x trials`.
            ancestor_log_probs: log probability of the ancestors drawn before each step, `time x trials`.
        """


class PathwiseGradient(_AlongParticles):
    r"""Differentiates through the particles' paths and ignores resampling.

    Estimates :math:`E[\nabla \log \hat Z]` with the ancestors held fixed: biased as the gradient of
    :math:`E[\log \hat Z]`, because how ancestors depend on the parameters is left out, but of the lowest variance by
    far. It is what filtering objectives and the paper use. It runs on plain tensor operations.

    References:
        Maddison et al. (2017), Le et al. (2018), Naesseth et al. (2018); Pals et al. (2024), NeurIPS.
    """

    def objective(self, increments: Tensor, ancestor_log_probs: Tensor) -> Tensor:
        """Return the log evidence."""
        return increments.sum(0)


class StopGradient(_AlongParticles):
    r"""Lets resampled particles carry the gradient of their ancestors' weights, with the forward pass unchanged.

    :math:`\nabla \hat Z` is then without bias for :math:`\nabla E[\hat Z] = \nabla Z`, with any resampling scheme that
    is unbiased, so that :math:`\nabla \log \hat Z` is a consistent estimate of :math:`\nabla \log Z` as the number of
    particles grows. Its variance grows with the number of resamplings. Costs one more gather per step.

    References:
        Scibior and Wood (2021), "Differentiable particle filtering without modifying the forward pass".
    """

    def carried(self, log_weights: Tensor) -> Tensor:
        """Return -log K in value, with the gradient of the ancestors' log weights."""
        return log_weights - log_weights.detach() - math.log(log_weights.shape[0])

    def objective(self, increments: Tensor, ancestor_log_probs: Tensor) -> Tensor:
        """Return the log evidence."""
        return increments.sum(0)


class ScoreFunctionGradient(_AlongParticles):
    r"""Adds to the pathwise gradient the score-function term of every ancestor drawn.

    .. math::

        \nabla \log \hat Z + \sum_t \Big(\sum_{s \ge t} \log \hat Z_s\Big) \nabla \log P(A_t)

    Without bias for :math:`\nabla E[\log \hat Z]`, the gradient of the objective itself, with multinomial resampling
    at every step (`ess_threshold=1`; below 1 the steps at which resampling sets in add a bias). Its variance grows
    with time x particles and is often prohibitive. Costs one more reduction per step.

    References:
        Le et al. (2018), "Auto-encoding sequential Monte Carlo", eq. 9; Naesseth et al. (2018).
    """

    needs_independent_ancestors = True

    def objective(self, increments: Tensor, ancestor_log_probs: Tensor) -> Tensor:
        """Return the log evidence, plus terms that are zero in value and carry the score."""
        to_come = increments.detach().flip(0).cumsum(0).flip(0)
        score = ancestor_log_probs - ancestor_log_probs.detach()
        return (increments + to_come * score).sum(0)
