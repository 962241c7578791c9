"""Models as files: tensors and JSON in one safetensors file, nothing that could run code."""

from __future__ import annotations

import os
import reprlib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from pyro_lowrank.dynamics.activations import Activation, activation
from pyro_lowrank.dynamics.full_rank import FullRankRNN
from pyro_lowrank.dynamics.low_rank import LowRankRNN
from pyro_lowrank.encoders.convolutional import ConvEncoder
from pyro_lowrank.encoders.held_in import HeldIn
from pyro_lowrank.encoders.recurrent import GRUEncoder
from pyro_lowrank.encoders.sessions import SessionEncoder
from pyro_lowrank.files import Archive, SizesOf, check_finite, differing, read_archive, told_of, write_archive
from pyro_lowrank.guides.base import Guide
from pyro_lowrank.guides.bootstrap import BootstrapGuide
from pyro_lowrank.guides.encoder import EncoderGuide
from pyro_lowrank.guides.forward import ForwardPrediction
from pyro_lowrank.guides.laplace import LaplaceGuide
from pyro_lowrank.guides.optimal import OptimalGuide
from pyro_lowrank.models.state_space import StateSpaceModel
from pyro_lowrank.observations.bernoulli import BernoulliObservation
from pyro_lowrank.observations.calcium import CalciumObservation
from pyro_lowrank.observations.coloured import ColouredNoiseObservation
from pyro_lowrank.observations.gaussian import GaussianObservation
from pyro_lowrank.observations.haemodynamic import HaemodynamicObservation
from pyro_lowrank.observations.joint import JointObservation
from pyro_lowrank.observations.negative_binomial import NegativeBinomialObservation
from pyro_lowrank.observations.poisson import PoissonObservation
from pyro_lowrank.observations.readout import AffineReadout, UnitReadout
from pyro_lowrank.observations.scalar import ScalarObservation
from pyro_lowrank.observations.sessions import MultiSession
from pyro_lowrank.observations.student_t import StudentTObservation
from pyro_lowrank.piecewise import PiecewiseLinear

# Only these are ever built from a file.
_CLASSES: dict[str, type[nn.Module]] = {
    cls.__name__: cls
    for cls in (
        AffineReadout,
        BernoulliObservation,
        BootstrapGuide,
        CalciumObservation,
        ColouredNoiseObservation,
        ConvEncoder,
        EncoderGuide,
        ForwardPrediction,
        FullRankRNN,
        GRUEncoder,
        GaussianObservation,
        HaemodynamicObservation,
        HeldIn,
        JointObservation,
        LaplaceGuide,
        LowRankRNN,
        MultiSession,
        NegativeBinomialObservation,
        OptimalGuide,
        PoissonObservation,
        SessionEncoder,
        StateSpaceModel,
        StudentTObservation,
        UnitReadout,
    )
}

_LIBRARY = {base for cls in _CLASSES.values() for base in cls.__mro__}


def save(path: str | os.PathLike[str], model: StateSpaceModel, guide: Guide | None = None) -> None:
    """Write a model, and its guide, to one safetensors file: tensors, and JSON in its header; no pickle.

    The file is written beside its final place and then moved there, so that no crash leaves half a file. It holds a
    digest of all that is in it, which `load` checks.

    A class of your own is written by its name and what its method `settings()` returns: the arguments that build it
    again. A `ScalarObservation` without an `__init__` of its own needs none.

    Args:
        path: the file, by convention ending in `.safetensors`; its folder must exist.
        model: the model; every part of it of a class of this library, or of one with `settings()`.
        guide: the guide, built for that model.

    Raises:
        TypeError: if a part is of a class that is not of this library and does not define `settings`, or was changed
            since it was built (a `PyroSample` prior in place of a parameter, another constraint), so that no file could
            rebuild it.
        ValueError: if the guide was built for another model, or a parameter or buffer is NaN or infinite.
        OSError: if the file cannot be written.

    Example::

        >>> import pyro_lowrank as plr
        >>> model = plr.StateSpaceModel(plr.LowRankRNN(rank=2, units=50), plr.GaussianObservation(rank=2, features=8))
        >>> save("model.safetensors", model, plr.OptimalGuide(model))
        >>> again, guide = load("model.safetensors")
        >>> torch.equal(again.dynamics.left, model.dynamics.left)
        True
    """
    configuration, tensors = describe(model, guide), state_of(model, guide)
    check_finite("The model cannot be saved", tensors)
    write_archive(path, Archive(tensors, configuration))


