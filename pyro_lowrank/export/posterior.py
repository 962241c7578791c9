"""A filter's posterior as ArviZ's groups: chains are independent runs, draws are smoothed paths."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pyro_lowrank.errors import check_choice, check_positive, check_positive_int
from pyro_lowrank.export.groups import SAMPLE_DIMS, Variable, as_array, build_groups, named
from pyro_lowrank.export.program import of_program

Array = NDArray[Any]
Groups = dict[str, dict[str, Variable]]

POINTS = ("bin", "trial", "entry")

# ArviZ knows the error that draws of one run share only by what differs between chains: of 4 chains of 100 draws it
# told 7 times too many effective ones where it tells twice too many of these; fewer draws than 10 it cannot judge.
_CHAINS, _DRAWS, _DRAWS_OF_ONE_RUN = 20, 20, 100
Z_DIMS = ("trial", "time", "latent")
Y_DIMS = ("trial", "time", "feature")
DIMS_OF_SITES = {"z": Z_DIMS, "y": Y_DIMS}


def to_arviz(
    posterior: Any,
    *,
    chains: int | None = None,
    draws: int | None = None,
    params: Mapping[str, ArrayLike] | None = None,
    prior: Mapping[str, ArrayLike] | None = None,
    dims: Mapping[str, Sequence[str]] | None = None,
    coords: Mapping[str, Any] | None = None,
    attrs: Mapping[str, Any] | None = None,
    recording: Any = None,
    bin_size: float | None = None,
    thin: int = 1,
    predictive: bool = True,
    log_likelihood: str = "bin",
    method: str = "backward",
) -> Any:
    r"""Put a posterior into the container that ArviZ reads.

    Chains are independent runs of the filter, so that R-hat tells whether there are enough particles; draws are paths
    :math:`z_{1:T} \sim p(z_{1:T} \mid y_{1:T})`. Draws of one run share its error, and ArviZ learns of that only from
    the differences between chains: many chains of few draws tell more than the reverse. So by default the filter runs
    19 times more, for 20 chains of 20 draws. The log likelihood is :math:`\log p(y_t \mid y_{<t})`, in nats, the
    latents integrated out; over time it sums to the log evidence. It depends on the parameters alone, so all draws of a
    chain share it, and at fixed parameters leaving data out changes nothing: `az.loo` of ArviZ 0.x then returns the log
    evidence and warns of Pareto's k, that of 1.x refuses. Where each draw has a run of its own (at its own parameters,
    or `[[posterior.rerun() for _ in range(draws)] for _ in range(chains)]`) both work as usual.

    Groups: `posterior` ("z", "rates" of spikes or "mean" of others, `params`; of observations that remember the latents
    also draws of "rates" and "calcium", of "neural_activity" and "haemodynamic_response", or of "signal" and "noise"),
    `posterior_predictive` ("y"),
    `sample_stats` ("log_evidence", "ess", "resampled"), `log_likelihood` ("y"), `prior`, `prior_predictive`,
    `observed_data` ("y"), `constant_data` ("mask", "inputs").
    Dims: chain, draw, trial, time, latent, feature, input. Of a program of one's own `posterior` holds all that its
    state keeps and its deterministic sites, `posterior_predictive` and `observed_data` its observed sites, by name.

    Args:
        posterior: what `SMCFilter.run` or `ExtendedKalmanFilter.run` returned; or a list of such, one per chain; or a
            list of lists, one per chain and draw, each run at parameters of its own (those of `params`).
        chains: number of runs. Those that are missing are made. If None, 20 where one run came and nothing is said of
            `draws`, else as many as came.
        draws: paths per chain; as many as there are runs per chain where each draw has its own. If None, 20, or 100 of
            the only run of an online filter, which cannot be run again.
        params: sampled parameters by name, `chain x draw x ...`.
        prior: draws by name, as `Predictive` returns them, `draw x ...`; "y" goes to `prior_predictive`.
        dims: names of the dims of `params`, and of states and sites of a program, after chain and draw, and of `prior`
            after draw.
        coords: labels by dim, or `(dim, labels)` by name for other coordinates; they go before those of `recording`.
        attrs: of every group.
        recording: the `Recording` that was filtered, for the names of trials, features and inputs, and for time.
        bin_size: seconds per time bin; that of the recording if None. Time is in bins where neither is known.
        thin: keep each n-th time bin only, for recordings whose posterior is larger than memory.
        predictive: whether to compute the expected observations and draw new ones, which are the largest arrays.
        log_likelihood: of each `"bin"` or each `"trial"`: what `az.loo` leaves out at a time. Of each `"entry"` it is
            :math:`\log p(y_{ti} \mid z_t)`, given the path of the draw, as `az.plot_loo_pit` wants it, and NaN where
            missing.
        method: as of `SMCPosterior.smooth`.

    Returns:
        An `arviz.InferenceData` (ArviZ 0.x) or an `xarray.DataTree` (from 1.0 on).

    Raises:
        TypeError: if something else than runs comes.
        ValueError: if runs, draws and parameters do not fit each other, labels do not fit their dim, or the model has
            changed since the run that chains are to be added to.

    Example::

        >>> import torch, pyro_lowrank as plr
        >>> model = plr.StateSpaceModel(plr.LowRankRNN(rank=2, units=9), plr.GaussianObservation(rank=2, features=3))
        >>> posterior = plr.SMCFilter(model, plr.OptimalGuide(model), 50).run(torch.randn(4, 10, 3))
        >>> data = to_arviz(posterior, chains=2, draws=20)
        >>> dict(data["posterior"].z.sizes)
        {'chain': 2, 'draw': 20, 'trial': 4, 'time': 10, 'latent': 2}

    References:
        Kumar et al. (2019), "ArviZ", J. Open Source Softw. 4:1143; Vehtari et al. (2021), Bayesian Anal. 16:667.
    """
    from pyro_lowrank.export.arviz import make_container

    check_choice("log_likelihood", log_likelihood, POINTS)
    check_positive_int("thin", thin)
    runs = _runs(posterior, chains, draws)
    first, kept = runs.all[0][0], slice(None, None, thin)
    if first.mean_name is None and first.recording[0] is None:
        size = 1 if runs.each_draw else runs.draws
        groups = of_program(runs, size, kept, method=method, predictive=predictive, dims=dims)
    else:
        groups = _sampled(runs, kept, method=method, predictive=predictive, entries=log_likelihood == "entry")
    groups["posterior"] |= _parameters(params, dims, runs)
    groups["sample_stats"] = _statistics(runs, kept)
    if log_likelihood != "entry":
        groups["log_likelihood"] = {"y": _log_likelihood(runs, kept, log_likelihood)}
    groups |= _prior(prior, dims, kept)
    groups |= _data(first, kept)
    labels = _labels(recording, bin_size, _num_steps(first), kept, groups) | dict(coords or {})
    about = {
        "inference_library": "pyro_lowrank",
        "num_particles": getattr(first, "num_particles", 0),
        "smoothing": method,
    }
    return make_container(build_groups(groups, coords=labels, attrs=about | dict(attrs or {})))


@dataclass(frozen=True)
class _Runs:
    """Runs of the filter: per chain one, or one per draw."""

    all: list[list[Any]]
    draws: int

    @property
    def each_draw(self) -> bool:
        """Whether every draw has a run of its own."""
        return len(self.all[0]) > 1

    @property
    def dims(self) -> tuple[str, ...]:
        """Dims of what there is one of per run."""
        return SAMPLE_DIMS if self.each_draw else SAMPLE_DIMS[:1]

    def stack(self, read: Any) -> Array:
        """Return an array per run, stacked to `chain x draw x ...` or `chain x ...`."""
        rows = [[read(run) for run in chain] for chain in self.all]
        return np.stack([np.stack(row) if self.each_draw else row[0] for row in rows])

    def __iter__(self) -> Iterator[list[Any]]:
        return iter(self.all)


def _runs(posterior: Any, chains: int | None, draws: int | None) -> _Runs:
    if draws is None:
        alone = hasattr(posterior, "smooth")
        can_repeat = alone and getattr(posterior, "again", posterior.rerun) is not None
        chains = _CHAINS if chains is None and can_repeat else chains
        draws = _DRAWS if chains is not None or not alone else _DRAWS_OF_ONE_RUN
    check_positive_int("draws", draws)
    found = [posterior] if hasattr(posterior, "smooth") else list(posterior)
    nested = [list(chain) if isinstance(chain, (list, tuple)) else [chain] for chain in found]
    if not nested or not all(chain and all(hasattr(run, "smooth") for run in chain) for chain in nested):
        raise TypeError(
            "`posterior` must be an SMCPosterior, a list of them (chains), or a list of lists (chains of draws), as "
            "`SMCFilter.run` returns them; what ExtendedKalmanFilter.run returns serves too."
        )
    lengths = {len(chain) for chain in nested}
    shapes = {tuple(run.log_evidence_increments.shape) for chain in nested for run in chain}
    if len(lengths) > 1 or len(shapes) > 1:
        raise ValueError(
            f"All chains must have as many runs, of the same recording; got {sorted(lengths)} runs per chain, of "
            f"time x trials {sorted(shapes)}."
        )
    per_chain = lengths.pop()
    if per_chain > 1:
        draws = per_chain
    if chains is not None and check_positive_int("chains", chains) != len(nested):
        if len(nested) > 1 or per_chain > 1:
            raise ValueError(f"`posterior` holds {len(nested)} chains, but chains={chains}.")
        nested += [[nested[0][0].rerun()] for _ in range(chains - 1)]
    return _Runs(nested, draws)


def _num_steps(run: Any) -> int:
    return int(run.log_evidence_increments.shape[0])


def _sampled(runs: _Runs, kept: slice, *, method: str, predictive: bool, entries: bool) -> Groups:
    """Paths, and what is expected, drawn and likely along them; one chain after the other, so that one is there twice.

    Args:
        runs: the runs.
        kept: the time bins.
        method: of smoothing.
        predictive: whether to compute what is expected and drawn.
        entries: whether to compute the log likelihood of each entry.
    """
    sizes = (len(runs.all), runs.draws)
    arrays: dict[str, Array] = {}

    def store(name: str, chain: int, rows: slice, values: Any) -> None:
        part = as_array(values[:, :, kept])
        if name not in arrays:
            arrays[name] = np.empty((*sizes, *part.shape[1:]), part.dtype)
        arrays[name][chain, rows] = part

    expected, names = runs.all[0][0].mean_name, set[str]()
    for chain, row in enumerate(runs):
        for number, run in enumerate(row):
            rows = slice(number, number + 1) if runs.each_draw else slice(None)
            z = run.smooth(1 if runs.each_draw else runs.draws, method=method)
            store("z", chain, rows, z)
            if predictive:
                mean, y = run.replicate(z)
                if mean is not None:
                    store(expected, chain, rows, mean)
                store("y", chain, rows, y)
                remembered = run.traces(z) if hasattr(run, "traces") else {}
                for name, values in remembered.items():
                    store(name, chain, rows, values)
                names |= remembered.keys()
            if entries:
                store("log_likelihood", chain, rows, run.entry_log_likelihood(z))
    groups: Groups = {"posterior": {"z": Variable(arrays["z"], (*SAMPLE_DIMS, *Z_DIMS))}}
    if "y" in arrays:
        if expected in arrays:
            groups["posterior"][expected] = Variable(arrays[expected], (*SAMPLE_DIMS, *Y_DIMS))
        groups["posterior"] |= {name: Variable(arrays[name], (*SAMPLE_DIMS, *Y_DIMS)) for name in sorted(names)}
        groups["posterior_predictive"] = {"y": Variable(arrays["y"], (*SAMPLE_DIMS, *Y_DIMS))}
    if entries:
        found = Variable(arrays["log_likelihood"], (*SAMPLE_DIMS, *Y_DIMS), {"units": "nats"})
        groups["log_likelihood"] = {"y": found}
    return groups


def _parameters(
    params: Mapping[str, ArrayLike] | None, dims: Mapping[str, Sequence[str]] | None, runs: _Runs
) -> dict[str, Variable]:
    variables = named(params or {}, dims)
    for name, variable in variables.items():
        if variable.values.shape[:2] != (len(runs.all), runs.draws):
            raise ValueError(
                f"Parameter {name!r} must start with {len(runs.all)} chains x {runs.draws} draws, got shape "
                f"{variable.values.shape}."
            )
    return variables


def _statistics(runs: _Runs, kept: slice) -> dict[str, Variable]:
    def per_time(read: Any) -> Array:
        return runs.stack(lambda run: _trials_last(read(run), 2)[kept])

    evidence = runs.stack(lambda run: _trials_last(run.log_evidence, 1))
    found = {"log_evidence": Variable(evidence, (*runs.dims, "trial"), {"units": "nats"})}
    if not all(hasattr(run, "ess") for chain in runs for run in chain):
        # A Gaussian filter has no particles.
        return found
    return found | {
        "ess": Variable(per_time(lambda run: run.ess), (*runs.dims, "time", "trial"), {"units": "particles"}),
        "resampled": Variable(per_time(lambda run: run.resampled), (*runs.dims, "time", "trial")),
    }


def _trials_last(value: Any, dims: int) -> Array:
    """An array with a dim of trials, which runs of a user's model without such a plate lack."""
    array = as_array(value)
    return array if array.ndim == dims else array[..., np.newaxis]


