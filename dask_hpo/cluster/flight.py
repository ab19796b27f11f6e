"""What the driver's queue holds, an attempt on its way, and the events that messages become."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from distributed import Future

from dask_hpo.cluster.messages import Message, failure_of
from dask_hpo.cluster.worker import End
from dask_hpo.core.events import Failure, Outcome, Reported, TrialEnded


@dataclass(slots=True)
class Flight:
    """An attempt whose task is with Dask, and what was heard of it.

    ``elapsed`` is that of the last report: what is not later has been heard before. ``now`` is the
    time of the last event: batches travel for different times, but a trial's events are in order.
    """

    trial_id: int
    attempt: int
    future: Future
    allowed: frozenset[str]  #: the workers that it was submitted to
    run: str = ""
    worker: str = ""
    elapsed: float = 0.0
    now: float = 0.0
    end: Message | None = None
    stopping: bool = False
    taken_back: bool = False  #: its task was cancelled before it began
    lasting: bool = False  #: the Dask scheduler finishes it for nobody, if need be


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch of messages, with the driver's time when it was heard."""

    heard: float
    content: dict[str, Any]


@dataclass(frozen=True, slots=True)
class WorkersChanged:
    """So many slots there are now, on these workers."""

    now: float
    slots: int
    present: frozenset[str]


@dataclass(frozen=True, slots=True)
class Completed:
    """A future that resolved.

    ``end`` is its result where that was fetched; ``error`` says in one line why it has none.
    """

    future: Future
    end: End | None = None
    error: str = ""


@dataclass(frozen=True, slots=True)
class Broken:
    """The connection to the Dask scheduler broke, and why."""

    reason: str


def reported(message: Message, now: float) -> Reported:
    """Return the event of a report."""
    return Reported(
        now,
        message["trial_id"],
        message["attempt"],
        message["step"],
        message["metrics"],
        message["elapsed"],
    )


def ended(message: Message, now: float) -> TrialEnded:
    """Return the event of an end."""
    return TrialEnded(
        now,
        message["trial_id"],
        message["attempt"],
        Outcome(message["outcome"]),
        message["metrics"],
        failure_of(message),
        message["elapsed"],
    )


def lost(trial_id: int, attempt: int, now: float, worker: str) -> TrialEnded:
    """Return the event of an attempt that went with its worker."""
    why = Failure(f"WorkerLost: the worker {worker} that ran this attempt is gone")
    return TrialEnded(now, trial_id, attempt, Outcome.LOST, failure=why)