def load(path: str | os.PathLike[str], *, classes: Iterable[type[nn.Module]] = ()) -> tuple[StateSpaceModel, Any]:
    """Read a model and its guide (None if there is none) from a file that `save`, or a checkpoint of `fit`, wrote.

    The parameters have the values and dtypes they were saved with and lie on the CPU; those that were frozen are.
    Neither the random number generator nor Pyro's parameter store is touched. Files of releases that wrote no digest
    are read too; in these, a number that was damaged cannot be told from one that was not.

    Args:
        path: the file.
        classes: classes of your own that the model is made of; no file names code to be run.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if a class of the file is not among them and not of this library, or if the file is truncated,
            damaged, of another kind or of an unknown version, or if its tensors do not fit the model that it describes,
            which is then not built, or are NaN or infinite.

    Example::

        >>> import pyro_lowrank as plr
        >>> save("model.safetensors", plr.StateSpaceModel(
        ...     plr.LowRankRNN(rank=2, units=50), plr.PoissonObservation(rank=2, features=8)))
        >>> model, guide = load("model.safetensors")
        >>> model.simulate(num_trials=3, num_steps=20).y.shape, guide
        (torch.Size([3, 20, 8]), None)
    """
    archive = read_archive(path)
    with told_of(f"{path} does not hold a model that can be rebuilt"):
        check_finite("its numbers are no model's", _stored(archive.tensors))
        with SizesOf(archive.tensors):
            model, guide = rebuild(archive.configuration, _by_name(classes))
        for name, thing in (("model", model), ("guide", guide)):
            _check_flags(archive.configuration[name], None if thing is None else _encode(thing, {}))
        restore_state(archive.tensors, model, guide)
        _freeze(archive.configuration.get("frozen", []), model, guide)
    return model, guide


