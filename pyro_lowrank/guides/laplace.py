"""The Laplace guide: a Gauss-Newton step towards each time bin, for observations that are not Gaussian."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_lowrank.dynamics.noise import GaussianNoise
from pyro_lowrank.errors import check_positive, check_positive_int
from pyro_lowrank.guides.base import Bin, Encoding, Guide
from pyro_lowrank.models.state_space import BoundModel, StateSpaceModel
from pyro_lowrank.observations.curvature import Curved, weight_of
from pyro_lowrank.observations.readout import RatesMap
from pyro_lowrank.shapes import apply_matrix


class Shape(Protocol):
    """The form of a proposal, before it is scaled and moved to where a particle is proposed.

    `informed` tells of each trial, `trials`, whether the time bin holds anything; where not, the form is that of
    the transition, so that a padded trial has the weights of one that ended.
    """

    def draw(self, white: Tensor, informed: Tensor) -> Tensor:
        """Return draws, `... x trials x rank`, from as many standard normal numbers."""

    def log_density(self, x: Tensor, informed: Tensor) -> Tensor:
        """Return the log density at `... x trials x rank`."""

    def around(self, mean: Tensor, scale_tril: Tensor, informed: Tensor) -> dist.TorchDistribution:
        """Return the distribution of mean + scale_tril x."""


class NormalShape:
    """The standard normal distribution."""

    def draw(self, white: Tensor, informed: Tensor) -> Tensor:
        """Return the numbers themselves."""
        return white

    def log_density(self, x: Tensor, informed: Tensor) -> Tensor:
        """Return the log density."""
        return _log_normal(x)

    def around(self, mean: Tensor, scale_tril: Tensor, informed: Tensor) -> dist.TorchDistribution:
        """Return the multivariate normal distribution."""
        return dist.MultivariateNormal(mean, scale_tril=scale_tril, validate_args=False)


@dataclass(frozen=True)
class StudentShape:
    """The standard multivariate Student-t distribution, with tails heavier than those of any Gaussian."""

    freedom: float

    def draw(self, white: Tensor, informed: Tensor) -> Tensor:
        """Return draws: normal numbers whose variance, one for each particle, is drawn too."""
        half = white.new_full(white.shape[:-1], 0.5 * self.freedom)
        precision = torch.distributions.Gamma(half, half, validate_args=False).sample()
        return white * torch.where(informed, precision, 1.0).rsqrt().unsqueeze(-1)

    def log_density(self, x: Tensor, informed: Tensor) -> Tensor:
        """Return the log density."""
        nu, rank = self.freedom, x.shape[-1]
        constant = math.lgamma(0.5 * (nu + rank)) - math.lgamma(0.5 * nu) - 0.5 * rank * math.log(nu * math.pi)
        heavy = constant - 0.5 * (nu + rank) * torch.log1p(x.square().sum(-1) / nu)
        return torch.where(informed, heavy, _log_normal(x))

    def around(self, mean: Tensor, scale_tril: Tensor, informed: Tensor) -> dist.TorchDistribution:
        """Return the multivariate Student-t distribution, or the normal one."""
        freedom = mean.new_full(mean.shape[:-1], self.freedom)
        heavy = dist.MultivariateStudentT(freedom, mean, scale_tril, validate_args=False)
        normal = dist.MultivariateNormal(mean, scale_tril=scale_tril, validate_args=False)
        return dist.MaskedMixture(informed.expand(freedom.shape), normal, heavy, validate_args=False)


def _log_normal(x: Tensor) -> Tensor:
    return -0.5 * (x.square().sum(-1) + x.shape[-1] * math.log(2 * math.pi))


@dataclass(frozen=True)
class LaplaceProposal:
    r"""A Gaussian or Student-t for each particle, in units of the transition noise: z = m + L eta, with Q = L L^T.

    From :math:`\eta = 0` on, with score s, information w and weight C of the observation at z, and B = C L:

    .. math::

        P(w) = I + B^T \mathrm{diag}(w) B, \qquad \eta \leftarrow \eta + P(\bar w)^{-1} (B^T s - \eta), \qquad
        q = N(\eta, P(w)^{-1}) \quad \text{or} \quad t_\nu(\eta, P(w)^{-1})

    where :math:`\bar w` is the curvature on the way to what the data ask for, so that no step overshoots.
    """

    emission: Curved
    num_iterations: int
    shape: Shape

    def encode(self, y: Tensor, v: Tensor | None, *, first: bool) -> Encoding:
        """Return what the steps look at, per time bin: `trials x time x ...`."""
        missing = y.isnan()
        encoding = {"y": y.nan_to_num(nan=0.0), "present": (~missing).to(y.dtype)}
        return encoding if v is None else encoding | {"v": v}

    def _locate(self, noise: GaussianNoise, mean: Tensor, encoding: Encoding) -> tuple[Tensor, Tensor]:
        """Return the centre of eta, `particles x trials x rank`, and the Cholesky factor of its precision P."""
        y, present, root = encoding["y"], encoding["present"], noise.scale_tril
        rank = mean.shape[-1]
        identity = torch.eye(rank, dtype=mean.dtype, device=mean.device)
        eta = torch.zeros_like(mean)
        for _ in range(self.num_iterations):
            seen = self.emission.curvature(mean + apply_matrix(root, eta), encoding.get("v"), y)
            white = seen.weight @ root
            # One matrix product with the outer products of all features: no tensor of features x rank x rank per
            # particle. Without a check: a particle that is out of range gets no weight, which the filter reports.
            outer = (white.unsqueeze(-1) * white.unsqueeze(-2)).flatten(-2)
            information = seen.information * present
            stiff = self._factor(information if seen.stiffness is None else seen.stiffness * present, outer, identity)
            uphill = (seen.score * present) @ white - eta
            eta = eta + torch.cholesky_solve(uphill.unsqueeze(-1), stiff).squeeze(-1)
        return eta, stiff if seen.stiffness is None else self._factor(information, outer, identity)

    @staticmethod
    def _factor(information: Tensor, outer: Tensor, identity: Tensor) -> Tensor:
        """Return the Cholesky factor of I + B^T diag(information) B."""
        precision = identity + (information @ outer).unflatten(-1, identity.shape)
        return torch.linalg.cholesky_ex(precision).L

    def distribution(self, noise: GaussianNoise, mean: Tensor, encoding: Encoding) -> dist.TorchDistribution:
        """Return the proposal of each particle."""
        eta, factor = self._locate(noise, mean, encoding)
        root = noise.scale_tril
        spread = torch.linalg.solve_triangular(factor, root.mT.expand(factor.shape), upper=False)
        scale_tril = torch.linalg.cholesky(spread.mT @ spread)
        return self.shape.around(mean + apply_matrix(root, eta), scale_tril, _informed(encoding))

    def propose(self, noise: GaussianNoise, mean: Tensor, white: Tensor, bin_t: Bin) -> tuple[Tensor, Tensor]:
        """Return latents drawn from it, and the log of their incremental weights."""
        centre, factor = self._locate(noise, mean, bin_t.encoding)
        informed = _informed(bin_t.encoding)
        x = self.shape.draw(white, informed)
        eta = centre + torch.linalg.solve_triangular(factor.mT, x.unsqueeze(-1), upper=True).squeeze(-1)
        z = mean + apply_matrix(noise.scale_tril, eta)
        # Densities of eta; that of z is smaller by det L, in the transition as in the proposal.
        log_proposal = self.shape.log_density(x, informed) + factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return z, bin_t.log_likelihood(self.emission, z) + _log_normal(eta) - log_proposal


def _informed(encoding: Encoding) -> Tensor:
    return (encoding["present"] > 0).any(-1)


class LaplaceGuide(Guide):
    r"""Proposes from where a Gauss-Newton step leads each particle at each time bin; nothing to train.

    .. math::

        q(z_t) \approx \frac{p(y_t \mid z_t)\, p(z_t \mid z_{t-1})}{p(y_t \mid z_{t-1})}

    with centre and precision from the score and the expected information of the likelihood where the dynamics lead. It
    is a Student-t distribution: a likelihood that is flat on one side, as that of counts, leaves the posterior wider
    there than any Gaussian with its peak, and a Gaussian's weights would have no finite variance. The cost is that of
    weighing the particles once more per step; linear systems have `rank` unknowns.

    Args:
        model: the model that the guide is for, with Poisson, negative binomial, Bernoulli, Student-t or Gaussian
            observations read from latents, inputs or currents; or a user's own observation model that defines
            `curvature(z, v, y)`, see `pyro_lowrank.observations.curvature.Curvature`.
        num_iterations: Gauss-Newton steps. The precision is that of the last but one point: with one step, that of the
            prediction.
        freedom: degrees of freedom of the Student-t distribution; None for a Gaussian, which for affine-Gaussian
            observations makes it equal to `OptimalGuide`.

    Raises:
        ValueError: if an option is not positive, or the observation model has no curvature or reads the units' rates.

    Example::

        >>> import pyro_lowrank as plr
        >>> model = plr.StateSpaceModel(plr.LowRankRNN(rank=2, units=50), plr.PoissonObservation(rank=2, features=40))
        >>> guide = LaplaceGuide(model)

    References:
        Doucet, Godsill and Andrieu (2000), Statistics and Computing 10:197, section II.D; Geweke (1989), Econometrica
        57:1317, on tails.
    """

    def __init__(self, model: StateSpaceModel, *, num_iterations: int = 2, freedom: float | None = 5.0) -> None:
        super().__init__(model)
        self.num_iterations = check_positive_int("num_iterations", num_iterations)
        self.freedom = None if freedom is None else check_positive("freedom", freedom)
        emission = model.bind().emission
        if not isinstance(emission, Curved):
            raise ValueError(
                f"`LaplaceGuide` needs an observation model with a method `curvature(z, v, y)`, got "
                f"{type(model.observation).__name__}; define one (see pyro_lowrank.observations.curvature.Curvature), "
                "or use EncoderGuide or BootstrapGuide."
            )
        readout = getattr(emission, "readout", None)
        if isinstance(readout, RatesMap):
            weight_of(readout)

    def bind(self, bound: BoundModel) -> LaplaceProposal:
        """Return the proposal at the present parameter values."""
        assert isinstance(bound.emission, Curved)
        shape = NormalShape() if self.freedom is None else StudentShape(self.freedom)
        return LaplaceProposal(bound.emission, self.num_iterations, shape)

    def settings(self) -> dict[str, Any]:
        """Return the arguments, beside the model, that build a guide of the same form."""
        return {"num_iterations": self.num_iterations, "freedom": self.freedom}
