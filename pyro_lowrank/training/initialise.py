"""Starting a model at the data instead of far away from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pyro_lowrank.arrays import varies
from pyro_lowrank.dynamics.base import Dynamics
from pyro_lowrank.dynamics.initial_weights import contracting
from pyro_lowrank.dynamics.low_rank import LowRankRNN
from pyro_lowrank.dynamics.rnn import RNNDynamics
from pyro_lowrank.models.state_space import StateSpaceModel
from pyro_lowrank.observations.base import Observation, ReadoutObservation
from pyro_lowrank.observations.driven import DrivenObservation
from pyro_lowrank.observations.gaussian import GaussianObservation
from pyro_lowrank.observations.joint import JointObservation
from pyro_lowrank.observations.levinson import partials_of_data
from pyro_lowrank.observations.memory import read
from pyro_lowrank.observations.observed import Observed
from pyro_lowrank.observations.readout import AffineReadout, UnitReadout
from pyro_lowrank.observations.scalar import ScalarObservation
from pyro_lowrank.parameters import is_as_drawn
from pyro_lowrank.training.batches import Batch
from pyro_lowrank.training.checks import sample_of_data
from pyro_lowrank.training.factors import factor_analysis, slowest_first
from pyro_lowrank.training.initialise_driven import start_driven
from pyro_lowrank.training.moments import fixed_signs, lagged_loadings
from pyro_lowrank.training.setting import noise_scale_of, set_value
from pyro_lowrank.training.sources import is_stored
from pyro_lowrank.training.standardise import Standardisation
from pyro_lowrank.training.tensors import unpack


@torch.no_grad()
def initialise_from_data(model: StateSpaceModel, y: Any, u: Any = None) -> None:
    r"""Give a model's readout and noise the values that the means and principal components of a recording suggest.

    For Gaussian observations, with the leading eigenvectors E and eigenvalues D of the recording's covariance, and its
    mean m:

    .. math:: C = E D^{1/2}, \quad b = m, \quad \hat z_t = D^{-1/2} E^T (y_t - m)

    so that the latents have unit variance; the observation noise is what the components leave over (if there are as
    many latents as features: a hundredth of the variance), and the transition noise what the network, with its random
    weights, fails to predict of :math:`\hat z_{t+1}` from :math:`\hat z_t`. With `noise_factors` a factor analysis
    takes the place of the components: its slowest factors are read out, the others are shared noise. Where features
    remember their own past, each one's autoregression comes first (Burg's method), and all this is done with the
    innovations.

    For counts, for zeros and ones, and for any `ScalarObservation`, the bias of the readout makes the means those of
    the recording, and the weight of an affine readout has latents of unit variance explain how features covary from one
    time bin to the next.

    Fluorescence starts at a baseline of its low tenth, noise of its changes from frame to frame, a scale at which rates
    are one event per second on average, and weights of the factors of a crude deconvolution; BOLD and coloured noise at
    the factors of the recording.

    Recurrent weights are left as they were drawn, or shrunk where the latents would run away; frozen parameters are
    left alone. Of a `JointObservation` the only Gaussian part that reads all latents starts at its components, other
    parts at their means.

    Args:
        model: with observations of counts, of zeros and ones, of a `ScalarObservation`, or Gaussian ones that read
            latents (an affine readout) or currents of a `LowRankRNN`; or several of them.
        y: recording, `trials x time x features`, NaN where missing (for this purpose replaced by the feature's mean);
            or a `pyro_lowrank.data.Recording` with its inputs; or a list of trials, `time x features` each; or, as of
            `fit`, what stays on disk: of this, at most 10 million numbers, in parts that lie evenly in it, are used.
        u: inputs, `trials x time x inputs`, or a list of them.

    Raises:
        TypeError: if the model is of another kind.
        ValueError: if the recording has fewer principal components than the model latents, or does not fit the model.

    Example::

        >>> import pyro_lowrank as plr
        >>> model = plr.StateSpaceModel(plr.LowRankRNN(rank=2, units=50), plr.GaussianObservation(rank=2, features=8))
        >>> initialise_from_data(model, 3.0 + torch.randn(5, 100, 8))
        >>> (model.observation.readout.bias - 3.0).abs().max() < 0.5
        tensor(True)
    """
    if is_stored(y) or is_stored(u):
        sample = sample_of_data(model, y, u)
        y, u = sample.y, sample.u
    data, inputs = unpack("y", model, y, u)
    model.check_data(data, inputs)
    observation = model.observation
    if not isinstance(observation, JointObservation):
        _start(observation, model.dynamics, data, inputs)
        return
    parts = observation.parts.items()
    whole = [name for name, part in parts if isinstance(part, GaussianObservation) and not _reads_some_latents(part)]
    for name, part in parts:
        piece = observation.split(data)[name]
        # Trials of other sessions hold nothing of this one.
        there = (~piece.isnan()).any(-1).any(-1)
        piece, its_inputs = piece[there], None if inputs is None else inputs[there]
        if not len(piece):
            continue
        # Of several sets of components each would ask for latents of its own.
        if isinstance(part, GaussianObservation) and whole != [name]:
            start_at_means(part, piece)
        else:
            _start(part, model.dynamics, piece, its_inputs)


@torch.no_grad()
def start(model: StateSpaceModel, data: Batch) -> tuple[str, ...]:
    """Start a model at a recording where its readout is affine and still as it was drawn; return what was done.

    Where there are fewer principal components than latents only the means are; weights of inputs that are still as they
    were drawn are divided by the size of these.

    Args:
        model: any; one of which nothing is known is left alone.
        data: the recording, and its inputs.
    """
    y, u, observation = data.y, data.u, model.observation
    parts = dict(observation.parts) if isinstance(observation, JointObservation) else {"": observation}
    if u is not None:
        readouts = [part.readout for part in parts.values() if isinstance(part, ReadoutObservation)]
        for module, name in ((model.dynamics, "input_weights"), *((each, "input_weight") for each in readouts)):
            if is_as_drawn(module, name):
                set_value(module, name, getattr(module, name) / root_mean_square(u))
    if isinstance(observation, DrivenObservation) and is_as_drawn(observation.readout, "weight"):
        start_driven(observation, model.dynamics, y)
        return ("Readout, noise and baseline start at what the data suggest (start_at_data).",)
    known = GaussianObservation, ScalarObservation
    if not all(isinstance(part, known) and is_as_drawn(part.readout, "weight") for part in parts.values()):
        return ()
    units = _units(parts, y)
    try:
        initialise_from_data(model, units.apply(y), u)
        told = "Readout and noise start at the data's means and covariances (start_at_data)."
    except ValueError as reason:
        start_at_means(observation, units.apply(y))
        # What to do about it is for those who asked for components.
        told = f"Readout and noise start at the data's means alone: {str(reason).partition(';')[0]}."
    pieces = zip(*(each.split([p.features for p in parts.values()]) for each in (units.mean, units.scale)), strict=True)
    for part, piece in zip(parts.values(), pieces, strict=True):
        if isinstance(part, GaussianObservation) and _brings_units(part):
            Standardisation(*piece).fold_into(part)
    return (told,)


def _brings_units(observation: GaussianObservation) -> bool:
    """Whether all that has the units of the recording is trained: what is frozen keeps its value."""
    bias = observation.readout._parameters.get("bias_unconstrained")
    noise = observation._parameters.get("noise_scale_unconstrained")
    return all(parameter is not None and parameter.requires_grad for parameter in (bias, noise))


def _units(parts: Mapping[str, Observation], y: Tensor) -> Standardisation:
    """Return the map to standardised features, of those with units: components must not be of the largest unit alone.

    Where all features have one noise they have one unit.
    """
    units = Standardisation.of(y)
    mean, scale = units.mean.clone(), units.scale.clone()
    begin = 0
    for part in parts.values():
        where = slice(begin, begin + part.features)
        begin += part.features
        if not isinstance(part, GaussianObservation) or not _brings_units(part):
            mean[where], scale[where] = 0.0, 1.0
        elif part.noise_kind == "scalar":
            scale[where] = scale[where].square().mean().sqrt()
    return Standardisation(mean, scale)


def root_mean_square(u: Tensor) -> Tensor:
    """Return the size of each input, `inputs`; 1 for one that is always zero."""
    largest = u.abs().amax((0, 1))
    unit = torch.where(largest > 0, largest, 1.0)
    return torch.where(largest > 0, unit * (u / unit).square().mean((0, 1)).sqrt(), 1.0)


def start_at_means(observation: Observation, data: Tensor) -> None:
    """Give the readout's bias the value that the mean of the recording asks for, and Gaussian noise its scale.

    Args:
        observation: a built-in observation model.
        data: recording, `trials x time x features`, NaN where missing.

    Raises:
        TypeError: if the observation model is of another kind.
    """
    mean = data.nanmean((0, 1)).nan_to_num(nan=0.0)
    if isinstance(observation, JointObservation):
        for name, part in observation.parts.items():
            start_at_means(part, observation.split(data)[name])
    elif isinstance(observation, ScalarObservation):
        set_value(observation.readout, "bias", observation.predictor_of_mean(mean))
    elif isinstance(observation, GaussianObservation):
        set_value(observation.readout, "bias", mean)
        variance, smallest = _variances(_remembered(observation, data, mean))
        _set_noise(observation, variance, smallest=smallest)
    else:
        raise TypeError(f"Only built-in observation models start at the data, got {observation!r}.")


def _start(observation: Observation, dynamics: Dynamics, data: Tensor, inputs: Tensor | None) -> None:
    if isinstance(observation, DrivenObservation):
        start_driven(observation, dynamics, data)
        return
    if isinstance(observation, ScalarObservation):
        start_at_means(observation, data)
        _start_at_covariances(observation, dynamics, data)
        return
    if not isinstance(observation, GaussianObservation) or _reads_some_latents(observation):
        start_at_means(observation, data)
        return
    mean = data.nanmean((0, 1)).nan_to_num(nan=0.0)
    data = _remembered(observation, data, mean)
    centred = torch.where(data.isnan(), 0.0, data - mean)
    weight, z = _principal_components(centred, dynamics.rank)
    residual, variance = (x.flatten(0, 1).square().mean(0) for x in (centred - z @ weight.mT, centred))
    # Innovations are mostly each feature's own, which components would mix with what is shared.
    analysed = observation.num_noise_factors or observation.autoregression is not None
    if analysed and dynamics.rank < data.shape[-1]:
        weight, z, residual = _start_at_factors(observation, dynamics.rank, centred)
    _set_readout(observation, dynamics, weight, mean)
    # As many latents as features leave nothing over, which tells nothing; from no noise a training hardly comes away.
    residual = 0.01 * variance if dynamics.rank >= len(variance) else residual
    _set_noise(observation, residual, smallest=_variances(data)[1])
    if z.shape[1] > 1:
        _set_transition_noise(dynamics, z, inputs)


def _start_at_covariances(observation: ScalarObservation, dynamics: Dynamics, data: Tensor) -> None:
    readout = observation.readout
    if not isinstance(readout, AffineReadout) or readout.latents is not None or data.shape[1] < 2:
        return
    mean = data.nanmean((0, 1)).nan_to_num(nan=0.0)
    loadings = lagged_loadings(data, mean, dynamics.rank)
    if loadings is None:
        return
    set_value(readout, "weight", loadings / observation.slope_at_mean(mean).unsqueeze(-1))
    if not isinstance(dynamics, RNNDynamics):
        return
    # Under the leak alone the latents then have unit variance.
    noise = (1 - dynamics.decay.square()).sqrt()
    by_kind = {"full": torch.diag_embed, "diagonal": lambda x: x, "scalar": lambda x: x.square().mean().sqrt()}
    set_value(dynamics, "noise_scale", by_kind[dynamics.noise_kind](noise.expand(dynamics.rank)))


def _remembered(observation: GaussianObservation, data: Tensor, mean: Tensor) -> Tensor:
    """Set what features remember of their own past; return their innovations, or the data if they remember nothing."""
    memory = observation.autoregression
    if memory is None:
        return data
    set_value(observation.readout, "bias", mean)
    seen = Observed.of(data)
    set_value(memory, "partial_autocorrelations", partials_of_data(seen.y - mean, seen.missing, memory.order).to(data))
    found, _ = read(memory.bind(mean), data)
    return found.with_gaps


def _start_at_factors(observation: GaussianObservation, rank: int, centred: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Set what noise is shared; return loadings and scores of latents, and the variance of each feature's own noise.

    Of the factors that features share the slowest are latents, and the others noise.
    """
    rows = centred.flatten(0, 1).double()
    features, most = rows.shape[1], observation.num_noise_factors
    found = factor_analysis(rows.mT @ rows / len(rows), max(rank, min(rank + most, features - 1)))
    scores = found.scores(centred.double())
    rotation = slowest_first(scores)
    loadings, scores = found.loadings @ rotation, scores @ rotation
    # Columns that are left over, where there are hardly more features than latents, stay zero.
    shared = torch.nn.functional.pad(loadings[:, rank:], (0, most - (loadings.shape[1] - rank)))
    set_value(observation, "noise_factors", shared.to(centred.dtype))
    weight, z, variance = (x.to(centred.dtype) for x in (loadings[:, :rank], scores[..., :rank], found.variance))
    return weight, z, variance


def _reads_some_latents(observation: GaussianObservation) -> bool:
    return isinstance(observation.readout, AffineReadout) and observation.readout.latents is not None


def _variances(data: Tensor) -> tuple[Tensor, Tensor]:
    """Return the variance of each feature, and the least noise variance that it starts with.

    That is a millionth of its own, whatever its units, or, of one that never changes, of the others' mean; which is
    the variance of one without any entry.
    """
    low, high = data.nan_to_num(nan=torch.inf).amin((0, 1)), data.nan_to_num(nan=-torch.inf).amax((0, 1))
    changes, variance = varies(low, high), Standardisation.of(data).scale.square()
    others = variance[changes].mean() if bool(changes.any()) else variance.new_ones(())
    filled = torch.where(changes, variance, others)
    return torch.where(changes | (low > high), filled, 0.0), 1e-6 * filled


def _set_noise(observation: GaussianObservation, variance: Tensor, *, smallest: Tensor) -> None:
    # Features that are explained fully keep some noise.
    scale = observation.scale_of_variance(torch.maximum(variance, smallest))
    set_value(observation, "noise_scale", scale.square().mean().sqrt() if observation.noise_kind == "scalar" else scale)


def _principal_components(centred: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return loadings, `features x rank`, and scores of unit variance, `trials x time x rank`."""
    rows = centred.flatten(0, 1).double()
    values, vectors = torch.linalg.eigh(rows.mT @ rows / len(rows))
    largest = values[-1:].clamp(min=torch.finfo(values.dtype).tiny)
    if rank > len(values) or values[-rank] < 1e-8 * largest:
        raise ValueError(
            f"The recording has {int((values >= 1e-8 * largest).sum())} principal components, too few to start {rank} "
            "latents; leave the model as it was drawn."
        )
    root = values[-rank:].flip(-1).sqrt()
    vectors = fixed_signs(vectors[:, -rank:].flip(-1))
    scores = rows @ vectors / root
    return (vectors * root).to(centred.dtype), scores.reshape(*centred.shape[:2], rank).to(centred.dtype)


def _set_readout(observation: GaussianObservation, dynamics: Dynamics, weight: Tensor, mean: Tensor) -> None:
    readout = observation.readout
    if isinstance(readout, AffineReadout):
        set_value(readout, "weight", weight)
        if readout.num_inputs:
            set_value(readout, "input_weight", torch.zeros_like(readout.input_weight))
    elif isinstance(readout, UnitReadout) and readout.source == "currents" and isinstance(dynamics, LowRankRNN):
        set_value(dynamics, "left", weight / readout.scale.unsqueeze(-1))
        set_value(dynamics, "right", contracting(dynamics.decay, dynamics.left, dynamics.right, dynamics.activation))
    else:
        raise TypeError(
            f"Only a readout of latents, or of currents of a LowRankRNN, starts at the data, got {readout!r}."
        )
    set_value(readout, "bias", mean)


def _set_transition_noise(dynamics: Dynamics, z: Tensor, u: Tensor | None) -> None:
    transition = dynamics.transition()
    v = None if u is None else transition.drift.effective_inputs(u)[:, :-1]
    error = (z[:, 1:] - transition.mean(z[:, :-1], v)).flatten(0, 1).double()
    covariance = error.mT @ error / len(error)
    set_value(dynamics, "noise_scale", noise_scale_of(dynamics.noise_kind, covariance).to(z.dtype))
