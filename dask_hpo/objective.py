"""What to run: a function, or a script with its files, as bytes that travel to the workers.

Objectives are opaque bytes on their way: the Dask scheduler unpickles every graph, and it need not
have the modules that the training code imports. Scripts and their files are read when the
objective is made, so the workers need no shared file system.
"""

from __future__ import annotations

import ast
import difflib
import functools
import hashlib
import inspect
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from dask_hpo.errors import ObjectiveError, OptionError
from dask_hpo.imports import imports_of, imports_of_source, modules_in_function


@dataclass(frozen=True, slots=True)
class Payload:
    """An objective as plain data.

    ``kind="function"`` has ``function``, bytes of cloudpickle; ``kind="script"`` has ``script``,
    the name of the one to run among ``files`` (relative name with ``/`` -> content), and
    ``arguments`` that precede the configuration's. ``preload`` names modules that a worker may
    import before the first trial.
    """

    kind: Literal["function", "script"]
    function: bytes = b""
    script: str = ""
    files: Mapping[str, bytes] = field(default_factory=dict)
    arguments: tuple[str, ...] = ()
    preload: tuple[str, ...] = ()


@runtime_checkable
class Objective(Protocol):
    """Something to run once for each trial."""

    @property
    def name(self) -> str:
        """A short name, for the names of experiments."""
        ...

    @property
    def digest(self) -> str:
        """The SHA-256 of the payload, in hexadecimal: equal digests run equal code."""
        ...

    @property
    def preload(self) -> tuple[str, ...]:
        """Modules that a worker may import before the first trial, to start trials faster."""
        ...

    def describe(self) -> str:
        """Return one readable line that says what is run."""
        ...

    def payload(self) -> Payload:
        """Return the objective as plain data."""
        ...


def as_objective(objective: Any) -> Objective:
    """Return a function, a path ending in ``.py`` or an objective as an objective.

    Raises
    ------
    OptionError
        If it is none of these.
    ObjectiveError
        If the script is missing or the function cannot be sent to a worker.
    """
    if isinstance(objective, Objective) and not isinstance(objective, type):
        return objective
    if isinstance(objective, (str, os.PathLike)):
        path = os.fspath(objective)
        if str(path).endswith(".py"):
            return ScriptObjective(str(path))
    elif callable(objective):
        return FunctionObjective(objective)
    raise OptionError(
        f"objective={objective!r}: an objective is a function, the path of a Python script or a "
        "ScriptObjective; give a function of the hyperparameters, or a path ending in .py"
    )


class FunctionObjective:
    """Calls ``function(**config)`` for each trial.

    The function is pickled here, once, with cloudpickle, and unpickled afresh in every trial, so
    that no trial sees what another left in its globals or its closure.

    Raises
    ------
    ObjectiveError
        If the function cannot be pickled.

    Notes
    -----
    The digest is that of the pickled bytes. Python may pickle a function that was typed into a
    notebook into other bytes in another session, so different digests do not prove different
    functions.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self._pickled = _pickled(function)
        self.name = _function_name(function)
        self.digest = hashlib.sha256(self._pickled).hexdigest()
        self.preload = modules_in_function(function, self._pickled)

    def describe(self) -> str:
        """Return one readable line that says what is run."""
        module = getattr(self.function, "__module__", None) or type(self.function).__module__
        return f"function {module}.{self.name}"

    def payload(self) -> Payload:
        """Return the pickled function."""
        return Payload(kind="function", function=self._pickled, preload=self.preload)


class ScriptObjective:
    """Runs a Python script for each trial, as ``python script.py --name value ...`` does.

    Parameters
    ----------
    path
        The script.
    files
        What the script needs beside itself: files, folders or glob patterns relative to the
        script's folder. Each trial has its own copies in its working directory.
    arguments
        Fixed arguments, placed before those of the configuration.

    Raises
    ------
    ObjectiveError
        If the script or a file is missing, or the script has a syntax error.

    Notes
    -----
    Hyperparameters become ``--name value`` with their names unchanged (``--learning_rate``).
    Booleans are ``true`` and ``false``; lists, tuples and dicts are JSON; a value of None leaves
    its argument out, so that the script's own default holds.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        files: Iterable[str] = (),
        arguments: Sequence[str] = (),
    ) -> None:
        self.path = Path(path)
        source = _read_script(self.path)
        self._tree = _parse(self.path, source)
        self._files = {self.path.name: source, **_read_files(self.path.parent, files)}
        self._arguments = tuple(str(argument) for argument in arguments)
        self.name = self.path.stem
        self.preload = self._libraries()
        self.digest = _digest(self.payload())

    def describe(self) -> str:
        """Return one readable line that says what is run."""
        extra = len(self._files) - 1
        return f"script {self.path}" + (f" with {extra} files" if extra else "")

    def payload(self) -> Payload:
        """Return the script and its files."""
        return Payload(
            kind="script",
            script=self.path.name,
            files=self._files,
            arguments=self._arguments,
            preload=self.preload,
        )

    def _libraries(self) -> tuple[str, ...]:
        """Return what the script and the modules shipped with it import, less those modules."""
        shipped = {name.split("/")[0].removesuffix(".py") for name in self._files}
        found = set(imports_of(self._tree))
        for name, content in self._files.items():
            if name.endswith(".py") and name != self.path.name:
                found.update(imports_of_source(content))
        return tuple(sorted(name for name in found if name.split(".")[0] not in shipped))


