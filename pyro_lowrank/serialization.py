"""Models as files: tensors and JSON in one safetensors file, nothing that could run code."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from pyro_lowrank.dynamics.activations import Activation, activation
from pyro_lowrank.dynamics.full_rank import FullRankRNN
from pyro_lowrank.dynamics.low_rank import LowRankRNN
from pyro_lowrank.encoders.convolutional import ConvEncoder
from pyro_lowrank.encoders.held_in import HeldIn
from pyro_lowrank.encoders.recurrent import GRUEncoder
from pyro_lowrank.encoders.sessions import SessionEncoder
from pyro_lowrank.guides.base import Guide
from pyro_lowrank.guides.bootstrap import BootstrapGuide
from pyro_lowrank.guides.encoder import EncoderGuide
from pyro_lowrank.guides.forward import ForwardPrediction
from pyro_lowrank.guides.laplace import LaplaceGuide
from pyro_lowrank.guides.optimal import OptimalGuide
from pyro_lowrank.models.state_space import StateSpaceModel
from pyro_lowrank.observations.bernoulli import BernoulliObservation
from pyro_lowrank.observations.gaussian import GaussianObservation
from pyro_lowrank.observations.joint import JointObservation
from pyro_lowrank.observations.negative_binomial import NegativeBinomialObservation
from pyro_lowrank.observations.poisson import PoissonObservation
from pyro_lowrank.observations.readout import AffineReadout, UnitReadout
from pyro_lowrank.observations.sessions import MultiSession
from pyro_lowrank.observations.student_t import StudentTObservation
from pyro_lowrank.piecewise import PiecewiseLinear

_FORMAT = "pyro_lowrank"
_VERSION = 1

# Only these are ever built from a file.
_CLASSES: dict[str, type[nn.Module]] = {
    cls.__name__: cls
    for cls in (
        AffineReadout,
        BernoulliObservation,
        BootstrapGuide,
        ConvEncoder,
        EncoderGuide,
        ForwardPrediction,
        FullRankRNN,
        GRUEncoder,
        GaussianObservation,
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


@dataclass(frozen=True)
class Archive:
    """What one file holds: tensors by name, and everything else as JSON."""

    tensors: Mapping[str, Tensor]
    configuration: Mapping[str, Any]


def save(path: str | os.PathLike[str], model: StateSpaceModel, guide: Guide | None = None) -> None:
    """Write a model, and its guide, to one safetensors file: tensors, and JSON in its header; no pickle.

    The file is written beside its final place and then moved there, so that no crash leaves half a file.

    Args:
        path: the file, by convention ending in `.safetensors`; its folder must exist.
        model: the model; every part of it of a class of this library.
        guide: the guide, built for that model.

    Raises:
        TypeError: if a part is of a class that is not of this library, or was changed since it was built (a
            `PyroSample` prior in place of a parameter, another constraint), so that no file could rebuild it.
        ValueError: if the guide was built for another model.
        OSError: if the file cannot be written.

    Example::

        >>> import pyro_lowrank as plr
        >>> model = plr.StateSpaceModel(plr.LowRankRNN(rank=2, units=50), plr.GaussianObservation(rank=2, features=8))
        >>> save("model.safetensors", model, plr.OptimalGuide(model))
        >>> again, guide = load("model.safetensors")
        >>> torch.equal(again.dynamics.left, model.dynamics.left)
        True
    """
    configuration = describe(model, guide)
    write_archive(path, Archive(state_of(model, guide), configuration))


def load(path: str | os.PathLike[str]) -> tuple[StateSpaceModel, Any]:
    """Read a model and its guide (None if there is none) from a file that `save`, or a checkpoint of `fit`, wrote.

    The parameters have the values and dtypes they were saved with and lie on the CPU; those that were frozen are.
    Neither the random number generator nor Pyro's parameter store is touched.

    Args:
        path: the file.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is truncated, damaged, of another kind or of an unknown version, or if its tensors do
            not fit the model that it describes.

    Example::

        >>> import pyro_lowrank as plr
        >>> save("model.safetensors", plr.StateSpaceModel(
        ...     plr.LowRankRNN(rank=2, units=50), plr.PoissonObservation(rank=2, features=8)))
        >>> model, guide = load("model.safetensors")
        >>> model.simulate(num_trials=3, num_steps=20).y.shape, guide
        (torch.Size([3, 20, 8]), None)
    """
    archive = read_archive(path)
    try:
        model, guide = rebuild(archive.configuration)
        restore_state(archive.tensors, model, guide)
    except KeyError as error:
        raise ValueError(f"{path} is damaged: its configuration lacks {error}.") from error
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} does not hold a model that can be rebuilt: {error}") from error
    frozen = set(archive.configuration.get("frozen", ()))
    for name, parameter in _named_tensors(model, guide).items():
        if name in frozen:
            parameter.requires_grad_(False)
    return model, guide


def describe(model: StateSpaceModel, guide: Guide | None) -> dict[str, Any]:
    """Return, as JSON, how to build the model and guide; raises where that would not give the same ones."""
    if not isinstance(model, StateSpaceModel):
        raise TypeError(f"`model` must be a StateSpaceModel, got {type(model).__name__}.")
    if guide is not None and getattr(guide, "model", model) is not model:
        raise ValueError("The guide was built for another model: build it from this one.")
    configuration = {
        "model": _encode(model),
        "guide": None if guide is None else _encode(guide),
        "frozen": [name for name, p in _named_tensors(model, guide).items() if _is_frozen(p)],
    }
    twin_model, twin_guide = rebuild(configuration)
    for thing, twin in ((model, twin_model), (guide, twin_guide)):
        if thing is not None and _form(thing) != _form(twin):
            changed = sorted({name for name, _ in _form(thing).items() ^ _form(twin).items()})
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


def _encode(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        return [_encode(item) for item in value]
    if isinstance(value, dict):
        return {"mapping": {key: _encode(item) for key, item in value.items()}}
    if isinstance(value, Activation):
        return _encode_activation(value)
    name = type(value).__name__
    known: Any = _CLASSES.get(name)
    if known is not type(value):
        raise TypeError(
            f"{name} is not a class of this library ({', '.join(_CLASSES)}), so a file could not rebuild it. {_BY_HAND}"
        )
    return {"class": name, "settings": {key: _encode(item) for key, item in value.settings().items()}}


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


def rebuild(configuration: Mapping[str, Any]) -> tuple[Any, Any]:
    """Return a new model and guide (or None) as `describe` told, without touching the random number generator."""
    if configuration["model"] is None:
        raise ValueError(
            "it is the checkpoint of a model with parts that are not of this library; build that model in code and go "
            "on with `fit(..., resume=True)`."
        )
    with torch.random.fork_rng(devices=[]):
        model = _decode(configuration["model"])
        if not isinstance(model, StateSpaceModel):
            raise ValueError("its model is no StateSpaceModel.")
        guide = None if configuration["guide"] is None else _decode(configuration["guide"], model)
    return model, guide


def _decode(node: Any, model: Any = None) -> Any:
    if isinstance(node, list):
        return [_decode(item, model) for item in node]
    if not isinstance(node, dict):
        return node
    if "mapping" in node:
        return {key: _decode(item, model) for key, item in node["mapping"].items()}
    if "activation" in node:
        return activation(node["activation"])
    if "piecewise_linear" in node:
        return activation(PiecewiseLinear(**node["piecewise_linear"]))
    cls = _CLASSES.get(node["class"])
    if cls is None:
        raise ValueError(f"unknown class {node['class']!r}; known are {', '.join(_CLASSES)}.")
    settings = {key: _decode(item, model) for key, item in node["settings"].items()}
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
        ValueError: if a tensor is missing, unknown or of another shape; nothing is changed then.
    """
    targets = _named_tensors(model, guide)
    stored = {name: t for name, t in tensors.items() if name.split(".")[0] in ("model", "guide")}
    if targets.keys() != stored.keys():
        raise ValueError(
            f"tensors {sorted(targets.keys() - stored.keys())} are missing, "
            f"{sorted(stored.keys() - targets.keys())} are unknown."
        )
    for name, target in targets.items():
        if target.shape != stored[name].shape:
            raise ValueError(f"tensor {name!r} must have shape {tuple(target.shape)}, got {tuple(stored[name].shape)}.")
    for name, target in targets.items():
        target.data = stored[name].to(target.device, copy=True)


