"""What the compiled loops read and write: arrays by name.

`B` trials, `T` time bins, `K` particles, `R` latents, `D` features. The particles are the last dim everywhere, so that
the loops run over neighbours in memory.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

from numba import types

from pyro_lowrank.dynamics.compiled.units import floats
from pyro_lowrank.smc.compiled.lanes import Block


class Tables(NamedTuple):
    """What a proposal knows of each time bin; each proposal says what its rows and matrices are.

    Attributes:
        vectors: `B x T x (some) x R`.
        constant: what the log weight adds, `B x T`.
        matrices: `sets x (some) x R x R`.
        features: `sets x R x D`.
        index: which of the sets a time bin uses, `B x T`.
    """

    vectors: Any
    constant: Any
    matrices: Any
    features: Any
    index: Any


class Features(NamedTuple):
    """The likelihood, feature by feature, and the data.

    Attributes:
        weight: of what is read, `R x D`.
        offset: added to it, `B x T x D`.
        readout: of rates, rows (bias, scale, shift), `3 x D`; see `likelihoods`.
        hinges: of the activation that rates are read through, see `units.Weights`.
        parameters: of the likelihood, `(some) x D`.
        aims: where the data would have what is read, `B x T x D`; nothing where no step asks for it.
        y: the recording, zero where missing, `B x T x D`.
        present: 1 where it is there, else 0, `B x T x D`.
        first: the first feature that counts.
        last: the one after the last.
        laws: how each bin is taken in where features remember the latents, see `laws.laws_of`; nothing elsewhere.
        links: row and column of what in the transition of what is remembered is not zero, `(some) x 2`.
        past: what particles remember, `B x slots x K x order x D`: before time bin t in slot t, counted round.
        ancestors: where particles find what theirs remember, `B x T x K`.
    """

    weight: Any
    offset: Any
    readout: Any
    hinges: Any
    parameters: Any
    aims: Any
    y: Any
    present: Any
    first: Any
    last: Any
    laws: Any
    links: Any
    past: Any
    ancestors: Any


class Draws(NamedTuple):
    """Random numbers.

    Attributes:
        white: standard normal numbers, or what the proposal makes of them, `B x T x R x K`.
        log_densities: of these, where the proposal asks for it, `B x T x K`.
        positions: where in [0, 1) the descendants fall, `B x T x K`.
    """

    white: Any
    log_densities: Any
    positions: Any


class Out(NamedTuple):
    """What a run leaves behind.

    Attributes:
        z: the latents, `B x T x R x K`.
        means: of the next latents out of each particle, likewise; with one time bin in place of T where they are not
            kept, and those of particles without descendants left as they were where not all are asked for.
        log_weights: normalised, `B x T x K`.
        ancestors: `B x T x K`.
        increments: of the log evidence, `B x T`.
        ess: effective sample sizes, `B x T`.
        resampled: whether ancestors were drawn anew, `B x T`.
        ancestor_log_probs: log probability of the draw, `B x T`.
    """

    z: Any
    means: Any
    log_weights: Any
    ancestors: Any
    increments: Any
    ess: Any
    resampled: Any
    ancestor_log_probs: Any


class Scratch(NamedTuple):
    """Arrays that the loops work in.

    Attributes:
        means: of the particles' parents, `R x K`.
        rows: for proposals and likelihoods.
        cumulative: `K`.
        shares: `K`.
        done: `K`.
        which: `K`.
    """

    means: Any
    rows: Any
    cumulative: Any
    shares: Any
    done: Any
    which: Any


class Signatures(NamedTuple):
    """Numba's signatures of the functions that the loops are handed.

    Attributes:
        propose: of a proposal, (curve, tables, features, trial, time bin, means `R x K`, white draws `R x K`, their log
            densities `K`, log weights `K`, which are added to, latents `R x K`, written to, scratch).
        weigh: of a likelihood, (features, trial, time bin, latents, log weights, which are added to, scratch).
        curve: of a likelihood, (features, trial, time bin, B^T `R x D`, scratch, block), see `proposals.laplace`.
        through: of a resampling scheme, (positions `K`, one of them, a uniform number), see `conditional.through_of`.
    """

    propose: Any
    weigh: Any
    curve: Any
    through: Any

    @classmethod
    @cache
    def of(cls, dtype: Any) -> Signatures:
        """Return them for one of numpy's types of numbers."""
        vector, matrix, cube, four, five = (floats(dtype, dims) for dims in (1, 2, 3, 4, 5))
        index, indices = (types.Array(types.int64, dims, "C", aligned=True) for dims in (2, 3))
        tables = types.NamedTuple((four, matrix, four, cube, index), Tables)
        ends = types.int64, types.int64
        remembered = four, index, five, indices
        features = types.NamedTuple(
            (matrix, cube, matrix, matrix, matrix, cube, cube, cube, *ends, *remembered), Features
        )
        where = types.int64, types.int64
        weigh = types.void(features, *where, matrix, vector, vector)
        curve = types.void(features, *where, matrix, vector, types.NamedUniTuple(types.int64, 3, Block))
        bins = matrix, matrix, vector, vector, matrix, vector
        through = types.int64(vector, vector.dtype, vector.dtype)
        return cls(types.void(types.FunctionType(curve), tables, features, *where, *bins), weigh, curve, through)