def _check_flags(theirs: Any, ours: Any) -> None:
    """Raise if what is on or off is something else in a file: whatever it is would be taken for one of the two."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        for key in theirs.keys() & ours.keys():
            if isinstance(ours[key], bool) and not isinstance(theirs[key], bool):
                raise ValueError(f"`{key}` must be true or false, got {reprlib.repr(theirs[key])}.")
            _check_flags(theirs[key], ours[key])
    elif isinstance(theirs, list) and isinstance(ours, list):
        for one, other in zip(theirs, ours, strict=False):
            _check_flags(one, other)


def _freeze(names: list[str], model: nn.Module, guide: nn.Module | None) -> None:
    parameters = _named_tensors(model, guide)
    if not isinstance(names, list) or not parameters.keys() >= set(names):
        raise ValueError(f"the parameters to be frozen, {reprlib.repr(names)}, are not all among its own.")
    for name in names:
        parameters[name].requires_grad_(False)


def describe(model: StateSpaceModel, guide: Guide | None) -> dict[str, Any]:
    """Return, as JSON, how to build the model and guide; raises where that would not give the same ones."""
    if not isinstance(model, StateSpaceModel):
        raise TypeError(f"`model` must be a StateSpaceModel, got {type(model).__name__}.")
    if guide is not None and getattr(guide, "model", model) is not model:
        raise ValueError("The guide was built for another model: build it from this one.")
    own: dict[str, type[nn.Module]] = {}
    configuration = {
        "model": _encode(model, own),
        "guide": None if guide is None else _encode(guide, own),
        "frozen": [name for name, p in _named_tensors(model, guide).items() if _is_frozen(p)],
    }
    twin_model, twin_guide = rebuild(configuration, own)
    for thing, twin in ((model, twin_model), (guide, twin_guide)):
        changed = [] if thing is None else differing(_form(thing), _form(twin))
        if changed:
            raise TypeError(
                f"{type(thing).__name__} was changed since it was built, at {', '.join(changed)} (a PyroSample prior, "
                f"another constraint or shape?), so that a file could not rebuild it. {_BY_HAND}"
            )
    return configuration


_BY_HAND = (
    "Save its tensors alone, `safetensors.torch.save_file(model.state_dict(), path)`, build it in code, and load them "
    "with `model.load_state_dict(safetensors.torch.load_file(path))`."
)


def _is_frozen(tensor: Tensor) -> bool:
    return isinstance(tensor, nn.Parameter) and not tensor.requires_grad


def _form(module: nn.Module) -> dict[str, Any]:
    """Return the shape of every tensor and the constraint of every constrained parameter, by name."""
    form: dict[str, Any] = {name: tuple(t.shape) for name, t in module.state_dict(keep_vars=True).items()}
    for prefix, part in module.named_modules():
        for name, declared in vars(part).get("_pyro_params", {}).items():
            form[f"{prefix}.{name}"] = repr(declared)
    return form


def _encode(value: Any, own: dict[str, type[nn.Module]]) -> Any:
    """Return a part of a model as JSON; classes that are not of this library are added to `own`."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        return [_encode(item, own) for item in value]
    if isinstance(value, dict):
        return {"mapping": {key: _encode(item, own) for key, item in value.items()}}
    if isinstance(value, Activation):
        return _encode_activation(value)
    cls: Any = type(value)
    known: Any = _CLASSES.get(cls.__name__)
    if known is not cls:
        if known is not None or own.get(cls.__name__, cls) is not cls or not _says_how_to_build(cls):
            raise TypeError(
                f"{cls.__name__} is not a class of this library ({', '.join(_CLASSES)}), nor does it define "
                "`settings()`, the arguments that build it again, under a name of its own, so a file could not rebuild "
                f"it. {_BY_HAND}"
            )
        own[cls.__name__] = cls
    return {"class": cls.__name__, "settings": {key: _encode(item, own) for key, item in value.settings().items()}}


def _says_how_to_build(cls: type) -> bool:
    """Whether a class of a user's own tells its arguments, or has those of a `ScalarObservation`."""
    home = next((base for base in cls.__mro__ if "settings" in vars(base)), None)
    builder = next(base for base in cls.__mro__ if "__init__" in vars(base))
    return home is not None and (home not in _LIBRARY or builder is home is ScalarObservation)


def _by_name(classes: Iterable[type[nn.Module]]) -> dict[str, type[nn.Module]]:
    found = {cls.__name__: cls for cls in classes}
    taken = sorted(found.keys() & _CLASSES.keys())
    if taken:
        raise ValueError(f"`classes` are your own, but {', '.join(taken)} are names of this library: rename yours.")
    return found


def _encode_activation(value: Activation) -> dict[str, Any]:
    with suppress(ValueError):
        if activation(value.name) == value:
            return {"activation": value.name}
    # Two functions made from one shape are different objects with the same code.
    if value.shape is not None and _code(value) is _code(activation(value.shape)):
        return {"piecewise_linear": asdict(value.shape)}
    raise TypeError(f"The activation {value.name!r} is a function of your own, which a file cannot hold. {_BY_HAND}")


def _code(value: Activation) -> Any:
    return getattr(value.function, "__code__", value.function)


