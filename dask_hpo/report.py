"""What training code imports: ``Reporter``, ``report`` and ``checkpoint_dir``, in a trial or not.

``report(validation_error=0.1)`` hands metrics to the tuner when it runs in a trial and prints one
line when the same script is started by hand. The module loads nothing beyond the standard library,
and a call costs microseconds: values are coerced, encoded and written to a pipe; who reads it is
the worker's affair.

Every value is coerced here, because what a training loop reports (a numpy scalar, an integer of a
hundred digits, half a surrogate pair) can break the stream that carries it to the driver.
"""

from __future__ import annotations

import itertools
import json
import math
import operator
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from decimal import Decimal
from fractions import Fraction
from typing import Any, NamedTuple, Protocol, SupportsIndex

from dask_hpo.checkpoints.folder import Checkpoint, CheckpointDir
from dask_hpo.core.metric import Scalar

__all__ = ["Checkpoint", "CheckpointDir", "Reporter", "checkpoint_dir", "report"]

MAX_TEXT_CHARACTERS = 1_000  #: longer strings are cut
MAX_METRICS = 1_000  #: in one report, all of which travel and each of which may become a column
_INT64 = 2**63

#: ``send(step, metrics, elapsed)``: metrics coerced, elapsed in seconds since the attempt began
Send = Callable[[int, dict[str, Scalar], float], None]


def coerce(value: Any) -> Scalar:
    """Return the value as a plain float, int, bool, str or None; never raises.

    Numpy scalars, 0-d arrays and tensors of one element give their item; decimals and fractions
    become floats, as do integers that do not fit 64 bits; strings are cut at 1,000 characters;
    anything else is its ``repr``, cut likewise. NaN and infinity stay what they are.
    """
    kind = type(value)
    if kind is float or kind is bool or value is None:
        return value  # type: ignore[no-any-return]
    try:
        return _coerce_other(value)
    except Exception:  # noqa: BLE001 - a strange value must not end a training run
        return _text(f"<{kind.__name__} without a readable value>")


def _coerce_other(value: Any) -> Scalar:
    if isinstance(value, int):
        return _integer(int(value))
    if isinstance(value, float):
        return float(value)
    if isinstance(value, str):
        return _text(str(value))
    if isinstance(value, (Decimal, Fraction)):
        return _real(value)
    item = _item(value)
    return _text(short_repr(value)) if item is None else coerce(item)


def short_repr(value: Any) -> str:
    """Return the ``repr`` of a value, at bounded cost for a large builtin container.

    More items than a text has characters cannot be seen in it: they are cut before, not after.
    """
    kind = type(value)
    if kind in (str, bytes, bytearray, list, tuple):
        value = value[:MAX_TEXT_CHARACTERS]
    elif kind in (set, frozenset):
        value = kind(itertools.islice(value, MAX_TEXT_CHARACTERS))
    elif kind is dict:
        value = dict(itertools.islice(value.items(), MAX_TEXT_CHARACTERS))
    return repr(value)


def _item(value: Any) -> float | int | bool | str | None:
    """Return ``value.item()`` where that is plain, as numpy and torch spell "the one element"."""
    try:
        item = value.item()
    except Exception:  # noqa: BLE001 - no such method, or more than one element
        return None
    return item if isinstance(item, (float, int, bool, str)) else None


def _integer(value: int) -> float | int:
    return value if -_INT64 <= value < _INT64 else _real(value)


def _real(value: int | Decimal | Fraction) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _text(value: str) -> str:
    if len(value) > MAX_TEXT_CHARACTERS:
        value = value[: MAX_TEXT_CHARACTERS - 3] + "..."
    return value.encode("utf-8", "backslashreplace").decode()


def coerce_metrics(metrics: Mapping[Any, Any]) -> dict[str, Scalar]:
    """Return the metrics with names as bounded strings and coerced values.

    Raises
    ------
    TypeError
        If there are more than 1,000.
    """
    if len(metrics) > MAX_METRICS:
        raise TypeError(
            f"{len(metrics):,} metrics at once: at most {MAX_METRICS:,} go into one report, for "
            "each becomes a column of the log; summarise them, or save them to a file"
        )
    return {_text(str(name)): coerce(value) for name, value in metrics.items()}


class Channel(Protocol):
    """Where reports go."""

    def send(self, step: int | None, metrics: dict[str, Scalar]) -> int:
        """Pass on metrics and return their step; ``step=None`` counts on from the last one."""
        ...


class _Steps:
    """Counts the steps of one attempt, from 1."""

    def __init__(self) -> None:
        self._last = 0

    def next(self, step: int | None) -> int:
        self._last = self._last + 1 if step is None else step
        return self._last


