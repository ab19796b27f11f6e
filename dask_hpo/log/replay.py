"""From the table back to what the state machine heard, for a driver that goes on with a log."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dask_hpo.core.events import (
    Configuration,
    Failure,
    Outcome,
    Reported,
    TrialEnded,
    TrialStarted,
)
from dask_hpo.core.metric import Scalar
from dask_hpo.log.columns import ConfigColumn, config_columns
from dask_hpo.log.directory import read_definition
from dask_hpo.log.reader import read_table
from dask_hpo.log.rows import LoggedEvent, Row, metric_column
from dask_hpo.log.versions import metrics_of


def read_rows(path: Path) -> list[Row]:
    """Return what was written to the log of the experiment at a path, in that order.

    Rows are as they were appended, but for this: every number among the metrics is a float, since
    a column holds floats (``True`` is 1.0), and a trial has one configuration, that of its first
    row. Who means to go on with the log opens a `LogWriter` first, so that no other driver does.

    Raises
    ------
    LogError
        If the definition cannot be read, or a newer version of the package wrote the log.
    """
    definition = read_definition(path)
    table = read_table(path, definition)
    configs = _configs(table, config_columns(definition))
    trial_ids, values, steps, workers, slots = _lists(
        table, "trial_id", "value", "step", "worker", "slots"
    )
    return [
        Row(event, configs[trial_id], math.nan if value is None else value, step, worker or "", n)
        for event, trial_id, value, step, worker, n in zip(
            _events(table), trial_ids, values, steps, workers, slots, strict=True
        )
    ]


def _events(table: pa.Table) -> Iterator[LoggedEvent]:
    """Make the events of each kind from the columns that the kind has, then put them in order."""
    by_kind = {
        kind: make(table.filter(pc.equal(table["kind"], kind))) for kind, make in _MAKERS.items()
    }
    return (next(by_kind[kind]) for kind in table["kind"].to_pylist())


def _starts(table: pa.Table) -> Iterator[LoggedEvent]:
    columns = _lists(table, "time", "trial_id", "attempt", "worker", "run")
    for now, trial_id, attempt, worker, run in zip(*columns, strict=True):
        yield TrialStarted(now, trial_id, attempt, worker or "", run or "")


def _reports(table: pa.Table) -> Iterator[LoggedEvent]:
    columns = _lists(table, "time", "trial_id", "attempt", "step", "elapsed")
    for (now, trial_id, attempt, step, elapsed), metrics in zip(
        zip(*columns, strict=True), _metrics(table), strict=True
    ):
        yield Reported(now, trial_id, attempt, step, metrics, elapsed)


def _ends(table: pa.Table) -> Iterator[LoggedEvent]:
    columns = _lists(table, "time", "trial_id", "attempt", "status", "elapsed")
    failures = zip(*_lists(table, "failure", "traceback", "output_tail"), strict=True)
    for (now, trial_id, attempt, status, elapsed), metrics, failure in zip(
        zip(*columns, strict=True), _metrics(table), failures, strict=True
    ):
        yield TrialEnded(
            now, trial_id, attempt, Outcome(status), metrics, _failure(*failure), elapsed
        )


_MAKERS = {"start": _starts, "report": _reports, "end": _ends}


def _failure(error: str | None, traceback: str | None, output: str | None) -> Failure | None:
    return None if error is None else Failure(error, traceback or "", output or "")


def _metrics(table: pa.Table) -> list[dict[str, Scalar]]:
    """Return the metrics of each row: a null was not reported, while NaN was."""
    metrics: list[dict[str, Scalar]] = [
        {} if extra is None else json.loads(extra) for extra in table["extra"].to_pylist()
    ]
    for name in metrics_of(table.schema):
        for found, value in zip(metrics, *_lists(table, metric_column(name)), strict=True):
            if value is not None:
                found[name] = value
    return metrics


def _configs(table: pa.Table, columns: Sequence[ConfigColumn]) -> dict[int, Configuration]:
    """Return the configuration of each trial, decoded once for all its rows."""
    trial_ids, first_rows = np.unique(table["trial_id"].to_numpy(), return_index=True)
    firsts = table.take(first_rows)
    names = [column.name for column in columns]
    decoded = [
        map(column.decode, firsts[f"config_{column.name}"].to_pylist()) for column in columns
    ]
    configs = (dict(zip(names, row, strict=True)) for row in zip(*decoded, strict=True))
    return dict(zip(trial_ids.tolist(), configs, strict=True))


def _lists(table: pa.Table, *names: str) -> list[list[Any]]:
    return [_list(table[name]) for name in names]


def _list(column: pa.ChunkedArray) -> list[Any]:
    if column.null_count or not pa.types.is_primitive(column.type):
        return column.to_pylist()  # type: ignore[no-any-return]
    return column.to_numpy().tolist()  # type: ignore[no-any-return] # ten times as fast
