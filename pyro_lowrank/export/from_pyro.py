"""Results of Pyro's own inference, `MCMC` and `Predictive`, as ArviZ's groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyro_lowrank.errors import check_positive_int
from pyro_lowrank.export.groups import SAMPLE_DIMS, Variable, as_array, build_groups, named

Arrays = dict[str, NDArray[Any]]


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
) -> Any:
    """Put the results of `pyro.infer.MCMC` and `pyro.infer.Predictive` into the container that ArviZ reads.

    It takes the arguments of `arviz.from_pyro`, which ArviZ 1.0 no longer has. Observed sites of the model, their log
    likelihoods (in nats), the divergences and the acceptance rates come from the `MCMC` object.

    Args:
        posterior: an `MCMC` after `run`, or draws by name, `draw x ...`, of `Predictive` or a guide.
        prior: draws by name, `draw x ...`; observed sites among them go to `prior_predictive`: those of the `MCMC`, or
            what `posterior_predictive` or `predictions` have too, and what draws of the posterior lack.
        posterior_predictive: draws by name, `draw x ...`.
        predictions: draws for other data by name, `draw x ...`.
        log_likelihood: whether to run the model once per draw for the log likelihood; needs an `MCMC`.
        constant_data: arrays by name.
        dims: names of the dims of an array after those of samples; a log likelihood, which lacks the last dims of the
            data, has the first names.
        coords: labels by dim.
        attrs: of every group.
        num_chains: of draws that are not grouped by chain; those of an `MCMC` if there is one.

    Returns:
        An `arviz.InferenceData` (ArviZ 0.x) or an `xarray.DataTree` (from 1.0 on).

    Raises:
        TypeError: if `posterior` keeps no draws.
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
        samples = _samples(posterior)
        num_chains, num_draws = next(iter(samples.values())).shape[:2]
        groups["posterior"] = named(samples, dims)
        groups["sample_stats"] = _sampler(posterior._diagnostics, num_chains, num_draws)
        observed, scores = _observed(posterior, samples, log_likelihood)
        groups["log_likelihood"] = named(scores, _first_names(scores, dims))
        groups["observed_data"] = named(observed, dims, leading=())
    elif posterior is not None:
        groups["posterior"] = _draws(posterior, dims, num_chains)
    given = _draws(prior, dims, 1)
    seen = {*observed, *(posterior_predictive or {}), *(predictions or {})}
    if isinstance(posterior, Mapping):
        seen = (seen | set(given)) - set(posterior)
    groups["prior"] = {name: v for name, v in given.items() if name not in seen}
    groups["prior_predictive"] = {name: v for name, v in given.items() if name in seen}
    groups["posterior_predictive"] = _draws(posterior_predictive, dims, num_chains)
    groups["predictions"] = _draws(predictions, dims, num_chains)
    groups["constant_data"] = named(constant_data or {}, dims, leading=())
    if not any(groups.values()):
        raise ValueError("There is nothing to export: pass an MCMC after `run`, or draws by name.")
    about = {"inference_library": "pyro"} | dict(attrs or {})
    return make_container(build_groups(groups, coords=coords, attrs=about))


def _draws(
    draws: Mapping[str, Any] | None, dims: Mapping[str, Sequence[str]] | None, num_chains: int
) -> dict[str, Variable]:
    """Draws `draw x ...`, cut into chains."""
    arrays = {}
    for name, value in (draws or {}).items():
        array = as_array(value)
        if array.ndim == 0 or len(array) % num_chains:
            raise ValueError(f"{name!r} of shape {array.shape} does not divide into num_chains={num_chains} of draws.")
        arrays[name] = array.reshape(num_chains, len(array) // num_chains, *array.shape[1:])
    return named(arrays, dims)


def _samples(mcmc: Any) -> Arrays:
    """Draws of an `MCMC` by name, `chain x draw x ...`."""
    if not callable(getattr(mcmc, "get_samples", None)):
        raise TypeError(
            f"`posterior` must be a pyro.infer.MCMC after `run`, or draws by name, got {type(mcmc).__name__}, which "
            "keeps no draws."
        )
    if getattr(mcmc, "_samples", None) is None:
        raise ValueError("The MCMC has no draws yet: call its `run` first.")
    return {name: as_array(value) for name, value in mcmc.get_samples(group_by_chain=True).items()}


def _first_names(scores: Arrays, dims: Mapping[str, Sequence[str]] | None) -> dict[str, Sequence[str]]:
    """Names of the dims of log likelihoods, which lack those of the data's events, their last ones."""
    return {
        name: list(dims[name])[: array.ndim - len(SAMPLE_DIMS)]
        for name, array in scores.items()
        if dims is not None and name in dims
    }


def _sampler(diagnostics: Sequence[Mapping[str, Any]], num_chains: int, num_draws: int) -> dict[str, Variable]:
    """What the sampler says of itself, per chain: divergences, and the share of proposals that were accepted."""
    found = {}
    if all("divergences" in chain for chain in diagnostics):
        diverging = np.zeros((num_chains, num_draws), dtype=bool)
        for number, chain in enumerate(diagnostics):
            diverging[number, list(chain["divergences"])] = True
        found["diverging"] = Variable(diverging, SAMPLE_DIMS)
    if all("acceptance rate" in chain for chain in diagnostics):
        rates = np.array([float(chain["acceptance rate"]) for chain in diagnostics])
        found["acceptance_rate"] = Variable(rates, SAMPLE_DIMS[:1])
    return found


def _observed(mcmc: Any, samples: Arrays, log_likelihood: bool) -> tuple[Arrays, Arrays]:
    """Observed sites of the model that was sampled, and their log likelihoods, `chain x draw x ...`."""
    import torch
    from pyro import poutine

    model = getattr(mcmc.kernel, "model", None)
    if model is None:
        return {}, {}
    num_chains, num_draws = next(iter(samples.values())).shape[:2]
    observed: Arrays = {}
    scores: dict[str, list[NDArray[Any]]] = {}
    # One run per draw serves every model; vectorised runs would ask it for batch dims.
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        for chain, draw in np.ndindex(num_chains, num_draws if log_likelihood else 1):
            values = {name: torch.as_tensor(array[chain, draw]) for name, array in samples.items()}
            trace = poutine.trace(poutine.condition(model, data=values)).get_trace(*mcmc._args, **mcmc._kwargs)
            sites = {n: site for n, site in trace.nodes.items() if site["type"] == "sample" and site["is_observed"]}
            chosen: dict[str, Any] = {
                n: site
                for n, site in sites.items()
                if n not in samples and "_deterministic" not in (site["infer"] or {})
            }
            observed = {name: as_array(site["value"]) for name, site in chosen.items()}
            if not log_likelihood:
                break
            trace.compute_log_prob(lambda name, _: name in chosen)  # noqa: B023 (called at once)
            for name, site in chosen.items():
                scores.setdefault(name, []).append(as_array(site["unscaled_log_prob"]))
    grouped = {n: np.stack(rows).reshape(num_chains, num_draws, *rows[0].shape) for n, rows in scores.items()}
    return observed, grouped
