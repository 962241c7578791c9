"""Running a pair in the compiled loops: from tensors to their arrays and back."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyro_lowrank.compilation import run_side_by_side
from pyro_lowrank.dynamics.compiled.arrays import array, chunks
from pyro_lowrank.dynamics.compiled.units import mover
from pyro_lowrank.dynamics.transition import Transition
from pyro_lowrank.errors import NoCompiledForm
from pyro_lowrank.guides.base import Encoding
from pyro_lowrank.observations.driven import REMEMBERED
from pyro_lowrank.observations.observed import Observed
from pyro_lowrank.smc.compiled import conditional, paths
from pyro_lowrank.smc.compiled.loop import new_scratch, run_bin, run_loop
from pyro_lowrank.smc.compiled.pair import CompiledPair
from pyro_lowrank.smc.compiled.records import Draws, Features, Out, Tables
from pyro_lowrank.smc.compiled.to_come import to_come
from pyro_lowrank.smc.conditional import Reference
from pyro_lowrank.smc.loop import FilterHistory, Particles, Scheme, check_alive, draw_resamplings, resample
from pyro_lowrank.smc.pair import Sequences
from pyro_lowrank.smc.resampling import NoResampling, PositionResampling, Resampler

# Type checkers do not see through arguments that are unpacked.
_run_loop: Any = run_loop
_run_bin: Any = run_bin
_draw_paths: Any = paths.draw_paths


def run_compiled(
    compiled: CompiledPair,
    data: Sequences,
    white: Tensor,
    scheme: Scheme,
    *,
    store: bool,
    with_paths: bool,
    encoding: Encoding | None = None,
    reference: Reference | None = None,
) -> FilterHistory:
    """Return the history of a run.

    Without a reference it draws the same random numbers, in the same order, as the plain loop.

    Args:
        compiled: the pair.
        data: the recording and its inputs.
        white: standard normal numbers, `time x particles x trials x rank`.
        scheme: when and how to resample.
        store: keep the particles of every time bin.
        with_paths: keep what drawing paths needs.
        encoding: of the proposal, if it is known.
        reference: the path that a particle is pinned to, or None; see `check_reference`.
    """
    (trials, steps), (particles, rank) = data.shape, (white.shape[1], white.shape[3])
    resampler, random = scheme.resampler, white.new_zeros(0)

    def draw_positions() -> Tensor:
        nonlocal random
        random = draw_resamplings(scheme, steps - 1, particles, white.new_zeros(trials))
        if not isinstance(resampler, PositionResampling):
            return random.new_zeros(trials, steps, 0)
        return resampler.positions(random.movedim(1, 0), particles).movedim(0, 1)

    tables, features = compiled.arrays(data, encoding=encoding)
    draws = compiled.draws(white, data.seen.recorded.mT, draw_positions)
    first = compiled.pair.transition.first_mean(data.v_at(0)).expand(trials, rank)
    out = _new_out(trials, steps, particles, rank, with_paths, compiled.dtype)
    if compiled.remembers is not None:
        features = compiled.remembers.with_room(features, out.ancestors, kept=store or with_paths)
    records = _Records(tables, features, draws, out)
    with torch.no_grad():
        if compiled.mean is None or not _known(resampler):
            _run_by_bins(compiled, data, first, records, scheme, random, with_paths)
        else:
            pins = None
            if reference is not None:
                pins = conditional.pins_of(reference, compiled, data.seen.recorded, particles)
            _run_whole(compiled, data, first, records, scheme, with_paths, pins)
    if scheme.allow_dead:
        _bury(out)
    return _history(records, store, allow_dead=scheme.allow_dead)


def _known(resampler: Resampler) -> bool:
    """Whether the compiled loop resamples so."""
    own = type(resampler).resample is not Resampler.resample
    by_position = type(resampler).ancestors is PositionResampling.ancestors
    return not own and (by_position or isinstance(resampler, NoResampling))


class _Records(NamedTuple):
    """What the loops are run on."""

    tables: Tables
    features: Features
    draws: Draws
    out: Out

    def of(self, trials: slice) -> tuple[Any, Any, Any, Any]:
        """Return some trials of it all."""
        first, last = _of_trials(self.tables, trials), _of_trials(self.out, trials)
        return first, _of_features(self.features, trials), _of_trials(self.draws, trials), last


class Remembered(NamedTuple):
    """What particles remember beside the latents: the likelihood with its laws and their rows, see `to_come`."""

    features: Features
    rates: bool


def check_reference(compiled: CompiledPair, resampler: Resampler) -> None:
    """Raise unless a particle can be pinned to a path in the compiled loop.

    Raises:
        NoCompiledForm: if it cannot.
    """
    if compiled.mean is None or not _known(resampler):
        raise NoCompiledForm("a particle is pinned to a path, and the drift or the resampling is written by the user")
    conditional.through_of(resampler, compiled.dtype)


def _run_whole(
    compiled: CompiledPair,
    data: Sequences,
    first: Tensor,
    records: _Records,
    scheme: Scheme,
    with_paths: bool,
    pins: conditional.Pins | None,
) -> None:
    """Run all time bins in one compiled loop."""
    assert compiled.mean is not None
    first_mean, inputs, functions = array(first), compiled.inputs(data), compiled.functions
    out, weights, move = records.out, compiled.mean.weights, mover(compiled.mean.form)
    particles = out.z.shape[3]
    # At a threshold of 1 every trial resamples, whatever its effective sample size.
    threshold = scheme.ess_threshold * particles if scheme.ess_threshold < 1 else float("inf")
    threshold = compiled.dtype(-1 if isinstance(scheme.resampler, NoResampling) else threshold)

    through = None if pins is None else conditional.through_of(scheme.resampler, compiled.dtype)

    def run(c: slice) -> None:
        *parts, written = records.of(c)
        # A path is aimed at with one probe more than there are latents.
        scratch = new_scratch(compiled.num_rows(max(particles, out.z.shape[2] + 1)), out.z)
        pinned = None if pins is None else conditional.of_trials(pins, c)
        given = first_mean[c], inputs[c], *parts, pinned, threshold, with_paths
        _run_loop(move, *functions, through, weights, *given, scratch, written)

    run_side_by_side([partial(run, c) for c in chunks(len(first), out.z[:, :, 0].size * weights.bias.size)])


def _run_by_bins(
    compiled: CompiledPair,
    data: Sequences,
    first: Tensor,
    records: _Records,
    scheme: Scheme,
    random: Tensor,
    with_paths: bool,
) -> None:
    """Run time bin by time bin: a drift or a resampling scheme of the user's own on tensors, the rest compiled."""
    out, functions = records.out, compiled.functions
    trials, steps, rank, particles = out.z.shape
    mean = compiled.pair.transition.mean if compiled.mean is None else compiled.mean
    moves = type(scheme.resampler).resample is not Resampler.resample
    # A feature costs about what a unit does.
    where = chunks(trials, trials * particles * data.seen.y.shape[-1])
    parts = [(*records.of(c), new_scratch(compiled.num_rows(particles), out.z)) for c in where]

    def run(c: slice, part: tuple[Any, ...], t: int, means: Any) -> None:
        *known, written, scratch = part
        _run_bin(*functions, *known, t, means[c], True, scratch, written)

    z = means = first.expand(particles, trials, rank)
    for t in range(steps):
        if t > 0:
            now = _particles(out, t - 1, {"z": z} if moves else {"mean": means})
            chosen = resample(now, scheme, random[t - 1], 2)
            _keep(chosen, out, t)
            means = mean(chosen.state["z"], data.v_at(t - 1)) if moves else chosen.state["mean"]
        around = array(means.permute(1, 2, 0))
        run_side_by_side([partial(run, c, part, t, around) for c, part in zip(where, parts, strict=True)])
        z = torch.from_numpy(out.z[:, t]).permute(2, 0, 1)
        if t + 1 < steps or with_paths:
            means = mean(z, data.v_at(t))
        if with_paths:
            out.means[:, t] = array(means.permute(1, 2, 0))


