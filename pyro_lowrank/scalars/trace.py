"""From a function of numbers, as a user writes it, to an expression."""

from __future__ import annotations

import builtins
import math
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from types import CellType, CodeType, FunctionType, ModuleType, SimpleNamespace
from typing import Any

from pyro_lowrank.scalars.expression import (
    FUNCTIONS,
    ONE,
    ZERO,
    Expression,
    larger,
    make,
    name,
    number,
    power,
    smaller,
)

# A function with more ways through its branches is no function of numbers as a likelihood is.
_MOST_WAYS = 64


class CannotTrace(TypeError):
    """A function does something that an expression cannot hold."""


class _Way:
    """One way through the branches of a function: what was decided, and what is to be decided next."""

    def __init__(self, decided: Mapping[Expression, bool]) -> None:
        self.decided = dict(decided)
        self.next: Expression | None = None

    def decide(self, condition: Expression) -> bool:
        if condition.operation == "number":
            return bool(condition.content)
        if condition.operation == "not":
            return not self.decide(condition.arguments[0])
        if condition not in self.decided:
            self.next = condition
            raise _Undecided
        return self.decided[condition]


class _Undecided(BaseException):
    """Leaves a function where it branches; no `except Exception` of a user's own catches it."""


_way: ContextVar[_Way] = ContextVar("_way")


class Symbol:
    """What a traced function is called with: a number that is not known yet.

    Operators, functions of `math`, `numpy`, `scipy.special` and `torch`, and `if` make larger expressions of it.

    Example::

        >>> x = Symbol(name("x"))
        >>> (1 - x * x).expression
        subtract(1.0, multiply(x, x))
    """

    __array_priority__ = 1000

    def __init__(self, expression: Expression) -> None:
        self.expression = expression

    def __bool__(self) -> bool:
        expression = self.expression
        condition = expression if expression.is_condition else make("not", make("equal", expression, ZERO))
        return _way.get().decide(condition)

    def __hash__(self) -> int:
        return hash(self.expression)

    def __getattr__(self, attribute: str) -> Any:
        if attribute not in _BY_NAME:
            raise AttributeError(f"numbers of a traced function have no {attribute!r}")
        return lambda *arguments, **options: _BY_NAME[attribute](self, *arguments, **options)

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        if method != "__call__" or options or ufunc.__name__ not in _BY_NAME:
            raise CannotTrace(f"numpy's {ufunc.__name__} cannot be traced; known are {_KNOWN}")
        return _BY_NAME[ufunc.__name__](*inputs)

    def __array_function__(self, function: Any, kinds: Any, arguments: Any, options: Any) -> Any:
        return Symbol.__torch_function__(function, kinds, arguments, options)

    @classmethod
    def __torch_function__(cls, function: Any, kinds: Any, arguments: Any = (), options: Any = None) -> Any:
        called = getattr(function, "__name__", str(function))
        if called not in _BY_NAME:
            raise CannotTrace(f"{called} cannot be traced; known are {_KNOWN}")
        return _BY_NAME[called](*arguments, **(options or {}))

    def _no_number(self, *arguments: Any) -> Any:
        raise CannotTrace("a number is asked for, which is not known yet")

    __float__ = __int__ = __index__ = __complex__ = __iter__ = __len__ = __array__ = _no_number


def expression_of(value: Any) -> Expression:
    """Return the expression of a symbol or a number.

    Raises:
        CannotTrace: if it is neither.
    """
    if isinstance(value, Symbol):
        return value.expression
    try:
        return number(float(value))
    except (TypeError, ValueError):
        raise CannotTrace(f"a number was expected, got {value!r}") from None


def _lift(function: Callable[..., Expression]) -> Callable[..., Symbol]:
    return lambda *arguments: Symbol(function(*map(expression_of, arguments)))


def _operation(operation: str) -> Callable[..., Symbol]:
    return _lift(lambda *arguments: make(operation, *arguments))


def _condition(value: Any) -> Expression:
    expression = expression_of(value)
    if expression.operation == "number" or expression.is_condition:
        return expression
    return make("not", make("equal", expression, ZERO))


def _clamp(x: Any, min: Any = None, max: Any = None) -> Symbol:
    found = expression_of(x)
    if min is not None:
        found = larger(found, expression_of(min))
    return Symbol(found if max is None else smaller(found, expression_of(max)))


def _where(condition: Any, a: Any, b: Any) -> Symbol:
    return Symbol(make("where", _condition(condition), expression_of(a), expression_of(b)))


