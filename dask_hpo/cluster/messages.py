"""What a worker tells the driver about trials: plain dicts, in batches, on one Dask topic.

A batch is ``{"worker": address, "sent": s, "messages": [...]}``, and each message carries ``at``:
both are seconds of the *worker's* monotonic clock, so ``sent - at`` is the message's age, and the
driver dates it by its own clock without the two having to agree.

A message names its trial, its attempt and its ``run``: one execution of the task by one worker.
Dask silently runs a task again when its worker died; the run tells the two executions apart.

A batch with an end goes on a second topic as well, which nobody subscribes to: there the Dask
scheduler keeps it for a driver that is away, and reports cannot push it out.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from dask_hpo.core.events import Configuration, Failure, Outcome
from dask_hpo.core.metric import Scalar

Message = dict[str, Any]

#: Reports wait at most so long for company. An end never waits.
LINGER_S = 0.01
#: Text in a message goes through the Dask scheduler, which keeps the last 1,000 of a topic.
MAX_TEXT = 8_192


@dataclass(frozen=True, slots=True)
class Run:
    """One execution of an attempt. ``name`` is no other's, not even after a worker's restart."""

    trial_id: int
    attempt: int
    name: str


def started(run: Run) -> Message:
    """Say that an execution began."""
    return _message("started", run)


def reported(run: Run, step: int, metrics: Mapping[str, Scalar], elapsed: float) -> Message:
    """Say what training code reported. ``elapsed``: seconds since the attempt began."""
    return _message("reported", run, step=step, metrics=dict(metrics), elapsed=elapsed)


def ended(
    run: Run,
    config: Configuration,
    outcome: Outcome,
    *,
    metrics: Mapping[str, Scalar],
    failure: Failure | None,
    elapsed: float,
    has_output: bool,
    warning: str = "",
) -> Message:
    """Say that an execution ended.

    ``config`` is there for a driver that was away when the trial began. ``has_output``: the task's
    result carries what the trial wrote. ``warning``: what a person
    should know although the trial ran.
    """
    error = (
        None
        if failure is None
        else [tail(failure.error), tail(failure.traceback), tail(failure.output)]
    )
    return _message(
        "ended",
        run,
        config=json.dumps(config),
        outcome=outcome.value,
        metrics=dict(metrics),
        failure=error,
        elapsed=elapsed,
        has_output=has_output,
        warning=warning,
    )


def tail(text: str) -> str:
    """Return the last part of a text, as much as a message may carry."""
    return text if len(text) <= MAX_TEXT else "[...] " + text[-MAX_TEXT:]


def failure_of(message: Message) -> Failure | None:
    """Return the failure that an ``ended`` message carries, if any."""
    return None if message["failure"] is None else Failure(*message["failure"])


def config_of(message: Message) -> Configuration:
    """Return the configuration that an ``ended`` message carries."""
    config: Configuration = json.loads(message["config"])
    return config


def _message(kind: str, run: Run, **more: Any) -> Message:
    return {
        "kind": kind,
        "trial_id": run.trial_id,
        "attempt": run.attempt,
        "run": run.name,
        "at": time.monotonic(),
        **more,
    }


class Outbox:
    """Collects messages of all trials on one worker and sends them in order, in batches.

    Parameters
    ----------
    worker
        The worker's address.
    send
        Hands one batch to Dask, and whether it holds an end; called in order, from any thread.
    call_later
        ``call_later(seconds, function)`` on the worker's event loop, from any thread.
    """

    def __init__(
        self,
        worker: str,
        send: Callable[[dict[str, Any], bool], None],
        call_later: Callable[[float, Callable[[], None]], None],
    ) -> None:
        self._worker = worker
        self._send = send
        self._call_later = call_later
        self._pending: list[Message] = []
        self._lock = threading.Lock()

    def post(self, message: Message) -> None:
        """Send a message within ``LINGER_S`` seconds."""
        with self._lock:
            self._pending.append(message)
            first = len(self._pending) == 1
        if first:
            self._call_later(LINGER_S, self.flush)

    def post_now(self, message: Message) -> None:
        """Send a message at once, behind all that was posted before."""
        with self._lock:
            self._pending.append(message)
        self.flush()

    def flush(self) -> None:
        """Send what is pending. The lock is held while sending: batches keep their order."""
        with self._lock:
            if self._pending:
                messages, self._pending = self._pending, []
                batch = {"worker": self._worker, "sent": time.monotonic(), "messages": messages}
                self._send(batch, any(message["kind"] == "ended" for message in messages))
