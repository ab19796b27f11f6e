"""How a domain is written: as a call in Python, and as the text of that call on the command line.

The text is read with Python's own parser and walked by hand; nothing in it is ever evaluated.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import inspect
import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from typing import Any

from dask_hpo.core.distributions import from_distribution
from dask_hpo.core.domains import Categorical, Domain, check_plain
from dask_hpo.core.numeric import Float, Integer, QuantisedFloat
from dask_hpo.errors import SpaceError


def uniform(lower: float, upper: float) -> Float:
    """Floats between two bounds, uniformly.

    Raises
    ------
    SpaceError
        If a bound is no finite number, or ``lower`` is not below ``upper``.
    """
    return Float(lower, upper)


def loguniform(lower: float, upper: float) -> Float:
    """Floats between two positive bounds, uniformly in their logarithm.

    Raises
    ------
    SpaceError
        If a bound is no finite number, ``lower`` is not above 0 or not below ``upper``.
    """
    return Float(lower, upper, log=True)


def quniform(lower: float, upper: float, q: float) -> QuantisedFloat:
    """Multiples of ``q`` between two bounds, all equally likely.

    Raises
    ------
    SpaceError
        As for `uniform`, or if ``q`` is not above 0 or no multiple of it lies within the bounds.
    """
    return QuantisedFloat(lower, upper, q)


def qloguniform(lower: float, upper: float, q: float) -> QuantisedFloat:
    """Multiples of ``q`` between two positive bounds, uniformly in their logarithm.

    Raises
    ------
    SpaceError
        As for `loguniform` and `quniform`.
    """
    return QuantisedFloat(lower, upper, q, log=True)


def randint(lower: int, upper: int) -> Integer:
    """Whole numbers from ``lower`` to ``upper``, **both included**, all equally likely.

    Raises
    ------
    SpaceError
        If a bound is no whole number, or ``lower`` is not below ``upper``.
    """
    return Integer(lower, upper)


def lograndint(lower: int, upper: int) -> Integer:
    """Whole numbers from ``lower`` to ``upper``, both included, uniformly in their logarithm.

    Raises
    ------
    SpaceError
        If a bound is no whole number, ``lower`` is not above 0 or not below ``upper``.
    """
    return Integer(lower, upper, log=True)


def qrandint(lower: int, upper: int, q: int) -> Integer:
    """Whole multiples of ``q`` between two bounds, both included, all equally likely.

    Raises
    ------
    SpaceError
        As for `randint`, or if ``q`` is not above 0 or no multiple of it lies within the bounds.
    """
    return Integer(lower, upper, q=q)


def qlograndint(lower: int, upper: int, q: int) -> Integer:
    """Whole multiples of ``q`` between two positive bounds, uniformly in their logarithm.

    Raises
    ------
    SpaceError
        As for `lograndint` and `qrandint`.
    """
    return Integer(lower, upper, log=True, q=q)


def choice(values: Iterable[Any]) -> Categorical:
    """Any of some values: None, bools, ints, floats or strings. All are equally likely.

    Raises
    ------
    SpaceError
        If there is none, two are equal, or one is of another type.
    """
    return Categorical(_options("choice", values))


def ordinal(values: Iterable[Any]) -> Categorical:
    """Any of some values that stand in their order, such as ``ordinal([16, 64, 256])``.

    Raises
    ------
    SpaceError
        If there is none, two are equal, or one is of another type.
    """
    return Categorical(_options("ordinal", values), ordered=True)


def _options(name: str, values: Any) -> tuple[Any, ...]:
    if isinstance(values, (str, bytes, Mapping, AbstractSet)) or not isinstance(values, Iterable):
        raise SpaceError(
            f"{name}({values!r}): the values stand in a list, which has an order; "
            f"write {name}([...]), such as {name}(['a', 'b'])"
        )
    return tuple(values)


_FUNCTIONS: dict[str, Callable[..., Domain]] = {
    function.__name__: function
    for function in (
        uniform,
        loguniform,
        quniform,
        qloguniform,
        randint,
        lograndint,
        qrandint,
        qlograndint,
        choice,
        ordinal,
    )
}
_WORDS = {"true": True, "True": True, "false": False, "False": False, "None": None}
_CALL = re.compile(r"[A-Za-z_][\w.]*\s*\(")
_LITERAL = re.compile(r"[+-]?\.?\d|['\"]")
_COLLECTION = re.compile(r"[\[({]")
_SCIPY = "scipy.stats."


def parse_domain(text: str) -> Any:
    """Read what stands for a hyperparameter on the command line: a domain or a constant.

    ``loguniform(1e-5, 1e-1)``, ``randint(lower=8, upper=128)``, ``choice(adam, sgd)`` and the like
    are domains; ``scipy.stats.norm(0, 1)`` is one as well. ``16``, ``0.1``, ``true``, ``None`` and
    ``"16"`` (a string, for its quotes) are constants, and any other text is a string constant.

    Raises
    ------
    SpaceError
        If the text is a call that is no domain, a list, or a domain that breaks a rule.
    """
    text = text.strip()
    if not text:
        raise SpaceError(
            "an empty text is no domain and no constant; give one such as uniform(0, 1), 16 or "
            "adam, or '' with the quotes for an empty string"
        )
    if text in _WORDS:
        return _WORDS[text]
    if _CALL.match(text):
        return _read_call(text)
    if _COLLECTION.match(text) and _parse(text) is not None:
        raise SpaceError(
            f"{text}: a list is no constant; write choice({text}) to choose from it, or quote it "
            "to hand it on as a string"
        )
    return _read_constant(text)


def format_constant(value: Any) -> Any:
    """Return a constant such that `parse_domain` reads its text back: some strings get quotes."""
    if not isinstance(value, str):
        return value
    try:
        same = type(read := parse_domain(value)) is str and read == value
    except SpaceError:
        same = False
    return value if same else repr(value)


def _parse(text: str) -> ast.expr | None:
    """Return the syntax tree of an expression, or None for what is none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of odd escapes and numbers in somebody's string
        try:
            return ast.parse(text, mode="eval").body
        except (SyntaxError, ValueError, MemoryError, RecursionError):
            return None


