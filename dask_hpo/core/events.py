"""Events that the tuning state machine hears and commands that it gives, as frozen dataclasses.

Times are seconds since the start of the experiment. They arrive in the events, so that whoever
feeds the state machine (the driver's loop, a test, the simulator) owns the clock.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dask_hpo.core.metric import Scalar

Configuration = dict[str, Any]  #: one value for every name of the search space


class Outcome(str, enum.Enum):
    """How an attempt ended."""

    COMPLETED = "completed"  #: the objective returned
    STOPPED = "stopped"  #: the driver stopped it
    FAILED = "failed"  #: the objective's own error
    LOST = "lost"  #: the infrastructure's: its worker died


class StopReason(str, enum.Enum):
    """Why an experiment (or a trial) is stopped."""

    MAX_WALLCLOCK_TIME = "max_wallclock_time"
    MAX_NUM_TRIALS_STARTED = "max_num_trials_started"
    MAX_NUM_TRIALS_COMPLETED = "max_num_trials_completed"
    MAX_NUM_EVALUATIONS = "max_num_evaluations"
    TARGET_VALUE = "target_value"
    FAILURE_RATE = "failure_rate"
    EXHAUSTED = "exhausted"  #: the search space has no further configuration
    INTERRUPTED = "interrupted"  #: a person asked (Ctrl-C)
    SCHEDULER = "scheduler"  #: the scheduler (ASHA and the like) stopped this trial


@dataclass(frozen=True, slots=True)
class Failure:
    """An error as plain data, so that it travels whatever its class was.

    ``error`` is one line ``"TypeName: message"``; ``traceback`` and ``output`` (the last lines the
    trial wrote) may be empty.
    """

    error: str
    traceback: str = ""
    output: str = ""


@dataclass(frozen=True, slots=True)
class TrialFound:
    """A trial that began in the past is known to the log, or to the cluster, and not yet here.

    ``attempt`` is the one that is known of; those before it were lost.
    """

    now: float
    trial_id: int
    config: Configuration
    attempt: int = 1


@dataclass(frozen=True, slots=True)
class TrialStarted:
    """An attempt began to run on a worker. ``run`` names this execution, and no other ever."""

    now: float
    trial_id: int
    attempt: int
    worker: str
    run: str = ""


@dataclass(frozen=True, slots=True)
class Reported:
    """Training code reported metrics. ``elapsed``: seconds since its attempt began."""

    now: float
    trial_id: int
    attempt: int
    step: int
    metrics: Mapping[str, Scalar]
    elapsed: float = 0.0


@dataclass(frozen=True, slots=True)
class TrialEnded:
    """An attempt ended. ``metrics`` is what the objective returned, empty if it returned nothing.

    ``elapsed`` is in seconds since the attempt began; ``failure`` is given for FAILED and LOST.
    """

    now: float
    trial_id: int
    attempt: int
    outcome: Outcome
    metrics: Mapping[str, Scalar] = field(default_factory=dict)
    failure: Failure | None = None
    elapsed: float = 0.0


@dataclass(frozen=True, slots=True)
class SlotsChanged:
    """Workers came or left: so many trials can run at once from now on."""

    now: float
    slots: int


@dataclass(frozen=True, slots=True)
class StopRequested:
    """A person asked the experiment to end (Ctrl-C): running trials are stopped."""

    now: float


@dataclass(frozen=True, slots=True)
class Tick:
    """Time passed."""

    now: float


Event = TrialFound | TrialStarted | Reported | TrialEnded | SlotsChanged | StopRequested | Tick


@dataclass(frozen=True, slots=True)
class StartTrial:
    """Run this attempt of a trial in the next free slot, or go on with it where it runs.

    ``run`` is given for an attempt that was seen running: it must be found again, or it is lost.
    ``elapsed`` is that of its last report, so that what comes twice is told apart.
    """

    trial_id: int
    attempt: int
    config: Configuration
    run: str = ""
    elapsed: float = 0.0


@dataclass(frozen=True, slots=True)
class StopTrial:
    """End this attempt: SIGTERM, a grace period, SIGKILL."""

    trial_id: int
    attempt: int
    reason: StopReason


@dataclass(frozen=True, slots=True)
class SetAside:
    """Give this worker no more trials: so many failed on it in a row, which succeed elsewhere.

    ``last`` is the error of the last of them.
    """

    worker: str
    failures: int
    last: str


@dataclass(frozen=True, slots=True)
class Finish:
    """Nothing runs and nothing more is to run."""

    reason: StopReason


@dataclass(frozen=True, slots=True)
class Record:
    """Write this event to the log, as the state machine judged it.

    ``value`` is the reported value (NaN for a start), and for an end the trial's best; ``step`` the
    last step reported; ``slots`` how many trials could run at once when the event was heard.
    """

    event: TrialStarted | Reported | TrialEnded
    config: Configuration
    value: float
    step: int
    worker: str
    slots: int


Command = StartTrial | StopTrial | Record | SetAside | Finish
