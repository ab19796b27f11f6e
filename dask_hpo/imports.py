"""Which modules an objective imports, found without importing anything.

A worker imports them once, before the first trial; a guess too many costs a moment, one too few
costs every trial that moment.
"""

from __future__ import annotations

import ast
import dis
import functools
import inspect
import pickletools
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from types import CodeType
from typing import Any

_MODULE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*")


def modules_in_function(function: Callable[..., Any], pickled: bytes) -> tuple[str, ...]:
    """Return the modules that the function needs, as far as its pickle and its code tell.

    A pickle names modules as strings (in GLOBAL, as the argument of cloudpickle's subimport, as a
    global name of a code object); a string that is also a loaded module here is taken for one. At
    worst a worker imports a module too many.
    """
    loaded = {name for name in _strings(pickled) if name in sys.modules}
    while isinstance(function, functools.partial):
        function = function.func
    if not inspect.isroutine(function):
        function = type(function).__call__
    code = getattr(inspect.unwrap(function), "__code__", None)
    found = loaded | (set(_imports_in_code(code)) if code else set())
    return tuple(sorted(name for name in found if not _is_known(name)))


def _is_known(name: str) -> bool:
    """Whether a template has this module anyway, or imports it in no time."""
    top = name.split(".", maxsplit=1)[0]
    return top in sys.stdlib_module_names or top in ("__main__", "cloudpickle", "dask_hpo")


def _strings(pickled: bytes) -> Iterator[str]:
    for _, argument, _ in pickletools.genops(pickled):
        if isinstance(argument, str):
            name = argument.split(" ")[0]  # GLOBAL's argument is "module name"
            if _MODULE_NAME.fullmatch(name):
                yield name


def _imports_in_code(code: CodeType) -> Iterator[str]:
    """Yield the modules that a function imports in its body."""
    for instruction in dis.get_instructions(code):
        if instruction.opname == "IMPORT_NAME" and instruction.argval:
            yield str(instruction.argval)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _imports_in_code(constant)


def imports_of_source(source: bytes, package: str = "") -> tuple[str, ...]:
    """Return what a module's source imports at its top level; nothing if it does not parse."""
    try:
        return imports_of(ast.parse(source), package)
    except (SyntaxError, ValueError):
        return ()


def imports_of(tree: ast.Module, package: str = "") -> tuple[str, ...]:
    """Return the names of modules imported at module level, inside ``try`` and ``if`` as well.

    ``package`` is that of the module, for its relative imports; without it they are left out.
    """
    names: dict[str, None] = {}  # a set that keeps the order
    for node in _module_level(tree.body):
        if isinstance(node, ast.Import):
            names.update(dict.fromkeys(alias.name for alias in node.names))
        elif isinstance(node, ast.ImportFrom):
            names.update(dict.fromkeys(_from_names(node, package)))
    return tuple(names)


def _from_names(node: ast.ImportFrom, package: str) -> list[str]:
    if not node.level:
        return [node.module or ""]
    parents = package.split(".") if package else []
    if node.level > len(parents):
        return []
    base = ".".join(parents[: len(parents) - node.level + 1])
    if node.module:
        return [f"{base}.{node.module}"]
    return [f"{base}.{alias.name}" for alias in node.names]


def _module_level(body: Iterable[ast.AST]) -> Iterator[ast.AST]:
    """Walk statements without entering functions and classes."""
    for node in body:
        yield node
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)):
            yield from _module_level(ast.iter_child_nodes(node))