def rebuild(configuration: Mapping[str, Any], own: Mapping[str, type[nn.Module]] | None = None) -> tuple[Any, Any]:
    """Return a new model and guide (or None) as `describe` told, without touching the random number generator.

    Args:
        configuration: what `describe` returned.
        own: classes that are not of this library, by name.
    """
    if configuration["model"] is None:
        raise ValueError(
            "it is the checkpoint of a model with parts that are not of this library; build that model in code and go "
            "on with `fit(..., resume=True)`."
        )
    classes = {**_CLASSES, **(own or {})}
    with torch.random.fork_rng(devices=[]):
        model = _decode(configuration["model"], classes)
        if not isinstance(model, StateSpaceModel):
            raise ValueError("its model is no StateSpaceModel.")
        guide = None if configuration["guide"] is None else _decode(configuration["guide"], classes, model)
    return model, guide


def _decode(node: Any, classes: Mapping[str, type[nn.Module]], model: Any = None) -> Any:
    if isinstance(node, list):
        return [_decode(item, classes, model) for item in node]
    if not isinstance(node, dict):
        return node
    if "mapping" in node:
        return {key: _decode(item, classes, model) for key, item in node["mapping"].items()}
    if "activation" in node:
        return activation(node["activation"])
    if "piecewise_linear" in node:
        return activation(PiecewiseLinear(**node["piecewise_linear"]))
    cls = classes.get(node["class"])
    if cls is None:
        raise ValueError(
            f"unknown class {reprlib.repr(node['class'])}; known are {', '.join(classes)}. If it is your own: "
            "`load(path, classes=[...])`."
        )
    settings = {key: _decode(item, classes, model) for key, item in node["settings"].items()}
    return cls.of_settings(model, settings) if issubclass(cls, Guide) else cls(**settings)


def _named_tensors(model: nn.Module, guide: nn.Module | None) -> dict[str, Tensor]:
    """Return the parameters and buffers themselves, under the names they have in a file."""
    return {
        f"{owner}.{name}": tensor
        for owner, module in (("model", model), ("guide", guide))
        if module is not None
        for name, tensor in module.state_dict(keep_vars=True).items()
    }


def state_of(model: nn.Module, guide: nn.Module | None) -> dict[str, Tensor]:
    """Return copies of all parameters and buffers, on the CPU, under the names they have in a file."""
    return {name: _copy(tensor) for name, tensor in _named_tensors(model, guide).items()}


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True)


def restore_state(tensors: Mapping[str, Tensor], model: nn.Module, guide: nn.Module | None) -> None:
    """Give all parameters and buffers the values and dtypes in `tensors`, in place.

    Raises:
        ValueError: if a tensor is missing, unknown, or of another shape or kind of number; nothing is changed then.
    """
    check_state(tensors, model, guide)
    for name, target in _named_tensors(model, guide).items():
        target.data = tensors[name].to(target.device, copy=True)


def check_state(tensors: Mapping[str, Tensor], model: nn.Module, guide: nn.Module | None) -> None:
    """Raise unless `restore_state` can give a model and guide the values in `tensors`."""
    targets = _named_tensors(model, guide)
    stored = _stored(tensors)
    if targets.keys() != stored.keys():
        raise ValueError(
            f"tensors {sorted(targets.keys() - stored.keys())} are missing, "
            f"{sorted(stored.keys() - targets.keys())} are unknown."
        )
    for name, target in targets.items():
        found = stored[name]
        if target.shape != found.shape:
            raise ValueError(f"tensor {name!r} must have shape {tuple(target.shape)}, got {tuple(found.shape)}.")
        if target.dtype != found.dtype and not (target.is_floating_point() and found.is_floating_point()):
            kind = "floats" if target.is_floating_point() else target.dtype
            raise ValueError(f"tensor {name!r} must hold {kind}, got {found.dtype}.")


def check_trained(beginning: str, tensors: Mapping[str, Tensor], model: nn.Module, guide: nn.Module | None) -> None:
    """Raise ValueError if tensors for what is trained are NaN or infinite; constants of a user's model may be."""
    trained = [name for name, tensor in _named_tensors(model, guide).items() if tensor.requires_grad]
    check_finite(beginning, {name: tensors[name] for name in trained})


def _stored(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the parameters and buffers among the tensors of a file."""
    return {name: tensor for name, tensor in tensors.items() if name.startswith(("model.", "guide."))}
