"""What the Gaussian filter's loops over time are given, and what they leave."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Gaussians:
    """What the filter leaves of each time bin; covariances as roots, L L^T.

    Attributes:
        mean: given the data up to the bin, `trials x time x rank`.
        root: of its covariance, `trials x time x rank x rank`.
        predicted_mean: given the data before the bin, `trials x time x rank`.
        predicted_root: of its covariance, lower triangular, `trials x time x rank x rank`.
        jacobian: of the step from each bin to the next, `trials x (time - 1) x rank x rank`.
        noise_root: of the transition's covariance, `rank x rank`.
        cost: of having moved from the prediction, in nats, `trials x time`; the evidence is the likelihood less it.
    """

    mean: Tensor
    root: Tensor
    predicted_mean: Tensor
    predicted_root: Tensor
    jacobian: Tensor
    noise_root: Tensor
    cost: Tensor


@dataclass(frozen=True)
class Start:
    """Where the loop forward begins, and how far it goes.

    Attributes:
        mean: of the first latents, `trials x rank`.
        root: of their covariance, lower triangular, `rank x rank`.
        noise_root: of the transition's covariance, `rank x rank`.
        v: effective inputs, `trials x time x inputs`, or None.
        last: bin of each trial after which predictions stand still, `trials`, or None where they never do.
    """

    mean: Tensor
    root: Tensor
    noise_root: Tensor
    v: Tensor | None
    last: Tensor | None


@dataclass(frozen=True)
class Tables:
    """What the loop backward looks at, `trials x time x ...`; of the step to the next bin, `trials x (time - 1) x ...`.

    Attributes:
        sigma: covariance given the data, Sigma, `... x rank x rank`.
        gain: K, likewise.
        score: a, `... x rank`.
        direct: gradient of the bin's own evidence in the covariance of the prediction, `... x rank x rank`.
        third: change of the information with the latents, `... x rank^2 x rank`; None where there is none.
        jacobian: F, of steps, `... x rank x rank`.
        spread: F Sigma, of steps, likewise.
        bend: of steps, as `linearise.Linearised.bend` has it; None where there is none.
    """

    sigma: Tensor
    gain: Tensor
    score: Tensor
    direct: Tensor
    third: Tensor | None
    jacobian: Tensor
    spread: Tensor
    bend: Tensor | None


@dataclass(frozen=True)
class Cotangents:
    """Gradients of the log evidence, all `trials x time x ...`, of covariances as symmetric matrices."""

    mean: Tensor
    covariance: Tensor
    jacobian: Tensor
    score: Tensor
    information: Tensor