_add, _subtract, _multiply = _operation("add"), _operation("subtract"), _operation("multiply")
_divide, _negative = _operation("divide"), _operation("negative")
_less, _less_equal = _operation("less"), _operation("less_equal")
_power = _lift(power)
_log_sigmoid = _lift(lambda x: make("log", make("sigmoid", x)))
_log_beta = _lift(lambda a, b: make("subtract", make("lgamma", a), make("log_rising", b, a)))
_scaled_log = _lift(
    lambda y, x: make("where", make("equal", y, ZERO), ZERO, make("multiply", y, make("log", x))),
)
_log_add_exp = _lift(lambda a, b: make("add", a, make("softplus", make("subtract", b, a))))
_both = _lift(lambda a, b: make("and", _condition(Symbol(a)), _condition(Symbol(b))))
_either = _lift(lambda a, b: make("or", _condition(Symbol(a)), _condition(Symbol(b))))
_opposite = _lift(lambda a: make("not", _condition(Symbol(a))))

_BY_NAME: dict[str, Callable[..., Symbol]] = {
    **{each: _operation(each) for each in (*FUNCTIONS, "log_rising")},
    **{"abs": _operation("absolute"), "fabs": _operation("absolute"), "gammaln": _operation("lgamma")},
    **{"psi": _operation("digamma"), "expit": _operation("sigmoid"), "special_expit": _operation("sigmoid")},
    **{"logsigmoid": _log_sigmoid, "log_sigmoid": _log_sigmoid, "log_expit": _log_sigmoid, "logaddexp": _log_add_exp},
    **{"xlogy": _scaled_log, "betaln": _log_beta, "pow": _power, "power": _power, "float_power": _power},
    **{"square": _lift(lambda x: make("multiply", x, x)), "reciprocal": _lift(lambda x: make("divide", ONE, x))},
    **{"add": _add, "subtract": _subtract, "sub": _subtract, "multiply": _multiply, "mul": _multiply},
    **{"divide": _divide, "true_divide": _divide, "div": _divide, "negative": _negative, "neg": _negative},
    **{"minimum": _lift(smaller), "fmin": _lift(smaller), "maximum": _lift(larger), "fmax": _lift(larger)},
    **{"relu": _lift(lambda x: larger(x, ZERO)), "clamp": _clamp, "clip": _clamp, "where": _where},
    **{"less": _less, "lt": _less, "less_equal": _less_equal, "le": _less_equal},
    **{"greater": lambda a, b: _less(b, a), "gt": lambda a, b: _less(b, a)},
    **{"greater_equal": lambda a, b: _less_equal(b, a), "ge": lambda a, b: _less_equal(b, a)},
    **{"equal": _operation("equal"), "eq": _operation("equal")},
    **{
        "not_equal": lambda a, b: _opposite(_BY_NAME["equal"](a, b)),
        "ne": lambda a, b: _opposite(_BY_NAME["eq"](a, b)),
    },
    **{"logical_and": _both, "bitwise_and": _both, "logical_or": _either, "bitwise_or": _either},
    **{"logical_not": _opposite, "bitwise_not": _opposite, "invert": _opposite},
}
_KNOWN = ", ".join(sorted(each for each in _BY_NAME if each in FUNCTIONS or each in ("where", "clamp", "xlogy")))

for _method, _function in {
    **{"add": _add, "sub": _subtract, "mul": _multiply, "truediv": _divide, "pow": _power},
    **{"and": _both, "or": _either},
}.items():
    setattr(Symbol, f"__{_method}__", lambda a, b, f=_function: f(a, b))
    setattr(Symbol, f"__r{_method}__", lambda a, b, f=_function: f(b, a))
for _method in ("lt", "le", "gt", "ge", "eq", "ne"):
    setattr(Symbol, f"__{_method}__", lambda a, b, f=_BY_NAME[_method]: f(a, b))
for _method, _known in {"neg": "neg", "abs": "abs", "invert": "invert"}.items():
    setattr(Symbol, f"__{_method}__", lambda a, f=_BY_NAME[_known]: f(a))


def log_rising(x: Any, n: Any) -> Any:
    """Return lgamma(x + n) - lgamma(x) without the cancellation, for traced functions.

    Example::

        >>> round(math.exp(log_rising(3.0, 2.0)))
        12
    """
    if isinstance(x, Symbol) or isinstance(n, Symbol):
        return _BY_NAME["log_rising"](x, n)
    return math.lgamma(x + n) - math.lgamma(x)


def _of_math(called: str) -> Callable[..., Any]:
    original = getattr(math, called)

    def function(*arguments: Any) -> Any:
        if not any(isinstance(each, Symbol) for each in arguments):
            return original(*arguments)
        if called == "log" and len(arguments) == 2:
            return _divide(_BY_NAME["log"](arguments[0]), math.log(arguments[1]))
        if called not in _BY_NAME:
            raise CannotTrace(f"math.{called} cannot be traced; known are {_KNOWN}")
        return _BY_NAME[called](*arguments)

    return function


