"""What a worker remembers of its attempts, for a driver that was away.

Every message of an attempt is kept, in order, while it runs and for some time after; so a driver
that resumes hears what it missed, and the task of an attempt that is submitted again joins the one
that runs, or gets the end of the one that ended. Nothing runs twice.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from dask_hpo.cluster.messages import Message
from dask_hpo.core.events import Configuration

#: Attempts that ended are remembered up to this number. While no driver is there none begins, so
#: those that end then are at most the slots; before that, what counts is the log's last second.
ENDED_ATTEMPTS = 256
#: Messages that are remembered of one attempt, of which the oldest are dropped; and of all attempts
#: that ended, of which the first are forgotten.
MESSAGES = 10_000

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Recalled:
    """What is known of one execution of an attempt.

    ``config`` is None where nobody can tell; ``key`` is that of its task. ``remembered``: by the
    worker that executes it, which is there; else only the Dask scheduler has kept what it said.
    """

    trial_id: int
    attempt: int
    config: Configuration | None
    run: str
    key: str
    messages: list[Message]
    remembered: bool = True


@dataclass(slots=True)
class Course(Generic[Result]):
    """One execution: its messages so far and, once it is over, the result of its task."""

    trial_id: int
    attempt: int
    config: Configuration
    run: str
    key: str
    messages: deque[Message] = field(default_factory=lambda: deque(maxlen=MESSAGES))
    over: threading.Event = field(default_factory=threading.Event)
    result: Result | None = None


class Memory(Generic[Result]):
    """The executions of attempts on one worker; used from many threads."""

    def __init__(self) -> None:
        self._courses: dict[tuple[int, int], Course[Result]] = {}
        self._ended: deque[Course[Result]] = deque()
        self._ended_messages = 0
        self._lock = threading.Lock()

    def begin(
        self, trial_id: int, attempt: int, config: Configuration, run: str, key: str
    ) -> tuple[Course[Result], bool]:
        """Return the course of an attempt, and whether it is new: else somebody executes it."""
        with self._lock:
            known = self._courses.get((trial_id, attempt))
            if known is not None:
                return known, False
            course = Course[Result](trial_id, attempt, config, run, key)
            self._courses[trial_id, attempt] = course
            return course, True

    def end(self, course: Course[Result], result: Result) -> None:
        """Keep a result, and wake who waits for it."""
        with self._lock:
            course.result = result
            self._ended.append(course)
            self._ended_messages += len(course.messages)
            while len(self._ended) > ENDED_ATTEMPTS or self._has_much():
                self._forget_first()
        course.over.set()

    def _has_much(self) -> bool:
        return self._ended_messages > MESSAGES and len(self._ended) > 1

    def _forget_first(self) -> None:
        first = self._ended.popleft()
        self._ended_messages -= len(first.messages)
        del self._courses[first.trial_id, first.attempt]

    def forget(self, course: Course[Result]) -> None:
        """Drop an execution that came to nothing, and wake who waits for it."""
        with self._lock:
            del self._courses[course.trial_id, course.attempt]
        course.over.set()

    def result(self, trial_id: int, attempt: int) -> Result | None:
        """Return the result of an attempt that has ended; None if it is not remembered."""
        with self._lock:
            course = self._courses.get((trial_id, attempt))
        return None if course is None else course.result

    def recall(self) -> list[Recalled]:
        """Return all that is remembered."""
        with self._lock:
            courses = list(self._courses.values())
        return [
            Recalled(c.trial_id, c.attempt, c.config, c.run, c.key, list(c.messages))
            for c in courses
        ]
