"""Expressions of numbers: a graph in which equal parts are one part."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from weakref import WeakValueDictionary


@dataclass(frozen=True, eq=False)
class Expression:
    """A number, a name, or an operation on expressions; two that are equal are the same object.

    Attributes:
        operation: `"number"`, `"name"`, one of `FUNCTIONS` and `CONDITIONS`, or `"add"`, `"subtract"`, `"multiply"`,
            `"divide"`, `"negative"`, `"where"` or `"log_rising"`, lgamma(x + n) - lgamma(x) without the cancellation.
        arguments: what it is applied to.
        content: the number or the name.

    Example::

        >>> x = name("x")
        >>> make("add", make("multiply", x, number(2.0)), number(0.0))
        multiply(x, 2.0)
    """

    operation: str
    arguments: tuple[Expression, ...] = ()
    content: float | str = 0.0

    def __repr__(self) -> str:
        if self.operation in ("number", "name"):
            return str(self.content)
        return f"{self.operation}({', '.join(map(repr, self.arguments))})"

    @property
    def is_condition(self) -> bool:
        """Whether it is true or false, and no number."""
        return self.operation in CONDITIONS


FUNCTIONS = (
    *("exp", "expm1", "log", "log1p", "sqrt", "tanh", "sigmoid", "softplus", "log_softplus", "log_softplus_slope"),
    *("lgamma", "digamma", "trigamma", "erf", "absolute", "sign", "sin", "cos"),
)
"""Functions of one number."""
CONDITIONS = ("less", "less_equal", "equal", "and", "or", "not")

_known: WeakValueDictionary[tuple[str, tuple[int, ...], str], Expression] = WeakValueDictionary()


def _one(operation: str, arguments: tuple[Expression, ...], content: float | str = 0.0) -> Expression:
    key = operation, tuple(map(id, arguments)), repr(content)
    found = _known.get(key)
    if found is None:
        found = _known[key] = Expression(operation, arguments, content)
    return found


def number(value: float) -> Expression:
    """Return a number."""
    return _one("number", (), float(value))


def name(value: str) -> Expression:
    """Return what stands for a number."""
    return _one("name", (), value)


ZERO, ONE = number(0.0), number(1.0)


def make(operation: str, *arguments: Expression) -> Expression:
    """Return an operation on expressions, in its simplest form.

    Stable forms stand in for what overflows or cancels: `log(1 + exp(x))` becomes `softplus(x)`, `log(softplus(x))` is
    finite wherever x is, and so on.

    Example::

        >>> x = name("x")
        >>> make("log", make("add", ONE, make("exp", x)))
        softplus(x)
        >>> make("multiply", ZERO, make("log", x))
        0.0
    """
    if operation in _FOLDED and all(each.operation == "number" for each in arguments):
        try:
            return number(_FOLDED[operation](*(float(each.content) for each in arguments)))
        except (ValueError, OverflowError, ZeroDivisionError):
            return _one(operation, arguments)
    rule = _RULES.get(operation)
    found = None if rule is None else rule(*arguments)
    return _one(operation, arguments) if found is None else found


_FOLDED: Mapping[str, Callable[..., float]] = {
    "add": lambda a, b: a + b,
    "subtract": lambda a, b: a - b,
    "multiply": lambda a, b: a * b,
    "divide": lambda a, b: a / b,
    "negative": lambda a: -a,
    "absolute": abs,
    **{each: getattr(math, each) for each in ("exp", "expm1", "log", "log1p", "sqrt", "tanh", "lgamma", "sin", "cos")},
}


def _add(a: Expression, b: Expression) -> Expression | None:
    if a is ZERO:
        return b
    if b.operation == "negative":
        return make("subtract", a, b.arguments[0])
    return a if b is ZERO else None


def _subtract(a: Expression, b: Expression) -> Expression | None:
    if a is b:
        return ZERO
    if a is ZERO:
        return make("negative", b)
    if a is ONE and b.operation == "sigmoid":
        return make("sigmoid", make("negative", b.arguments[0]))
    if b.operation == "negative":
        return make("add", a, b.arguments[0])
    return a if b is ZERO else None


def _multiply(a: Expression, b: Expression) -> Expression | None:
    if a is ZERO or b is ZERO:
        return ZERO
    if a is ONE:
        return b
    for one, other in ((a, b), (b, a)):
        if one.operation == "negative":
            return make("negative", make("multiply", one.arguments[0], other))
        if one.operation == "number" and one.content == -1.0:
            return make("negative", other)
        if one.operation == "where" and one.arguments[1:] in ((ZERO, ONE), (ONE, ZERO)):
            # A zero must stay one where the other factor overflows.
            condition, a_side, b_side = one.arguments
            return make("where", condition, make("multiply", a_side, other), make("multiply", b_side, other))
    return a if b is ONE else None


def _divide(a: Expression, b: Expression) -> Expression | None:
    if a is ZERO:
        return ZERO
    if a.operation == "negative":
        return make("negative", make("divide", a.arguments[0], b))
    # 1 / (1 + exp(x)) and exp(x) / (1 + exp(x)), whose derivatives would overflow.
    if b.operation == "add" and ONE in b.arguments:
        other = b.arguments[1] if b.arguments[0] is ONE else b.arguments[0]
        if other.operation == "exp" and a in (ONE, other):
            x = other.arguments[0]
            return make("sigmoid", x if a is other else make("negative", x))
    return a if b is ONE else None


def _negative(a: Expression) -> Expression | None:
    if a.operation == "subtract":
        return make("subtract", a.arguments[1], a.arguments[0])
    return a.arguments[0] if a.operation == "negative" else None


def _exp(a: Expression) -> Expression | None:
    return {"log": lambda x: x, "log_softplus": lambda x: make("softplus", x)}.get(a.operation, _nothing)(*a.arguments)


def _log(a: Expression) -> Expression | None:
    if a.operation == "add" and ONE in a.arguments:
        return make("log1p", a.arguments[1] if a.arguments[0] is ONE else a.arguments[0])
    found = {
        "exp": lambda x: x,
        "softplus": lambda x: make("log_softplus", x),
        "sigmoid": lambda x: make("negative", make("softplus", make("negative", x))),
    }
    return found.get(a.operation, _nothing)(*a.arguments)


def _log1p(a: Expression) -> Expression | None:
    return make("softplus", a.arguments[0]) if a.operation == "exp" else None


def _nothing(*arguments: Expression) -> None:
    return None


def _where(condition: Expression, a: Expression, b: Expression) -> Expression | None:
    if a is b:
        return a
    if condition.operation == "number":
        return a if condition.content else b
    return None


def _compare(compare: Callable[[float, float], bool], same: bool) -> Callable[..., Expression | None]:
    def rule(a: Expression, b: Expression) -> Expression | None:
        if a is b:
            return number(float(same))
        if a.operation == b.operation == "number":
            return number(float(compare(float(a.content), float(b.content))))
        return None

    return rule


def _and(a: Expression, b: Expression) -> Expression | None:
    for one, other in ((a, b), (b, a)):
        if one.operation == "number":
            return other if one.content else ZERO
    return a if a is b else None


def _or(a: Expression, b: Expression) -> Expression | None:
    for one, other in ((a, b), (b, a)):
        if one.operation == "number":
            return ONE if one.content else other
    return a if a is b else None


def _not(a: Expression) -> Expression | None:
    if a.operation == "number":
        return number(float(not a.content))
    return a.arguments[0] if a.operation == "not" else None


_RULES: Mapping[str, Callable[..., Expression | None]] = {
    "add": _add,
    "subtract": _subtract,
    "multiply": _multiply,
    "divide": _divide,
    "negative": _negative,
    "exp": _exp,
    "log": _log,
    "log1p": _log1p,
    "where": _where,
    "less": _compare(lambda a, b: a < b, same=False),
    "less_equal": _compare(lambda a, b: a <= b, same=True),
    "equal": _compare(lambda a, b: a == b, same=True),
    "and": _and,
    "or": _or,
    "not": _not,
}


def power(base: Expression, exponent: Expression) -> Expression:
    """Return a power: of a small whole exponent by multiplication, else by the logarithm of a base above zero."""
    if exponent.operation == "number":
        value = float(exponent.content)
        if value == 0.5:
            return make("sqrt", base)
        if value == int(value) and 0 < abs(value) <= 16:
            product = base
            for _ in range(int(abs(value)) - 1):
                product = make("multiply", product, base)
            return product if value > 0 else make("divide", ONE, product)
    return make("exp", make("multiply", exponent, make("log", base)))


def smaller(a: Expression, b: Expression) -> Expression:
    """Return the smaller of two."""
    return make("where", make("less", b, a), b, a)


def larger(a: Expression, b: Expression) -> Expression:
    """Return the larger of two."""
    return make("where", make("less", a, b), b, a)


def parts(*expressions: Expression) -> Iterator[Expression]:
    """Yield each part of the expressions once, what it is made of before itself."""
    seen: set[int] = set()
    stack = [(each, False) for each in reversed(expressions)]
    while stack:
        each, ready = stack.pop()
        if ready:
            yield each
        elif id(each) not in seen:
            seen.add(id(each))
            stack.append((each, True))
            stack.extend((argument, False) for argument in reversed(each.arguments))


def names_in(expression: Expression) -> frozenset[str]:
    """Return the names that an expression depends on."""
    return frozenset(str(each.content) for each in parts(expression) if each.operation == "name")


def replace(expression: Expression, by: Mapping[Expression, Expression]) -> Expression:
    """Return an expression with parts in place of others, simplified anew.

    Example::

        >>> y, x = name("y"), name("x")
        >>> replace(make("subtract", make("multiply", y, make("log", x)), x), {y: ZERO})
        negative(x)
    """
    new: dict[Expression, Expression] = {}
    for each in parts(expression):
        if each in by:
            new[each] = by[each]
        elif each.arguments:
            new[each] = make(each.operation, *(new[argument] for argument in each.arguments))
        else:
            new[each] = each
    return new[expression]


def terms(expression: Expression) -> Iterator[tuple[bool, Expression]]:
    """Yield the terms of a sum, each with whether it is added and not subtracted."""
    stack = [(True, expression)]
    while stack:
        positive, each = stack.pop()
        if each.operation == "negative":
            stack.append((not positive, each.arguments[0]))
        elif each.operation in ("add", "subtract"):
            first, second = each.arguments
            stack += [(positive == (each.operation == "add"), second), (positive, first)]
        else:
            yield positive, each


def total(signed: Iterator[tuple[bool, Expression]]) -> Expression:
    """Return the sum of terms."""
    found = ZERO
    for positive, each in signed:
        found = make("add" if positive else "subtract", found, each)
    return found
