"""The warm template: a process of one thread that forks a trial's process for each request.

It has imported what the objective imports, so a trial starts in the time of a fork. It is the
parent of every trial's process, and therefore the only one that signals them: before it has reaped
a process, no other can have its number. When the worker dies, however it dies, the socket to it
closes and the template ends every trial and itself.

Requests are lines of JSON on the socket: ``["fork", key, job file]`` with four descriptors, and
``["signal", key, number]``. Answers go to the trial's own status pipe: ``["forked", pid,
warning]``, then ``["exited", code]``; or ``["cancelled"]`` if the worker removed the job file
first; or ``["error", text]`` if the system refused the fork.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import selectors
import shutil
import signal
import socket
import sys
import time
import traceback
import warnings
from collections import deque
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from dask_hpo.cluster import child
from dask_hpo.cluster.preload import import_ahead, libraries

#: Starts ``main`` of a module of this room with the worker's own ``sys.path``
BOOT = (
    "import sys; sys.path[:] = filter(None, sys.path); "  # nothing from the working directory
    "import importlib, json; _, file, module, *rest = sys.argv; "
    "sys.path[:] = json.load(open(file))['path']; "
    "importlib.import_module('dask_hpo.cluster.' + module).main(*rest)"
)
DESCRIPTORS_PER_FORK = 4  #: report, stdout, stderr, status: the write end of each
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_TIDY_S = 0.5  # for what a trial leaves behind: multiprocessing's tracker frees shared memory
_SWEEP_LIMIT_S = 5.0  # a killed process that hangs in a driver is not waited for any longer


@dataclass(frozen=True, slots=True)
class TemplateOptions:
    """What the worker tells a template at its start, through a file of JSON.

    ``left_out``: modules that were found unsafe to import ahead, and why.
    """

    path: list[str]
    directory: str
    preload: list[str]
    cold: bool
    idle_s: float
    left_out: dict[str, str]

    def write(self, file: Path) -> None:
        """Write the file of JSON."""
        values = {name: getattr(self, name) for name in self.__slots__}
        file.write_text(json.dumps(values))


@dataclass(slots=True)
class _Trial:
    """A trial's process, the leader of its group. ``code``: its exit code once it has ended."""

    key: str
    pid: int
    status: int
    code: int | None = None
    ended_at: float = 0.0


def command(options_file: Path, module: str, *arguments: str) -> list[str]:
    """Return the command line that starts ``main(*arguments)`` of a module of this room."""
    return [sys.executable, "-c", BOOT, str(options_file), module, *arguments]


def main(options_file: str, descriptor: str) -> None:
    """Be a template: import ahead, then serve the worker at the other end of the socket."""
    options = TemplateOptions(**json.loads(Path(options_file).read_text()))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    gc.disable()
    unsafe = import_ahead(n for n in libraries(options.preload) if n not in options.left_out)
    if unsafe is not None:
        options.left_out.update([unsafe])
        options.write(Path(options_file))
        os.set_inheritable(int(descriptor), True)  # noqa: FBT003 - its signature
        line = command(Path(options_file), "template", options_file, descriptor)
        os.execv(line[0], line)  # noqa: S606 - our own interpreter and module
    gc.collect()
    gc.freeze()  # a collection in a child would copy every page it touches
    gc.enable()
    _Template(options, Path(options_file), socket.socket(fileno=int(descriptor))).serve()


