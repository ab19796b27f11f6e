"""A trial: one configuration with a number, its states, and the table of its transitions.

Everything about a trial's state stands in this file. ``TRANSITIONS`` is the whole truth: what is
not in it cannot happen, and asking for it raises and changes nothing.

    SUBMITTED ──start──► RUNNING ──────────────► COMPLETED
        │  ▲                │ │
        │  └─────lost───────┘ ├──failed────────► FAILED
        │                     │
        └──────stop──► STOPPING ──stopped──────► STOPPED

An attempt that is lost (its worker died) puts its trial back to SUBMITTED, for the next attempt; a
trial that was to be stopped anyway is then simply STOPPED. A stop is a request: a trial may
complete or fail before it takes effect, and what it did then counts. When an experiment that a
person had stopped is resumed, its trials go back from STOPPING to SUBMITTED.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass

from dask_hpo.core.events import Configuration, Outcome
from dask_hpo.errors import IllegalTransitionError


class TrialState(str, enum.Enum):
    """Where a trial stands."""

    SUBMITTED = "submitted"  #: handed to the backend, not heard of since
    RUNNING = "running"
    STOPPING = "stopping"  #: asked to stop, not ended yet
    COMPLETED = "completed"
    STOPPED = "stopped"
    FAILED = "failed"


ACTIVE = frozenset({TrialState.SUBMITTED, TrialState.RUNNING, TrialState.STOPPING})


class Happening(enum.Enum):
    """What can happen to a trial besides the outcome of an attempt."""

    START = "start"
    REPORT = "report"
    STOP = "stop"
    GIVE_UP = "give up"  #: too many attempts were lost
    AGAIN = "run again"  #: a person had stopped the experiment, and resumed it


_S = TrialState
_H = Happening
TRANSITIONS: dict[tuple[TrialState, Happening | Outcome], TrialState] = {
    (_S.SUBMITTED, _H.START): _S.RUNNING,
    (_S.SUBMITTED, _H.STOP): _S.STOPPING,
    (_S.SUBMITTED, _H.GIVE_UP): _S.FAILED,
    (_S.SUBMITTED, Outcome.FAILED): _S.FAILED,  # it could not even be started
    (_S.SUBMITTED, Outcome.LOST): _S.SUBMITTED,
    (_S.RUNNING, _H.REPORT): _S.RUNNING,
    (_S.RUNNING, _H.STOP): _S.STOPPING,
    (_S.RUNNING, _H.GIVE_UP): _S.FAILED,
    (_S.RUNNING, Outcome.COMPLETED): _S.COMPLETED,
    (_S.RUNNING, Outcome.FAILED): _S.FAILED,
    (_S.RUNNING, Outcome.LOST): _S.SUBMITTED,
    (_S.STOPPING, _H.START): _S.STOPPING,
    (_S.STOPPING, _H.REPORT): _S.STOPPING,
    (_S.STOPPING, _H.AGAIN): _S.SUBMITTED,
    (_S.STOPPING, Outcome.COMPLETED): _S.COMPLETED,
    (_S.STOPPING, Outcome.FAILED): _S.FAILED,
    (_S.STOPPING, Outcome.STOPPED): _S.STOPPED,
    (_S.STOPPING, Outcome.LOST): _S.STOPPED,
}


@dataclass(slots=True)
class Trial:
    """One configuration and all that happened to it.

    ``value`` is the best value it reported or returned (NaN before the first), ``loss`` the same as
    a loss; ``step`` the last step reported; ``lost`` how many attempts the infrastructure lost.
    ``run`` and ``elapsed`` are the current attempt's: the name of its execution (empty before its
    start was heard), and the seconds from its start to its last report.
    """

    trial_id: int
    config: Configuration
    state: TrialState = TrialState.SUBMITTED
    attempt: int = 1
    worker: str = ""
    run: str = ""
    elapsed: float = 0.0
    step: int = 0
    evaluated: bool = False  #: the metric was heard at least once, whatever its value
    value: float = math.nan
    loss: float = math.inf
    last_value: float = math.nan
    lost: int = 0

    def transition(self, happening: Happening | Outcome) -> None:
        """Move to the next state.

        Raises
        ------
        IllegalTransitionError
            If the table has no such transition; the trial is then unchanged.
        """
        state = TRANSITIONS.get((self.state, happening))
        if state is None:
            raise IllegalTransitionError(
                f"trial {self.trial_id} is {self.state.value}: "
                f"'{happening.value}' cannot happen to it (see dask_hpo/core/trial.py)"
            )
        self.state = state

    def start_over(self) -> None:
        """Turn to the next attempt, of which nothing is known."""
        self.attempt += 1
        self.worker, self.run, self.elapsed = "", "", 0.0

    def observe(self, value: float, loss: float) -> None:
        """Take in a value of the metric; the trial's own is the best it ever had."""
        self.evaluated = True
        self.last_value = value
        if loss < self.loss:
            self.value, self.loss = value, loss
        elif math.isinf(self.loss):
            self.value = value  # no finite value yet: show the one that was reported
