"""The state machine: a list of events in, the exact list of commands out; no cluster."""

from __future__ import annotations

import math

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from dask_hpo.core.events import (
    Failure,
    Finish,
    Outcome,
    Record,
    Reported,
    SlotsChanged,
    StartTrial,
    StopReason,
    StopRequested,
    StopTrial,
    Tick,
    TrialEnded,
    TrialStarted,
)
from dask_hpo.core.interfaces import Continue, Stop
from dask_hpo.core.metric import Metric
from dask_hpo.core.stopping import StoppingCriterion
from dask_hpo.core.trial import ACTIVE, TrialState
from dask_hpo.core.tuning import Tuning
from dask_hpo.errors import IllegalTransitionError, OptionError


class Counting:
    """A searcher whose configuration i is {"i": i}, of which there are ``size``."""

    def __init__(self, size=10**9):
        self.size = size
        self.observations = []

    def suggest(self, trial_id):
        return {"i": trial_id} if trial_id < self.size else None

    def observe(self, observation):
        self.observations.append(observation)


class StopAt:
    """A scheduler that stops a trial at a step."""

    def __init__(self, step=math.inf):
        self.step = step
        self.ended = {}

    def on_report(self, trial_id, step, loss):
        return Stop() if step >= self.step else Continue()

    def on_end(self, trial_id, loss):
        assert trial_id not in self.ended
        self.ended[trial_id] = loss


def make(searcher=None, scheduler=None, mode="min", on_stop="stop", lost=3, **limits):
    return Tuning(
        searcher or Counting(),
        scheduler or StopAt(),
        StoppingCriterion(**limits),
        Metric("error", mode),
        on_stop=on_stop,
        max_lost_attempts=lost,
    )


def starts(*numbers, attempt=1):
    return [StartTrial(number, attempt, {"i": number}) for number in numbers]


def started(number, attempt=1, now=0.0):
    return TrialStarted(now, number, attempt, "w")


def reported(number, step, attempt=1, now=0.0, **metrics):
    return Reported(now, number, attempt, step, metrics)


def ended(number, outcome=Outcome.COMPLETED, attempt=1, now=0.0, failure=None, **metrics):
    return TrialEnded(now, number, attempt, outcome, metrics, failure)


def feed(tuning, *events):
    """Feed events and return the commands that are no records."""
    commands = [command for event in events for command in tuning.handle(event)]
    return [command for command in commands if not isinstance(command, Record)]


def records(tuning, *events):
    commands = [command for event in events for command in tuning.handle(event)]
    return [command for command in commands if isinstance(command, Record)]


def test_slots_are_filled_and_a_freed_slot_is_filled_at_once():
    tuning = make()
    assert feed(tuning, SlotsChanged(0, 2)) == starts(0, 1)
    assert feed(tuning, started(0), started(1), reported(1, 1, error=0.5)) == []
    assert feed(tuning, ended(1)) == starts(2)


def test_slots_that_go_leave_running_trials_alone_and_those_that_come_are_filled():
    tuning = make()
    feed(tuning, SlotsChanged(0, 3), started(0), started(1), started(2))
    assert feed(tuning, SlotsChanged(1, 1)) == []
    assert feed(tuning, ended(0, error=1), ended(1, error=1)) == []
    assert feed(tuning, ended(2, error=1)) == starts(3)
    assert feed(tuning, SlotsChanged(2, 3)) == starts(4, 5)


def test_a_record_holds_what_the_log_needs():
    tuning = make()
    feed(tuning, SlotsChanged(0, 1))
    (start,) = records(tuning, started(0))
    (report,) = records(tuning, reported(0, 3, error=0.25, other=7))
    (end,) = records(tuning, ended(0))
    assert (start.worker, start.slots, start.config) == ("w", 1, {"i": 0})
    assert math.isnan(start.value)
    assert (report.value, report.step) == (0.25, 3)
    assert (end.value, end.step, end.event.outcome) == (0.25, 3, Outcome.COMPLETED)


