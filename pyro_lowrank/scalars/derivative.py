"""Exact derivatives of expressions."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from pyro_lowrank.scalars.expression import ONE, ZERO, Expression, make, number, parts


def _times(*factors: Expression) -> Expression:
    product = ONE
    for each in factors:
        product = make("multiply", product, each)
    return product


def _of_slope(x: Expression, itself: Expression) -> Expression:
    # s = sigmoid(x) / softplus(x): s' = s (1 - sigmoid(x) - s), of which the bracket vanishes far to the left.
    return _times(itself, make("subtract", make("sigmoid", make("negative", x)), itself))


# Of the argument, and of the function itself there.
_DERIVATIVES: Mapping[str, Callable[[Expression, Expression], Expression]] = {
    "exp": lambda x, f: f,
    "expm1": lambda x, f: make("exp", x),
    "log": lambda x, f: make("divide", ONE, x),
    "log1p": lambda x, f: make("divide", ONE, make("add", ONE, x)),
    "sqrt": lambda x, f: make("divide", number(0.5), f),
    "tanh": lambda x, f: make("subtract", ONE, _times(f, f)),
    "sigmoid": lambda x, f: _times(f, make("sigmoid", make("negative", x))),
    "softplus": lambda x, f: make("sigmoid", x),
    "log_softplus": lambda x, f: make("log_softplus_slope", x),
    "log_softplus_slope": _of_slope,
    "lgamma": lambda x, f: make("digamma", x),
    "digamma": lambda x, f: make("trigamma", x),
    "erf": lambda x, f: _times(number(2 / math.sqrt(math.pi)), make("exp", make("negative", _times(x, x)))),
    "absolute": lambda x, f: make("sign", x),
    "sign": lambda x, f: ZERO,
    "sin": lambda x, f: make("cos", x),
    "cos": lambda x, f: make("negative", make("sin", x)),
}


def derivative(expression: Expression, by: Expression) -> Expression:
    """Return the derivative of an expression by a name.

    At the border of two branches it is that of the branch which is taken there.

    Raises:
        ValueError: if a part has no derivative here: the third one of lgamma.

    Example::

        >>> from pyro_lowrank.scalars.expression import name
        >>> x = name("x")
        >>> derivative(make("multiply", x, make("exp", x)), x)
        add(exp(x), multiply(x, exp(x)))
    """
    found: dict[Expression, Expression] = {}
    for each in parts(expression):
        found[each] = ONE if each is by else _of_part(each, found)
    return found[expression]


def _of_part(each: Expression, known: Mapping[Expression, Expression]) -> Expression:
    arguments = each.arguments
    changes = [known[argument] for argument in arguments]
    if not arguments or all(change is ZERO for change in changes) or each.is_condition:
        return ZERO
    if each.operation in ("add", "subtract", "negative"):
        return make(each.operation, *changes)
    if each.operation == "where":
        return make("where", arguments[0], changes[1], changes[2])
    if each.operation == "multiply":
        return make("add", _times(changes[0], arguments[1]), _times(arguments[0], changes[1]))
    if each.operation == "divide":
        return make("divide", make("subtract", changes[0], _times(each, changes[1])), arguments[1])
    if each.operation == "log_rising":
        x, n = arguments
        further = make("digamma", make("add", x, n))
        return make(
            "add", _times(changes[0], make("subtract", further, make("digamma", x))), _times(changes[1], further)
        )
    if each.operation not in _DERIVATIVES:
        raise ValueError(f"The derivative of {each.operation} is not known here.")
    return _times(changes[0], _DERIVATIVES[each.operation](arguments[0], each))
