"""What torch functions a piece of code calls, recorded once and called again without the code around them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pyro_lowrank.errors import users_line

# What hands out numbers of tensors, on which a program may base what it does next.
_READS = {"item", "tolist", "numpy", "equal", "allclose", "is_nonzero", "data_ptr", "untyped_storage", "storage"}
_READS |= {"__float__", "__int__", "__index__", "__complex__", "__array__", "__contains__", "__dlpack__", "__repr__"}
_READS |= {"__format__", "__str__", "__reduce_ex__", "__deepcopy__"}
# What returns a shape that depends on the numbers.
_SHAPES = {"nonzero", "argwhere", "unique", "unique_consecutive", "_unique2", "masked_select", "bincount"}
# Memory that is about to be written to.
_TO_BE_FILLED = {"empty", "empty_like", "new", "new_empty"}
_STATES = {"_set_grad_enabled"}
_IN_PLACE = {"__setitem__", "__iadd__", "__isub__", "__imul__", "__itruediv__", "__ipow__", "__iand__", "__ior__"}
# What `torch.vmap` does not know, and what is the same.
_BATCHED: dict[Any, Callable[..., Any]] = {torch._is_all_true: torch.all}
_RESHAPE = {"expand", "expand_as", "reshape", "view", "flatten", "broadcast_to"}
_PLAIN = (torch.Size, torch.dtype, torch.device, torch.layout, bool, int, float, str, type(None))


@dataclass(frozen=True)
class Slot:
    """Stands for a tensor that each replay has anew."""

    index: int


@dataclass(frozen=True)
class _Instruction:
    """One call of a torch function, with slots among its arguments, and where its tensors go."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    fills: tuple[tuple[int, int], ...] | None
    """Positions of arguments that are slots, and these; None where slots are nested deeper."""
    returned: Any
    keeps: bool
    """Whether it does more than return: draws numbers, changes a tensor, turns gradients on or off."""

    def run(self, found: list[Any]) -> None:
        """Call the function on the tensors of the slots, and put what it returns into its own."""
        if self.fills is None:
            args, kwargs = _filled(self.args, found), _filled(self.kwargs, found)
        else:
            ready, kwargs = list(self.args), self.kwargs
            for position, slot in self.fills:
                ready[position] = found[slot]
            args = ready
        returned = self.function(*args, **kwargs)
        if type(self.returned) is Slot:
            found[self.returned.index] = returned
        elif self.returned is not None:
            _store(self.returned, returned, found)


