"""Reads a log as it stands: its rows as a table, and its clock."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dask_hpo.errors import LogError
from dask_hpo.log.definition import Definition
from dask_hpo.log.directory import read_definition
from dask_hpo.log.rows import schema_of
from dask_hpo.log.versions import in_schema, metrics_of


def read_table(path: Path, definition: Definition) -> pa.Table:
    """Return all rows of the experiment at a path in the order written, in the present columns.

    Raises
    ------
    LogError
        If a part is damaged.
    """
    try:
        table = pq.read_table(path / "events", partitioning=None)
    except FileNotFoundError:  # the experiment began a moment ago: there is no part yet
        return schema_of(definition, [definition.metric]).empty_table()
    except pa.ArrowInvalid as error:
        raise LogError(
            f"{path / 'events'}: a part there is not what dask_hpo wrote ({error}); restore it, or "
            "move it away if its rows may be missed"
        ) from error
    return in_schema(table, schema_of(definition, metrics_of(table.schema)))


def read_events(path: Path) -> Any:
    """Return all rows of the experiment at a path, as a pandas DataFrame in the order written."""
    return read_table(path, read_definition(path)).to_pandas()


def read_clock(path: Path) -> float:
    """Return how many seconds the experiment has run, over all its drivers; 0.0 if it never did.

    Raises
    ------
    LogError
        If the file ``clock`` is not what this package wrote.
    """
    file = path / "clock"
    try:
        clock = float(file.read_text(encoding="ascii"))
    except FileNotFoundError:
        clock = 0.0
    except ValueError as error:
        raise LogError(
            f"{file}: this is no number of seconds ({error}); remove the file, and the time of the "
            "last row counts"
        ) from error
    return max(clock, _last_time(path))


def _last_time(path: Path) -> float:
    parts = sorted((path / "events").glob("part-*.parquet"))
    times = pq.read_table(parts[-1], columns=["time"], partitioning=None)["time"] if parts else []
    return max((time.as_py() for time in times), default=0.0)