def _log_likelihood(runs: _Runs, kept: slice, points: str) -> Variable:
    """Increments, summed over the time bins that are thinned out, so that they still add up to the log evidence."""

    def read(run: Any) -> Array:
        increments = _trials_last(run.log_evidence_increments, 2)
        if points == "trial":
            return np.asarray(increments.sum(0))
        return np.asarray(np.add.reduceat(increments, np.arange(len(increments))[kept], axis=0).T)

    values = runs.stack(read)
    if not runs.each_draw:
        values = np.broadcast_to(values[:, np.newaxis], (len(values), runs.draws, *values.shape[1:]))
    return Variable(values, (*SAMPLE_DIMS, "trial", *(("time",) if points == "bin" else ())), {"units": "nats"})


def _prior(prior: Mapping[str, ArrayLike] | None, dims: Mapping[str, Sequence[str]] | None, kept: slice) -> Groups:
    """Draws `draw x ...` as one chain."""
    arrays = {name: as_array(value) for name, value in (prior or {}).items()}
    names = {name: site for name, site in DIMS_OF_SITES.items() if name in arrays} | dict(dims or {})
    for name in set(DIMS_OF_SITES) & set(arrays):
        arrays[name] = arrays[name][:, :, kept]
    variables = named({name: array[np.newaxis] for name, array in arrays.items()}, names)
    return {
        "prior": {name: v for name, v in variables.items() if name != "y"},
        "prior_predictive": {name: v for name, v in variables.items() if name == "y"},
    }


