"""Results of Pyro's own inference, `MCMC`, `SVI` and `Predictive`, as ArviZ's groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pyro_lowrank.errors import check_positive_int
from pyro_lowrank.export.groups import SAMPLE_DIMS, Variable, as_array, build_groups, named
from pyro_lowrank.export.inference import Arrays, by_chain, of_mcmc, of_svi


def from_pyro(
    posterior: Any = None,
    *,
    prior: Mapping[str, Any] | None = None,
    posterior_predictive: Mapping[str, Any] | None = None,
    predictions: Mapping[str, Any] | None = None,
    log_likelihood: bool = True,
    constant_data: Mapping[str, Any] | None = None,
    dims: Mapping[str, Sequence[str]] | None = None,
    coords: Mapping[str, Any] | None = None,
    attrs: Mapping[str, Any] | None = None,
    num_chains: int = 1,
    model_args: Sequence[Any] = (),
    model_kwargs: Mapping[str, Any] | None = None,
    num_samples: int = 1000,
) -> Any:
    """Put the results of `pyro.infer.MCMC`, `SVI` and `Predictive` into the container that ArviZ reads.

    It takes the arguments of `arviz.from_pyro`, which ArviZ 1.0 no longer has, and for an `SVI` those of
    `arviz.from_numpyro_svi`. Observed sites of the model and their log likelihoods (in nats) come from the `MCMC` or
    `SVI` object, divergences and acceptance rates from the `MCMC`.

    Args:
        posterior: an `MCMC` after `run`, an `SVI` after its steps, whose guide is drawn from, or draws by name,
            `draw x ...`, of `Predictive` or a guide.
        prior: draws by name, `draw x ...`; observed sites among them go to `prior_predictive`: those that were
            observed, or what `posterior_predictive` or `predictions` have too, and what draws of the posterior lack.
        posterior_predictive: draws by name, `draw x ...`.
        predictions: draws for other data by name, `draw x ...`.
        log_likelihood: whether to run the model once per draw for the log likelihood; needs an `MCMC` or an
            `SVI`.
        constant_data: arrays by name.
        dims: names of the dims of an array after those of samples; a log likelihood, which lacks the last dims of the
            data, has the first names.
        coords: labels by dim.
        attrs: of every group.
        num_chains: of draws that are not grouped by chain; those of an `MCMC` if there is one.
        model_args: of an `SVI`, what its `step` was called with.
        model_kwargs: likewise.
        num_samples: of the guide of an `SVI`.

    Returns:
        An `arviz.InferenceData` (ArviZ 0.x) or an `xarray.DataTree` (from 1.0 on).

    Raises:
        TypeError: if `posterior` keeps no draws, or the guide proposes particles.
        ValueError: if there is nothing to export, or draws do not divide into chains.

    Example::

        >>> import torch
        >>> data = from_pyro({"decay": torch.rand(100, 2)}, dims={"decay": ["latent"]}, num_chains=2)
        >>> data["posterior"].decay.dims, data["posterior"].sizes["draw"]
        (('chain', 'draw', 'latent'), 50)
    """
    from pyro_lowrank.export.arviz import make_container

    check_positive_int("num_chains", num_chains)
    groups: dict[str, dict[str, Variable]] = {}
    observed: Arrays = {}
    if posterior is not None and not isinstance(posterior, Mapping):
        if hasattr(posterior, "guide"):
            given = model_args, model_kwargs or {}
            found = of_svi(posterior, given, num_samples, num_chains, log_likelihood)
        else:
            found = of_mcmc(posterior, log_likelihood)
        num_chains, observed = len(next(iter(found.samples.values()))), found.observed
        groups["posterior"] = named(found.samples, dims)
        groups["sample_stats"] = found.statistics
        groups["log_likelihood"] = named(found.scores, _first_names(found.scores, dims))
        groups["observed_data"] = named(observed, dims, leading=())
    elif posterior is not None:
        groups["posterior"] = _draws(posterior, dims, num_chains)
    prior_draws = _draws(prior, dims, 1)
    seen = {*observed, *(posterior_predictive or {}), *(predictions or {})}
    if isinstance(posterior, Mapping):
        seen = (seen | set(prior_draws)) - set(posterior)
    groups["prior"] = {name: v for name, v in prior_draws.items() if name not in seen}
    groups["prior_predictive"] = {name: v for name, v in prior_draws.items() if name in seen}
    groups["posterior_predictive"] = _draws(posterior_predictive, dims, num_chains)
    groups["predictions"] = _draws(predictions, dims, num_chains)
    groups["constant_data"] = named(constant_data or {}, dims, leading=())
    if not any(groups.values()):
        raise ValueError("There is nothing to export: pass an MCMC after `run`, an SVI, or draws by name.")
    about = {"inference_library": "pyro"} | dict(attrs or {})
    return make_container(build_groups(groups, coords=coords, attrs=about))


def _draws(
    draws: Mapping[str, Any] | None, dims: Mapping[str, Sequence[str]] | None, num_chains: int
) -> dict[str, Variable]:
    """Draws `draw x ...`, cut into chains."""
    return named({name: by_chain(name, as_array(value), num_chains) for name, value in (draws or {}).items()}, dims)


def _first_names(scores: Arrays, dims: Mapping[str, Sequence[str]] | None) -> dict[str, Sequence[str]]:
    """Names of the dims of log likelihoods, which lack those of the data's events, their last ones."""
    return {
        name: list(dims[name])[: array.ndim - len(SAMPLE_DIMS)]
        for name, array in scores.items()
        if dims is not None and name in dims
    }