@pytest.mark.parametrize(("mode", "expected"), [("min", 1.0), ("max", 3.0)])
def test_the_incumbent_is_the_best_value_at_any_step(mode, expected):
    tuning = make(mode=mode)
    feed(tuning, SlotsChanged(0, 1), started(0))
    for step, value in enumerate([2.0, 1.0, 3.0, 2.5], 1):
        feed(tuning, reported(0, step, error=value))
    (end,) = records(tuning, ended(0))
    assert tuning.best.value == end.value == expected
    assert tuning.trials[0].last_value == 2.5


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, "high", None])
@pytest.mark.parametrize("mode", ["min", "max"])
def test_a_value_that_is_no_finite_number_ranks_worst_and_the_run_goes_on(value, mode):
    searcher = Counting()
    tuning = make(searcher, mode=mode)
    feed(tuning, SlotsChanged(0, 1), started(0))
    assert feed(tuning, reported(0, 1, error=value), ended(0)) == starts(1)
    assert tuning.best is None
    assert searcher.observations[-1].loss == math.inf
    assert tuning.trials[0].state is TrialState.COMPLETED
    feed(tuning, started(1), reported(1, 1, error=5.0))
    assert tuning.best.trial_id == 1


def test_a_trial_that_never_gives_the_metric_fails_and_says_what_it_gave():
    tuning = make()
    feed(tuning, SlotsChanged(0, 1), started(0), reported(0, 1, eror=0.5, loss=1))
    (end,) = records(tuning, ended(0, accuracy=1))
    assert end.event.outcome is Outcome.FAILED
    for word in ("'error'", "accuracy", "eror", "loss"):
        assert word in end.event.failure.error


def test_the_searcher_hears_reports_and_one_final_observation():
    searcher = Counting()
    tuning = make(searcher, mode="max")
    feed(tuning, SlotsChanged(0, 1), started(0), reported(0, 1, error=2.0), ended(0, error=1.0))
    assert [(o.loss, o.final) for o in searcher.observations] == [(-2.0, False), (-2.0, True)]


def test_a_failure_observes_as_infinite_loss():
    searcher, scheduler = Counting(), StopAt()
    tuning = make(searcher, scheduler)
    feed(tuning, SlotsChanged(0, 1), started(0), reported(0, 1, error=0.1))
    feed(tuning, ended(0, Outcome.FAILED, failure=Failure("ValueError: no")))
    assert searcher.observations[-1].loss == scheduler.ended[0] == math.inf


def test_a_scheduler_stops_one_trial():
    tuning = make(scheduler=StopAt(2))
    feed(tuning, SlotsChanged(0, 2), started(0), started(1), reported(0, 1, error=1))
    stop = StopTrial(0, 1, StopReason.SCHEDULER)
    assert feed(tuning, reported(0, 2, error=1)) == [stop]
    assert feed(tuning, reported(0, 3, error=1)) == []  # asked once
    assert feed(tuning, ended(0, Outcome.STOPPED)) == starts(2)


# Stopping


def test_wallclock_time_stops_running_trials_and_finishes_when_they_ended():
    tuning = make(max_wallclock_time=10)
    feed(tuning, SlotsChanged(0, 2), started(0))
    reason = StopReason.MAX_WALLCLOCK_TIME
    assert feed(tuning, Tick(9.9)) == []
    assert feed(tuning, Tick(10.0)) == [StopTrial(0, 1, reason), StopTrial(1, 1, reason)]
    assert feed(tuning, Tick(11.0)) == []
    assert feed(tuning, ended(1, Outcome.STOPPED)) == []
    assert feed(tuning, ended(0, error=1)) == [Finish(reason)]
    assert feed(tuning, Tick(12.0)) == []  # finished once


def test_on_stop_wait_awaits_them_and_a_person_still_stops_them():
    tuning = make(max_wallclock_time=10, on_stop="wait")
    feed(tuning, SlotsChanged(0, 2), started(0), started(1))
    assert feed(tuning, Tick(10.0)) == []
    assert feed(tuning, ended(0, error=1)) == []
    assert feed(tuning, StopRequested(11)) == [StopTrial(1, 1, StopReason.INTERRUPTED)]
    assert feed(tuning, ended(1, Outcome.STOPPED)) == [Finish(StopReason.INTERRUPTED)]