def _read_constant(text: str) -> Any:
    node = _parse(text) if _LITERAL.match(text) else None
    found, value = _literal(node)
    return check_plain(value if found else text, f"the constant {text}")


def _literal(node: ast.AST | None) -> tuple[bool, Any]:
    """Return whether the node is a plain number, string, bool or None, and its value."""
    match node:
        case ast.Constant(value=None | bool() | int() | float() | str() as value):
            return True, value
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as number)):
            return not isinstance(number, bool), -number
        case ast.UnaryOp(op=ast.UAdd(), operand=ast.Constant(value=int() | float() as number)):
            return not isinstance(number, bool), number
    return False, None


def _read_call(text: str) -> Domain:
    node = _parse(text)
    if not isinstance(node, ast.Call):
        raise SpaceError(
            f"{text}: this is no complete call; write a domain such as loguniform(1e-5, 1e-1), or "
            "quote the whole for a string constant"
        )
    name = ast.unparse(node.func)
    arguments = [_argument(text, argument) for argument in node.args]
    names = [keyword.arg for keyword in node.keywords]
    if None in names:
        raise SpaceError(f"{text}: ** is not understood here; write the arguments out")
    if len(set(names)) < len(names):
        raise SpaceError(f"{text}: an argument is given twice; give each once")
    keywords = {keyword.arg or "": _argument(text, keyword.value) for keyword in node.keywords}
    if name.startswith(_SCIPY):
        return _read_distribution(text, name.removeprefix(_SCIPY), arguments, keywords)
    if name not in _FUNCTIONS:
        raise _unknown(text, name)
    if name in ("choice", "ordinal") and not keywords and not _is_one_list(arguments):
        arguments = [arguments]  # choice("a", "b") stands for choice(["a", "b"])
    return _call(text, name, _FUNCTIONS[name], arguments, keywords)


def _is_one_list(arguments: list[Any]) -> bool:
    return len(arguments) == 1 and isinstance(arguments[0], list)


def _call(
    text: str, name: str, function: Callable[..., Domain], arguments: Any, keywords: Any
) -> Domain:
    signature = inspect.signature(function)
    try:
        bound = signature.bind(*arguments, **keywords)
    except TypeError as error:
        parameters = ", ".join(signature.parameters)
        raise SpaceError(
            f"{text}: {name} takes ({parameters}), and here there is {error}; "
            f"write {name}({parameters}) with a value for each"
        ) from None
    return function(*bound.args, **bound.kwargs)


def _argument(text: str, node: ast.expr) -> Any:
    """Return the value of an argument; a bare word is a string, as on the command line itself."""
    if isinstance(node, (ast.List, ast.Tuple)):
        return [_argument(text, element) for element in node.elts]
    if isinstance(node, ast.Name):
        return _WORDS.get(node.id, node.id)
    found, value = _literal(node)
    if not found:
        raise SpaceError(
            f"{text}: {ast.unparse(node)} is no plain number, word or string; "
            "write a number out, and put other text in quotes"
        )
    return value


def _read_distribution(text: str, name: str, arguments: Any, keywords: Any) -> Domain:
    distribution: Any = getattr(importlib.import_module("scipy.stats"), name, None)
    if not hasattr(distribution, "freeze") or not hasattr(distribution, "ppf"):
        raise SpaceError(
            f"{text}: scipy.stats has no distribution {name!r}; give one from its documentation, "
            "such as scipy.stats.norm(0, 1)"
        )
    try:
        frozen = distribution(*arguments, **keywords)
    except (TypeError, ValueError) as error:
        raise SpaceError(
            f"{text}: scipy says {error}; give the parameters that its documentation names"
        ) from None
    return from_distribution(frozen)


def _unknown(text: str, name: str) -> SpaceError:
    near = difflib.get_close_matches(name, _FUNCTIONS, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    return SpaceError(
        f"{text}: {name!r} is no domain{hint}; the domains are {', '.join(sorted(_FUNCTIONS))}. "
        "Quote the whole for a string constant"
    )
