"""Where experiments live: ``<root>/<name>/`` with the definition, the events, the end and a lock.

experiment.json     the definition, written first
events/             the Parquet parts; the writer makes it, with the first part in it
output/             what trials wrote to stdout and stderr
clock               the seconds that it has run, for a driver that goes on with it
end.json            how it ended, written last
lock                held by the driver that writes; the system frees it when that driver dies
"""

from __future__ import annotations

import contextlib
import difflib
import fcntl
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import dask.config
import filelock

from dask_hpo.errors import ExperimentExistsError, ExperimentNotFoundError, LogError, OptionError
from dask_hpo.log.definition import Definition

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+=-]{0,199}")


def root_directory(root: Path | str | None = None) -> Path:
    """Return where experiments live: ``root``, or Dask's ``hpo.path``, or ``~/dask-hpo``."""
    return Path(dask.config.get("hpo.path", "~/dask-hpo") if root is None else root).expanduser()


def experiment_path(name: str, root: Path | str | None = None) -> Path:
    """Return the directory of an experiment.

    Raises
    ------
    OptionError
        If the name cannot be the name of a directory.
    """
    if not _NAME.fullmatch(name):
        raise OptionError(
            f"name={name!r}: the name of an experiment names its directory: letters, digits and "
            "'_.+=-', at most 200, not beginning with a dot; give such a name"
        )
    return root_directory(root).absolute() / name


def check_available(name: str, root: Path | str | None = None) -> Path:
    """Return the directory of a new experiment.

    Raises
    ------
    ExperimentExistsError
        If there is an experiment of that name.
    """
    path = experiment_path(name, root)
    if os.path.lexists(path):
        raise ExperimentExistsError(
            f"name={name!r}: {path} exists already, and an experiment never writes over another; "
            "give another name, or remove that directory"
        )
    return path


def create_experiment(
    definition: Definition,
    root: Path | str | None = None,
    fill: Callable[[Path], None] = lambda _: None,
) -> Path:
    """Make the directory of a new experiment and return it; if that fails, nothing is left.

    It is made under another name and then renamed: who sees it finds the definition in it, and what
    ``fill(directory)`` writes there.

    Raises
    ------
    ExperimentExistsError
        If there is an experiment of that name.
    LogError
        If the directory cannot be written.
    """
    path = check_available(definition.name, root)
    scratch = _scratch_beside(path)
    missing = [parent for parent in path.parents if not parent.exists()]
    with contextlib.ExitStack() as undo:
        for parent in reversed(missing):
            undo.callback(_remove_if_empty, parent)
        undo.callback(shutil.rmtree, scratch, ignore_errors=True)
        try:
            scratch.mkdir(parents=True)
            (scratch / "output").mkdir()
            write_definition(scratch, definition)
            fill(scratch)
            scratch.rename(path)
        except OSError as error:
            raise LogError(
                f"{path}: the log cannot be written there ({error.strerror or error}); "
                "give path= a directory that can be written, or set Dask's hpo.path"
            ) from error
        undo.pop_all()
    return path


def remove_experiment(path: Path) -> None:
    """Take an experiment away, as a whole: nobody sees a part of it."""
    scratch = _scratch_beside(path)
    with contextlib.suppress(OSError):
        path.rename(scratch)
    shutil.rmtree(scratch, ignore_errors=True)


def _scratch_beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.scratch")