def write_archive(path: str | os.PathLike[str], archive: Archive) -> None:
    """Write one safetensors file, all or nothing."""
    tensors = {name: _copy(tensor) for name, tensor in archive.tensors.items()}
    metadata = {
        "format": _FORMAT,
        "version": str(_VERSION),
        "configuration": json.dumps(archive.configuration),
        # A safetensors file keeps no memory layout, but matrix products round differently in another one.
        "layout": json.dumps({name: _layout(tensor) for name, tensor in tensors.items() if not tensor.is_contiguous()}),
    }
    content = to_bytes({name: tensor.contiguous() for name, tensor in tensors.items()}, metadata)
    # Through a link, the file behind it is replaced, not the link.
    final = Path(os.path.realpath(path))
    temporary = _beside(final)
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, final)
    finally:
        temporary.unlink(missing_ok=True)


def _layout(tensor: Tensor) -> list[int]:
    """Return the dims of a tensor in the order of its memory, the slowest first."""
    return sorted(range(tensor.dim()), key=lambda dim: -tensor.stride()[dim])


def _lay_out(tensor: Tensor, layout: list[int]) -> Tensor:
    inverse = [layout.index(dim) for dim in range(tensor.dim())]
    return tensor.permute(layout).contiguous().permute(inverse)


def _beside(final: Path) -> Path:
    if final.is_dir():
        raise IsADirectoryError(f"`path` must be a file, but {final} is a folder; give the file a name in it.")
    if not final.parent.is_dir():
        raise FileNotFoundError(f"The folder of {final} does not exist; make it first.")
    return final.with_name(f".{final.name}.{uuid.uuid4().hex}.tmp")