def check_signature(objective: Objective, names: Iterable[str]) -> None:
    """Check that a function takes the names of a search space; scripts are not checked.

    Raises
    ------
    ObjectiveError
        If the function lacks a parameter of such a name, or requires one that the space lacks.
    """
    if not isinstance(objective, FunctionObjective):
        return
    try:
        parameters = inspect.signature(objective.function).parameters
    except (TypeError, ValueError):  # some builtins have no signature
        return
    given = list(names)
    by_keyword = [p for p in parameters.values() if p.kind in _BY_KEYWORD]
    if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        _check_taken(objective, given, [p.name for p in by_keyword])
    _check_required(objective, given, parameters.values())


_BY_KEYWORD = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def _check_taken(objective: FunctionObjective, given: list[str], taken: list[str]) -> None:
    for name in given:
        if name not in taken:
            raise ObjectiveError(
                f"{objective.name}({', '.join(taken)}) takes no {name!r}: an objective is called "
                f"with every name of the search space; add the parameter {name!r} (or **config) "
                f"to the function, or take it out of the space{_near(name, taken)}"
            )


def _check_required(
    objective: FunctionObjective, given: list[str], parameters: Iterable[inspect.Parameter]
) -> None:
    for parameter in parameters:
        required = parameter.default is inspect.Parameter.empty
        if required and parameter.kind is inspect.Parameter.POSITIONAL_ONLY:
            raise ObjectiveError(
                f"{objective.name}: the parameter {parameter.name!r} is positional-only, and an "
                "objective is called with keywords; remove the '/' from its signature"
            )
        if required and parameter.kind in _BY_KEYWORD and parameter.name not in given:
            raise ObjectiveError(
                f"{objective.name} requires {parameter.name!r}, which the search space lacks: an "
                "objective is called with the names of the space alone; add it to the space (a "
                f"plain value is a constant) or give it a default{_near(parameter.name, given)}"
            )


def _near(name: str, others: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(others), n=3)
    return f" (near: {', '.join(near)})" if near else ""


# Functions ----------------------------------------------------------------------------------------


def _function_name(function: Callable[..., Any]) -> str:
    while isinstance(function, functools.partial):
        function = function.func
    name = getattr(function, "__name__", None) or type(function).__name__
    return "function" if name == "<lambda>" else str(name)


def _pickled(function: Callable[..., Any]) -> bytes:
    import cloudpickle  # noqa: PLC0415 - only the driver pickles, and `import dask_hpo` stays light

    try:
        return cloudpickle.dumps(function)  # type: ignore[no-any-return]
    except Exception as error:
        raise ObjectiveError(
            f"{_function_name(function)} cannot be sent to a worker "
            f"({type(error).__name__}: {error}): an objective travels with the values it captures"
            f"{_culprits(function)}; create such objects inside the function"
        ) from error


