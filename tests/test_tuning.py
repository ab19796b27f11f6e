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
    SetAside,
    SlotsChanged,
    StartTrial,
    StopReason,
    StopRequested,
    StopTrial,
    Tick,
    TrialEnded,
    TrialFound,
    TrialStarted,
)
from dask_hpo.core.interfaces import Continue, Stop
from dask_hpo.core.metric import Metric
from dask_hpo.core.stopping import StoppingCriterion
from dask_hpo.core.trial import ACTIVE, TrialState
from dask_hpo.core.tuning import INTERRUPTED, Tuning
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


# An experiment that is resumed


def replayed(log, **options):
    """Return a state machine that was told what a log says, as the driver does."""
    tuning = make(**options)
    for record in log:
        event = record.event
        if isinstance(event, TrialStarted) or event.trial_id >= len(tuning.trials):
            tuning.replay(TrialFound(event.now, event.trial_id, record.config))
        tuning.replay(event)
    return tuning


def run_of(number, attempt=1):
    return TrialStarted(0, number, attempt, "w", f"w/{number}/{attempt}")


def test_a_resume_takes_up_what_runs_and_goes_on_with_the_next_number():
    tuning = make()
    log = records(
        tuning, SlotsChanged(0, 3), run_of(0), run_of(2), reported(2, 1, error=2.0), ended(0)
    )
    again = replayed(log)
    assert again.resume() == [
        StartTrial(1, 1, {"i": 1}),  # submitted, and never heard of
        StartTrial(2, 1, {"i": 2}, run="w/2/1", elapsed=0.0),
    ]
    assert feed(again, SlotsChanged(9, 3)) == starts(3)
    assert again.best.trial_id == 2


def test_a_resume_counts_lost_attempts_on():
    tuning = make(lost=1)
    log = records(tuning, SlotsChanged(0, 1), run_of(0), ended(0, Outcome.LOST), run_of(0, 2))
    again = replayed(log, lost=1)
    (start,) = again.resume()
    assert (start.attempt, start.run) == (2, "w/0/2")
    (end,) = records(again, ended(0, Outcome.LOST, attempt=2))
    assert end.event.outcome is Outcome.FAILED


def test_a_resume_repeats_the_stop_of_a_trial_that_a_scheduler_stopped():
    scheduler = StopAt(1)
    tuning = make(scheduler=scheduler)
    log = records(tuning, SlotsChanged(0, 1), run_of(0), reported(0, 1, error=1.0))
    again = replayed(log, scheduler=StopAt(1))
    assert again.resume()[1] == StopTrial(0, 1, StopReason.SCHEDULER)


def test_what_a_person_stopped_runs_again_and_what_a_limit_stopped_does_not():
    tuning = make(max_wallclock_time=10)
    log = records(tuning, SlotsChanged(0, 1), run_of(0), StopRequested(1))
    log += records(tuning, ended(0, Outcome.STOPPED))
    again = replayed(log, max_wallclock_time=10)
    assert again.resume() == starts(0, attempt=2)
    log += records(again, TrialStarted(2, 0, 2, "w", "r"), Tick(10))
    log += records(again, ended(0, Outcome.STOPPED, attempt=2))
    assert replayed(log, max_wallclock_time=10).active == {}


def test_a_limit_that_was_reached_ends_a_resumed_experiment_at_once():
    tuning = make(max_num_trials_started=1)
    log = records(tuning, SlotsChanged(0, 1), run_of(0), ended(0, error=1.0))
    again = replayed(log, max_num_trials_started=1)
    assert feed(again, SlotsChanged(1, 4)) == [Finish(StopReason.MAX_NUM_TRIALS_STARTED)]
    larger = replayed(log, max_num_trials_started=3)
    assert feed(larger, SlotsChanged(1, 4)) == starts(1, 2)


def test_a_trial_that_only_the_cluster_knows_keeps_its_number_and_configuration():
    again = make()
    again.replay(TrialFound(0, 2, {"i": "found"}, attempt=2))
    assert [t.config for t in again.trials] == [{"i": 0}, {"i": 1}, {"i": "found"}]
    assert (again.trials[2].attempt, again.trials[2].lost) == (2, 1)
    again.replay(TrialFound(0, 1, {"i": "another"}))  # it was sampled before a report came
    assert again.trials[1].config == {"i": "another"}
    assert feed(again, SlotsChanged(0, 4)) == starts(3)


def test_trials_below_one_that_the_cluster_knows_are_started():
    again = make()
    assert feed(again, TrialFound(0, 2, {"i": 2})) == starts(0, 1)
    assert feed(again, SlotsChanged(0, 4)) == starts(3)


def test_a_searcher_without_the_configuration_of_a_trial_that_exists_is_refused():
    again = make(Counting(size=1))
    with pytest.raises(OptionError, match="no configuration for trial 1"):
        again.replay(TrialFound(0, 2, {"i": 2}))


