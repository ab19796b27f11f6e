"""What a searcher and a scheduler are to the state machine, and what they answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from dask_hpo.core.events import Configuration


@dataclass(frozen=True, slots=True)
class Observation:
    """What became known of a trial: its loss (lower is better, ``inf`` for a failure) at a step.

    ``final`` is true once for each trial, when it has ended; the loss is then the trial's best.
    """

    trial_id: int
    config: Configuration
    loss: float
    step: int
    final: bool


class Searcher(Protocol):
    """Proposes configurations and learns from observations.

    When an experiment is resumed, the observations of the past are told again. A searcher may also
    have ``restore(trial_id, config)``, which tells it of a configuration that it gave then; one
    that has not is asked for a suggestion, which is dropped.
    """

    def suggest(self, trial_id: int) -> Configuration | None:
        """Return the configuration of this trial, or None when the space is exhausted.

        Called once for each number, in rising order from 0.
        """
        ...

    def observe(self, observation: Observation) -> None:
        """Learn from a report or from the end of a trial."""
        ...


@dataclass(frozen=True, slots=True)
class Continue:
    """Let the trial run on."""


@dataclass(frozen=True, slots=True)
class Stop:
    """Stop the trial for good."""


Decision = Continue | Stop


class Scheduler(Protocol):
    """Decides how long each trial runs."""

    def on_report(self, trial_id: int, step: int, loss: float) -> Decision:
        """Judge a running trial by a report. ``loss``: lower is better, ``inf`` ranks worst."""
        ...

    def on_end(self, trial_id: int, loss: float) -> None:
        """Hear that a trial has ended, with its best loss (``inf`` for a failure)."""
        ...
