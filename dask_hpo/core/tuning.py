"""The tuning state machine: events in, commands out. It alone changes the state of an experiment.

The driver's loop feeds it what the cluster says, the simulator what its virtual clock says, a test
a list. It knows nothing of either: time arrives in the events, and a command is only a wish.

One event is one step of ``handle``:

1. the event changes its trial by the table in ``trial.py``; searcher and scheduler learn;
2. the stopping criterion is asked, and once it is met running trials are stopped or awaited;
3. free slots are filled;
4. when nothing runs and nothing is to come, ``Finish`` is the last command.

An experiment is resumed by events, too: ``replay`` takes in those of the past, from which nothing
follows, and ``resume`` gives the commands that take up what was running.

All of it is O(1) per event, besides what a searcher or a scheduler does.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from dataclasses import dataclass
from typing import Literal

from dask_hpo.core.events import (
    Command,
    Configuration,
    Event,
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
from dask_hpo.core.health import SUSPECT_AFTER, WorkerHealth
from dask_hpo.core.interfaces import Observation, Scheduler, Searcher, Stop
from dask_hpo.core.metric import Metric
from dask_hpo.core.stopping import Statistics, StoppingCriterion
from dask_hpo.core.trial import TRANSITIONS, Happening, Trial, TrialState
from dask_hpo.errors import OptionError

OnStop = Literal["stop", "wait"]

#: Whatever ``on_stop`` says, these let running trials end by themselves: all is well with them.
_ALWAYS_AWAIT = frozenset({StopReason.MAX_NUM_TRIALS_STARTED, StopReason.EXHAUSTED})
#: And these stop them: a person asked, or what they do is of no use.
_ALWAYS_STOP = frozenset({StopReason.INTERRUPTED, StopReason.FAILURE_RATE})
#: A limit that is reached while the last trials are awaited still stops them.
_MAY_YET_STOP = frozenset({None, *_ALWAYS_AWAIT})
_STOPPABLE = frozenset({TrialState.SUBMITTED, TrialState.RUNNING})

#: How the end of a trial that a person stopped is told from others: a resume runs it again.
INTERRUPTED = Failure("Interrupted: a person ended the experiment; a resume runs the trial again")


@dataclass(frozen=True, slots=True)
class Best:
    """The incumbent: the best finite value heard so far, and of which trial."""

    trial_id: int
    value: float
    config: Configuration


class Tuning:
    """The state of one experiment.

    Parameters
    ----------
    searcher, scheduler, stopping, metric
        What proposes, what judges, when to end, and what is optimised.
    on_stop
        ``"stop"`` ends running trials when the stopping criterion is met, ``"wait"`` awaits them.
    max_lost_attempts
        A trial whose attempts the infrastructure lost more often than this fails.
    """

    def __init__(
        self,
        searcher: Searcher,
        scheduler: Scheduler,
        stopping: StoppingCriterion,
        metric: Metric,
        *,
        on_stop: OnStop = "stop",
        max_lost_attempts: int = 3,
    ) -> None:
        self.trials: list[Trial] = []  #: the trial with number i stands at index i
        self.active: dict[int, Trial] = {}  #: those that hold a slot, or wait for one
        self.counts: Counter[TrialState] = Counter()
        self.slots = 0
        self.now = 0.0
        self.evaluations = 0
        self.best: Best | None = None
        self.first_failure: tuple[int, Failure] | None = None
        self.stop_reason: StopReason | None = None
        self.finished = False
        self._searcher = searcher
        self._scheduler = scheduler
        self._stopping = stopping
        self._metric = metric
        self._on_stop = on_stop
        self._max_lost_attempts = max_lost_attempts
        self._best_loss = math.inf
        self._health = WorkerHealth()
        self._reported_names: dict[int, set[str]] = {}  # of active trials: for a misspelt metric

    def handle(self, event: Event) -> list[Command]:
        """Take in one event and return what is to be done, in order.

        Raises
        ------
        IllegalTransitionError
            If the event does not fit the state of its trial; nothing has changed then.
        """
        commands = self._take_in(event)
        self.now = max(self.now, event.now)  # events of several workers overtake each other by ms
        commands += self._check_stopping()
        commands += self._fill_slots()
        if self.stop_reason is not None and not self.active and not self.finished:
            self.finished = True
            commands.append(Finish(self.stop_reason))
        return commands

    def replay(self, event: Event) -> None:
        """Take in an event of the past: it changes what is known, and nothing follows from it.

        Raises
        ------
        IllegalTransitionError
            If the event does not fit the state of its trial.
        """
        trial = self._current(event) if isinstance(event, TrialEnded) else None
        if isinstance(event, TrialEnded) and trial is not None:
            if (trial.state, event.outcome) not in TRANSITIONS:
                self._move(trial, Happening.STOP)  # the experiment's end stopped it: not an event
            if event.failure == INTERRUPTED:
                self._move(trial, Happening.AGAIN)
                trial.start_over()
        self._take_in(event)  # of an attempt that is over it says nothing
        self.now = max(self.now, event.now)

    def resume(self) -> list[Command]:
        """Return what takes up the active trials again, after a replay or a break of connection."""
        commands: list[Command] = []
        for trial in self.active.values():
            commands.append(_start(trial))
            if trial.state is TrialState.STOPPING:
                reason = self.stop_reason or StopReason.SCHEDULER
                commands.append(StopTrial(trial.trial_id, trial.attempt, reason))
        return commands

    @property
    def statistics(self) -> Statistics:
        """The numbers that a stopping criterion looks at."""
        counts = self.counts
        failed = counts[TrialState.FAILED] - self._health.excused
        ended = counts[TrialState.COMPLETED] + counts[TrialState.STOPPED] + failed
        return Statistics(
            now=self.now,
            started=len(self.trials),
            completed=counts[TrialState.COMPLETED],
            ended=ended,
            failed=failed,
            evaluations=self.evaluations,
            best_loss=self._best_loss,
        )

    # What each event does

    def _take_in(self, event: Event) -> list[Command]:
        match event:
            case TrialFound():
                return self._on_found(event)
            case TrialStarted():
                return self._on_started(event)
            case Reported():
                return self._on_reported(event)
            case TrialEnded():
                return self._on_ended(event)
            case SlotsChanged():
                self.slots = event.slots
            case StopRequested():
                return self._stop(StopReason.INTERRUPTED)
            case Tick():
                pass
        return []

    def _on_found(self, event: TrialFound) -> list[Command]:
        """Take the trial up under its number; those below it were submitted before, unseen."""
        commands: list[Command] = []
        while len(self.trials) < event.trial_id:
            config = self._searcher.suggest(len(self.trials))
            if config is None:
                raise OptionError(
                    f"the searcher has no configuration for trial {len(self.trials)}, but trial "
                    f"{event.trial_id} exists: resume with the searcher and the space that the "
                    "experiment began with"
                )
            commands.append(_start(self._add(config)))
        if event.trial_id == len(self.trials):
            self._tell_searcher(event)
            trial = self._add(event.config)
            trial.attempt, trial.lost = event.attempt, event.attempt - 1
        elif (trial := self.trials[event.trial_id]).state is TrialState.SUBMITTED:
            trial.config = event.config  # what really runs, whatever would be suggested today
        return commands

    def _tell_searcher(self, event: TrialFound) -> None:
        """Let the searcher know of a configuration that it gave in the past."""
        restore = getattr(self._searcher, "restore", None)
        if restore is not None:
            restore(event.trial_id, event.config)
        else:
            self._searcher.suggest(event.trial_id)  # it may count its calls

    def _on_started(self, event: TrialStarted) -> list[Command]:
        trial = self._current(event)
        if trial is None:
            return []
        self._move(trial, Happening.START)
        trial.worker, trial.run = event.worker, event.run
        return [self._record(event, trial)]

    def _on_reported(self, event: Reported) -> list[Command]:
        trial = self._current(event)
        if trial is None:
            return []
        self._move(trial, Happening.REPORT)
        trial.step, trial.elapsed = event.step, event.elapsed
        self._reported_names[trial.trial_id].update(event.metrics)
        commands: list[Command] = [self._record(event, trial)]
        if self._metric.name in event.metrics:
            value = self._evaluate(trial, self._metric.value(event.metrics))
            loss = self._metric.loss(value)
            decision = self._scheduler.on_report(trial.trial_id, event.step, loss)
            self._searcher.observe(
                Observation(trial.trial_id, trial.config, loss, event.step, final=False)
            )
            if isinstance(decision, Stop) and trial.state is TrialState.RUNNING:
                commands += self._stop_trial(trial, StopReason.SCHEDULER)
        return commands

    def _on_ended(self, event: TrialEnded) -> list[Command]:
        trial = self._current(event)
        if trial is None:
            return []
        if event.outcome is Outcome.LOST:
            return self._on_lost(event, trial)
        event = self._judge(event, trial)
        self._move(trial, event.outcome)
        if self._metric.name in event.metrics:
            self._evaluate(trial, self._metric.value(event.metrics))
        return self._close(event, trial)

    def _on_lost(self, event: TrialEnded, trial: Trial) -> list[Command]:
        """Run the trial again, unless it was to stop anyway or its budget is spent."""
        event = dataclasses.replace(event, metrics={})  # a lost attempt's count for nothing
        self._move(trial, Outcome.LOST)
        trial.lost += 1
        if trial.state is TrialState.STOPPED:
            return self._close(dataclasses.replace(event, outcome=Outcome.STOPPED), trial)
        if trial.lost > self._max_lost_attempts:
            self._move(trial, Happening.GIVE_UP)
            return self._close(_given_up(event, trial), trial)
        record = self._record(event, trial)
        trial.start_over()
        return [record, _start(trial)]

    def _judge(self, event: TrialEnded, trial: Trial) -> TrialEnded:
        """Call a trial that never gave the metric what it is: failed, and say what it gave."""
        if event.outcome is not Outcome.COMPLETED or trial.evaluated:
            return event
        if self._metric.name in event.metrics:
            return event
        heard = sorted(self._reported_names[trial.trial_id] | set(event.metrics))
        return dataclasses.replace(
            event, outcome=Outcome.FAILED, failure=_metric_missing(self._metric.name, heard)
        )

    def _close(self, event: TrialEnded, trial: Trial) -> list[Command]:
        """Let everyone know that a trial is over."""
        if trial.state is TrialState.STOPPED and self.stop_reason is StopReason.INTERRUPTED:
            event = dataclasses.replace(event, failure=INTERRUPTED)
        del self.active[trial.trial_id]
        del self._reported_names[trial.trial_id]
        if event.failure is not None and trial.state is TrialState.FAILED:
            self.first_failure = self.first_failure or (trial.trial_id, event.failure)
        loss = math.inf if trial.state is TrialState.FAILED else trial.loss
        self._scheduler.on_end(trial.trial_id, loss)
        self._searcher.observe(
            Observation(trial.trial_id, trial.config, loss, trial.step, final=True)
        )
        return [self._record(event, trial), *self._judge_worker(event, trial)]

    def _judge_worker(self, event: TrialEnded, trial: Trial) -> list[Command]:
        """Set the worker of a trial aside if it keeps failing trials that succeed elsewhere."""
        health, worker = self._health, trial.worker
        health.ended(worker, failed=trial.state is TrialState.FAILED)
        if not worker or not health.is_suspect(worker):
            return []
        others = any(
            # What was submitted before the first failure, and not heard of yet, is elsewhere too.
            other.worker != worker
            if other.worker
            else other.trial_id + SUSPECT_AFTER <= trial.trial_id
            for other in self.active.values()
        )
        failures = health.judge(worker, others_at_work=others)
        last = event.failure.error if event.failure else ""
        return [SetAside(worker, failures, last)] if failures else []

    # What follows from it

    def _check_stopping(self) -> list[Command]:
        if self.stop_reason not in _MAY_YET_STOP:
            return []
        reason = self._stopping.met(self.statistics, self._metric)
        if reason is None or (self.stop_reason is not None and reason in _ALWAYS_AWAIT):
            return []
        return self._stop(reason)

    def _stop(self, reason: StopReason) -> list[Command]:
        """Start no further trial, and stop or await those that run."""
        if self.stop_reason in _ALWAYS_STOP:
            return []  # they are stopped already, and for that
        self.stop_reason = reason
        await_them = reason in _ALWAYS_AWAIT or (
            self._on_stop == "wait" and reason not in _ALWAYS_STOP
        )
        if await_them:
            return []
        return [
            command
            for trial in list(self.active.values())
            if trial.state in _STOPPABLE
            for command in self._stop_trial(trial, reason)
        ]

    def _stop_trial(self, trial: Trial, reason: StopReason) -> list[Command]:
        self._move(trial, Happening.STOP)
        return [StopTrial(trial.trial_id, trial.attempt, reason)]

    def _fill_slots(self) -> list[Command]:
        commands: list[Command] = []
        while self.stop_reason is None and len(self.active) < self.slots:
            trial_id = len(self.trials)
            config = self._searcher.suggest(trial_id)
            if config is None:
                self.stop_reason = StopReason.EXHAUSTED
                break
            commands.append(_start(self._add(config)))
            commands += self._check_stopping()  # max_num_trials_started holds to the trial
        return commands

    # Small steps that several events share

    def _add(self, config: Configuration) -> Trial:
        """Give the next number to a configuration."""
        trial = Trial(len(self.trials), config)
        self.trials.append(trial)
        self.active[trial.trial_id] = trial
        self.counts[trial.state] += 1
        self._reported_names[trial.trial_id] = set()
        return trial

    def _current(self, event: TrialStarted | Reported | TrialEnded) -> Trial | None:
        """Return the active trial of this attempt; None for what comes late from an older one."""
        trial = self.active.get(event.trial_id)
        return trial if trial is not None and trial.attempt == event.attempt else None

    def _move(self, trial: Trial, happening: Happening | Outcome) -> None:
        before = trial.state
        trial.transition(happening)
        if trial.state is not before:
            self.counts[before] -= 1
            self.counts[trial.state] += 1

    def _evaluate(self, trial: Trial, value: float) -> float:
        self.evaluations += 1
        loss = self._metric.loss(value)
        trial.observe(value, loss)
        if loss < self._best_loss:
            self.best, self._best_loss = Best(trial.trial_id, value, trial.config), loss
        return value

    def _record(self, event: TrialStarted | Reported | TrialEnded, trial: Trial) -> Record:
        match event:
            case TrialStarted():
                value = math.nan
            case Reported():
                value = self._metric.value(event.metrics)
            case TrialEnded():
                value = trial.value
        return Record(event, trial.config, value, trial.step, trial.worker, self.slots)


def _start(trial: Trial) -> StartTrial:
    return StartTrial(trial.trial_id, trial.attempt, trial.config, trial.run, trial.elapsed)


def _metric_missing(metric: str, heard: list[str]) -> Failure:
    names = ", ".join(heard) if heard else "nothing"
    return Failure(
        f"MetricMissing: the trial ended without a value of {metric!r}, the metric that is "
        f"optimised; it reported {names}. Report {metric!r}, or give the scheduler "
        f"metric=<one that is reported>."
    )


def _given_up(event: TrialEnded, trial: Trial) -> TrialEnded:
    why = event.failure.error if event.failure else "no reason is known"
    failure = Failure(
        f"AttemptsLost: {trial.lost} attempts of this trial were lost with their workers "
        f"(the last: {why}); look at the workers' logs for what ended them."
    )
    return dataclasses.replace(event, outcome=Outcome.FAILED, failure=failure)
