"""Gradient estimators: how gradients pass, or do not pass, through resampling."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor


class GradientEstimator(ABC):
    """Says what weights resampled particles carry, and which function of one run is differentiated.

    All estimators share the value of the log evidence; only gradients differ.
    """

    needs_independent_ancestors = False
    """Whether it is only right where ancestors are drawn independently (`MultinomialResampling`)."""

    @abstractmethod
    def carried(self, log_weights: Tensor) -> Tensor:
        """Return the log weights after resampling, -log K in value, from the ancestors' normalised ones."""

    @abstractmethod
    def objective(self, increments: Tensor, ancestor_log_probs: Tensor) -> Tensor:
        """Return what is differentiated, per trial; the log evidence in value.

        Args:
            increments: of the log evidence, `time x trials`.
            ancestor_log_probs: log probability of the ancestors drawn before each step, `time x trials`.
        """


class PathwiseGradient(GradientEstimator):
    r"""Differentiates through the particles' paths and ignores resampling.

    Estimates :math:`E[\nabla \log \hat Z]` with the ancestors held fixed: biased as the gradient of
    :math:`E[\log \hat Z]`, because how ancestors depend on the parameters is left out, but of the lowest variance by
    far. It is what filtering objectives and the paper use. Costs nothing beyond the backward pass.

    References:
        Maddison et al. (2017), Le et al. (2018), Naesseth et al. (2018); Pals et al. (2024), NeurIPS.
    """

    def carried(self, log_weights: Tensor) -> Tensor:
        """Return -log K, without a gradient."""
        return torch.full_like(log_weights, -math.log(log_weights.shape[0]))

    def objective(self, increments: Tensor, ancestor_log_probs: Tensor) -> Tensor:
        """Return the log evidence."""
        return increments.sum(0)


class StopGradient(GradientEstimator):
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


class ScoreFunctionGradient(GradientEstimator):
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

    def carried(self, log_weights: Tensor) -> Tensor:
        """Return -log K, without a gradient."""
        return torch.full_like(log_weights, -math.log(log_weights.shape[0]))

    def objective(self, increments: Tensor, ancestor_log_probs: Tensor) -> Tensor:
        """Return the log evidence, plus terms that are zero in value and carry the score."""
        to_come = increments.detach().flip(0).cumsum(0).flip(0)
        score = ancestor_log_probs - ancestor_log_probs.detach()
        return (increments + to_come * score).sum(0)
