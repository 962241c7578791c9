"""How near two recordings are in the space of their features, whatever the order in time."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from pyro_lowrank.errors import check_positive, check_positive_int
from pyro_lowrank.metrics.estimate import Estimate, mean_of
from pyro_lowrank.metrics.recordings import Floats, as_trials, check_complete, check_pair

# So many distances are held at once, so that those of a long recording fit in memory.
_AT_A_TIME = 10_000_000


def state_space_kl(
    real: ArrayLike, generated: ArrayLike, *, scale: float = 1.0, num_draws: int = 1000, seed: int = 0
) -> Estimate:
    r"""Return :math:`D_{stsp}`, the divergence of the density of generated states from that of real ones, in nats.

    .. math::

        D_{stsp} = E_{x \sim p}[\log p(x) - \log q(x)], \quad
        p(x) = \frac{1}{T} \sum_t N(x; x_t, s^2 I), \quad q(x) = \frac{1}{T'} \sum_t N(x; \tilde x_t, s^2 I)

    with one component per time point of the real recording in p, and of the generated one in q, by Monte Carlo. It is
    in float64 and in logarithms throughout, so that no draw has to be left out because its density underflows; programs
    that leave such draws out find less where the recordings are far apart.

    Args:
        real: `trials x time x features` or `time x features`, standardised as a rule.
        generated: likewise, with the same features.
        scale: s, in units of the recording.
        num_draws: number of Monte Carlo draws.
        seed: of these draws.

    Raises:
        ValueError: if features differ, or an entry is missing.

    Example::

        >>> x = np.random.default_rng(0).normal(size=(500, 2))
        >>> abs(state_space_kl(x, x)) < 1e-12
        True
        >>> 0.5 < state_space_kl(x, x + 2.0) < 2.5
        True

    References:
        Koppe et al. (2019), PLoS Comput. Biol. 15:e1007263; Brenner et al. (2022), ICML.
    """
    check_positive("scale", scale)
    check_positive_int("num_draws", num_draws)
    arrays = as_trials("real", real), as_trials("generated", generated)
    check_pair(*arrays)
    for name, array in zip(("real", "generated"), arrays, strict=True):
        check_complete(name, array)
    p, q = (array.reshape(-1, array.shape[-1]) for array in arrays)
    rng = np.random.default_rng(seed)
    draws = p[rng.integers(len(p), size=num_draws)] + scale * rng.normal(size=(num_draws, p.shape[1]))
    return mean_of(_log_density(draws, p, scale) - _log_density(draws, q, scale))


def _log_density(x: Floats, centres: Floats, scale: float) -> Floats:
    """Log density of a mixture of Gaussians up to a constant that is the same for all mixtures, `draws`."""
    from scipy.special import logsumexp

    middle = centres.mean(0)
    x, centres = (x - middle) / scale, (centres - middle) / scale
    sizes = (centres**2).sum(1)
    rows = []
    for block in np.array_split(x, max(1, x.shape[0] * len(centres) // _AT_A_TIME)):
        squares = (block**2).sum(1)[:, np.newaxis] + sizes - 2 * block @ centres.T
        rows.append(logsumexp(-0.5 * squares, axis=1) - np.log(len(centres)))
    return np.concatenate(rows)