def _particles(out: Out, t: int, state: dict[Any, Tensor]) -> Particles:
    """Return the particles of a time bin, of which the arrays hold all but the state."""
    log_weights, ancestors = (torch.from_numpy(each[:, t]).mT for each in (out.log_weights, out.ancestors))
    per_trial = out.increments, out.ess, out.resampled, out.ancestor_log_probs
    increment, ess, resampled, log_prob = (torch.from_numpy(each[:, t]) for each in per_trial)
    return Particles(state, log_weights, increment, ess, ancestors, resampled, log_prob)


def _keep(chosen: Particles, out: Out, t: int) -> None:
    """Write how the particles of a time bin descend from those before, and the log weights that they carry."""
    out.log_weights[:, t], out.ancestors[:, t] = chosen.log_weights.mT.numpy(), chosen.ancestors.mT.numpy()
    out.resampled[:, t], out.ancestor_log_probs[:, t] = chosen.resampled.numpy(), chosen.ancestor_log_prob.numpy()


def _new_out(trials: int, steps: int, particles: int, rank: int, with_paths: bool, dtype: Any) -> Out:
    out = Out(
        np.empty((trials, steps, rank, particles), dtype),
        np.empty((trials, steps if with_paths else 1, rank, particles), dtype),
        np.zeros((trials, steps, particles), dtype),
        np.zeros((trials, steps, particles), np.int64),
        np.full((trials, steps), np.nan, dtype),
        np.zeros((trials, steps), dtype),
        np.zeros((trials, steps), np.bool_),
        np.zeros((trials, steps), dtype),
    )
    out.ancestors[:, 0] = np.arange(particles)
    return out


