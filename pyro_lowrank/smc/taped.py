"""Steps of programs that a user has written: run under Pyro's handlers once, from a tape at the other time bins."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from pyro_lowrank.smc.attributes import attributes, changed
from pyro_lowrank.smc.counting import Results, close, repeats, same
from pyro_lowrank.smc.effects import Call, EffectsKernel, FromModel
from pyro_lowrank.smc.loop import State
from pyro_lowrank.smc.tape import Replay, Tape, leaves

# A program that takes more turns than this, or whose state has more forms, is recorded no more.
_MOST = 6
_log = logging.getLogger("pyro_lowrank")


@dataclass
class Kept:
    """What is kept of runs of a program, for those who run it again with its sites set.

    Attributes:
        homes: where its `init` (True) and `step` (False) keep their latent sites.
        broadcasts: whether earlier and later states of pairs, so many, may lie in dims of their own.
        hidden: what a step depends on beside the state and its arguments; nothing where there is none.
    """

    homes: dict[bool, dict[str, Any]] = field(default_factory=dict)
    broadcasts: dict[tuple[int, int], bool] = field(default_factory=dict)
    hidden: str = ""


@dataclass
class _Known:
    """What runs of a program have shown.

    Attributes:
        kept: what others keep.
        steps: of the longest run in which each of its parts, replayed, agreed with itself.
        runs: so many have begun.
        fault: why it cannot be replayed; nothing where it can.
    """

    kept: Kept = field(default_factory=Kept)
    steps: dict[str, int] = field(default_factory=dict)
    runs: int = 0
    fault: str = ""


# By identity: programs need not be hashable, as data classes are not, and equal ones are not the same.
_known: Any = WeakIdKeyDictionary()


def _what_is_known(model: Any, guide: Any) -> _Known:
    """Return what runs of a model and guide have shown; of classes, where objects cannot be referred to weakly."""
    # Guides that propose nothing are made anew for each run.
    keys = [type(x) if isinstance(x, FromModel) or not _can_be_referred_to(x) else x for x in (model, guide)]
    guides = _known.setdefault(keys[0], WeakIdKeyDictionary())
    found: _Known = guides.setdefault(keys[1], _Known())
    return found


def _can_be_referred_to(program: Any) -> bool:
    try:
        weakref.ref(program)
    except TypeError:
        return False
    return True


class Untaped:
    """Runs each step as it is.

    Args:
        kept: of earlier runs.
    """

    def __init__(self, kept: Kept | None = None) -> None:
        self.kept = Kept() if kept is None else kept

    def run(self, part: str, step: Callable[[], Results], given: Any) -> Results:
        """Return the results of a step."""
        return step()

    def together(self, part: str, steps: Sequence[Any]) -> Iterator[tuple[list[int], list[Tensor]]]:
        """Yield indices of steps that can be run at once, and the sums of their numbers."""
        return iter(())

    def finish(self) -> None:
        """Note that the whole run went well."""


class Tapes(Untaped):
    """Runs the first step of each form as it is, and records what it does to tensors; replays that for the others.

    What depends on parameters alone is computed once, by the first step. In the first run of a program, the second,
    the fourth, the eighth and so on all steps are run both ways: where they differ, as those of a program that counts
    its steps do, it is not replayed, and the log says so. (What parameters that start at zero hide in the first run
    shows in the second.)

    Args:
        model: the program.
        guide: the program that proposes.
        num_steps: of the run.
    """

    def __init__(self, model: Any, guide: Any, num_steps: int) -> None:
        self._programs, self._num_steps = (model, guide), num_steps
        self._replays: dict[Any, list[Replay]] = {}
        self._parts: set[str] = set()
        self._has_changed = False
        self._doubtful: tuple[Callable[[], Results], Results, Tensor] | None = None
        self._known = _what_is_known(model, guide)
        self._known.runs += 1
        self._runs_both_ways = self._known.runs & (self._known.runs - 1) == 0
        self.kept = self._known.kept

    def run(self, part: str, step: Callable[[], Results], given: Any) -> Results:
        """Return the results of a step.

        Args:
            part: what is done.
            step: the step.
            given: the state before it, and the arguments, nested: tensors among them may be others the next time.
        """
        if self._known.fault:
            return step()
        inputs = [x for x in leaves(given) if isinstance(x, Tensor)]
        form = (part, torch.is_grad_enabled(), *_form(given))
        replays = self._replays.setdefault(form, [])
        seed = torch.get_rng_state()
        for replay in replays:
            found = self._replayed(replay, inputs)
            if found is not None:
                return found if self._agreed(part) else self._compared(step, found, seed)
            torch.set_rng_state(seed)
        if len(replays) >= _MOST or len(self._replays) > 4 * _MOST:
            self._refuse("its control flow depends on values, or its state has ever new forms")
        return self._recorded(step, inputs, replays)

    def together(self, part: str, steps: Sequence[Any]) -> Iterator[tuple[list[int], list[Tensor]]]:
        """Yield indices of steps that can be run at once, and the sums of their numbers.

        Args:
            part: what is done.
            steps: what is given to each, the state before it first; states must not depend on other steps.
        """
        if self._known.fault or not self._agreed(part):
            return
        forms: dict[Any, list[int]] = {}
        for i, given in enumerate(steps):
            forms.setdefault((part, torch.is_grad_enabled(), *_form(given)), []).append(i)
        for form, indices in forms.items():
            inputs = [[x for x in leaves(steps[i]) if isinstance(x, Tensor)] for i in indices]
            for replay in self._replays.get(form, []):
                numbers = self._at_once(replay, f"{part} at once", inputs)
                if numbers is not None:
                    yield indices, numbers
                    break

    def _at_once(self, replay: Replay, part: str, inputs: Sequence[Sequence[Tensor]]) -> list[Tensor] | None:
        """Return the sums of the numbers of some steps; None where they are to be run one by one."""
        seed, first = torch.get_rng_state(), len(replay.names)
        try:
            found = replay.together([torch.stack(column) for column in zip(*inputs, strict=True)])
        except (RuntimeError, ValueError, TypeError, IndexError, NotImplementedError):
            found = None
        if found is None or not torch.equal(seed, torch.get_rng_state()):
            torch.set_rng_state(seed)
            return None
        sums = [x.sum(0) for x in found[first:]]
        if not self._agreed(part):
            with torch.no_grad():
                each = [replay(given) for given in inputs]
            if any(one is None for one in each):
                return None
            expected = [sum(column) for column in zip(*(one[first:] for one in each if one), strict=True)]
            if not all(close(x.detach(), y) for x, y in zip(sums, expected, strict=True) if isinstance(y, Tensor)):
                self._parts.discard(part)
                return None
        return sums

    def finish(self) -> None:
        """Note that the whole run went well."""
        for part in self._parts:
            self._known.steps[part] = max(self._num_steps, self._known.steps.get(part, 0))
        if self._doubtful is not None:
            # Not before the end of the run: what counts its steps would count one too many.
            doubtful, self._doubtful = self._doubtful, None
            if not repeats(*doubtful):
                self.kept.hidden = "what is neither in its state nor among its arguments"

    def _agreed(self, part: str) -> bool:
        self._parts.add(part)
        return not self._runs_both_ways and self._known.steps.get(part, 0) >= self._num_steps

    def _replayed(self, replay: Replay, inputs: Sequence[Tensor]) -> Results | None:
        try:
            found = replay(inputs)
        except (RuntimeError, ValueError, TypeError, IndexError):
            return None  # The step itself says what is wrong, if anything is.
        if found is None:
            return None
        number = len(replay.names)
        return dict(zip(replay.names, found[:number], strict=True)), tuple(found[number:])

    def _compared(self, step: Callable[[], Results], found: Results, seed: Tensor) -> Results:
        drawn = torch.get_rng_state()
        torch.set_rng_state(seed)
        expected = step()
        if not same(found, expected) or not torch.equal(drawn, torch.get_rng_state()):
            self._refuse("it does something else at another time bin")
            self._doubtful = step, expected, seed
        return expected

    def _recorded(self, step: Callable[[], Results], inputs: Sequence[Tensor], replays: list[Replay]) -> Results:
        before = attributes(self._programs)
        with Tape(inputs) as tape:
            state, numbers = step()
        other = changed(before, attributes(self._programs))
        if other and not self._has_changed:
            # It may have kept what it computes once.
            self._has_changed = True
            return state, numbers
        fault = tape.fault or (f"it changes its attribute {other!r} as it runs" if other else "")
        if not all(isinstance(x, Tensor) for x in state.values()):
            fault = "its state holds something else than tensors"
        if any(x.device.type != "cpu" for x in inputs):
            fault = "its tensors are not on the CPU"
        if fault:
            self._refuse(fault)
        else:
            replays.append(tape.finish(tuple(state), (*state.values(), *numbers)))
        return state, numbers

    def _refuse(self, fault: str) -> None:
        if not self._known.fault:
            names = " and ".join(type(each).__name__ for each in self._programs)
            _log.info("The steps of %s run under Pyro's handlers at every time bin, not from a tape: %s.", names, fault)
        self._known.fault = fault


def _form(given: Any) -> Iterable[Any]:
    """Yield what a recording holds for: names, shapes and types, whether numbers are missing, and what is the same."""
    state, *_ = given
    yield tuple(state)
    places: dict[int, int] = {}
    for x in leaves(given):
        if isinstance(x, Tensor):
            yield places.setdefault(id(x), len(places))
            missing = x.is_floating_point() and bool(x.detach().isnan().any())
            yield tuple(x.shape), x.dtype, x.requires_grad, missing


class TapedKernel:
    """A kernel of programs whose steps are run from tapes.

    Args:
        kernel: of the programs.
        tapes: of one run.
    """

    def __init__(self, kernel: EffectsKernel, tapes: Untaped) -> None:
        self._kernel, self._tapes = kernel, tapes
        self.num_particles, self.batch_dims, self.slices = kernel.num_particles, kernel.batch_dims, kernel.slices
        self.init = kernel.init
        self._changed: list[str | None] = []
        self._counted: tuple[Callable[[], Results], Results, Tensor] | None = None

    def step(self, state: State, slice_t: Call) -> tuple[State, Tensor]:
        """Propose and weigh the next particles."""

        def plain() -> Results:
            if len(self._changed) == 2:
                after, log_weights = self._kernel.step(state, slice_t)
                return after, (log_weights,)
            seed, before = torch.get_rng_state(), attributes([self._kernel.model])
            after, log_weights = self._kernel.step(state, slice_t)
            other = changed(before, attributes([self._kernel.model]))
            # What a step keeps, as the second one may use, is changed but once.
            if other and other in self._changed:
                self._counted = plain, (after, (log_weights,)), seed
            self._changed.append(other)
            return after, (log_weights,)

        after, (log_weights,) = self._tapes.run("step", plain, (state, *slice_t.parts))
        return after, log_weights

    def finish(self) -> None:
        """Note that the whole run went well; not before, for what counts its steps would count one too many."""
        if self._counted is not None and not repeats(*self._counted):
            self._tapes.kept.hidden = f"its attribute {self._changed[-1]!r}, which it changes"
        self._tapes.finish()
