"""Writes the log: rows are queued by the loop, and a thread writes them into a part that grows.

The folder of parts must be whole at every moment for readers that know nothing of this package,
and stay so when the driver is killed. So a part is replaced atomically *under its own name* by a
version that has more rows (see ``part.py``), until it is full; then the next name begins. No name
ever vanishes and rows are only added: a reader that listed the folder earlier finds every file, and
nothing is counted twice. The number of parts is rows / ``PART_ROWS``, and a flush costs at most the
writing of one part, however long the log is.

All parts have one schema, since DuckDB and Polars insist on it. When a metric appears late, the
parts that are full are written anew with a null column: all of them into a second directory, which
then changes places with the first in one step, so that a driver killed at any moment leaves parts
of one schema. (Where the system cannot do that, they are renamed one by one from the last to the
first: the first part, from which pyarrow and DuckDB take the schema, then never has a column that
another lacks.) While there is one part only, as is usual, its own replacement is all.
"""

from __future__ import annotations

import collections
import json
import logging
import shutil
import threading
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dask_hpo.core.events import Configuration
from dask_hpo.errors import LogError
from dask_hpo.log.definition import Definition
from dask_hpo.log.directory import hold_lock, read_definition, replace_file
from dask_hpo.log.exchange import exchange, sync_directory
from dask_hpo.log.part import Part
from dask_hpo.log.rows import LoggedEvent, Row, new_metrics, schema_of, to_table, with_metrics

logger = logging.getLogger("dask_hpo")

#: Rows of a full part. Writing a part of this size takes 10 to 20 ms on one core.
PART_ROWS = 10_000