def _of_trials(record: Any, trials: slice) -> Any:
    """Return some trials of a record whose arrays all have them in front, but for what all trials share."""
    shared = ("matrices", "features")
    parts = {n: a if n in shared else a[trials] for n, a in record._asdict().items()}
    return type(record)(**parts)


def _of_features(features: Features, trials: slice) -> Features:
    called = ("offset", "aims", "y", "present", "past", "ancestors")
    # Laws that trials share are those of the first.
    laws = features.laws[trials] if len(features.laws) > 1 else features.laws
    return features._replace(laws=laws, **{name: getattr(features, name)[trials] for name in called})


def _bury(out: Out) -> None:
    """Fill in the records that the loop leaves open of trials whose particles all died."""
    died = np.isneginf(out.increments)
    first = np.where(died.any(1), died.argmax(1), died.shape[1])
    after = np.arange(died.shape[1]) > first[:, np.newaxis]
    out.increments[after] = 0
    out.ess[after | died] = 0


def _history(records: _Records, store: bool, *, allow_dead: bool) -> FilterHistory:
    """Return the history, in the plain loop's order of dims."""
    out, past = records.out, torch.from_numpy(records.features.past)
    kept = [torch.from_numpy(each) for each in (out.log_weights, out.ancestors)]
    log_weights, ancestors = (each.permute(1, 2, 0) for each in kept)
    z = torch.from_numpy(out.z).permute(1, 3, 0, 2)
    increments, ess, resampled, log_probs = (
        torch.from_numpy(each).mT for each in (out.increments, out.ess, out.resampled, out.ancestor_log_probs)
    )
    check_alive(increments, allow_dead=allow_dead)
    states, last = {"z": z}, {"z": z[-1]}
    if past.numel():
        slots, steps = past.shape[1], len(z)
        # Time in front, then particles, trials, features and their order.
        remembered = past.permute(1, 2, 0, 4, 3)
        states[REMEMBERED], last[REMEMBERED] = remembered[1:], remembered[steps % slots]
    return FilterHistory(
        last=_particles(out, -1, last),
        increments=increments,
        ess=ess,
        resampled=resampled,
        ancestor_log_probs=log_probs,
        states=states if store else None,
        log_weights=log_weights if store else None,
        ancestors=ancestors if store else None,
        compiled=records,
    )