def test_max_num_trials_started_holds_to_the_trial_and_awaits_the_rest():
    tuning = make(max_num_trials_started=3, max_wallclock_time=100)
    assert feed(tuning, SlotsChanged(0, 5)) == starts(0, 1, 2)
    feed(tuning, *(started(i) for i in range(3)), ended(0, error=1), ended(1, error=1))
    reason = StopReason.MAX_WALLCLOCK_TIME  # which still holds for those that are awaited
    assert feed(tuning, Tick(100)) == [StopTrial(2, 1, reason)]


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        ({"max_num_trials_completed": 2}, StopReason.MAX_NUM_TRIALS_COMPLETED),
        ({"max_num_evaluations": 2}, StopReason.MAX_NUM_EVALUATIONS),
        ({"target_value": 0.5}, StopReason.TARGET_VALUE),
    ],
)
def test_counts_and_target(limits, reason):
    tuning = make(**limits)
    feed(tuning, SlotsChanged(0, 2), started(0), started(1))
    assert feed(tuning, ended(0, error=0.6)) == starts(2)
    assert feed(tuning, ended(1, error=0.5)) == [StopTrial(2, 1, reason)]


def test_an_exhausted_space_ends_the_experiment():
    tuning = make(Counting(2))
    assert feed(tuning, SlotsChanged(0, 5)) == starts(0, 1)
    feed(tuning, started(0), started(1))
    assert feed(tuning, ended(0, error=1)) == []
    assert feed(tuning, ended(1, error=1)) == [Finish(StopReason.EXHAUSTED)]


def test_a_high_failure_rate_gives_up_with_the_first_failure():
    tuning = make()
    feed(tuning, SlotsChanged(0, 1))
    for i in range(4):
        assert feed(tuning, started(i), ended(i, Outcome.FAILED, failure=Failure(f"E{i}"))) == (
            starts(i + 1)
        )
    commands = feed(tuning, started(4), ended(4, Outcome.FAILED, failure=Failure("E4")))
    assert commands == [Finish(StopReason.FAILURE_RATE)]
    assert tuning.first_failure == (0, Failure("E0"))


def test_one_failure_in_five_does_not():
    tuning = make()
    feed(tuning, SlotsChanged(0, 1))
    for i in range(50):
        outcome = Outcome.FAILED if i % 5 == 0 else Outcome.COMPLETED
        failure = Failure("E") if i % 5 == 0 else None
        assert feed(tuning, started(i), ended(i, outcome, failure=failure, error=1)) == (
            starts(i + 1)
        )


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({"max_wallclock_time": -1}, "max_wallclock_time=-1"),
        ({"max_wallclock_time": "60"}, "'60'"),
        ({"max_num_trials_completed": 2.5}, "whole number; give 3"),
        ({"max_num_trials_started": True}, "True"),
        ({"target_value": math.nan}, "nan"),
        ({"target_value": math.inf}, "finite"),
        ({"max_failure_rate": 80}, "between 0 and 1"),
    ],
)
def test_a_bad_limit_is_refused_with_value_and_rule(limits, words):
    with pytest.raises(OptionError, match=words.replace("(", r"\(")):
        StoppingCriterion(**limits)


# Lost attempts


def test_a_lost_attempt_runs_again_and_its_late_news_do_not_mix_in():
    tuning = make()
    feed(tuning, SlotsChanged(0, 1), started(0), reported(0, 5, error=9))
    lost = ended(0, Outcome.LOST, failure=Failure("worker gone"))
    assert feed(tuning, lost) == starts(0, attempt=2)
    feed(tuning, started(0, attempt=2))
    assert tuning.handle(reported(0, 6, attempt=1, error=0.0)) == []
    assert tuning.best.value == 9
    assert feed(tuning, ended(0, attempt=2, error=1)) == starts(1)


def test_too_many_lost_attempts_fail_the_trial():
    tuning = make(lost=1)
    feed(tuning, SlotsChanged(0, 1), started(0), ended(0, Outcome.LOST))
    (end,) = records(tuning, ended(0, Outcome.LOST, attempt=2, failure=Failure("gone")))
    assert end.event.outcome is Outcome.FAILED
    assert "2 attempts" in end.event.failure.error


def test_a_lost_attempt_of_a_stopping_trial_is_simply_stopped():
    tuning = make(max_wallclock_time=1)
    feed(tuning, SlotsChanged(0, 1), started(0), Tick(1))
    assert feed(tuning, ended(0, Outcome.LOST)) == [Finish(StopReason.MAX_WALLCLOCK_TIME)]
    assert tuning.trials[0].state is TrialState.STOPPED