class Restorable(Counting):
    def restore(self, trial_id, config):
        self.restored = [*getattr(self, "restored", []), (trial_id, config)]


def test_a_searcher_is_told_what_it_gave_and_what_became_of_it():
    log = records(
        make(), SlotsChanged(0, 1), run_of(0), reported(0, 1, error=2.0), ended(0), run_of(1)
    )
    searcher = Restorable()
    replayed(log, searcher=searcher)
    assert searcher.restored == [(0, {"i": 0}), (1, {"i": 1})]
    assert [(o.loss, o.final) for o in searcher.observations] == [(2.0, False), (2.0, True)]


# Workers


def on(worker, number):
    return TrialStarted(0, number, 1, worker)


def failed(number):
    return ended(number, Outcome.FAILED, failure=Failure("E: no such package"))


def test_a_worker_that_alone_fails_its_trials_is_set_aside_and_the_experiment_goes_on():
    tuning = make(max_failure_rate=0.8)
    feed(tuning, SlotsChanged(0, 2), on("good", 0))
    for number in range(1, 5):
        assert feed(tuning, on("bad", number), failed(number)) == starts(number + 1)
    aside, start = feed(tuning, on("bad", 5), failed(5))
    assert aside == SetAside("bad", 5, "E: no such package")
    assert [start] == starts(6)
    assert tuning.statistics.failed == 0  # they tell nothing of the search


def test_a_worker_that_fails_before_the_others_have_begun_is_set_aside():
    """Trial 0 warms up elsewhere, and its start is not heard of yet."""
    tuning = make(max_failure_rate=0.8)
    feed(tuning, SlotsChanged(0, 2))
    for number in range(1, 5):
        feed(tuning, on("bad", number), failed(number))
    aside, _ = feed(tuning, on("bad", 5), failed(5))
    assert aside == SetAside("bad", 5, "E: no such package")


def test_the_only_worker_is_not_set_aside():
    tuning = make(max_failure_rate=1.0)
    feed(tuning, SlotsChanged(0, 1))
    for number in range(30):
        assert feed(tuning, on("w", number), failed(number)) == starts(number + 1)


def test_trials_that_fail_everywhere_are_no_workers_fault():
    tuning = make(max_failure_rate=1.0)
    feed(tuning, SlotsChanged(0, 2))
    for number in range(0, 60, 2):
        for worker, n in (("v", number), ("w", number + 1)):
            assert feed(tuning, on(worker, n), failed(n)) == starts(n + 2)


def test_failures_in_a_row_that_are_no_chance():
    """Elsewhere one in ten fails: so many in a row on one worker have a cause there."""
    tuning = make(max_failure_rate=1.0)
    feed(tuning, SlotsChanged(0, 2))
    number = 0
    for i in range(20):
        feed(tuning, on("good", number), failed(number) if i % 10 == 0 else ended(number, error=1))
        number += 1
    feed(tuning, on("good", number))
    set_aside = []
    for n in range(number + 1, number + 12):
        set_aside += [c for c in feed(tuning, on("bad", n), failed(n)) if isinstance(c, SetAside)]
    assert [command.failures for command in set_aside] == [7]  # (3 / 22) ** 7 = 9e-7


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
                    self.log.append(command)
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
            r.event.trial_id
            for r in self.log
            if isinstance(r.event, TrialEnded) and r.event.outcome is not Outcome.LOST
        ]
        assert sorted(final) == sorted(over) == sorted(self.scheduler.ended)

    @invariant()
    def it_finishes_once_and_only_when_nothing_runs(self):
        assert self.finishes == self.tuning.finished
        assert not (self.tuning.finished and self.tuning.active)

    def teardown(self):
        """Replay the log, and compare all that a later driver needs to know."""
        again = replayed(self.log)
        logged = {r.event.trial_id for r in self.log}
        ends = [r.event for r in self.log if isinstance(r.event, TrialEnded)]
        interrupted = {event.trial_id for event in ends if event.failure == INTERRUPTED}
        assert len(again.trials) == max(logged, default=-1) + 1
        for trial, copy in zip(self.tuning.trials, again.trials, strict=False):
            if trial.trial_id in interrupted:  # it is to run again, with what it gave so far
                assert (copy.state, copy.attempt) == (TrialState.SUBMITTED, trial.attempt + 1)
                continue
            assert (trial.state in ACTIVE) == (copy.state in ACTIVE)
            assert trial.state in ACTIVE or trial.state is copy.state
            if trial.trial_id in logged:
                for name in ("config", "attempt", "run", "elapsed", "step", "evaluated"):
                    assert getattr(trial, name) == getattr(copy, name), name
                assert trial.lost == copy.lost or trial.state not in ACTIVE
                assert repr((trial.value, trial.loss)) == repr((copy.value, copy.loss))
        assert again.evaluations == self.tuning.evaluations
        assert again.best == self.tuning.best
        assert again.first_failure == self.tuning.first_failure


AnyOrder.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestAnyOrder = AnyOrder.TestCase
