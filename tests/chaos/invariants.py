"""What must hold of a run, whatever was done to it; each check returns what is broken, in words."""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import objective
import pandas as pd
from schedule import Fault, Kind, Schedule

from dask_hpo import RandomSearcher, SearchSpace, load_experiment

#: Rows are dated by the age that their worker says; what a queue held back comes out of order by as
#: much as the worker had waited for company.
SKEW_S = 0.5


@dataclass(frozen=True)
class Account:
    """What an execution said of itself when it ended; see `objective.py`."""

    trial: int
    attempt: int
    execution: int
    errors: list[float]
    returned: float | None


@dataclass
class Run:
    """A run that is over.

    ``done``: the faults that it had; ``rows_lost``: a driver said at its end that the disk
    was full, and that it lost rows.
    """

    schedule: Schedule
    folder: Path
    experiment: Path
    done: Collection[Fault]
    rows_lost: bool

    def __post_init__(self) -> None:
        self.loaded = load_experiment(self.experiment)
        self.events: pd.DataFrame = self.loaded.events
        self.begun = [
            tuple(map(int, line.split()[:3]))
            for line in (self.folder / "begun").read_text().splitlines()
        ]
        files = sorted((self.folder / "ended").iterdir())
        self.accounts = {
            a.execution: a for a in (Account(**json.loads(f.read_text())) for f in files)
        }

    @property
    def nothing_was_lost(self) -> bool:
        """Whether no fault took an attempt: then each trial runs once, and all is heard."""
        return not self.rows_lost and not any(fault.loses for fault in self.done)

    @property
    def attempts(self) -> Iterator[tuple[int, int, pd.DataFrame]]:
        """Trial, attempt and rows of every attempt in the log."""
        for (trial, attempt), rows in self.events.groupby(["trial_id", "attempt"]):
            yield int(trial), int(attempt), rows


def broken(run: Run) -> list[str]:
    """Return everything that does not hold."""
    checks = (ended, numbered, configured, told_once, told_truly, told_all, valued, ran_once)
    return [f"{check.__name__}: {what}" for check in checks for what in check(run)]


def ended(run: Run) -> Iterator[str]:
    """The experiment is finished, and its directory tidy."""
    if run.loaded.status != "finished":
        yield f"the experiment's status is {run.loaded.status!r}, not 'finished'"
    for scratch in run.experiment.rglob("*scratch*"):
        yield f"{scratch} was left"


def numbered(run: Run) -> Iterator[str]:
    """Trials are numbered from 0 without a gap, and so are the attempts of each, from 1."""
    trials = sorted(run.events["trial_id"].unique())
    if trials != list(range(run.schedule.trials)):
        yield f"trials {trials}, not 0 to {run.schedule.trials - 1}"
    for trial, attempts in run.events.groupby("trial_id")["attempt"]:
        numbers = sorted(attempts.unique())
        if numbers != list(range(1, len(numbers) + 1)):
            yield f"trial {trial} has the attempts {numbers}"


def configured(run: Run) -> Iterator[str]:
    """Every row of a trial has the configuration that the seed gives its number."""
    space = objective.space(run.schedule.isolation)
    searcher = RandomSearcher(SearchSpace(space), seed=run.schedule.seed)
    for trial in range(run.schedule.trials):
        expected = {f"config_{name}": value for name, value in searcher.suggest(trial).items()}
        rows = run.events.loc[run.events["trial_id"] == trial, list(expected)].drop_duplicates()
        found = rows.to_dict("records")
        if found != [expected]:
            yield f"trial {trial} has {found}, and the seed says {expected}"


