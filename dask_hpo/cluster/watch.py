"""Follows one attempt from the request to its end, in the thread that asked for it.

One loop over five pipes: the trial's messages, its stdout, its stderr, the template's word on its
process, and a pipe by which other threads ask for a stop. Nothing the trial writes, and nothing it
fails to do, can grow this process or hold it up.
"""

from __future__ import annotations

import json
import math
import os
import selectors
import signal
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field

from dask_hpo.cluster.attempt import OnReport, OnStarted
from dask_hpo.cluster.limits import Guard, Limits
from dask_hpo.cluster.link import TemplateLink
from dask_hpo.core.metric import Scalar

TAIL_BYTES = 64 * 1024  #: how much of stdout and of stderr is kept
_DRAIN_BYTES = 1024 * 1024  # what is read after the end; more can only come from an escaped process
_CHUNK_BYTES = 64 * 1024
_STACKS_S = 0.5  # for a trial to write down where its threads stand, before it is sent SIGTERM


@dataclass(slots=True)
class Course:
    """What is known of an attempt so far; at its end, all that is."""

    forked: bool = False
    cancelled: bool = False  #: before its process was forked
    stopped: bool = False  #: a stop was asked for before anything else ended it
    breach: str = ""  #: the limit that it went beyond before anything else ended it
    started_at: float | None = None
    result: Result | None = None
    exit_code: int | None = None  #: negative: the number of the signal that killed it
    error: str = ""  #: why the system refused to fork
    warning: str = ""
    stdout: bytearray = field(default_factory=bytearray)
    stderr: bytearray = field(default_factory=bytearray)

    @property
    def ending(self) -> bool:
        """Whether it only has to end; the first of the reasons is the one that counts."""
        return self.stopped or bool(self.breach) or self.result is not None


@dataclass(frozen=True, slots=True)
class Result:
    """The last message of a trial."""

    metrics: dict[str, Scalar]
    failure: list[str] | None  #: error and traceback
    status: int
    elapsed: float


class _Pipe:
    """A pipe whose read end does not block."""

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe()
        os.set_blocking(self.reader, False)
        self.received = b""

    def read(self) -> bytes | None:
        """Return what is there; None if nothing is; empty at the end."""
        try:
            return os.read(self.reader, _CHUNK_BYTES)
        except BlockingIOError:
            return None

    def lines(self, data: bytes) -> list[bytes]:
        *lines, self.received = (self.received + data).split(b"\n")
        return lines

    def close_writer(self) -> None:
        if self.writer >= 0:
            os.close(self.writer)
            self.writer = -1

    def close(self) -> None:
        self.close_writer()
        os.close(self.reader)


