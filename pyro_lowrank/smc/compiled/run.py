"""A pair in the compiled loops: which functions they are handed, and from their arrays to tensors and back."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_lowrank.compilation import run_side_by_side
from pyro_lowrank.dynamics.compiled.arrays import array, chunks
from pyro_lowrank.dynamics.compiled.mean import CompiledMean
from pyro_lowrank.dynamics.compiled.units import mover
from pyro_lowrank.dynamics.noise import StudentTNoise
from pyro_lowrank.errors import NoCompiledForm
from pyro_lowrank.guides.base import Encoding
from pyro_lowrank.guides.forward import ForwardProposal
from pyro_lowrank.observations.observed import Observed
from pyro_lowrank.smc.compiled import paths
from pyro_lowrank.smc.compiled.lanes import WIDTH
from pyro_lowrank.smc.compiled.likelihoods import bernoulli, gaussian, negative_binomial, poisson, student_t  # noqa: F401
from pyro_lowrank.smc.compiled.likelihoods.base import CompiledLikelihood, no_curver, no_features, no_weigher
from pyro_lowrank.smc.compiled.loop import new_scratch, run_bin, run_loop
from pyro_lowrank.smc.compiled.proposals import affine, laplace  # noqa: F401 (as likelihoods, they register themselves)
from pyro_lowrank.smc.compiled.proposals.base import compiled_form
from pyro_lowrank.smc.compiled.records import Draws, Features, Out, Tables
from pyro_lowrank.smc.loop import History, Particles, Scheme, check_alive
from pyro_lowrank.smc.pair import Pair, Sequences
from pyro_lowrank.smc.resampling import NoResampling, PositionResampling

_log = logging.getLogger("pyro_lowrank")
# Type checkers do not see through arguments that are unpacked.
_run_loop: Any = run_loop
_run_bin: Any = run_bin
_draw_paths: Any = paths.draw_paths


class CompiledPair:
    """The compiled form of a pair.

    Args:
        pair: the model and guide, bound.
        with_inputs: whether inputs will come.

    Raises:
        NoCompiledForm: if it has none.
    """

    def __init__(self, pair: Pair, *, with_inputs: bool) -> None:
        self.pair = pair
        self.mean = CompiledMean(pair.transition, with_inputs=with_inputs)
        if isinstance(pair.transition.noise, StudentTNoise):
            raise NoCompiledForm("Student-t transition noise has no compiled form")
        proposal, self.seeing = pair.proposal, pair.proposal
        if isinstance(proposal, ForwardProposal):
            # Where nothing is seen latents come from the transition; the likelihood is still that of the recording.
            self.seeing = proposal.seeing
        self.likelihood: CompiledLikelihood | None = None
        self.proposal = compiled_form(self.seeing, pair.transition, self._likelihood())
        if self.proposal.weighs_data and isinstance(proposal, ForwardProposal):
            raise NoCompiledForm(f"ForwardPrediction of a {type(self.seeing).__name__} has no compiled form")
        if not self.proposal.weighs_data:
            self.likelihood = CompiledLikelihood.of(pair.emission)

    def _likelihood(self) -> CompiledLikelihood | None:
        try:
            return CompiledLikelihood.of(self.pair.emission)
        except NoCompiledForm:
            return None

    @property
    def dtype(self) -> Any:
        """Numpy's type of a number."""
        return self.mean.form.dtype

    @cached_property
    def functions(self) -> tuple[Any, Any, Any, Any]:
        """What moves, proposes, weighs and curves; compiled when first asked for, if no run before did."""
        with _told(self):
            move, propose = mover(self.mean.form), self.proposal.proposer(self.dtype)
            weigh, curve = no_weigher(self.dtype), no_curver(self.dtype)
            if self.likelihood is not None:
                weigh = self.likelihood.weigher(self.dtype)
                curve = self.likelihood.curver(self.dtype) if self.proposal.needs_curvature else curve
            return move, propose, weigh, curve

    def arrays(
        self, data: Sequences, *, first: bool = True, encoding: Encoding | None = None
    ) -> tuple[Tables, Features]:
        """Return what the proposal, whose encoding may be known, and the likelihood know of a recording."""
        proposal, seen = self.pair.proposal, data.seen
        if isinstance(proposal, ForwardProposal):
            seen = seen.hidden(proposal.unseen(seen))
        tables = self.proposal.tables(seen, data.v, first=first, encoding=encoding)
        if self.likelihood is None:
            return tables, no_features(data.seen.y)
        constant = tables.constant + array(self.likelihood.constant(data.seen))
        return tables._replace(constant=constant), self.likelihood.features(data.seen, data.v)

    def num_rows(self, num_particles: int) -> int:
        """Return how much scratch a time bin needs."""
        return self.proposal.num_rows() * max(WIDTH, num_particles)

    def draws(self, white: Tensor, recorded: Tensor, draw_positions: Callable[[], Tensor]) -> Draws:
        """Return random numbers, from standard normal ones `time x particles x trials x rank`.

        In the order of the plain loop, which resamples after the first time bin.
        """
        first, log_density = self.proposal.draw(white[:1], recorded[:1])
        positions = array(draw_positions())
        if log_density is None:
            trials = white.shape[2]
            return Draws(array(white.permute(2, 0, 3, 1)), np.zeros((trials, len(white), 0), self.dtype), positions)
        rest, log_densities = self.proposal.draw(white[1:], recorded[1:])
        assert log_densities is not None
        drawn, densities = torch.cat([first, rest]), torch.cat([log_density, log_densities])
        return Draws(array(drawn.permute(2, 0, 3, 1)), array(densities.permute(2, 0, 1)), positions)

    def inputs(self, data: Sequences) -> Any:
        """Return the effective inputs as the units see them, `trials x time x inputs`."""
        used = data.v is not None and self.mean.form.inputs > 0
        return array(data.v if used and data.v is not None else data.seen.y.new_zeros(*data.shape, 0))


