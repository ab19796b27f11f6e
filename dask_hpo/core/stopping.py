"""When an experiment ends: limits on time, trials, evaluations, a target, and failures."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from dask_hpo.core.events import StopReason
from dask_hpo.core.metric import Metric
from dask_hpo.errors import OptionError

#: A failure rate is judged once so many trials have failed, so that one bad start is no verdict.
FAILURES_BEFORE_JUDGING = 5


@dataclass(frozen=True, slots=True)
class Statistics:
    """What a stopping criterion looks at. ``now`` is in seconds since the start."""

    now: float
    started: int
    completed: int
    ended: int
    failed: int
    evaluations: int
    best_loss: float


@dataclass(frozen=True, slots=True)
class StoppingCriterion:
    """End an experiment at the first of these limits; a limit that is None does not hold.

    Parameters
    ----------
    max_wallclock_time
        Seconds since the start of the experiment.
    max_num_trials_started
        So many trials are started; those that run then are always awaited.
    max_num_trials_completed
        So many trials have completed, failed and stopped ones not counted.
    max_num_evaluations
        So many values of the metric were heard, reported or returned.
    target_value
        The metric reached this value: at most it in mode ``"min"``, at least in mode ``"max"``.
    max_failure_rate
        Give up when more than this share of the ended trials failed, from the fifth failure on.
        1.0 never gives up.

    Raises
    ------
    OptionError
        If a limit is not a positive number, or the rate is outside [0, 1].
    """

    max_wallclock_time: float | None = None
    max_num_trials_started: int | None = None
    max_num_trials_completed: int | None = None
    max_num_evaluations: int | None = None
    target_value: float | None = None
    max_failure_rate: float = 0.8

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None:
                _check(field.name, value)

    def met(self, statistics: Statistics, metric: Metric) -> StopReason | None:
        """Return the limit that was reached, or None."""
        limits = (
            (self.max_wallclock_time, statistics.now, StopReason.MAX_WALLCLOCK_TIME),
            (
                self.max_num_trials_completed,
                statistics.completed,
                StopReason.MAX_NUM_TRIALS_COMPLETED,
            ),
            (self.max_num_evaluations, statistics.evaluations, StopReason.MAX_NUM_EVALUATIONS),
            (self.max_num_trials_started, statistics.started, StopReason.MAX_NUM_TRIALS_STARTED),
        )
        if self.target_value is not None and statistics.best_loss <= metric.loss(self.target_value):
            return StopReason.TARGET_VALUE
        if self._fails_too_often(statistics):
            return StopReason.FAILURE_RATE
        for limit, reached, reason in limits:
            if limit is not None and reached >= limit:
                return reason
        return None

    def _fails_too_often(self, statistics: Statistics) -> bool:
        return (
            statistics.failed >= FAILURES_BEFORE_JUDGING
            and statistics.failed > self.max_failure_rate * statistics.ended
        )


def _check(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or math.isnan(value):
        raise OptionError(f"{name}={value!r}: a limit is a number; give one, or None for no limit")
    if name == "max_failure_rate":
        if not 0 <= value <= 1:
            raise OptionError(
                f"max_failure_rate={value!r}: a rate lies between 0 and 1; "
                "give for example 0.8, or 1.0 to never give up"
            )
        return
    if name == "target_value":
        if math.isinf(value):
            raise OptionError(
                f"target_value={value!r}: a target is a finite value of the metric; "
                "give the value that is good enough, or None"
            )
        return
    if value <= 0:
        raise OptionError(f"{name}={value!r}: a limit is positive; give a larger one, or None")
    if name.startswith("max_num_") and value != int(value):
        raise OptionError(f"{name}={value!r}: a count is a whole number; give {math.ceil(value)}")