class _Template:
    def __init__(self, options: TemplateOptions, file: Path, worker: socket.socket) -> None:
        self._options = options
        self._file = file
        self._worker = worker
        self._warning = _warning(options.left_out)
        self._trials: dict[str, _Trial] = {}
        self._descriptors: deque[int] = deque()
        self._received = b""
        self._woken, self._wake = os.pipe()
        for end in (self._woken, self._wake):
            os.set_blocking(end, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)  # only with a handler is the pipe written
        signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False)

    def serve(self) -> None:
        """Serve until the worker is gone, or nothing was asked for a while."""
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._worker, selectors.EVENT_READ)
        self._selector.register(self._woken, selectors.EVENT_READ)
        while True:
            ready = [key.fileobj for key, _ in self._selector.select(self._timeout())]
            if self._woken in ready:
                _drain(self._woken)
            self._reap()
            if self._worker in ready and not self._receive():
                self._end()
                return
            if not ready and not self._trials:
                return  # idle; the worker starts another template when it needs one

    def _timeout(self) -> float | None:
        if any(trial.code is not None for trial in self._trials.values()):
            return 0.1
        return None if self._trials else self._options.idle_s

    def _receive(self) -> bool:
        """Take what the worker sent; False if it is gone."""
        try:
            data, descriptors, _, _ = socket.recv_fds(self._worker, 65536, 64)
        except ConnectionResetError:
            return False
        for descriptor in descriptors:
            os.set_inheritable(descriptor, False)  # noqa: FBT003 - its signature
        self._descriptors.extend(descriptors)
        *lines, self._received = (self._received + data).split(b"\n")
        for line in lines:
            kind, key, argument = json.loads(line)
            if kind == "fork":
                self._start(key, argument)
            elif key in self._trials:
                self._signal(self._trials[key], argument)
        return bool(data)

    def _start(self, key: str, job_file: str) -> None:
        taken = [self._descriptors.popleft() for _ in range(DESCRIPTORS_PER_FORK)]
        status = taken[-1]
        answer: list[Any]
        claimed = job_file + ".claimed"
        try:
            Path(job_file).rename(claimed)  # from now on the worker cannot cancel it
            pid = self._fork(claimed, taken)
            self._trials[key] = _Trial(key, pid, status)
            answer, self._warning = ["forked", pid, self._warning], ""
        except FileNotFoundError:
            answer = ["cancelled"]
        except OSError as error:
            answer = ["error", str(error)]
        _write(status, answer)
        for descriptor in taken[:-1] if key in self._trials else taken:
            os.close(descriptor)

    def _fork(self, job_file: str, descriptors: list[int]) -> int:
        parent = os.getpid()
        with warnings.catch_warnings():
            # Libraries' own idle threads (OpenBLAS) restart themselves after a fork.
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if pid == 0:
            try:
                self._become_trial(parent, job_file, descriptors)
            except BaseException:  # noqa: BLE001 - a bug of ours; never return into the loop
                traceback.print_exc()
            finally:
                os._exit(70)
        with suppress(OSError):  # the child does it too; whoever comes first
            os.setpgid(pid, pid)
        return pid

    def _become_trial(self, parent: int, job_file: str, descriptors: list[int]) -> NoReturn:
        """Leave everything of the template behind, in the child, and run the job."""
        os.setpgid(0, 0)
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before the line above
            os._exit(70)
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        report, stdout, stderr, status = descriptors
        with open(os.devnull, "rb") as nothing:  # noqa: PTH123 - a descriptor is wanted
            os.dup2(nothing.fileno(), 0)
        os.dup2(stdout, 1)
        os.dup2(stderr, 2)
        self._close_all(stdout, stderr, status)
        if self._options.cold:
            os.set_inheritable(report, True)  # noqa: FBT003 - its signature
            line = command(self._file, "child", job_file, str(report))
            os.execv(line[0], line)  # noqa: S606 - our own interpreter and module
        child.run(job_file, report)

    def _close_all(self, *others: int) -> None:
        self._selector.close()
        self._worker.close()
        statuses = [trial.status for trial in self._trials.values()]
        for descriptor in (self._woken, self._wake, *self._descriptors, *statuses, *others):
            os.close(descriptor)

    def _signal(self, trial: _Trial, number: int) -> None:
        """SIGTERM goes to the trial's group, all else to its leader.

        SIGQUIT is not meant for the others, and ``_sweep`` sees to them once SIGKILL has ended it.
        """
        if trial.code is None:
            send = os.killpg if number == signal.SIGTERM else os.kill
            with suppress(ProcessLookupError, PermissionError):
                send(trial.pid, number)

    def _reap(self) -> None:
        """End what is left of the groups of ended trials, and tell the worker when it is gone."""
        by_pid = {trial.pid: trial for trial in self._trials.values() if trial.code is None}
        for pid, code in _ended(by_pid):
            trial = by_pid.get(pid)
            if trial is not None:
                trial.code, trial.ended_at = code, time.monotonic()
        for trial in [trial for trial in self._trials.values() if trial.code is not None]:
            if self._sweep(trial):
                del self._trials[trial.key]
                _write(trial.status, ["exited", trial.code])
                os.close(trial.status)

    def _sweep(self, trial: _Trial) -> bool:
        """Kill what is left of a group that had SIGTERM; True if nothing is, or it is hopeless."""
        if _is_gone(trial.pid):
            return True
        since = time.monotonic() - trial.ended_at
        if since > _TIDY_S:  # its number is not free as long as one of the group is ours to reap
            _kill_group(trial.pid, signal.SIGKILL)
        return since > _SWEEP_LIMIT_S

    def _end(self) -> None:
        """End all trials, also what escaped from their groups and was left to this process."""
        for trial in self._trials.values():
            self._signal(trial, signal.SIGKILL)
        begun = time.monotonic()
        while self._trials or _children():
            since = time.monotonic() - begun
            if since > _SWEEP_LIMIT_S:
                break
            for pid in _children() if since > _TIDY_S or not self._trials else ():
                with suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
            self._selector.select(0.02)
            _drain(self._woken)
            self._reap()
        shutil.rmtree(self._options.directory, ignore_errors=True)