def backward_paths(
    transition: Transition,
    z: Tensor,
    means: Tensor,
    log_weights: Tensor,
    last: Tensor,
    uniforms: Tensor,
    remembered: Remembered | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw paths given the whole recording, each ancestor afresh among all particles, as `smoothing.backward_paths`.

    Return the indices of their particles, `draws x trials x time`, their latents and the means of the next ones,
    `draws x trials x time x rank`.

    Args:
        transition: how the latents move.
        z: latents, `trials x time x rank x particles`.
        means: of the next latents out of each, likewise.
        log_weights: `trials x time x particles`.
        last: last time bin of each trial's path, `trials`.
        uniforms: numbers in [0, 1), `time x draws x trials`.
        remembered: what particles remember beside the latents, or None.
    """
    root = transition.noise.scale_tril
    inverse = array(torch.linalg.solve_triangular(root, torch.eye(root.shape[-1], dtype=root.dtype), upper=False))
    ends, uniform = array(last), array(uniforms.permute(2, 0, 1))
    latents, means_, weights = array(z), array(means), array(log_weights)
    trials, steps, draws = uniform.shape
    index = np.zeros(uniform.shape, np.int64)
    # After the last bin of a trial there is no path: zeros, of which nothing is asked.
    found = [np.zeros((trials, draws, steps, latents.shape[2]), latents.dtype) for _ in range(2)]

    def draw(c: slice) -> None:
        parts = (index[c], *(each[c] for each in found))
        later = None
        if remembered is not None:
            later = to_come(_of_features(remembered.features, c), remembered.rates, draws)
        arrays = latents[c], means_[c], weights[c], inverse, ends[c], uniform[c], later
        _draw_paths(*arrays, *paths.new_scratch(latents), parts)

    run_side_by_side([partial(draw, c) for c in chunks(trials, index.size * latents.shape[3] * 4)])
    path_z, path_means = (torch.from_numpy(each).transpose(0, 1) for each in found)
    return torch.from_numpy(index).movedim(-1, 0), path_z, path_means


def propose_one_bin(
    compiled: CompiledPair, seen: Observed, v: Tensor | None, mean: Tensor, white: Tensor, *, first: bool
) -> tuple[Tensor, Tensor]:
    """Return latents `particles x trials x rank` of one time bin and their log weights.

    Args:
        compiled: the pair.
        seen: the time bin, `trials x features`.
        v: its effective inputs, `trials x inputs`.
        mean: of the transition.
        white: standard normal numbers.
        first: whether it is the first bin of its trials.
    """
    data = Sequences(seen.as_sequence(), None if v is None else v.unsqueeze(1), None)
    tables, features = compiled.arrays(data, first=first)
    trials = len(seen.y)
    draws = compiled.draws(white.unsqueeze(0), data.seen.recorded.mT, lambda: white.new_zeros(trials, 1, 0))
    means = array(mean.expand(white.shape).permute(1, 2, 0))
    out = _new_out(trials, 1, white.shape[0], white.shape[2], False, compiled.dtype)

    records = _Records(tables, features, draws, out)

    def run(c: slice) -> None:
        *parts, written = records.of(c)
        scratch = new_scratch(compiled.num_rows(white.shape[0]), out.z)
        _run_bin(*compiled.functions, *parts, 0, means[c], False, scratch, written)

    # A feature costs about what a unit does.
    run_side_by_side([partial(run, c) for c in chunks(trials, white[..., 0].numel() * seen.y.shape[-1])])
    return torch.from_numpy(out.z[:, 0]).permute(2, 0, 1), torch.from_numpy(out.log_weights[:, 0]).mT