def check_writable(path: str | os.PathLike[str]) -> None:
    """Raise `OSError` unless a file can be written at `path`, which is left as it is."""
    temporary = _beside(Path(os.path.realpath(path)))
    try:
        temporary.touch(exist_ok=False)
    except OSError as error:
        raise type(error)(f"No file can be written at {path}: {error}. Choose another folder.") from error
    finally:
        temporary.unlink(missing_ok=True)


def read_archive(path: str | os.PathLike[str]) -> Archive:
    """Read a file that `write_archive` wrote.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is truncated, damaged, of another kind or of an unknown version.
    """
    path = Path(path)
    if not path.is_file():
        what = "a folder" if path.is_dir() else "no file"
        raise FileNotFoundError(f"`path` must be a file that `pyro_lowrank.save` wrote, but there is {what} at {path}.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (no mapping)
    except SafetensorError as error:
        raise ValueError(
            f"{path} cannot be read as a safetensors file: it is truncated, damaged or of another kind ({error})."
        ) from error
    if metadata.get("format") != _FORMAT:
        raise ValueError(f"{path} is a safetensors file, but not one that `pyro_lowrank.save` wrote.")
    if metadata.get("version") != str(_VERSION):
        raise ValueError(
            f"{path} has format version {metadata.get('version')}, this library reads version {_VERSION}; "
            "use the release that wrote it."
        )
    try:
        configuration = json.loads(metadata["configuration"])
        layouts = json.loads(metadata["layout"])
        tensors |= {name: _lay_out(tensors[name], layout) for name, layout in layouts.items()}
    except (AttributeError, KeyError, RuntimeError, ValueError) as error:
        raise ValueError(f"{path} is damaged: its header cannot be read ({error}).") from error
    if not isinstance(configuration, dict):
        raise ValueError(f"{path} is damaged: its configuration is not a JSON object.")
    return Archive(tensors, configuration)
