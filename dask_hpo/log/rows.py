"""From events to rows of the table, and the table's columns."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pyarrow as pa

from dask_hpo.core.events import Configuration, Reported, TrialEnded, TrialStarted
from dask_hpo.core.metric import Scalar
from dask_hpo.log.columns import ConfigColumn
from dask_hpo.log.definition import LOG_VERSION, Definition

LoggedEvent = TrialStarted | Reported | TrialEnded

#: Columns that every log has, before the metrics' and the configuration's.
FIXED: dict[str, pa.DataType] = {
    "timestamp": pa.timestamp("us", tz="UTC"),
    "time": pa.float64(),
    "kind": pa.string(),
    "trial_id": pa.int64(),
    "attempt": pa.int32(),
    "step": pa.int64(),
    "value": pa.float64(),
    "worker": pa.string(),
    "run": pa.string(),
    "slots": pa.int32(),
    "elapsed": pa.float64(),
    "status": pa.string(),
    "failure": pa.string(),
    "traceback": pa.string(),
    "output_tail": pa.string(),
    "extra": pa.string(),
}
_ARROW = {"float": pa.float64(), "int": pa.int64(), "str": pa.string(), "bool": pa.bool_()}


@dataclass(frozen=True, slots=True)
class Row:
    """An event with what the log says beside it; see `dask_hpo.core.events.Record`."""

    event: LoggedEvent
    config: Configuration
    value: float
    step: int
    worker: str
    slots: int


def metric_column(name: str) -> str:
    """Return the column of a metric: its name, unless another column has that, in any case.

    DuckDB does not tell ``Value`` from ``value``.
    """
    taken = name.lower() in FIXED or name.lower().startswith(("config_", "metric_"))
    return f"metric_{name}" if taken else name


def schema_of(definition: Definition, metrics: Sequence[str]) -> pa.Schema:
    """Return the schema of all parts, as long as these metrics are known, in this order.

    Columns of metrics that appear late come last, so that earlier columns keep their places.
    """
    fields = [pa.field(name, kind) for name, kind in FIXED.items()]
    fields += [
        pa.field(f"config_{name}", _ARROW[kind]) for name, kind in definition.config_types.items()
    ]
    fields += [pa.field(metric_column(name), pa.float64()) for name in metrics]
    metadata = {"dask_hpo.log_version": str(LOG_VERSION), "dask_hpo.experiment": definition.name}
    return pa.schema(fields, metadata=metadata)


def new_metrics(rows: Iterable[Row], known: Iterable[str]) -> list[str]:
    """Return the metrics that have a number in these rows and no column yet, in order."""
    found = dict.fromkeys(known)
    before = len(found)
    for row in rows:
        if not isinstance(row.event, TrialStarted):
            for name, value in row.event.metrics.items():
                if name not in found and _is_number(value):
                    found[name] = None
    return list(found)[before:]


def to_table(
    rows: Sequence[Row],
    definition: Definition,
    config: Sequence[ConfigColumn],
    metrics: Sequence[str],
    zero: datetime,
) -> pa.Table:
    """Return the rows as an Arrow table with the schema of `schema_of`.

    ``zero``: the moment from which this driver counts the experiment's seconds.
    """
    schema = schema_of(definition, metrics)
    events = [row.event for row in rows]
    reported: list[Mapping[str, Scalar]] = [
        {} if isinstance(event, TrialStarted) else event.metrics for event in events
    ]
    columns = _fixed_columns(rows, events, zero)
    columns["extra"] = [_extra(metrics_) for metrics_ in reported]
    for column in config:
        columns[f"config_{column.name}"] = [
            column.encode(row.config.get(column.name)) for row in rows
        ]
    for name in metrics:
        columns[metric_column(name)] = [_number(m.get(name)) for m in reported]
    arrays = [pa.array(columns[field.name], type=field.type) for field in schema]
    return pa.Table.from_arrays(arrays, schema=schema)


def _fixed_columns(
    rows: Sequence[Row], events: Sequence[LoggedEvent], zero: datetime
) -> dict[str, list[Any]]:
    zero_us = round(zero.timestamp() * 1e6)
    ends = [event if isinstance(event, TrialEnded) else None for event in events]
    failures = [None if end is None else end.failure for end in ends]
    return {
        "timestamp": [zero_us + round(event.now * 1e6) for event in events],
        "time": [event.now for event in events],
        "kind": [_KINDS[type(event)] for event in events],
        "trial_id": [event.trial_id for event in events],
        "attempt": [event.attempt for event in events],
        "step": [0 if isinstance(row.event, TrialStarted) else row.step for row in rows],
        "value": [
            None if isinstance(row.event, TrialStarted) else float(row.value) for row in rows
        ],
        "worker": [row.worker or None for row in rows],
        "run": [event.run or None if isinstance(event, TrialStarted) else None for event in events],
        "slots": [row.slots for row in rows],
        "elapsed": [0.0 if isinstance(event, TrialStarted) else event.elapsed for event in events],
        "status": [None if end is None else end.outcome.value for end in ends],
        "failure": [None if f is None else f.error for f in failures],
        "traceback": [None if f is None else f.traceback or None for f in failures],
        "output_tail": [None if f is None else f.output or None for f in failures],
    }


_KINDS: dict[type, str] = {TrialStarted: "start", Reported: "report", TrialEnded: "end"}


def _is_number(value: Scalar) -> bool:
    return isinstance(value, (int, float))  # a bool is an int


def _number(value: Scalar) -> float | None:
    return float(value) if isinstance(value, (int, float)) else None


def _extra(metrics: Mapping[str, Scalar]) -> str | None:
    rest = {name: value for name, value in metrics.items() if not _is_number(value)}
    return json.dumps(rest) if rest else None
