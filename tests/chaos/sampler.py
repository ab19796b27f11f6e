"""Reads a data set over and over while it is written, with each of three readers in turn."""

from __future__ import annotations

import itertools
import threading
import traceback
from collections import Counter
from pathlib import Path

import duckdb
import pandas as pd
import polars as pl

#: Between two readings: the run needs the processor, too.
_PAUSE_S = 0.05


#: What tells a row from another.
_KEY = ["trial_id", "attempt", "kind", "step"]
Rows = list[tuple[object, ...]]


def _pandas(folder: Path) -> Rows:
    return _rows(pd.read_parquet(folder))


def _duckdb(folder: Path) -> Rows:
    with duckdb.connect() as connection:
        everything = connection.sql(f"SELECT * FROM read_parquet('{folder}/*.parquet')")
        return _rows(everything.to_arrow_table().to_pandas())


def _polars(folder: Path) -> Rows:
    return pl.read_parquet(folder).select(_KEY).rows()


def _rows(everything: pd.DataFrame) -> Rows:
    return [tuple(row) for row in everything[_KEY].to_numpy()]


READERS = {"pandas": _pandas, "DuckDB": _duckdb, "Polars": _polars}


class Sampler:
    """Reads until it is closed, or until a reading shows what must never be seen.

    Attributes
    ----------
    readings
        How many each reader made.
    broken
        What was wrong; empty while nothing is.
    """

    def __init__(self, events: Path) -> None:
        self.readings: Counter[str] = Counter()
        self.broken = ""
        self._events = events
        self._seen: Rows = []
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sampler", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Read no more."""
        self._closing.set()
        self._thread.join()

    def _run(self) -> None:
        readers = itertools.cycle(READERS)
        while not self._closing.wait(_PAUSE_S) and not self.broken:
            if self._events.exists():  # from this moment on it is to be readable
                self._read(next(readers))

    def _read(self, name: str) -> None:
        try:
            rows = READERS[name](self._events)
        except Exception:  # noqa: BLE001 - a reader that cannot read is what is looked for
            if not self._seen and not self._events.exists():
                return  # it could not begin, and was taken away before its first trial
            self.broken = f"{name} could not read the data set:\n{traceback.format_exc()}"
            return
        self.readings[name] += 1
        seen = len(self._seen)
        if rows[:seen] != self._seen:
            self.broken = f"{name} read {len(rows)} rows that do not begin with the {seen} before"
        self._seen = rows
