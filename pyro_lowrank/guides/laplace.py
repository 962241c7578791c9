"""The Laplace guide: a Gauss-Newton step towards each time bin, for observations that are not Gaussian."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_lowrank.dynamics.noise import GaussianNoise, StudentTNoise
from pyro_lowrank.errors import check_positive, check_positive_int
from pyro_lowrank.guides.base import Bin, Encoding, Guide
from pyro_lowrank.models.state_space import BoundModel, StateSpaceModel
from pyro_lowrank.observations.curvature import Curved, weight_of
from pyro_lowrank.observations.driven import DrivenEmission
from pyro_lowrank.observations.observed import Observed
from pyro_lowrank.observations.readout import RatesMap
from pyro_lowrank.shapes import apply_matrix


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
    freedom: Tensor | None

    def encode(self, seen: Observed, v: Tensor | None, *, first: bool) -> Encoding:
        """Return what the steps look at, per time bin: `trials x time x ...`."""
        encoding = {"y": seen.y, "present": seen.present}
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
            # particle. Without a check: where this is out of range weights are NaN, which the filter reports.
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
        centre = mean + apply_matrix(root, eta)
        own, law = noise.with_scale(scale_tril).around(centre), self.law(noise)
        if law is noise:
            return own
        heavy = law.with_scale(scale_tril).around(centre)
        informed = _informed(encoding).expand(centre.shape[:-1])
        return dist.MaskedMixture(informed, own, heavy, validate_args=False)

    def propose(self, noise: GaussianNoise, mean: Tensor, white: Tensor, bin_t: Bin) -> tuple[Tensor, Tensor]:
        """Return latents drawn from it, and the log of their incremental weights."""
        centre, factor = self._locate(noise, mean, bin_t.encoding)
        x, log_standard = self.draw(noise, white, _informed(bin_t.encoding))
        eta = centre + torch.linalg.solve_triangular(factor.mT, x.unsqueeze(-1), upper=True).squeeze(-1)
        z = mean + apply_matrix(noise.scale_tril, eta)
        # Densities of eta; that of z is smaller by det L, in the transition as in the proposal.
        log_proposal = log_standard + factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return z, bin_t.log_likelihood(self.emission, z) + noise.standard_log_prob(eta) - log_proposal

    def draw(self, noise: GaussianNoise, white: Tensor, informed: Tensor) -> tuple[Tensor, Tensor]:
        """Return what `white`, `... x rank`, is turned into, in units of the proposal's scale, and its log density."""
        law = self.law(noise)
        x = torch.where(informed.unsqueeze(-1), law.standard(white), noise.standard(white))
        return x, torch.where(informed, law.standard_log_prob(x), noise.standard_log_prob(x))

    def law(self, noise: GaussianNoise) -> GaussianNoise:
        """Return the proposal in units of its scale: that of the transition where its tails are heavy already."""
        if self.freedom is None or isinstance(noise, StudentTNoise):
            return noise
        return StudentTNoise(noise.scale, noise.diagonal, self.freedom)


def _informed(encoding: Encoding) -> Tensor:
    """Return which trials have anything in the time bin, `trials`: the others keep the transition, as if they ended."""
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
        freedom: degrees of freedom of the Student-t distribution; None for the law of the transition noise: a Gaussian,
            as a rule, which for affine-Gaussian observations makes it equal to `OptimalGuide`.

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

    particles_to_train = 32
    # Newton's steps for each particle take most of the time.
    bins_to_train = 500
    serves_heavy_tails = True

    def __init__(self, model: StateSpaceModel, *, num_iterations: int = 2, freedom: float | None = 5.0) -> None:
        super().__init__(model)
        self.num_iterations = check_positive_int("num_iterations", num_iterations)
        self.freedom = None if freedom is None else check_positive("freedom", freedom)
        emission = model.bind().emission
        if not isinstance(emission, (Curved, DrivenEmission)):
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
        # Of what remembers the latents the filter hands on what particles see of each bin, which is curved.
        emission: Any = bound.emission
        like = bound.transition.initial_mean
        freedom = None if self.freedom is None else like.new_tensor(self.freedom)
        return LaplaceProposal(emission, self.num_iterations, freedom)

    def settings(self) -> dict[str, Any]:
        """Return the arguments, beside the model, that build a guide of the same form."""
        return {"num_iterations": self.num_iterations, "freedom": self.freedom}