def _data(run: Any, kept: slice) -> Groups:
    """The recording and its inputs, as the run saw them; a user's own model may take anything."""
    y, u = run.recording
    if y is None:
        return {}
    y = as_array(y)[:, kept]
    constant = {"mask": Variable(~np.isnan(y), Y_DIMS)}
    if u is not None:
        constant["inputs"] = Variable(as_array(u)[:, kept], ("trial", "time", "input"))
    return {"observed_data": {"y": Variable(y, Y_DIMS)}, "constant_data": constant}


def _labels(recording: Any, bin_size: float | None, num_steps: int, kept: slice, groups: Groups) -> dict[str, Any]:
    sizes = {d: n for g in groups.values() for v in g.values() for d, n in zip(v.dims, v.values.shape, strict=True)}
    labels: dict[str, Any] = {"time": np.arange(num_steps)[kept]}
    if bin_size is None and recording is not None:
        bin_size = recording.bin_size
    if bin_size is not None:
        seconds = (np.arange(num_steps) + 0.5) * check_positive("bin_size", bin_size)
        labels["time"] = (
            "time",
            seconds[kept],
            {"units": "s", "long_name": "time since the trial began"},
        )
    if recording is None:
        return labels
    expected = (sizes["trial"], num_steps, sizes.get("feature", recording.data.shape[2]))
    if recording.data.shape != expected:
        raise ValueError(
            f"`recording` has {' x '.join(map(str, recording.data.shape))} trials x time bins x features, the "
            f"posterior {' x '.join(map(str, expected))}."
        )
    # Trials of one name are parts of the same trial: such names are no labels, and stand beside the numbers.
    unique = len(set(recording.trial_names)) == len(recording.trial_names)
    labels["trial" if unique else "trial_name"] = ("trial", np.array(recording.trial_names))
    labels |= {name: found for name, found in _of_recording(recording) if found[0] in sizes}
    return labels


def _of_recording(recording: Any) -> Iterator[tuple[str, tuple[str, Array]]]:
    yield "feature", ("feature", np.array(recording.feature_names))
    yield "input", ("input", np.array(recording.input_names))
    if recording.feature_units:
        yield "feature_unit", ("feature", np.array(recording.feature_units))
    if recording.conditions is not None:
        yield "condition", ("trial", recording.conditions)
    if recording.start_times is not None:
        yield "start_time", ("trial", recording.start_times)