class LogWriter:
    """The log of one experiment, held by its driver.

    Parameters
    ----------
    path
        The experiment's directory.
    flush_interval_s
        Rows are on disk at most so many seconds, and the time of one write, after they came.
    part_rows
        Rows of a full part.

    Raises
    ------
    LogError
        If another driver writes the experiment, or the directory cannot be written.
    """

    def __init__(
        self,
        path: Path,
        definition: Definition,
        *,
        flush_interval_s: float = 0.5,
        part_rows: int = PART_ROWS,
    ) -> None:
        self._path = path
        self._definition = definition
        self._flush_interval_s = flush_interval_s
        self._part_rows = part_rows
        self._rows: collections.deque[Row] = collections.deque()
        self._outputs: collections.deque[tuple[str, str]] = collections.deque()
        self._metrics = [definition.metric]
        self._schema = schema_of(definition, self._metrics)
        self._full = 0  #: parts that are full
        self._part = Part(*self._place(0))  #: the part that grows
        self._on_disk = self._schema.empty_table()  #: its rows
        self._unwritten = self._on_disk  #: rows that a full disk kept from being written
        self._trouble = ""
        self._bug: BaseException | None = None
        self._writing = threading.Lock()
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._lock = hold_lock(path)  # before anything is touched that a living writer needs
        try:
            self._begin()
        except LogError:
            self._lock.release()
            raise
        except OSError as error:
            self._lock.release()
            raise LogError(
                f"{path}: the log cannot be written there ({error.strerror or error}); "
                "make room, or give path= another directory"
            ) from error
        self._thread = threading.Thread(target=self._run, name="dask-hpo-log", daemon=True)
        self._thread.start()

    def append(
        self,
        event: LoggedEvent,
        *,
        config: Configuration,
        value: float,
        worker: str,
        slots: int,
        step: int = 0,
    ) -> None:
        """Queue a row; costs microseconds whatever the disk does.

        Raises
        ------
        LogError
            If the writing thread has failed of a bug of this package.
        """
        if self._bug is not None:
            raise LogError("the log's thread has failed: a bug of dask_hpo") from self._bug
        self._rows.append(Row(event, config, value, step, worker, slots))
        self._wake.set()

    def save_output(self, trial_id: int, attempt: int, stdout: str, stderr: str) -> None:
        """Queue what a trial wrote, for ``output/trial-<number>-<attempt>.stdout`` and so on."""
        for stream, text in (("stdout", stdout), ("stderr", stderr)):
            if text:
                self._outputs.append((f"trial-{trial_id:06d}-{attempt}.{stream}", text))
        self._wake.set()

    def flush(self) -> None:
        """Write what is queued, now, in the calling thread."""
        with self._writing:
            self._write_queued()

    def finish(self, status: str, reason: str, wallclock_time: float) -> None:
        """Write how the experiment ended, behind all its rows. ``wallclock_time``: seconds.

        Raises
        ------
        LogError
            If rows or the end cannot be written.
        """
        self.flush()
        end = {"status": status, "reason": reason, "wallclock_time": wallclock_time}
        try:
            if not self._unwritten_rows:
                content = json.dumps(end, indent=2).encode()
                replace_file(self._path / "end.json", content, self._path / ".end.json.scratch")
        except OSError as error:
            raise LogError(
                f"{self._path}: the end of the experiment could not be written "
                f"({error.strerror or error}); its rows are whole; make room on the disk"
            ) from error

    def close(self) -> None:
        """Write the rest, end the thread and release the experiment.

        Raises
        ------
        LogError
            If rows could not be written, or the thread has failed of a bug of this package.
        """
        self._closing.set()
        self._wake.set()
        self._thread.join()
        try:
            if self._bug is not None:
                raise LogError("the log's thread has failed: a bug of dask_hpo") from self._bug
            self.flush()
            if self._unwritten_rows:
                raise LogError(
                    f"{self._path}: {self._unwritten_rows} rows could not be written "
                    f"({self._trouble}) and are lost; make room on the disk before the next run"
                )
        finally:
            self._lock.release()

    @property
    def _unwritten_rows(self) -> int:
        return len(self._unwritten) + len(self._rows)

    # The thread

    def _run(self) -> None:
        try:
            while not self._closing.is_set():
                self._wake.wait(None if not self._unwritten_rows else self._flush_interval_s)
                self._closing.wait(self._flush_interval_s)  # let rows gather
                self._wake.clear()
                self.flush()
        except BaseException as error:  # noqa: BLE001 - shown by the next append or close
            self._bug = error

    def _write_queued(self) -> None:
        rows = [self._rows.popleft() for _ in range(len(self._rows))]
        late = new_metrics(rows, self._metrics)
        if late:
            self._metrics += late
            self._schema = schema_of(self._definition, self._metrics)
            self._unwritten = with_metrics(self._unwritten, self._schema)
        if rows:
            table = to_table(rows, self._definition, self._metrics)
            self._unwritten = pa.concat_tables([self._unwritten, table])
        try:
            if self._on_disk.schema != self._schema:
                self._widen()
            while len(self._unwritten):
                self._grow()
            self._write_outputs()
        except OSError as error:
            self._pause(error)
        else:
            self._recover()

    def _grow(self) -> None:
        """Add as many rows to the growing part as it takes."""
        take = min(self._part_rows - len(self._on_disk), len(self._unwritten))
        grown = self._grown_by(take)
        while not self._part.prepare(grown, whatever_its_size=len(grown) == 1):
            if len(self._on_disk):
                self._begin_part()
                return
            take //= 2
            grown = self._grown_by(take)
        self._part.publish()
        self._unwritten = self._unwritten.slice(take)
        self._on_disk = grown
        if len(grown) >= self._part_rows:
            self._begin_part()

    def _grown_by(self, rows: int) -> pa.Table:
        return pa.concat_tables([self._on_disk, self._unwritten.slice(0, rows)]).combine_chunks()

    def _begin_part(self) -> None:
        """Call the growing part full; the next one has no file before it has a row."""
        self._full += 1
        self._part = Part(*self._place(self._full))
        self._on_disk = self._schema.empty_table()

    def _begin(self) -> None:
        """Make the folder of parts, which is never seen without the first."""
        events = self._path / "events"
        if events.exists():
            raise LogError(
                f"{events}: a log stands there already, and a new one never writes over it; "
                "give the experiment another name, or remove its directory"
            )
        self._remove_scratch()
        self._staging.mkdir()
        self._part.prepare(self._on_disk)
        self._part.publish(self._staging / self._part.path.name)
        self._staging.rename(events)
        sync_directory(self._path)

    def _widen(self) -> None:
        """Give every part the columns of metrics that appeared late; see the top of this file."""
        widened = with_metrics(self._on_disk, self._schema)
        if self._full:
            self._stage(widened)
            self._put_staged_in_place()
        else:
            self._part.prepare(widened, whatever_its_size=True)
            self._part.publish()
        self._on_disk = widened

    def _stage(self, widened: pa.Table) -> None:
        """Write all parts anew into a directory beside them."""
        shutil.rmtree(self._staging, ignore_errors=True)  # what a full disk cut short
        self._staging.mkdir()
        for number in range(self._full):
            part = Part.open(*self._place(number))
            table = with_metrics(pq.read_table(part.path, partitioning=None), self._schema)
            part.prepare(table, whatever_its_size=True)
            part.publish(self._staging / part.path.name)
        if len(widened):  # the last: its next versions count on this one to be seen
            self._part.prepare(widened, whatever_its_size=True)
            self._part.publish(self._staging / self._part.path.name)

    def _put_staged_in_place(self) -> None:
        events = self._path / "events"
        if not exchange(self._staging, events):
            for staged in sorted(self._staging.iterdir(), reverse=True):
                staged.replace(events / staged.name)
        sync_directory(self._path)
        shutil.rmtree(self._staging, ignore_errors=True)

    @property
    def _staging(self) -> Path:
        return self._path / ".events.scratch"

    def _place(self, number: int) -> tuple[Path, Path]:
        """Return where a part stands, and where its next version is prepared, unseen by readers."""
        name = f"part-{number:06d}.parquet"
        return self._path / "events" / name, self._path / f".{name}.scratch"

    def _remove_scratch(self) -> None:
        """Remove what a driver that was killed left half-written."""
        shutil.rmtree(self._staging, ignore_errors=True)
        for scratch in self._path.glob(".*.scratch"):
            scratch.unlink(missing_ok=True)

    def _write_outputs(self) -> None:
        while self._outputs:
            name, text = self._outputs[0]
            (self._path / "output" / name).write_text(text, encoding="utf-8", errors="replace")
            self._outputs.popleft()

    def _pause(self, error: OSError) -> None:
        reason = str(error.strerror or error)
        if reason != self._trouble:
            logger.error(
                "%s: the log cannot be written (%s). %d rows wait in memory and nothing is lost "
                "while the driver lives; make room, and writing goes on by itself",
                self._path,
                reason,
                len(self._unwritten),
            )
        self._trouble = reason

    def _recover(self) -> None:
        if self._trouble:
            logger.warning("%s: the log is written again, whole", self._path)
        self._trouble = ""


def read_events(path: Path) -> Any:
    """Return all rows of the experiment at a path, as a pandas DataFrame in the order written."""
    try:
        table = pq.read_table(path / "events", partitioning=None)
    except FileNotFoundError:  # the experiment began a moment ago: there is no part yet
        definition = read_definition(path)
        table = schema_of(definition, [definition.metric]).empty_table()
    return table.to_pandas()
