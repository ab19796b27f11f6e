"""Logs of earlier versions, in the columns of the present one.

Version 1: the first. Version 2: the column ``run``.
"""

from __future__ import annotations

import pyarrow as pa

from dask_hpo.log.rows import FIXED, metric_column

#: Fixed columns that each version added. Before it, a metric of that name had the column itself.
_ADDED: dict[int, set[str]] = {2: {"run"}}


def metrics_of(schema: pa.Schema) -> list[str]:
    """Return the metrics that have columns in a part of whatever version, in their order.

    No metric's column begins with ``metric_`` but those that `metric_column` named so.
    """
    return [name.removeprefix("metric_") for name in schema.names if _is_metric(name, schema)]


def in_schema(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Return a table of whatever version in a schema of the present one; what it lacks is null."""
    stored = {_present_name(name, table.schema): name for name in table.column_names}
    arrays = [
        table[stored[field.name]] if field.name in stored else pa.nulls(len(table), field.type)
        for field in schema
    ]
    return pa.Table.from_arrays(arrays, schema=schema)


def _present_name(name: str, schema: pa.Schema) -> str:
    return metric_column(name.removeprefix("metric_")) if _is_metric(name, schema) else name


def _is_metric(name: str, schema: pa.Schema) -> bool:
    version = int((schema.metadata or {}).get(b"dask_hpo.log_version", b"1"))
    later = [columns for added, columns in _ADDED.items() if added > version]
    fixed = FIXED.keys() - set().union(*later)
    return name not in fixed and not name.startswith("config_")