def _remove_if_empty(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.rmdir()


def experiments(root: Path | str | None = None) -> list[str]:
    """Return the names of all experiments, the oldest first."""
    folder = root_directory(root)
    found = [p.parent for p in folder.glob("[!.]*/experiment.json")]
    return [p.name for p in sorted(found, key=lambda p: (_started(p), p.name))]


def _started(path: Path) -> datetime:
    """Return when an experiment began; those that cannot be read come first."""
    try:
        return read_definition(path).started
    except LogError:
        return datetime.min.replace(tzinfo=timezone.utc)


def find(name_or_path: str | Path, root: Path | str | None = None) -> Path:
    """Return the directory of an existing experiment, given its name or its path.

    Raises
    ------
    ExperimentNotFoundError
        If there is none; names that are near are suggested.
    """
    as_path = Path(name_or_path).expanduser()
    folder = root_directory(root)
    for candidate in (folder / name_or_path, as_path):
        if (candidate / "experiment.json").is_file():
            return candidate.absolute()
    names = experiments(root) if folder.is_dir() else []
    near = difflib.get_close_matches(str(name_or_path), names, n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else "`dask hpo list` shows what there is"
    raise ExperimentNotFoundError(
        f"{str(name_or_path)!r}: no experiment of that name in {folder}, nor at that path; {hint}"
    )


def write_definition(path: Path, definition: Definition) -> None:
    """Write ``experiment.json`` of the experiment at a path.

    Raises
    ------
    LogError
        If it cannot be written; the one that stands there is as it was.
    """
    content = definition.to_json().encode("utf-8")
    try:
        replace_file(path / "experiment.json", content, path / ".experiment.json.scratch")
    except OSError as error:
        raise LogError(
            f"{path}: experiment.json cannot be written ({error.strerror or error}); make room, "
            "or have the right to write there"
        ) from error


def read_definition(path: Path) -> Definition:
    """Read the definition of the experiment at a path.

    Raises
    ------
    LogError
        If the file is not what this package wrote, or a newer version of it did.
    """
    file = path / "experiment.json"
    try:
        return Definition.from_json(file.read_text(encoding="utf-8"))
    except LogError as error:
        raise LogError(f"{file}: {error}") from None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise LogError(
            f"{file}: this is no definition of an experiment ({error}); restore the file, or "
            "read the events beside it with any Parquet reader"
        ) from error


def read_end(path: Path) -> dict[str, Any] | None:
    """Return what ``end.json`` says, or None while there is none.

    Raises
    ------
    LogError
        If the file is not what this package wrote.
    """
    try:
        end: dict[str, Any] = json.loads((path / "end.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise LogError(
            f"{path / 'end.json'}: this is not what dask_hpo wrote ({error}); restore the file, or "
            "remove it: the events beside it are whole"
        ) from error
    return end


def hold_lock(path: Path) -> filelock.BaseFileLock:
    """Take the lock of an experiment for this process, to be released at the end.

    Raises
    ------
    LogError
        If another driver holds it.
    """
    lock = filelock.FileLock(path / "lock", thread_local=False)
    try:
        lock.acquire(timeout=1)
    except filelock.Timeout as error:
        raise _held(path) from error
    except OSError as error:
        raise LogError(
            f"{path}: the experiment cannot be locked for writing ({error.strerror or error}); "
            "have the right to write there, and a file system that is not full"
        ) from error
    return lock


def check_not_running(path: Path) -> None:
    """Check that no living driver writes the experiment.

    Raises
    ------
    LogError
        If one does.
    """
    if is_running(path):
        raise _held(path)


def _held(path: Path) -> LogError:
    return LogError(
        f"{path}: another driver is writing this experiment, and an experiment has one at a time; "
        "wait for its end, or stop it (a driver that died holds nothing)"
    )


def is_running(path: Path) -> bool:
    """Tell whether a living driver writes the experiment; reading the directory is enough.

    The lock is probed by a shared lock on the file that `hold_lock` locks for itself: an exclusive
    one would make two who ask at once take each other for the driver, and needs the right to write.
    """
    try:
        descriptor = os.open(path / "lock", os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # a file system without locks
        return False
    finally:
        os.close(descriptor)
    return False


def replace_file(path: Path, content: bytes, scratch: Path) -> None:
    """Write a file whole or not at all: to ``scratch`` on the same file system, then renamed."""
    with scratch.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    scratch.replace(path)
