"""Keeps what an experiment runs beside its log, and reads it back for a resume.

A script is kept with its files, as they are. A function is kept as it travels to the workers: by
reference if it can be imported there, else with its code; and its source, for people, beside it.
"""

from __future__ import annotations

import contextlib
import inspect
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dask_hpo.errors import LogError, ObjectiveError
from dask_hpo.objective import FunctionObjective, Objective, Payload

FOLDER = "objective"
_FUNCTION = "function.pickle"
_SOURCE = "function.py"


class StoredObjective:
    """An objective that was read back."""

    def __init__(self, payload: Payload, name: str, description: str, digest: str) -> None:
        self._payload = payload
        self._description = description
        self.name = name
        self.digest = digest
        self.preload = payload.preload

    def describe(self) -> str:
        """Return the line that said what is run when the experiment began."""
        return self._description

    def payload(self) -> Payload:
        """Return the objective as plain data."""
        return self._payload


def describe_payload(objective: Objective) -> dict[str, Any]:
    """Return what the definition of an experiment says of its objective's payload."""
    payload = objective.payload()
    described: dict[str, Any] = {
        "kind": payload.kind,
        "name": objective.name,
        "digest": objective.digest,
        "preload": list(payload.preload),
    }
    if payload.kind == "script":
        described |= {"script": payload.script, "arguments": list(payload.arguments)}
    return described


def store(objective: Objective, experiment: Path) -> None:
    """Write the objective's code into the folder ``objective`` of an experiment's directory.

    Raises
    ------
    OSError
        If it cannot be written.
    """
    _write(objective, experiment / FOLDER)


def replace_stored(objective: Objective, experiment: Path) -> None:
    """Put an objective in the place of the one that is kept.

    Raises
    ------
    LogError
        If it cannot be written; the other one is kept then.
    """
    folder, scratch = experiment / FOLDER, experiment / f".{FOLDER}.scratch"
    try:
        shutil.rmtree(scratch, ignore_errors=True)
        _write(objective, scratch)
        shutil.rmtree(folder, ignore_errors=True)
        scratch.rename(folder)
    except OSError as error:
        raise LogError(
            f"{folder}: the objective cannot be written there ({error.strerror or error}); make "
            "room, or have the right to write there"
        ) from error


def _write(objective: Objective, folder: Path) -> None:
    payload = objective.payload()
    files = dict(payload.files)
    if payload.kind == "function":
        files = {_FUNCTION: payload.function, _SOURCE: _source(objective)}
    for name, content in files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)


def _source(objective: Objective) -> bytes:
    """Return a function's source, for people alone; empty if there is none."""
    if isinstance(objective, FunctionObjective):
        with contextlib.suppress(OSError, TypeError):
            return inspect.getsource(objective.function).encode("utf-8", "backslashreplace")
    return b""


def read_back(experiment: Path, described: Mapping[str, Any], description: str) -> StoredObjective:
    """Return the objective that `store` wrote.

    Parameters
    ----------
    experiment
        The experiment's directory.
    described, description
        What `describe_payload` and the objective said of it.

    Raises
    ------
    ObjectiveError
        If it is not there, as in the logs of the first version.
    """
    folder = experiment / FOLDER
    try:
        payload = _read_payload(folder, described)
    except (OSError, KeyError) as error:
        raise ObjectiveError(
            f"{folder}: what the experiment ran ({description}) is not there to be run again "
            f"({type(error).__name__}: {error}); give it to Tuner.resume(..., objective=...)"
        ) from error
    return StoredObjective(payload, described["name"], description, described["digest"])


def _read_payload(folder: Path, described: Mapping[str, Any]) -> Payload:
    preload = tuple(described["preload"])
    if described["kind"] == "function":
        function = (folder / _FUNCTION).read_bytes()
        return Payload(kind="function", function=function, preload=preload)
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return Payload(
        kind="script",
        script=described["script"],
        files={path.relative_to(folder).as_posix(): path.read_bytes() for path in files},
        arguments=tuple(described["arguments"]),
        preload=preload,
    )