@contextmanager
def _told(pair: CompiledPair) -> Iterator[None]:
    """Say in the log what is prepared and for how long, where that takes a while."""
    start = time.perf_counter()
    yield
    taken = time.perf_counter() - start
    if taken > 1:
        _log.info(
            "Compiled the loops of %s for %d latents in %.0f s; they are kept on disk.",
            type(pair.seeing).__name__,
            pair.mean.form.rank,
            taken,
        )


def check_scheme(scheme: Scheme) -> None:
    """Raise unless the compiled loops know the scheme."""
    resampler = scheme.resampler
    by_position = type(resampler).ancestors is PositionResampling.ancestors
    if not (by_position or isinstance(resampler, NoResampling)):
        raise NoCompiledForm(f"{type(resampler).__name__} draws ancestors its own way")


def run_compiled(
    compiled: CompiledPair,
    data: Sequences,
    white: Tensor,
    scheme: Scheme,
    *,
    store: bool,
    with_paths: bool,
    encoding: Encoding | None = None,
) -> History:
    """Return the history of a run; it draws the same random numbers, in the same order, as the plain loop.

    Args:
        compiled: the pair.
        data: the recording and its inputs.
        white: standard normal numbers, `time x particles x trials x rank`.
        scheme: when and how to resample.
        store: keep the particles of every time bin.
        with_paths: keep what drawing paths needs.
        encoding: of the proposal, if it is known.
    """
    (trials, steps), (particles, rank) = data.shape, (white.shape[1], white.shape[3])
    resampler = scheme.resampler
    keeps = not isinstance(resampler, PositionResampling)
    # At a threshold of 1 every trial resamples, whatever its effective sample size.
    threshold = scheme.ess_threshold * particles if scheme.ess_threshold < 1 else float("inf")

    def draw_positions() -> Tensor:
        random = resampler.draw(steps - 1, particles, torch.Size([trials]), dtype=white.dtype)
        if not isinstance(resampler, PositionResampling):
            return random.new_zeros(trials, steps, 0)
        return resampler.positions(random.movedim(1, 0), particles).movedim(0, 1)

    tables, features = compiled.arrays(data, encoding=encoding)
    draws = compiled.draws(white, data.seen.recorded.mT, draw_positions)
    first = array(compiled.pair.transition.first_mean(data.v_at(0)).expand(trials, rank))
    inputs, functions = compiled.inputs(data), compiled.functions
    out, dtype = _new_out(trials, steps, particles, rank, with_paths, compiled.dtype), compiled.dtype

    def run(c: slice) -> None:
        _run_loop(
            *(*functions, compiled.mean.weights, first[c], inputs[c]),
            *(
                _of_trials(tables, c),
                _of_features(features, c),
                _of_trials(draws, c),
                dtype(-1 if keeps else threshold),
                with_paths,
            ),
            *(new_scratch(compiled.num_rows(particles), out.z), _of_trials(out, c)),
        )

    work = out.z[:, :, 0].size * compiled.mean.weights.bias.size
    run_side_by_side([partial(run, c) for c in chunks(trials, work)])
    if scheme.allow_dead:
        _bury(out)
    return _history(out, store, allow_dead=scheme.allow_dead)


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
    return features._replace(offset=features.offset[trials], y=features.y[trials], present=features.present[trials])


