"""What is recorded, what is kept, and what spoils a recording."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pyro_lowrank.smc.tape import Replay, Tape


def recorded(program: Callable[..., Any], *inputs: Tensor) -> tuple[Tape, Replay, list[Tensor]]:
    """Return the tape of a program, its replay, and what it returned."""
    with Tape(inputs) as tape:
        returned = program(*inputs)
    outputs = [returned] if isinstance(returned, Tensor) else list(returned)
    return tape, tape.finish((), outputs), outputs


def slope(x: Tensor) -> Tensor:
    """The derivative of a cube."""
    x.requires_grad_()
    return torch.autograd.grad((x**3).sum(), x)[0]


@pytest.mark.parametrize(
    "program",
    [
        lambda x, y: (x @ y.mT).softmax(-1),
        lambda x, y: torch.cat([row * 2 for row in x] + [y[0, 1:2]]),
        lambda x, y: torch.stack([*x.unbind(-1), y.sum(-1)])[..., :2],
        lambda x, y: torch.where(x > 0, x, y).expand(4, 2, 3).reshape(8, 3),
        lambda x, y: [x.clone().mul_(y), x.max(-1).values, y],
        lambda x, y: torch.einsum("ij,kj->ik", x, y) + len(x) + x.shape[-1],
        lambda x, y: slope(x.detach().clone()) * y,
        lambda x, y: torch.normal(x, y.abs()),
        lambda x, y: torch.empty(2, 3).exponential_() + x,
    ],
)
def test_a_replay_is_the_program(program: Callable[..., Any]) -> None:
    _, replay, _ = recorded(program, torch.randn(2, 3), torch.randn(2, 3))
    x, y = torch.randn(2, 3), torch.randn(2, 3)
    torch.manual_seed(0)
    found = replay([x.clone(), y.clone()])
    torch.manual_seed(0)
    expected = program(x.clone(), y.clone())
    assert found is not None
    torch.testing.assert_close(found, [expected] if isinstance(expected, Tensor) else list(expected))


def test_what_depends_on_no_input_is_computed_once_with_its_gradient() -> None:
    weight = torch.tensor(2.0, requires_grad=True)
    _, replay, _ = recorded(lambda x: x * weight.exp().square(), torch.ones(3))
    assert [each.function.__name__ for each in replay.instructions] == ["mul"]
    found = replay([torch.arange(3.0)])
    assert found is not None
    found[0].sum().backward()
    torch.testing.assert_close(weight.grad, 3 * 2 * torch.tensor(4.0).exp())


def test_a_gradient_mode_is_the_programs_and_ends_with_it() -> None:
    def program(x: Tensor) -> Tensor:
        with torch.no_grad():
            constant = x.exp()
        return x * constant

    _, replay, _ = recorded(program, torch.ones(2, requires_grad=True))
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    found = replay([x])
    assert found is not None
    found[0].sum().backward()
    torch.testing.assert_close(x.grad, x.detach().exp())
    assert torch.is_grad_enabled()


def test_answers_are_assumptions() -> None:
    _, replay, _ = recorded(lambda x: x + 1 if (x > 0).all() else x - 1, torch.ones(2))
    assert replay([torch.tensor([1.0, 3.0])]) is not None
    assert replay([torch.tensor([1.0, -3.0])]) is None
    assert replay.together([torch.tensor([[1.0, 2.0], [3.0, 4.0]])])[0].tolist() == [[2.0, 3.0], [4.0, 5.0]]  # type: ignore[index]
    assert replay.together([torch.tensor([[1.0, 2.0], [3.0, -4.0]])]) is None


@pytest.mark.parametrize(
    ("program", "why"),
    [
        (lambda x: x + x.sum().item(), "item"),
        (lambda x: x + float(x[0]), "__float__"),
        (lambda x: x + x.numpy().sum(), "numpy"),
        (lambda x: x[x > 0].sum(), "__getitem__"),
        (lambda x: x.nonzero().sum(), "nonzero"),
        (lambda x: x.add_(1.0), "in place"),
        (lambda x: torch.zeros(3).copy_(x), "in place"),
        (lambda x: x[:1].zero_(), "in place"),
        (lambda x: torch.vmap(torch.sin)(x), "torch.func"),
    ],
)
def test_what_spoils_a_tape_is_named_and_run_to_its_end(program: Callable[[Tensor], Tensor], why: str) -> None:
    x = torch.arange(3.0)
    with Tape([x]) as tape:
        found = program(x)
    assert why in tape.fault
    assert __file__ in tape.fault
    torch.testing.assert_close(found, program(torch.arange(3.0)))


def test_one_tensor_given_twice_is_one() -> None:
    x, y = torch.ones(2), torch.tensor([3.0, 4.0])
    _, replay, _ = recorded(lambda x, y: x + 2 * y, x, x)
    assert replay([y, y])[0].tolist() == [9.0, 12.0]  # type: ignore[index]