class Tape(TorchFunctionMode):
    """Records the calls of torch functions within it, but those that do not depend on the inputs or on chance.

    Their results are kept, with their gradients: a program that is replayed at many time bins computes once what
    depends on parameters alone. Each answer that the program gets about numbers, as in `if x.any()`, is an assumption,
    which replays check.

    Args:
        inputs: tensors that a replay has anew; where one is given twice, it must be so in replays, too.

    Example::

        >>> with (tape := Tape([x := torch.ones(2)])):
        ...     y = x + torch.tensor(2.0).exp()
        >>> replay = tape.finish((), [y])
        >>> len(replay.instructions), replay([torch.zeros(2)])[0]
        (1, tensor([7.3891, 7.3891]))
    """

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        super().__init__()
        self._inputs = self._size = len(inputs)
        # Tensors are kept, so that no other one gets the identity of one of them; with the history that each had.
        self._slots: dict[int, tuple[int, Tensor, Any]] = {id(x): (i, x, x.grad_fn) for i, x in enumerate(inputs)}
        self._instructions: list[_Instruction] = []
        self._assumed: list[tuple[Slot, bool]] = []
        self._again: dict[Any, Any] = {}
        self._fixed = {x.untyped_storage().data_ptr() for x in inputs}
        self._surroundings = _surroundings()
        self.fault = ""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call the function, and note it where its result may be another one the next time."""
        kwargs = kwargs or {}
        if self.fault:
            return func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        with_slots = self._marked(args), self._marked(kwargs)
        varies = with_slots[0] is not args or with_slots[1] is not kwargs
        if name == "__bool__" and varies:
            answer: bool = func(*args)
            self._assumed.append((with_slots[0][0], answer))
            return answer
        changed = kwargs.get("out", args[0] if args and (_changes(name) or kwargs.get("inplace")) else None)
        if varies:
            self._check(name, args)
        if name == "batch_norm" and kwargs.get("training") and args[1] is not None:
            self._spoil("it changes running means and variances (`batch_norm`)")
        if self._surroundings != _surroundings():
            self._spoil("it turns inference mode or autocast on or off")
        if changed is not None and not self._may_change(changed):
            self._spoil(f"it changes a tensor in place that it has not made itself (`{name}`)")
        call = (func, torch.is_grad_enabled(), _frozen(with_slots)) if varies and changed is None else None
        if call is not None and call in self._again:
            return self._shared(self._again[call][0])
        before, versions = torch.get_rng_state(), _versions(args)
        returned = func(*args, **kwargs)
        if changed is None and versions != _versions(args):
            self._spoil(f"it calls a function that changes a tensor in place (`{name}`)")
        keeps = changed is not None or name in _STATES or not torch.equal(before, torch.get_rng_state())
        if varies and _is_the_same(name, args, returned):
            self._put(returned, self._slots[id(args[0])][0])
        elif varies or keeps or name in _TO_BE_FILLED:
            self._note(func, with_slots, returned, keeps=keeps)
        if changed is not None:
            # What was computed from it before is not what would be computed from it now.
            self._again.clear()
            self._put(changed, self._slots.get(id(changed), (self._size,))[0])
        elif call is not None and not keeps:
            self._again[call] = returned, with_slots  # Kept, too: identities are compared.
        return returned

    def _shared(self, returned: Any) -> Any:
        """Return what an equal call returned, which must not be changed from now on."""
        self._fixed |= {x.untyped_storage().data_ptr() for x in leaves(returned) if isinstance(x, Tensor)}
        return returned

    def _spoil(self, fault: str) -> None:
        self.fault = self.fault or f"{fault}, in {users_line()}"

    def _may_change(self, x: Any) -> bool:
        """Whether a tensor is made anew by each replay: what is given, or kept, would be changed twice."""
        return id(x) in self._slots and x.untyped_storage().data_ptr() not in self._fixed

    def _check(self, name: str, args: tuple[Any, ...]) -> None:
        if name in _READS or name == "__set__":
            self._spoil(f"it reads or sets numbers of tensors in Python (`{name}`)")
        by_mask = name == "__getitem__" and any(
            isinstance(x, Tensor) and x.dtype in (torch.bool, torch.uint8) for x in leaves(args[1:])
        )
        if name in _SHAPES or by_mask or (name == "where" and len(args) == 1):
            self._spoil(f"it makes tensors whose shapes depend on numbers (`{name}`)")

    def _marked(self, value: Any) -> Any:
        """Return arguments with slots in place of tensors that have one; the very same object where none has."""
        if isinstance(value, Tensor):
            known = self._slots.get(id(value))
            if torch._C._functorch.is_functorch_wrapped_tensor(value):
                self._spoil("it uses transforms of torch.func")
            if known is None:
                return value
            if known[2] is not value.grad_fn:
                self._spoil("it calls a torch.autograd.Function of its own, or changes a history of gradients")
            return Slot(known[0])
        if isinstance(value, dict):
            marked = {key: self._marked(item) for key, item in value.items()}
            return value if all(marked[key] is value[key] for key in value) else marked
        if isinstance(value, slice):
            parts = (value.start, value.stop, value.step)
            found = [self._marked(part) for part in parts]
            return value if all(a is b for a, b in zip(parts, found, strict=True)) else slice(*found)
        if isinstance(value, tuple | list) and not isinstance(value, torch.Size):
            found = [self._marked(item) for item in value]
            if all(a is b for a, b in zip(value, found, strict=True)):
                return value
            return found if isinstance(value, list) else tuple(found)
        return value

    def _note(self, func: Callable[..., Any], with_slots: tuple[Any, Any], returned: Any, *, keeps: bool) -> None:
        args, kwargs = with_slots
        where = self._placed(returned)
        if where is None and not keeps:
            return  # A shape, a type: the same the next time.
        fills: tuple[tuple[int, int], ...] | None
        fills = tuple((i, x.index) for i, x in enumerate(args) if isinstance(x, Slot))
        rest = [x for x in (*args, *kwargs.values()) if not isinstance(x, Tensor | Slot)]
        if any(isinstance(x, Slot) for x in (*leaves(rest), *kwargs.values())):
            fills = None
        func = _BATCHED.get(func, func)
        self._instructions.append(_Instruction(func, args, kwargs, fills, where, keeps))

    def _put(self, x: Tensor, index: int) -> None:
        self._slots[id(x)] = index, x, x.grad_fn

    def _placed(self, returned: Any) -> Any:
        """Return the slots of what a function returned; None where it holds no tensors."""
        if isinstance(returned, Tensor):
            known = self._slots.get(id(returned))
            index = self._size if known is None else known[0]
            self._size = max(self._size, index + 1)
            self._put(returned, index)
            return Slot(index)
        if isinstance(returned, tuple | list) and not isinstance(returned, torch.Size):
            return tuple(self._placed(item) for item in returned)
        if not isinstance(returned, _PLAIN):
            name = type(returned).__name__
            # A history of gradients is asked for by Pyro and torch alone, and only whether there is one.
            if not hasattr(returned, "next_functions"):
                self._spoil(f"it calls a torch function that returns no tensors (a {name})")
        return None

    def finish(self, names: tuple[str, ...], outputs: Sequence[Tensor]) -> Replay:
        """Return what replays the recording: of the calls in it, those that the outputs or assumptions need.

        Args:
            names: of outputs, for those who replay it.
            outputs: of the program.
        """
        wanted = tuple(self._marked(x) for x in outputs)
        needed = {x.index for x in (*wanted, *(slot for slot, _ in self._assumed)) if isinstance(x, Slot)}
        kept: list[_Instruction] = []
        for each in reversed(self._instructions):
            made = {x.index for x in leaves(each.returned) if isinstance(x, Slot)}
            if each.keeps or made & needed:
                needed |= {x.index for x in (*leaves(each.args), *leaves(each.kwargs)) if isinstance(x, Slot)}
                kept.append(each)
        return Replay(names, tuple(reversed(kept)), wanted, tuple(self._assumed), self._inputs, self._size)


@dataclass(frozen=True)
class Replay:
    """Calls of torch functions, in order."""

    names: tuple[str, ...]
    instructions: tuple[_Instruction, ...]
    outputs: tuple[Any, ...]
    assumed: tuple[tuple[Slot, bool], ...]
    num_inputs: int
    num_slots: int

    def __call__(self, inputs: Sequence[Tensor]) -> list[Tensor] | None:
        """Return the outputs of the program on other inputs; None where an assumption does not hold."""
        outputs, asked = self._run(inputs)
        return outputs if self._holds(torch.stack(asked) if asked else None) else None

    def together(self, inputs: Sequence[Tensor]) -> list[Tensor] | None:
        """Return the outputs on many inputs at once, all of which have one more dim in front.

        Raises:
            RuntimeError: if the program draws, or does what `torch.vmap` does not.
        """
        outputs, asked = torch.vmap(self._run)(list(inputs))
        return outputs if self._holds(torch.stack(asked, -1).flatten(0, -2) if asked else None) else None

    def _holds(self, answers: Tensor | None) -> bool:
        """Whether answers, `... x assumptions`, are those of the recording."""
        if answers is None:
            return True
        return bool((answers == torch.tensor([assumed for _, assumed in self.assumed])).all())

    def _run(self, inputs: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Return the outputs, and answers to what the program asked."""
        found: list[Any] = [*inputs, *(None,) * (self.num_slots - self.num_inputs)]
        with torch.set_grad_enabled(torch.is_grad_enabled()):
            for instruction in self.instructions:
                instruction.run(found)
        outputs = [found[x.index] if isinstance(x, Slot) else x for x in self.outputs]
        return outputs, [found[slot.index].detach().reshape(()).bool() for slot, _ in self.assumed]