def _bury(out: Out) -> None:
    """Fill in the records that the loop leaves open of trials whose particles all died."""
    died = np.isneginf(out.increments)
    first = np.where(died.any(1), died.argmax(1), died.shape[1])
    after = np.arange(died.shape[1]) > first[:, np.newaxis]
    out.increments[after] = 0
    out.ess[after | died] = 0


def _history(out: Out, store: bool, *, allow_dead: bool) -> History:
    """Return the history, in the plain loop's order of dims."""
    kept = [torch.from_numpy(each) for each in (out.log_weights, out.ancestors)]
    log_weights, ancestors = (each.permute(1, 2, 0) for each in kept)
    z = torch.from_numpy(out.z).permute(1, 3, 0, 2)
    increments, ess, resampled, log_probs = (
        torch.from_numpy(each).mT for each in (out.increments, out.ess, out.resampled, out.ancestor_log_probs)
    )
    check_alive(increments, allow_dead=allow_dead)
    return History(
        last=Particles(
            state={"z": z[-1]},
            log_weights=log_weights[-1],
            increment=increments[-1],
            ess=ess[-1],
            ancestors=ancestors[-1],
            resampled=resampled[-1],
            ancestor_log_prob=log_probs[-1],
        ),
        increments=increments,
        ess=ess,
        resampled=resampled,
        ancestor_log_probs=log_probs,
        states={"z": z} if store else None,
        log_weights=log_weights if store else None,
        ancestors=ancestors if store else None,
        compiled=out,
    )


def compiled_paths(compiled: CompiledPair, out: Out, last: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """Return paths given the whole recording and the means that they were at, `draws x trials x time x rank`.

    Args:
        compiled: the pair of the run.
        out: what the run left, with all means.
        last: last time bin of each trial's path, `trials`.
        uniforms: numbers in [0, 1), `time x draws x trials`.
    """
    root = compiled.pair.transition.noise.scale_tril
    inverse = array(torch.linalg.solve_triangular(root, torch.eye(root.shape[-1], dtype=root.dtype), upper=False))
    ends, uniform = array(last), array(uniforms.permute(2, 0, 1))
    trials, steps, draws = uniform.shape
    index = np.zeros(uniform.shape, np.int64)
    # After the last bin of a trial there is no path: zeros, of which nothing is asked.
    found = [np.zeros((draws, trials, steps, out.z.shape[2]), compiled.dtype) for _ in range(2)]

    def draw(c: slice) -> None:
        arrays = out.z[c], out.means[c], out.log_weights[c]
        parts = (index[c], *(each[:, c] for each in found))
        _draw_paths(*arrays, inverse, ends[c], uniform[c], *paths.new_scratch(out.z), parts)

    run_side_by_side([partial(draw, c) for c in chunks(trials, index.size * out.z.shape[3] * 4)])
    z, means = map(torch.from_numpy, found)
    return z, means


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
    data = Sequences(
        Observed(seen.y.unsqueeze(1), None if seen.missing is None else seen.missing.unsqueeze(1)),
        None if v is None else v.unsqueeze(1),
        None,
    )
    tables, features = compiled.arrays(data, first=first)
    trials = len(seen.y)
    draws = compiled.draws(white.unsqueeze(0), data.seen.recorded.mT, lambda: white.new_zeros(trials, 1, 0))
    means = array(mean.expand(white.shape).permute(1, 2, 0))
    out = _new_out(trials, 1, white.shape[0], white.shape[2], False, compiled.dtype)

    def run(c: slice) -> None:
        rows = np.empty(compiled.num_rows(white.shape[0]), compiled.dtype)
        parts = _of_trials(tables, c), _of_features(features, c), _of_trials(draws, c)
        _run_bin(*compiled.functions[1:], *parts, means[c], rows, _of_trials(out, c))

    # A feature costs about what a unit does.
    run_side_by_side([partial(run, c) for c in chunks(trials, white[..., 0].numel() * seen.y.shape[-1])])
    return torch.from_numpy(out.z[:, 0]).permute(2, 0, 1), torch.from_numpy(out.log_weights[:, 0]).mT