_MATH = SimpleNamespace(
    **{each: _of_math(each) if callable(getattr(math, each)) else getattr(math, each) for each in dir(math)}
)
# By the functions themselves, however a user's module calls them.
_SHIMS = {getattr(math, each): getattr(_MATH, each) for each in dir(math) if callable(getattr(math, each))}


def _rebound(value: Any, known: dict[int, Any]) -> Any:
    """Return what stands in for something that a traced function reaches by name: `math` takes no symbols."""
    if value is math:
        return _MATH
    if isinstance(value, ModuleType):
        return value
    if isinstance(value, FunctionType):
        return _rebound_function(value, known)
    try:
        return _SHIMS.get(value, value)
    except TypeError:
        return value


def _rebound_function(function: FunctionType, known: dict[int, Any]) -> Any:
    if id(function) in known:
        return known[id(function)]
    if (function.__module__ or "").partition(".")[0] in ("torch", "numpy", "scipy", "pyro"):
        return function
    names: dict[str, Any] = {}
    cells = None if function.__closure__ is None else tuple(CellType() for _ in function.__closure__)
    new = FunctionType(function.__code__, names, function.__name__, function.__defaults__, cells)
    new.__kwdefaults__ = function.__kwdefaults__
    known[id(function)] = new
    names["__builtins__"] = builtins
    for called in _names_of(function.__code__):
        if called in function.__globals__:
            names[called] = _rebound(function.__globals__[called], known)
    for cell, own in zip(cells or (), function.__closure__ or (), strict=True):
        try:
            cell.cell_contents = _rebound(own.cell_contents, known)
        except ValueError:
            continue
    return new


def _names_of(code: CodeType) -> set[str]:
    inner = (each for each in code.co_consts if isinstance(each, CodeType))
    return set(code.co_names).union(*map(_names_of, inner))


def traced(function: Callable[..., Any], arguments: Sequence[str], *, results: int = 1) -> tuple[Expression, ...]:
    """Return the expressions of what a function of numbers returns.

    It may branch on its arguments (every way through it is followed), call functions of its own, and use operators and
    the functions of `math`, `numpy`, `scipy.special` and `torch` that are known here.

    Args:
        function: called with a symbol for each argument.
        arguments: what these are called.
        results: how many numbers it returns.

    Raises:
        TypeError: if it does what cannot be traced, or does not return so many numbers; it names function and line.

    Example::

        >>> def log_density(y, eta):
        ...     if y == 0:
        ...         return -math.exp(eta)
        ...     return y * eta - math.exp(eta)
        >>> traced(log_density, ["y", "eta"])
        (where(equal(y, 0.0), negative(exp(eta)), subtract(multiply(y, eta), exp(eta))),)
    """
    own = _rebound_function(function, {}) if isinstance(function, FunctionType) else function
    symbols = [Symbol(name(each)) for each in arguments]
    count = 0

    def follow(decided: Mapping[Expression, bool]) -> tuple[Expression, ...]:
        nonlocal count
        count += 1
        if count > _MOST_WAYS:
            raise _told(function, f"branches in more than {_MOST_WAYS} ways on its arguments", None)
        way = _Way(decided)
        token = _way.set(way)
        try:
            returned = own(*symbols)
            found = returned if isinstance(returned, tuple) else (returned,)
            if len(found) != results:
                raise CannotTrace(f"{results} numbers were expected, got {len(found)}")
            return tuple(map(expression_of, found))
        except _Undecided:
            pass
        except Exception as error:
            raise _told(function, str(error), error) from error
        finally:
            _way.reset(token)
        condition = way.next
        assert condition is not None
        sides = (follow({**decided, condition: True}), follow({**decided, condition: False}))
        return tuple(make("where", condition, a, b) for a, b in zip(*sides, strict=True))

    return follow({})


def _told(function: Callable[..., Any], what: str, error: Exception | None) -> TypeError:
    code = getattr(function, "__code__", None)
    line = None if code is None else code.co_firstlineno
    for frame in traceback.extract_tb(None if error is None else error.__traceback__):
        if code is not None and frame.filename == code.co_filename and frame.lineno is not None:
            line = frame.lineno
    place = "" if code is None else f" ({code.co_filename}, line {line})"
    return TypeError(
        f"`{getattr(function, '__qualname__', function)}`{place} cannot be traced: {what}. It must be a function of "
        "numbers: operators, `if`, and functions of math, numpy or torch such as exp, log, lgamma, where."
    )