def _changes(name: str) -> bool:
    """Whether a function changes its first argument."""
    return name in _IN_PLACE or (name.endswith("_") and not name.endswith("__"))


def _versions(args: tuple[Any, ...]) -> list[int]:
    """Return how often each tensor has been changed; those of inference mode do not know."""
    return [x._version for x in args if isinstance(x, Tensor) and not x.is_inference()]


def _surroundings() -> tuple[bool, bool]:
    return torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")


def _is_the_same(name: str, args: tuple[Any, ...], returned: Any) -> bool:
    """Whether a function has returned its argument in the shape that it had, as where plates repeat a tensor."""
    if name not in _RESHAPE or not isinstance(args[0], Tensor) or not isinstance(returned, Tensor):
        return False
    return returned.shape == args[0].shape and returned.dtype == args[0].dtype


def _frozen(value: Any) -> Any:
    """Return arguments as something that can be compared: tensors and what is no number or name by their identity."""
    if isinstance(value, dict):
        return tuple((key, _frozen(item)) for key, item in value.items())
    if isinstance(value, slice):
        return slice, _frozen((value.start, value.stop, value.step))
    if isinstance(value, tuple | list):
        return tuple(map(_frozen, value))
    # 1 and 1.0 and True are equal, and make other tensors.
    return (type(value), value) if isinstance(value, (Slot, *_PLAIN)) else id(value)


def leaves(value: Any) -> Iterable[Any]:
    """Yield what is nested in arguments."""
    if isinstance(value, dict):
        for item in value.values():
            yield from leaves(item)
    elif isinstance(value, slice):
        yield from (value.start, value.stop, value.step)
    elif isinstance(value, tuple | list):
        for item in value:
            yield from leaves(item)
    else:
        yield value


def _filled(value: Any, found: list[Any]) -> Any:
    """Return nested arguments with the tensors of their slots."""
    if isinstance(value, Slot):
        return found[value.index]
    if isinstance(value, dict):
        return {key: _filled(item, found) for key, item in value.items()}
    if isinstance(value, slice):
        return slice(*(_filled(part, found) for part in (value.start, value.stop, value.step)))
    if isinstance(value, torch.Size):
        return value
    if isinstance(value, tuple | list):
        filled = [_filled(item, found) for item in value]
        return filled if isinstance(value, list) else tuple(filled)
    return value


def _store(where: Any, returned: Any, found: list[Any]) -> None:
    """Put nested tensors into their slots."""
    if isinstance(where, Slot):
        found[where.index] = returned
    elif where is not None:
        for place, item in zip(where, returned, strict=True):
            _store(place, item, found)
