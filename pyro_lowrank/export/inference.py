"""What Pyro's `MCMC` and `SVI` hold: draws, the data they were given, and how likely these are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pyro_lowrank.errors import check_positive_int
from pyro_lowrank.export.groups import SAMPLE_DIMS, Variable, as_array

Arrays = dict[str, NDArray[Any]]


class Inference(NamedTuple):
    """The results of an inference.

    Attributes:
        samples: draws by name, `chain x draw x ...`.
        statistics: what the sampler says of itself.
        observed: data by name.
        scores: log likelihoods of the data, in nats, `chain x draw x ...`.
    """

    samples: Arrays
    statistics: dict[str, Variable]
    observed: Arrays
    scores: Arrays


def by_chain(name: str, draws: NDArray[Any], num_chains: int) -> NDArray[Any]:
    """Cut draws `draw x ...` into chains, `chain x draw x ...`."""
    if draws.ndim == 0 or len(draws) % num_chains:
        raise ValueError(f"{name!r} of shape {draws.shape} does not divide into num_chains={num_chains} of draws.")
    return draws.reshape(num_chains, len(draws) // num_chains, *draws.shape[1:])


def of_mcmc(mcmc: Any, log_likelihood: bool) -> Inference:
    """Return what an `MCMC` holds after `run`; the model is run once per draw if the log likelihood is asked for."""
    import torch
    from pyro import poutine

    samples = _samples(mcmc)
    num_chains, num_draws = next(iter(samples.values())).shape[:2]
    statistics = _sampler(mcmc._diagnostics, num_chains, num_draws)
    model = getattr(mcmc.kernel, "model", None)
    if model is None:
        return Inference(samples, statistics, {}, {})

    def run(chain: int, draw: int) -> Any:
        values = {name: torch.as_tensor(array[chain, draw]) for name, array in samples.items()}
        return poutine.trace(poutine.condition(model, data=values)).get_trace(*mcmc._args, **mcmc._kwargs)

    places = np.ndindex(num_chains, num_draws if log_likelihood else 1)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        observed, scores = _data((run(*place) for place in places), log_likelihood, without=samples)
    grouped = {name: rows.reshape(num_chains, num_draws, *rows.shape[1:]) for name, rows in scores.items()}
    return Inference(samples, statistics, observed, grouped)


def of_svi(
    svi: Any,
    given: tuple[Sequence[Any], Mapping[str, Any]],
    num_samples: int,
    num_chains: int,
    log_likelihood: bool,
) -> Inference:
    """Return draws of the guide of an `SVI`, with what its model does with each.

    Args:
        svi: the `SVI`.
        given: the arguments of its steps.
        num_samples: number of draws.
        num_chains: to cut them into.
        log_likelihood: whether the log likelihood is asked for.
    """
    import torch
    from pyro import poutine

    if check_positive_int("num_samples", num_samples) % num_chains:
        raise ValueError(f"num_samples={num_samples} does not divide into num_chains={num_chains}.")
    if callable(getattr(svi.guide, "init", None)) and callable(getattr(svi.guide, "step", None)):
        raise TypeError(
            f"{type(svi.guide).__name__} proposes particles and holds no posterior by itself: run "
            "`SMCFilter(model, guide, num_particles).run(y)`, and pass what it returns to `to_arviz`."
        )
    args, kwargs = given
    draws: dict[str, list[NDArray[Any]]] = {}

    def run() -> Any:
        guide_trace = poutine.trace(svi.guide).get_trace(*args, **kwargs)
        trace = poutine.trace(poutine.replay(svi.model, guide_trace)).get_trace(*args, **kwargs)
        for name, site in _sites(trace, lambda site: not site["is_observed"] or _is_deterministic(site)):
            draws.setdefault(name, []).append(as_array(site["value"]))
        return trace

    with torch.no_grad():
        observed, scores = _data((run() for _ in range(num_samples)), log_likelihood, without={})
    if not draws:
        raise TypeError(f"The model of the SVI, {type(svi.model).__name__}, has no latent sites: there are no draws.")
    samples = {name: by_chain(name, np.stack(rows), num_chains) for name, rows in draws.items()}
    scored = {name: by_chain(name, rows, num_chains) for name, rows in scores.items()}
    return Inference(samples, {}, observed, scored)


def _sites(trace: Any, wanted: Callable[[Any], bool]) -> Iterable[tuple[str, Any]]:
    """The sites of a run that draw random numbers or hold data, but for those of plates."""
    from pyro.poutine.util import site_is_subsample

    for name, site in trace.nodes.items():
        if site["type"] == "sample" and not site_is_subsample(site) and wanted(site):
            yield name, site


def _is_deterministic(site: Any) -> bool:
    return "_deterministic" in (site["infer"] or {})


def _data(traces: Iterable[Any], log_likelihood: bool, *, without: Mapping[str, Any]) -> tuple[Arrays, Arrays]:
    """Observed sites of runs of a model but for some, and their log likelihoods, `run x ...`."""
    observed: Arrays = {}
    scores: dict[str, list[NDArray[Any]]] = {}
    for trace in traces:
        chosen = {
            name: site
            for name, site in _sites(trace, lambda site: site["is_observed"] and not _is_deterministic(site))
            if name not in without
        }
        observed = {name: as_array(site["value"]) for name, site in chosen.items()}
        if log_likelihood:
            trace.compute_log_prob(lambda name, _: name in chosen)  # noqa: B023 (called at once)
            for name, site in chosen.items():
                scores.setdefault(name, []).append(as_array(site["unscaled_log_prob"]))
    return observed, {name: np.stack(rows) for name, rows in scores.items()}


def _samples(mcmc: Any) -> Arrays:
    """Draws of an `MCMC` by name, `chain x draw x ...`."""
    if not callable(getattr(mcmc, "get_samples", None)):
        raise TypeError(
            "`posterior` must be a pyro.infer.MCMC after `run`, a pyro.infer.SVI, or draws by name, got "
            f"{type(mcmc).__name__}, which keeps no draws."
        )
    if getattr(mcmc, "_samples", None) is None:
        raise ValueError("The MCMC has no draws yet: call its `run` first.")
    return {name: as_array(value) for name, value in mcmc.get_samples(group_by_chain=True).items()}


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