def _warning(left_out: dict[str, str]) -> str:
    if not left_out:
        return ""
    reasons = ", ".join(f"{name} {reason}" for name, reason in left_out.items())
    return (
        f"trials start slowly, since each imports anew what cannot be imported ahead: {reasons} "
        "when imported, which would break processes forked afterwards"
    )


def _ended(leaders: Collection[int]) -> Iterator[tuple[int, int]]:
    """Yield pid and exit code of every child that ended; end a leader's group before it is reaped.

    Until then its number cannot belong to another group.
    """
    if not hasattr(os, "waitid"):  # macOS before Python 3.13
        yield from _ended_without_waitid(leaders)
        return
    with suppress(ChildProcessError):
        while peek := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            if peek.si_pid in leaders:
                _kill_group(peek.si_pid, _FIRST_SIGNAL)
            yield peek.si_pid, os.waitstatus_to_exitcode(os.waitpid(peek.si_pid, 0)[1])


def _ended_without_waitid(leaders: Collection[int]) -> Iterator[tuple[int, int]]:
    with suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            if ended[0] in leaders:
                _kill_group(ended[0], _FIRST_SIGNAL)
            yield ended[0], os.waitstatus_to_exitcode(ended[1])


# Where orphans do not come to the template (macOS), it cannot wait for them: it kills at once.
_FIRST_SIGNAL = signal.SIGTERM if sys.platform == "linux" else getattr(signal, "SIGKILL", 9)


def _kill_group(group: int, number: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def _is_gone(group: int) -> bool:
    """Whether no process of a killed group is left for this process, its reaper, to wait for."""
    try:
        pid, _ = os.waitpid(-group, os.WNOHANG)
        while pid:
            pid, _ = os.waitpid(-group, os.WNOHANG)
    except ChildProcessError:
        return True
    return False


def _children() -> list[int]:
    """Return the children of this process, those it adopted included; empty where unknown."""
    with suppress(OSError):
        pid = os.getpid()
        return [int(n) for n in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _drain(descriptor: int) -> None:
    with suppress(BlockingIOError):
        while os.read(descriptor, 4096):
            pass


def _write(descriptor: int, message: list[Any]) -> None:
    with suppress(BrokenPipeError):  # the worker no longer listens
        os.write(descriptor, json.dumps(message).encode() + b"\n")
