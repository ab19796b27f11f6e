"""Processes that are started again when they end, as systemd's `Restart=always` would do it."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

#: Between an end and the next start.
RESTART_S = 0.5
_POLL_S = 0.05
_PATIENCE_S = 30.0


class Unit:
    """One of them.

    Parameters
    ----------
    command
        Asked for the command line at every start.
    log
        The file that all of its processes write to.
    once
        Status 0 is its end: it is not started again. (Else only `stop` ends it.)
    """

    def __init__(
        self,
        name: str,
        command: Callable[[], list[str]],
        environment: Mapping[str, str],
        log: Path,
        *,
        once: bool = False,
    ) -> None:
        self.name = name
        self.log = log
        self.statuses: list[int] = []  #: of the processes that ended; negative: by that signal
        self._command = command
        self._environment = dict(environment)
        self._once = once
        self._wanted = True
        self._due = 0.0
        self._lock = threading.Lock()
        self.process = self._start()

    @property
    def pid(self) -> int | None:
        """The number of its process; None while there is none."""
        with self._lock:
            return self.process.pid if self.process.poll() is None else None

    @property
    def done(self) -> bool:
        """Whether it has ended for good."""
        return not self._wanted and self.process.poll() is not None

    def tend(self) -> None:
        """Take note of an end, and start it again when it is time."""
        with self._lock:
            status = self.process.poll()
            if status is None or not self._wanted:
                return
            if not self._due:
                self.statuses.append(status)
                self._due = time.monotonic() + RESTART_S
                self._wanted = not (self._once and status == 0)
            elif time.monotonic() >= self._due:
                self._due = 0.0
                self.process = self._start()

    def dismiss(self) -> None:
        """Have it end for good, in order (SIGTERM), without waiting for it."""
        with self._lock:
            self._wanted = False
            self.process.terminate()

    def bury(self) -> bool:
        """Wait for the end of one that was dismissed; False if it had to be killed."""
        try:
            self.process.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            return False
        return True

    def _start(self) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            return subprocess.Popen(
                self._command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **self._environment},
                cwd=self.log.parent,
                start_new_session=True,  # a Ctrl-C is the rig's
            )


class Supervisor:
    """Tends units, in a thread of its own."""

    def __init__(self) -> None:
        self.units: list[Unit] = []
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="supervisor", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Start nothing any more."""
        self._closing.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._closing.wait(_POLL_S):
            for unit in list(self.units):
                unit.tend()
