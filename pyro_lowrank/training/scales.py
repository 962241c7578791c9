"""In which units the parameters of a model are trained, so that those of the data do not matter."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from pyro_lowrank.errors import warn_user
from pyro_lowrank.models.state_space import StateSpaceModel
from pyro_lowrank.observations.base import Observation, ReadoutObservation
from pyro_lowrank.observations.driven import DrivenObservation
from pyro_lowrank.observations.gaussian import GaussianObservation
from pyro_lowrank.observations.joint import JointObservation
from pyro_lowrank.observations.levinson import partials_of_data
from pyro_lowrank.observations.observed import Observed
from pyro_lowrank.observations.readout import AffineReadout, UnitReadout
from pyro_lowrank.training.batches import Batch
from pyro_lowrank.training.initialise import root_mean_square
from pyro_lowrank.training.standardise import Standardisation

_MOST_ROWS = 100_000
# Between what units do and the data that they are read as.
_FAR = 1e3


def scales_of(model: nn.Module, data: Batch) -> dict[str, Tensor]:
    r"""Return by how much parameters of a model grow with the units of the data, by their names in a fit.

    One learning rate suits parameters of one size only. The readout of a Gaussian feature that spreads by s has
    :math:`C = s C',\ b = s b'`; what weighs an input of root mean square r has :math:`W_u = W_u' / r`. All else, noise
    on its logarithmic scale too, has no units.

    Args:
        model: any; of one that is not built in nothing is known.
        data: the recording that it is fitted to, and its inputs.
    """
    if not isinstance(model, StateSpaceModel):
        return {}
    scales = {}
    size = None if data.u is None else root_mean_square(data.u)
    if size is not None and _is_trained(model.dynamics, "input_weights", (model.dynamics.num_inputs,)):
        scales["dynamics.input_weights"] = 1 / size
    for path, part, y in _parts("observation", model.observation, data.y):
        if not (isinstance(part, ReadoutObservation) and isinstance(part.readout, AffineReadout)):
            continue
        if isinstance(part, DrivenObservation):
            sizes = {name: _spread(y) for name in part.in_units_of_data}
            columns = {name: size.unsqueeze(-1) if "weight" in name else size for name, size in sizes.items()}
            scales |= {f"{path}.{name}": size for name, size in columns.items()}
            continue
        spread = y.new_ones(part.features)
        if isinstance(part, GaussianObservation):
            spread = _spread(y)
            scales[f"{path}.readout.bias"] = spread
            spread = spread * _left_over(part, y)
            if part.num_noise_factors:
                scales[f"{path}.noise_factors"] = spread.unsqueeze(-1)
        scales[f"{path}.readout.weight"] = spread.unsqueeze(-1)
        if size is not None and part.readout.num_inputs:
            scales[f"{path}.readout.input_weight"] = spread.unsqueeze(-1) / size
    return {f"model.{name}_unconstrained": scale for name, scale in scales.items() if bool((scale != 1).any())}


def warn_of_units(model: nn.Module, y: Tensor) -> None:
    """Warn of features in units in which a fit cannot work: of sizes that floats cannot square, or far from the units'.

    Gradients hold the fourth power of the size of the noise; and where units are read as they are, no weight of a
    readout brings them to the units of the data.

    Args:
        model: any; of one that is not built in nothing is known.
        y: the recording that it is to be fitted to.
    """
    if not isinstance(model, StateSpaceModel):
        return
    limits = torch.finfo(y.dtype)
    for _, part, piece in _parts("observation", model.observation, y):
        if not isinstance(part, GaussianObservation):
            continue
        spread = _spread(piece)
        beyond = (spread < limits.tiny**0.25) | (spread > limits.max**0.25)
        advice = "divide the data by that, or standardise them"
        if bool(beyond.any()):
            reason = f"gradients in {str(y.dtype).removeprefix('torch.')} hold its fourth power"
        elif isinstance(part.readout, UnitReadout):
            scale = part.readout.scale.detach().abs()
            beyond = (spread > _FAR * scale) | (spread * _FAR < scale)
            reason = "the network's units, of a size about 1, are read off as they are, times `scale`"
            advice += ", or give the readout such a `scale`"
        if bool(beyond.any()):
            feature = int(beyond.nonzero()[0])
            warn_user(
                f"Feature {feature} of `y` spreads by {float(spread[feature]):.3g}, and {reason}: the fit may fail or "
                f"learn next to nothing; {advice}."
            )


def _left_over(observation: GaussianObservation, y: Tensor) -> Tensor:
    """Return the share of each feature's spread that its own past does not tell, `features`."""
    if observation.autoregression is None:
        return y.new_ones(observation.features)
    seen = Observed.of(y - y.nanmean((0, 1)))
    partial = partials_of_data(seen.y, seen.missing, observation.autoregression.order)
    return (1 - partial.square()).prod(-1).sqrt().to(y)


def _is_trained(module: nn.Module, name: str, columns: tuple[int, ...]) -> bool:
    value = module._parameters.get(f"{name}_unconstrained")
    return value is not None and value.shape[-1:] == columns


def _parts(path: str, observation: Observation, y: Tensor) -> Iterator[tuple[str, Observation, Tensor]]:
    """The observation models of a joint one, or the one, with what they see."""
    if not isinstance(observation, JointObservation):
        yield path, observation, y
        return
    pieces = observation.split(y)
    for name, part in observation.parts.items():
        yield from _parts(f"{path}.parts.{name}", part, pieces[name])


def _spread(y: Tensor) -> Tensor:
    """Return how far features spread, `features`: the middle distance from the median, which artefacts do not move.

    In units of a normal distribution's standard deviation; of a feature that is the same for the most part that.
    """
    rows = y.flatten(0, 1)
    some = rows[:: max(1, len(rows) // _MOST_ROWS)]
    middle = 1.4826 * (some - some.nanmedian(0).values).abs().nanmedian(0).values
    return torch.where(middle > 0, middle, Standardisation.of(y).scale)