def test_an_illegal_event_raises_and_changes_nothing():
    tuning = make()
    feed(tuning, SlotsChanged(0, 1))
    before = repr(tuning.trials)
    with pytest.raises(IllegalTransitionError, match="trial 0 is submitted"):
        tuning.handle(reported(0, 1, error=1))
    assert repr(tuning.trials) == before
    assert tuning.evaluations == 0
    assert tuning.best is None


# Whatever happens, in whatever order


class AnyOrder(RuleBasedStateMachine):
    """Legal events in any order keep the invariants; the machine always comes to its end."""

    @initialize(
        slots=st.integers(0, 4),
        size=st.integers(1, 12),
        limit=st.none() | st.integers(1, 8),
        on_stop=st.sampled_from(["stop", "wait"]),
    )
    def begin(self, slots, size, limit, on_stop):
        self.scheduler = StopAt(3)
        self.tuning = make(
            Counting(size),
            self.scheduler,
            on_stop=on_stop,
            max_num_trials_completed=limit,
            max_failure_rate=1.0,
        )
        self.finishes = 0
        self.started = set()
        self.log = []
        self.take(SlotsChanged(0, slots))

    def take(self, event):
        for command in self.tuning.handle(event):
            match command:
                case StartTrial():
                    key = command.trial_id, command.attempt
                    assert key not in self.started
                    self.started.add(key)
                case Record():
                    self.log.append(command.event)
                case Finish():
                    self.finishes += 1

    def pick(self, data, *states):
        trials = [t for t in self.tuning.active.values() if t.state in states]
        return data.draw(st.sampled_from(trials)) if trials else None

    @rule(slots=st.integers(0, 5))
    def slots_change(self, slots):
        self.take(SlotsChanged(0, slots))

    @rule(data=st.data())
    def start(self, data):
        trial = self.pick(data, TrialState.SUBMITTED)
        if trial:
            self.take(started(trial.trial_id, trial.attempt))

    @rule(data=st.data(), value=st.floats() | st.none())
    def report(self, data, value):
        trial = self.pick(data, TrialState.RUNNING)
        if trial:
            self.take(reported(trial.trial_id, trial.step + 1, trial.attempt, error=value))

    @rule(
        data=st.data(),
        outcome=st.sampled_from([Outcome.COMPLETED, Outcome.FAILED, Outcome.LOST]),
    )
    def end(self, data, outcome):
        trial = self.pick(data, TrialState.RUNNING, TrialState.STOPPING)
        if trial:
            failure = None if outcome is Outcome.COMPLETED else Failure("E")
            self.take(ended(trial.trial_id, outcome, trial.attempt, failure=failure, error=1.0))

    @rule(data=st.data())
    def stopped(self, data):
        trial = self.pick(data, TrialState.STOPPING)
        if trial:
            self.take(ended(trial.trial_id, Outcome.STOPPED, trial.attempt))

    @rule()
    @precondition(lambda self: len(self.tuning.trials) > 3)
    def interrupt(self):
        self.take(StopRequested(0))

    @invariant()
    def states_and_counts_agree(self):
        tuning = self.tuning
        assert [t.trial_id for t in tuning.trials] == list(range(len(tuning.trials)))
        assert set(tuning.active) == {t.trial_id for t in tuning.trials if t.state in ACTIVE}
        for state in TrialState:
            assert tuning.counts[state] == sum(t.state is state for t in tuning.trials)

    @invariant()
    def each_ended_trial_is_logged_and_told_once(self):
        over = {t.trial_id for t in self.tuning.trials if t.state not in ACTIVE}
        final = [
            e.trial_id
            for e in self.log
            if isinstance(e, TrialEnded) and e.outcome is not Outcome.LOST
        ]
        assert sorted(final) == sorted(over) == sorted(self.scheduler.ended)

    @invariant()
    def it_finishes_once_and_only_when_nothing_runs(self):
        assert self.finishes == self.tuning.finished
        assert not (self.tuning.finished and self.tuning.active)


AnyOrder.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestAnyOrder = AnyOrder.TestCase