class Watch:
    """One attempt.

    Parameters
    ----------
    key
        What the template calls it.
    job_file
        The file that the template claims before it forks.
    on_report, on_started
        Called in the thread of ``follow``.
    grace_period_s
        Seconds between SIGTERM and SIGKILL, and between a trial's result and SIGKILL.
    limits
        What the attempt may use; it is ended when it uses more.
    """

    def __init__(
        self,
        key: str,
        job_file: str,
        on_report: OnReport,
        on_started: OnStarted,
        *,
        grace_period_s: float,
        limits: Limits,
    ) -> None:
        self.course = Course()
        self._key = key
        self._job_file = job_file
        self._grace_period_s = grace_period_s
        self._on_report = on_report
        self._on_started = on_started
        self._guard = Guard(limits)
        self._signals: deque[tuple[float, signal.Signals]] = deque()  #: to be sent, and when
        self._pid = 0
        self._pipes: list[_Pipe] = []
        try:
            for _ in range(5):
                self._pipes.append(_Pipe())
        except OSError:
            self.close()
            raise
        self._messages, self._stdout, self._stderr, self._status, self._wake = self._pipes

    def stop(self) -> None:
        """Ask for a stop, from any thread, before ``close``."""
        os.write(self._wake.writer, b"s")

    def close(self) -> None:
        """Close the pipes."""
        for pipe in self._pipes:
            pipe.close()

    def follow(self, link: TemplateLink) -> Course:
        """Have the attempt forked by this template and return when nothing of it runs any more.

        The course says ``forked=False`` (and nothing else) if the template was gone.
        """
        theirs = self._pipes[:4]
        try:
            link.fork(self._key, self._job_file, [pipe.writer for pipe in theirs])
        except OSError:
            return self.course
        finally:
            for pipe in theirs:
                pipe.close_writer()
        try:
            self._loop(link)
        except BaseException:  # a callback raised: do not leave the trial behind
            link.signal(self._key, signal.SIGKILL)
            raise
        self._read_rest()
        return self.course

    def _loop(self, link: TemplateLink) -> None:
        with selectors.DefaultSelector() as selector:
            for pipe in self._pipes:
                selector.register(pipe.reader, selectors.EVENT_READ, pipe)
            while True:
                for key, _ in selector.select(self._timeout()):
                    pipe = key.data
                    data = pipe.read()
                    if data == b"":
                        selector.unregister(pipe.reader)
                    if pipe is self._status:
                        if self._hear_status(data, link):
                            self._bury()
                            return
                    elif pipe is self._wake:
                        if self._begin_stop():
                            return
                    elif data:
                        self._hear(pipe, data)
                self._enforce(link)

    def _timeout(self) -> float | None:
        due = min(self._guard.due, self._signals[0][0] if self._signals else math.inf)
        return None if due == math.inf else max(0.0, due - time.monotonic())

    def _hear(self, pipe: _Pipe, data: bytes) -> None:
        if pipe is self._messages:
            for line in pipe.lines(data):
                self._hear_message(line)
        else:
            tail = self.course.stdout if pipe is self._stdout else self.course.stderr
            tail += data
            if len(tail) > 2 * TAIL_BYTES:
                del tail[:-TAIL_BYTES]

    def _hear_message(self, line: bytes) -> None:
        try:
            kind, *values = json.loads(line)
        except ValueError:  # the user's code found the descriptor and wrote to it
            return
        if kind == "report":
            step, metrics, elapsed = values
            self._guard.reported()
            self._on_report(step, metrics, elapsed)
        elif kind == "started":
            self.course.started_at = time.monotonic()
            self._guard.started()
            self._on_started()
        elif kind == "result":
            if not self.course.ending:
                self._end((self._grace_period_s, signal.SIGKILL))
            self.course.result = Result(*values)

    def _hear_status(self, data: bytes | None, link: TemplateLink) -> bool:
        """Take the template's word; True if it is the last."""
        for line in self._status.lines(data or b""):
            kind, *values = json.loads(line)
            if kind == "forked":
                self.course.forked = link.served = True
                self._pid, self.course.warning = values
                self._guard.forked(self._pid)
            elif kind == "exited":
                self.course.exit_code = values[0]
                return True
            elif kind == "cancelled":
                self.course.cancelled = True
                return True
            else:
                self.course.error = values[0]
                return True
        return data == b""

    def _bury(self) -> None:
        """Kill the trial's group if the template, which would have done it, died itself."""
        course = self.course
        if course.forked and course.exit_code is None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._pid, signal.SIGKILL)

    def _begin_stop(self) -> bool:
        """Cancel the attempt, or have its process sent SIGTERM; True if it was cancelled."""
        if self.course.ending:
            return False
        self.course.stopped = True
        with suppress(FileNotFoundError):
            os.unlink(self._job_file)  # noqa: PTH108 - atomic: now the template cannot claim it
            self.course.cancelled = True
            return True
        self._end((0, signal.SIGTERM), (self._grace_period_s, signal.SIGKILL))
        return False

    def _end(self, *signals: tuple[float, signal.Signals]) -> None:
        """Have the attempt sent these signals, each so many seconds from now."""
        now = time.monotonic()
        self._signals = deque((now + delay, number) for delay, number in signals)
        self._guard.ending()

    def _enforce(self, link: TemplateLink) -> None:
        """Look whether the attempt keeps its limits, and send the signals that are due."""
        if time.monotonic() >= self._guard.due:
            # What came while this thread did not: a report, or the result, may not be too late.
            self._hear(self._messages, self._messages.read() or b"")
            self._check_limits()
        while self._signals and time.monotonic() >= self._signals[0][0]:
            link.signal(self._key, self._signals.popleft()[1])

    def _check_limits(self) -> None:
        breach = self._guard.check()
        if breach is None:
            return
        if not self.course.ending:
            self.course.breach = breach.error
        if breach.urgent:
            # No grace period: what it could take meanwhile is the machine's last memory.
            self._end((0, signal.SIGKILL))
        else:
            # SIGQUIT: see `write_stacks_when_asked` in child.py.
            self._end(
                (0, signal.SIGQUIT),
                (_STACKS_S, signal.SIGTERM),
                (_STACKS_S + self._grace_period_s, signal.SIGKILL),
            )

    def _read_rest(self) -> None:
        """Read what the pipes still hold; a process that escaped may keep them open for ever."""
        for pipe in (self._messages, self._stdout, self._stderr):
            left = _DRAIN_BYTES
            while left > 0 and (data := pipe.read()):
                self._hear(pipe, data)
                left -= len(data)


def tail_text(tail: bytearray) -> str:
    """Return the last 64 KiB of what was written, as text."""
    return bytes(tail[-TAIL_BYTES:]).decode("utf-8", "replace")
