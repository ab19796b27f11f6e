"""What workers remember of attempts, and what a driver makes of it; no cluster."""

from __future__ import annotations

import dataclasses
import threading

from dask_hpo.cluster import memory, messages
from dask_hpo.cluster.memory import Memory, Recalled
from dask_hpo.cluster.messages import Run
from dask_hpo.cluster.recall import Recollection, has_ended
from dask_hpo.core.events import Outcome


def said(trial_id, attempt, run, *, reports=1, ended=False):
    """Return an execution with a start, some reports, and perhaps its end."""
    name = Run(trial_id, attempt, run)
    told = [messages.started(name)]
    told += [messages.reported(name, step, {"error": 1.0}, float(step)) for step in range(reports)]
    if ended:
        told.append(
            messages.ended(
                name,
                {"x": 0.5},
                Outcome.COMPLETED,
                metrics={},
                failure=None,
                elapsed=9.0,
                has_output=False,
            )
        )
    return Recalled(trial_id, attempt, {"x": 0.5}, run, "key", told)


def test_an_attempt_that_runs_is_joined_and_one_that_ended_gives_its_result():
    remembered = Memory()
    course, is_new = remembered.begin(3, 1, {}, "a", "key")
    assert is_new
    joined, again = remembered.begin(3, 1, {}, "b", "key")
    assert joined is course
    assert not again
    waiting = threading.Thread(target=joined.over.wait)
    waiting.start()
    remembered.end(course, "result")
    waiting.join(5)
    assert not waiting.is_alive()
    assert remembered.begin(3, 1, {}, "c", "key")[0].result == "result"


def test_one_that_came_to_nothing_is_begun_anew():
    remembered = Memory()
    course, _ = remembered.begin(3, 1, {}, "a", "key")
    remembered.forget(course)
    assert course.over.is_set()
    assert remembered.begin(3, 1, {}, "b", "key")[1]


def test_memory_has_an_end():
    remembered = Memory()
    running, _ = remembered.begin(10_000, 1, {}, "runs", "key")
    for number in range(2 * memory.ENDED_ATTEMPTS):
        course, _ = remembered.begin(number, 1, {}, str(number), "key")
        course.messages.append({})
        remembered.end(course, number)
    kept = [recalled.trial_id for recalled in remembered.recall()]
    last = range(memory.ENDED_ATTEMPTS, 2 * memory.ENDED_ATTEMPTS)
    assert kept == [running.trial_id, *last]
    talkative, _ = remembered.begin(10_001, 1, {}, "talks", "key")
    talkative.messages.extend({} for _ in range(2 * memory.MESSAGES))
    remembered.end(talkative, None)
    assert len(talkative.messages) == memory.MESSAGES
    assert [recalled.trial_id for recalled in remembered.recall()] == [10_000, 10_001]


def test_the_execution_that_was_seen_is_the_one_that_counts():
    first, second = said(3, 1, "dead"), said(3, 1, "rerun", ended=True)
    both = Recollection([first, second])
    assert both.of(3, 1, "dead") is first
    assert both.of(3, 1, "never heard of") is None
    assert both.of(3, 1, "") is second  # nothing was seen: one that ended is as good
    assert both.of(3, 2, "") is None


def test_trials_beyond_the_log_come_with_their_last_attempt():
    third = said(7, 2, "c")
    found = Recollection([said(6, 1, "a"), said(7, 1, "b", ended=True), third, said(2, 1, "d")])
    assert [execution.trial_id for execution in found.beyond(6)] == [6, 7]
    assert found.beyond(6)[1] is third


def test_strays_are_what_runs_and_nobody_waits_for():
    old, ended, rerun = said(1, 1, "a"), said(1, 1, "b", ended=True), said(2, 1, "c")
    gone = dataclasses.replace(said(2, 1, "gone"), remembered=False)
    later = said(5, 2, "f")
    everything = Recollection([old, ended, rerun, gone, said(1, 2, "d"), said(9, 1, "e"), later])
    assert everything.strays({"d", "e"}, {1: 2, 2: 1, 5: 1, 9: 1}) == [old, rerun]
    assert everything.strays({"d", "e"}, {1: 2, 9: 1}) == [old, rerun, later]
    assert has_ended(ended)
    assert not has_ended(old)
