"""What a run leaves that it should not: processes, and temporary files."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import objective
import psutil

#: For what was told to end: a trial's group has its grace period, and is then swept.
PATIENCE_S = 15.0


def of_trials(run: Path) -> list[str]:
    """Return the trials, their children and the templates that outlive the experiment of a run."""
    return [f"{_name(p)} outlives the experiment" for p in _wait_for_none(run, _is_of_a_trial)]


def processes(run: Path) -> list[str]:
    """Return all processes that outlive a run, and kill them."""
    left = _wait_for_none(run, lambda _: True)
    names = [f"{_name(process)} outlives the run" for process in left]
    for process in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    return names


def files(temporary: Path) -> list[str]:
    """Return what this package left in a directory for temporary files."""
    return [f"{path} was left" for path in temporary.glob("dask-hpo-*")]


def _wait_for_none(run: Path, kind: Callable[[psutil.Process], bool]) -> list[psutil.Process]:
    deadline = time.monotonic() + PATIENCE_S
    while (left := [p for p in _marked(run) if kind(p)]) and time.monotonic() < deadline:
        time.sleep(0.1)
    return left


def _marked(run: Path) -> Iterator[psutil.Process]:
    """Yield the living processes of a run: whoever started them, they have inherited its mark."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            is_zombie = process.status() == psutil.STATUS_ZOMBIE
            if not is_zombie and process.environ().get(objective.MARK) == str(run):
                yield process


def _is_of_a_trial(process: psutil.Process) -> bool:
    words = _words(process)
    return words[:1] == ["sleep"] or any("dask_hpo.cluster" in word for word in words)


def _name(process: psutil.Process) -> str:
    return f"process {process.pid} ({' '.join(_words(process))[:300]})"


def _words(process: psutil.Process) -> list[str]:
    with contextlib.suppress(psutil.Error):
        return process.cmdline()
    return []
