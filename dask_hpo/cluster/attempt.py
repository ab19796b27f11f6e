"""What one attempt of a trial is asked and what it answers, on the worker, as plain data."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol

from dask_hpo.checkpoints.options import Place
from dask_hpo.core.events import Failure, Outcome
from dask_hpo.core.metric import Scalar
from dask_hpo.report import coerce, coerce_metrics, short_repr

#: ``on_report(step, metrics, elapsed)``: elapsed in seconds since the attempt began
OnReport = Callable[[int, dict[str, Scalar], float], None]
OnStarted = Callable[[], None]

_MAX_ERROR_CHARACTERS = 2_000
_MAX_TRACEBACK_CHARACTERS = 64 * 1024
HERE = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120 - as frames spell it


@dataclass(frozen=True, slots=True)
class TrialRequest:
    """One attempt to run.

    ``devices``: the value of ``CUDA_VISIBLE_DEVICES``, None to inherit. ``checkpoints``: where
    those of its trial are.
    """

    trial_id: int
    attempt: int
    config: Mapping[str, Any]
    devices: str | None = None
    checkpoints: Place | None = None


@dataclass(frozen=True, slots=True)
class TrialResult:
    """How an attempt ended.

    ``stdout`` and ``stderr`` are the last 64 KiB of each; ``elapsed`` is in seconds since the
    user's code began, ``start_up_s`` in seconds from the request until then. ``warning`` says why a
    trial was started cold although a warm start was asked for; empty otherwise.
    """

    outcome: Outcome
    metrics: Mapping[str, Scalar] = field(default_factory=dict)
    failure: Failure | None = None
    stdout: str = ""
    stderr: str = ""
    elapsed: float = 0.0
    start_up_s: float = 0.0
    warning: str = ""


class Runner(Protocol):
    """Runs attempts of one objective on this worker, many at once, each in the calling thread."""

    def run(self, request: TrialRequest, on_report: OnReport, on_started: OnStarted) -> TrialResult:
        """Run an attempt to its end."""
        ...

    def stop(self, trial_id: int, attempt: int) -> bool:
        """Ask an attempt to end, from any thread; False if it is not running here."""
        ...

    def close(self) -> None:
        """End every attempt and free what the runner holds."""
        ...


def metrics_of(returned: Any, metric: str) -> dict[str, Scalar]:
    """Return the metrics that an objective's return value stands for.

    A number (or an array or tensor of one element) is the value of ``metric``; a dict holds
    metrics by name; None is none at all.

    Raises
    ------
    TypeError
        If it is anything else, or holds more than 1,000 metrics.
    """
    if returned is None:
        return {}
    if isinstance(returned, Mapping):
        return coerce_metrics(returned)
    value = None if isinstance(returned, str) else coerce(returned)
    if isinstance(value, (int, float)):
        return {metric: value}
    raise TypeError(
        f"the objective returned {_shown(returned)}: an objective returns a number, a dict of "
        f"metrics or nothing; return the {metric!r} as a float, or {{{metric!r}: ...}}"
    )


def _shown(value: Any) -> str:
    try:
        text = short_repr(value)
    except Exception:  # noqa: BLE001 - the user's class may do anything
        text = "a value"
    return f"{_cut(text, 100)} of type {type(value).__name__}"


def _cut(text: str, characters: int) -> str:
    return text if len(text) <= characters else text[: characters - 3] + "..."


def failure_of(error: BaseException) -> Failure:
    """Return the exception as plain data, without our own frames before the user's."""
    return Failure(error=error_line(error), traceback=_traceback_text(error))


def error_line(error: BaseException) -> str:
    """Return ``"TypeName: message"`` as one line, whatever the exception's own ``str`` does."""
    name = type(error).__qualname__
    try:
        # Cut before it is split: a message may hold a whole data set.
        message = " ".join(str(error)[:_MAX_ERROR_CHARACTERS].split())
    except Exception:  # noqa: BLE001 - the user's class may do anything
        message = "(its message cannot be shown)"
    return _clean(f"{name}: {message}")


def _traceback_text(error: BaseException) -> str:
    try:
        lines = traceback.format_exception(type(error), error, _users(error.__traceback__))
    except Exception:  # noqa: BLE001 - the user's class may do anything
        return ""
    # Each frame and each message by itself: a long message leaves the frames in sight.
    short = "".join(_without_middle(line, 2 * _MAX_ERROR_CHARACTERS) for line in lines)
    return _clean(short[-_MAX_TRACEBACK_CHARACTERS:])


def _without_middle(text: str, characters: int) -> str:
    half = characters // 2
    return text if len(text) <= characters else f"{text[:half]} [...] {text[-half:]}"


def _users(frames: TracebackType | None) -> TracebackType | None:
    """Skip the frames of this room at the top; keep them all if nothing else is there."""
    rest = frames
    while rest is not None and rest.tb_frame.f_code.co_filename.startswith(HERE):
        rest = rest.tb_next
    return rest or frames


def _clean(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()