class PipeChannel:
    """Writes one line of JSON for each report to a file descriptor.

    The lock keeps the steps in order and long lines whole when several threads report. It is
    reentrant, and what a signal handler reports while a line is written waits for that line's end:
    training code may report from its SIGTERM handler, whatever that interrupted.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._steps = _Steps()
        self._lock = threading.RLock()
        self._waiting: list[bytes] = []
        self._writing = False
        self._broken = False  # whether a handler raised in the middle of a line
        self._start = time.monotonic()

    def send(self, step: int | None, metrics: dict[str, Scalar]) -> int:
        """Write a report; a step is counted if none is given."""
        with self._lock:
            elapsed, number = time.monotonic() - self._start, self._steps.next(step)
            self.send_message(["report", number, metrics, elapsed])
            return number

    def send_message(self, message: list[Any]) -> None:
        """Write a message, whatever its length; a worker that is gone is not the trial's error."""
        with self._lock:
            self._waiting.append(json.dumps(message).encode() + b"\n")
            if self._writing:
                return
            self._writing = True
            try:
                while self._waiting:
                    self._write(self._waiting.pop(0))
            finally:
                self._writing = False

    def elapsed(self) -> float:
        """Return the seconds since the attempt began."""
        return time.monotonic() - self._start

    def _write(self, line: bytes) -> None:
        line, self._broken = (b"\n" if self._broken else b"") + line, True
        try:
            sent = os.write(self._descriptor, line)
            while sent < len(line):
                sent += os.write(self._descriptor, line[sent:])
        except BrokenPipeError:
            pass
        self._broken = False


class CallChannel:
    """Hands each report to a callable, which may raise ``TrialStopped``."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._steps = _Steps()
        self._start = time.monotonic()

    def send(self, step: int | None, metrics: dict[str, Scalar]) -> int:
        """Call; a step is counted if none is given."""
        number = self._steps.next(step)
        self._send(number, metrics, time.monotonic() - self._start)
        return number


class _PrintChannel:
    """Outside a trial: one line on standard output."""

    def __init__(self) -> None:
        self._steps = _Steps()

    def send(self, step: int | None, metrics: dict[str, Scalar]) -> int:
        values = " ".join(f"{name}={_readable(value)}" for name, value in metrics.items())
        number = self._steps.next(step)
        sys.stdout.write(f"step {number}: {values}\n")
        sys.stdout.flush()
        return number


def _readable(value: Scalar) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


class _Trial(NamedTuple):
    """What the training code that runs here is given."""

    channel: Channel
    checkpoints: CheckpointDir


class _Thread(threading.local):
    """The trial that runs in this thread."""

    trial: _Trial | None = None


_process_trial = _Trial(_PrintChannel(), CheckpointDir())
_thread = _Thread()


def set_channel(channel: Channel | None, checkpoints: CheckpointDir | None = None) -> None:
    """Send the reports of this whole process to ``channel``; None prints them again."""
    global _process_trial  # noqa: PLW0603 - one process, one trial
    _process_trial = _Trial(channel or _PrintChannel(), checkpoints or CheckpointDir())


@contextmanager
def thread_channel(send: Send, checkpoints: CheckpointDir | None = None) -> Iterator[None]:
    """Send the reports of this thread to ``send(step, metrics, elapsed)`` inside the block."""
    before = _thread.trial
    _thread.trial = _Trial(CallChannel(send), checkpoints or CheckpointDir())
    try:
        yield
    finally:
        _thread.trial = before


def report(*, step: SupportsIndex | None = None, **metrics: Any) -> None:
    """Report metrics of the running trial.

    Parameters
    ----------
    step
        The training step (epoch) the metrics belong to, an integer; one more than the last step,
        from 1 in each attempt, if not given.
    **metrics
        Named values: numbers, arrays or tensors of one element, strings, booleans, None. See
        ``coerce`` for what becomes of others.

    Raises
    ------
    TypeError
        If no metric is given, or more than 1,000 are, or the step is no integer.

    Notes
    -----
    Outside a trial the metrics are printed. In a trial the call returns at once, within about
    ten microseconds, unless the worker is far behind.
    """
    if not metrics:
        raise TypeError(
            "report() was called without a metric: a report holds at least one named value; "
            "write report(validation_error=0.1)"
        )
    number = None if step is None else _step(step)
    trial = _thread.trial or _process_trial
    coerced = coerce_metrics(metrics)
    trial.checkpoints.note(trial.channel.send(number, coerced), coerced)


def _step(step: Any) -> int:
    try:
        number = operator.index(step)
    except TypeError:
        raise TypeError(
            f"step={step!r}: a step is an integer, such as an epoch; "
            "write report(step=3, ...) or leave it out to count the calls"
        ) from None
    return max(min(number, _INT64 - 1), -_INT64)


def checkpoint_dir() -> CheckpointDir:
    """Return the directory of the running trial's checkpoints, the same for all its attempts.

    A trial whose worker died runs again, and goes on from the latest complete checkpoint::

        latest = checkpoint_dir().latest()
        if latest is not None:
            model.load_state_dict(torch.load(latest / "model.pt"))
        for epoch in range(latest.step + 1 if latest else 1, max_epochs + 1):
            ...
            report(step=epoch, validation_error=error)
            with checkpoint_dir().save(step=epoch) as folder:
                torch.save(model.state_dict(), folder / "model.pt")

    Notes
    -----
    Outside a trial it is a new folder in ``./checkpoints``, so that a script begins afresh each
    time it is started by hand; the variable ``DASK_HPO_CHECKPOINTS`` names one to go on from.
    """
    return (_thread.trial or _process_trial).checkpoints


class Reporter:
    """Reports metrics of the running trial: ``report = Reporter(); report(error=0.1, epoch=3)``.

    The same as the function ``report``, for scripts that hold the reporter as an object.
    """

    def __call__(self, /, *, step: SupportsIndex | None = None, **metrics: Any) -> None:
        """Report metrics; see ``report``."""
        report(step=step, **metrics)
