"""What came of a run, and what a person is told of it."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

from schedule import ALL, Fault, Schedule


@dataclass
class Outcome:
    """What came of a run. ``broken``: what does not hold, in words; empty if all is well."""

    schedule: Schedule
    folder: Path  #: with the log of every process
    broken: list[str] = field(default_factory=list)
    done: list[Fault] = field(default_factory=list)  #: the faults that found their target
    readings: int = 0
    drivers: int = 0
    seconds: float = 0.0

    def line(self) -> str:
        """Say it in one line."""
        faults = ", ".join(str(fault) for fault in self.done) or "no fault"
        return (
            f"seed {self.schedule.seed}: {'BROKEN' if self.broken else 'ok'}, "
            f"{self.seconds:.1f} s, {self.schedule.trials} trials ({self.schedule.isolation}), "
            f"{self.drivers} drivers, {self.readings} readings; {faults}"
        )

    def report(self) -> str:
        """Say what is broken, how to replay it and where its logs are."""
        return "\n".join(
            [
                "broken:",
                *(f"  {what}" for what in self.broken),
                "schedule:",
                *(f"  {fault.at_s:5.1f} s: {fault}" for fault in self.schedule.faults),
                f"replay: {self._replay()}",
                f"logs: {self.folder}",
            ]
        )

    def _replay(self) -> str:
        script = Path(__file__).with_name("run.py")
        command = f"{sys.executable} {script} --seed {self.schedule.seed} --runs 1"
        kinds = self.schedule.allowed
        return command if kinds == ALL else f"{command} --kinds {','.join(sorted(kinds))}"