def told_once(run: Run) -> Iterator[str]:
    """Every attempt has a start, reports in order and one end: lost, unless it is the last."""
    last = run.events.groupby("trial_id")["attempt"].max()
    for trial, attempt, rows in run.attempts:
        kinds, steps = list(rows["kind"]), list(rows.loc[rows["kind"] == "report", "step"])
        ends = list(rows.loc[rows["kind"] == "end", "status"])
        where = f"trial {trial}, attempt {attempt}"
        never_began = kinds == ["end"] and ends == ["lost"]
        if kinds != ["start", *["report"] * len(steps), "end"] and not never_began:
            yield f"{where} has the rows {kinds}"
        if steps != sorted(set(steps)):
            yield f"{where} reported the steps {steps}"
        if rows["time"].diff().min() < -SKEW_S or rows["time"].min() < 0:
            yield f"{where} has the times {list(rows['time'])}"
        if (ends == ["lost"]) != (attempt < last[trial]):
            yield f"{where} of {last[trial]} ended {ends}"


def told_truly(run: Run) -> Iterator[str]:
    """What the log says of an attempt is what one execution of that very attempt computed."""
    for trial, attempt, rows in run.attempts:
        where = f"trial {trial}, attempt {attempt}"
        status = rows["status"].iloc[-1]
        executions = {int(number) for number in rows["execution"].dropna()}
        if len(executions) > 1:
            yield f"{where} mixes the executions {executions}"
            continue
        account = run.accounts.get(next(iter(executions), 0))
        if account is None:
            if status != "lost":
                yield f"{where} ended {status!r}, and no execution says so: {executions}"
            continue
        if (account.trial, account.attempt) != (trial, attempt):
            yield f"{where} has what {account} computed"
        yield from _untrue(where, rows, account)


def _untrue(where: str, rows: pd.DataFrame, account: Account) -> Iterator[str]:
    reports = rows[rows["kind"] == "report"]
    for step, error in zip(reports["step"], reports["error"], strict=True):
        if account.errors[step - 1] != error:
            yield f"{where} reported {error} at step {step}, and {account} says otherwise"
    end = rows.iloc[-1]
    if end["status"] == "lost":
        return
    status = "failed" if account.returned is None else "completed"
    returned = math.nan if account.returned is None else account.returned
    if end["status"] != status or not _same(end["error"], returned):
        yield f"{where} ended {end['status']} with {end['error']}, and {account} says otherwise"


def told_all(run: Run) -> Iterator[str]:
    """An attempt that ended by itself has all its reports, unless the Dask scheduler died.

    What a worker says goes by way of the Dask scheduler, which keeps it for a driver that is away.
    """
    if run.rows_lost or any(fault.kind is Kind.KILL_SCHEDULER for fault in run.done):
        return
    for trial, attempt, rows in run.attempts:
        if rows["status"].iloc[-1] != "lost":
            steps, asked = list(rows.loc[rows["kind"] == "report", "step"]), rows["config_steps"]
            if steps != list(range(1, asked.iloc[0] + 1)):
                yield f"trial {trial}, attempt {attempt} of {asked.iloc[0]} steps has {steps}"


def valued(run: Run) -> Iterator[str]:
    """The value of a trial is the best that it ever gave."""
    for trial, rows in run.events.groupby("trial_id"):
        best, value = rows["error"].min(), rows["value"].iloc[-1]
        if not _same(best, value):
            yield f"trial {trial} has the value {value}, and the best it gave is {best}"


def ran_once(run: Run) -> Iterator[str]:
    """No trial ran twice, unless a worker or the Dask scheduler was taken from it."""
    if not run.nothing_was_lost:
        return
    executions: dict[int, list[int]] = defaultdict(list)
    for trial, _, execution in run.begun:
        executions[trial].append(execution)
    for trial, numbers in executions.items():
        if len(numbers) > 1:
            yield f"trial {trial} ran {len(numbers)} times, and no worker was lost"
    lost = Counter(run.events["status"].dropna())["lost"]
    if lost:
        yield f"{lost} attempts were lost, and no worker was"


def _same(one: Any, other: Any) -> bool:
    return one == other or (math.isnan(one) and math.isnan(other))