def _culprits(function: Callable[..., Any]) -> str:
    """Name the captured values that cannot be pickled."""
    import cloudpickle  # noqa: PLC0415 - as above

    names = []
    for name, value in _captured(function):
        try:
            cloudpickle.dumps(value)
        except Exception:  # noqa: BLE001, PERF203 - any reason makes it a culprit
            names.append(f"{name!r} ({type(value).__name__})")
    return ", and these cannot travel: " + ", ".join(names) if names else ""


def _captured(function: Callable[..., Any]) -> Iterator[tuple[str, Any]]:
    if isinstance(function, functools.partial):
        yield from function.keywords.items()
        yield from ((f"argument {i}", value) for i, value in enumerate(function.args))
        function = function.func
    if inspect.isfunction(function):
        captured = inspect.getclosurevars(function)
        yield from captured.nonlocals.items()
        yield from captured.globals.items()
        defaults = inspect.signature(function).parameters.values()
        yield from ((p.name, p.default) for p in defaults if p.default is not p.empty)
    elif hasattr(function, "__dict__"):
        yield from vars(function).items()


# Scripts ------------------------------------------------------------------------------------------


def _read_script(path: Path) -> bytes:
    if not path.is_file():
        folder = path.parent
        others = [entry.name for entry in folder.glob("*.py")] if folder.is_dir() else []
        raise ObjectiveError(
            f"{str(path)!r} is no file: a script objective is the path of a Python script on this "
            f"machine; correct the path, seen from {str(Path.cwd())!r}{_near(path.name, others)}"
        )
    return path.read_bytes()


def _parse(path: Path, source: bytes) -> ast.Module:
    try:
        return ast.parse(source, filename=str(path))
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None)
        where = f", line {line}" if line else ""
        text = (getattr(error, "text", None) or "").strip()
        raise ObjectiveError(
            f"{path}{where}: {getattr(error, 'msg', error)}{f' in {text!r}' if text else ''}: a "
            "script must be valid Python of this version; correct it"
        ) from error


def _read_files(folder: Path, patterns: Iterable[str]) -> dict[str, bytes]:
    if isinstance(patterns, (str, os.PathLike)):
        patterns = [os.fspath(patterns)]
    found: dict[str, bytes] = {}
    for pattern in patterns:
        for path in _matching(folder, os.fspath(pattern)):
            found[_relative_name(folder, path)] = path.read_bytes()
    return found


def _matching(folder: Path, pattern: str) -> list[Path]:
    path = folder / pattern
    if path.is_file():
        return [path]
    candidates = path.rglob("*") if path.is_dir() else _glob(folder, pattern)
    files = sorted(p for p in candidates if p.is_file() and "__pycache__" not in p.parts)
    if files:
        return files
    others = [entry.name for entry in folder.iterdir()]
    raise ObjectiveError(
        f"files={pattern!r} matches no file: it is a file, a folder or a pattern relative to the "
        f"script's folder {str(folder.resolve())!r}; correct it{_near(pattern, others)}"
    )


def _glob(folder: Path, pattern: str) -> Iterator[Path]:
    if Path(pattern).is_absolute():
        return iter(())
    return folder.glob(pattern)


def _relative_name(folder: Path, path: Path) -> str:
    absolute = Path(os.path.normpath(path.absolute()))
    try:
        return absolute.relative_to(Path(os.path.normpath(folder.absolute()))).as_posix()
    except ValueError:
        raise ObjectiveError(
            f"files={str(path)!r} lies outside the script's folder {str(folder.resolve())!r}: a "
            "trial finds its files where they lie beside the script; move it there"
        ) from None


def _digest(payload: Payload) -> str:
    digest = hashlib.sha256(repr((payload.script, payload.arguments)).encode())
    for name, content in sorted(payload.files.items()):
        digest.update(f"{len(name)} {name} {len(content)} ".encode())
        digest.update(content)
    return digest.hexdigest()
