"""The worker's end of a template: starts it, asks it for trials, passes signals on."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from dask_hpo.cluster.template import TemplateOptions, command

_THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)
_EXIT_LIMIT_S = 10.0


class TemplateLink:
    """A running template process.

    Parameters
    ----------
    options
        What it is told.
    cpu_threads
        The number of threads that numeric libraries in its trials use.
    """

    def __init__(self, options: TemplateOptions, cpu_threads: int) -> None:
        file = Path(options.directory, "template.json")
        options.write(file)
        self.served = False  #: whether it has forked a trial yet
        self._lock = threading.Lock()
        self._socket, theirs = socket.socketpair()
        environment = os.environ | dict.fromkeys(_THREAD_VARIABLES, str(cpu_threads))
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
                command(file, "template", str(file), str(theirs.fileno())),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # a Ctrl-C in the terminal is not meant for it
                env=environment,
            )

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process.poll() is None

    def fork(self, key: str, job_file: str, descriptors: Sequence[int]) -> None:
        """Ask for a trial's process; an answer comes over its status pipe.

        Raises
        ------
        OSError
            If the template is gone.
        """
        data = json.dumps(["fork", key, job_file]).encode() + b"\n"
        with self._lock:
            socket.send_fds(self._socket, [data], list(descriptors))

    def signal(self, key: str, number: signal.Signals) -> None:
        """Ask that the group of a trial's process be sent a signal."""
        data = json.dumps(["signal", key, int(number)]).encode() + b"\n"
        with self._lock, suppress(OSError):  # its end kills the trials anyway
            self._socket.sendall(data)

    def close(self) -> int:
        """End the template and all its trials; return its exit code."""
        with self._lock:
            self._socket.close()
        try:
            return self._process.wait(_EXIT_LIMIT_S)
        except subprocess.TimeoutExpired:  # still importing: it does not listen yet
            self._process.kill()
            return self._process.wait()
