"""Writes the log: rows are queued by the loop, and a thread puts them into the folder of parts.

The folder itself, and what readers may count on, is the matter of ``parts.py``.

A disk that is full and a file system that went away are the same here: what could not be written
waits in memory and is tried again, until it is written or a person gives up; then it is saved in
the temporary directory. Only the thread writes, so that Ctrl-C finds no write half done.
"""

from __future__ import annotations

import collections
import dataclasses
import errno
import json
import logging
import math
import threading
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pyarrow as pa

from dask_hpo.core.events import Configuration
from dask_hpo.errors import LogError
from dask_hpo.log.columns import config_columns
from dask_hpo.log.definition import LOG_VERSION, Definition
from dask_hpo.log.directory import hold_lock, read_definition, replace_file, write_definition
from dask_hpo.log.parts import Parts
from dask_hpo.log.reader import read_clock
from dask_hpo.log.rescue import rescue
from dask_hpo.log.rows import LoggedEvent, Row, new_metrics, schema_of, to_table
from dask_hpo.log.versions import in_schema, metrics_of

logger = logging.getLogger("dask_hpo")

#: Rows of a full part. Writing a part of this size takes 10 to 20 ms on one core.
PART_ROWS = 10_000
#: A driver that dies loses so much of the experiment's time, besides what the last row says.
CLOCK_INTERVAL_S = 5.0
#: What a disk refused is tried again so often, and people are told again so often.
RETRY_INTERVAL_S = 0.5
COMPLAINT_INTERVAL_S = 60.0
#: A write that a person interrupts has so long to end; one to a dead network mount never does.
PATIENCE_S = 10.0


class LogWriter:
    """The log of one experiment, held by its driver.

    Parameters
    ----------
    path
        The experiment's directory.
    definition
        The experiment's definition, as it stands there.
    resume
        Go on with the log that stands there: what a driver that died left half-done is put right,
        a log of an earlier version is brought to this one, and its end is taken back.
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
        resume: bool = False,
        flush_interval_s: float = 0.5,
        part_rows: int = PART_ROWS,
    ) -> None:
        self._path = path
        self._definition = definition
        self._flush_interval_s = flush_interval_s
        self._zero = definition.started
        self._columns = config_columns(definition)
        self._rows: collections.deque[Row] = collections.deque()
        self._outputs: collections.deque[tuple[str, str]] = collections.deque()
        self._clock = self._clock_on_disk = 0.0
        self._end: bytes | None = None  #: of end.json, until it is written
        self._trouble: OSError | None = None
        self._complained_at = -math.inf
        self._bug: BaseException | None = None
        self._writing = threading.Lock()
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._given_up = threading.Event()
        self._ended = threading.Event()
        self._lock = hold_lock(path)  # before anything is touched that a living writer needs
        try:
            self._parts = self._begin(part_rows, resume=resume)
        except BaseException:
            self._lock.release()
            raise
        self._schema = self._parts.schema
        self._metrics = metrics_of(self._schema)
        self._unwritten = self._schema.empty_table()  #: rows that a full disk kept from the parts
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

    def tick(self, now: float) -> None:
        """Say how many seconds the experiment has run, for a driver that goes on with it later."""
        self._clock = now
        if now - self._clock_on_disk >= CLOCK_INTERVAL_S:
            self._wake.set()

    def flush(self) -> None:
        """Write what is queued, now, in the calling thread."""
        with self._writing:
            self._write_queued()

    def finish(self, status: str, reason: str, wallclock_time: float) -> None:
        """Say how the experiment ended, in seconds; `close` writes it, behind all rows."""
        end = {"status": status, "reason": reason, "wallclock_time": wallclock_time}
        self._end = json.dumps(end, indent=2).encode()

    def close(self) -> None:
        """Write the rest, end the thread and release the experiment.

        This waits for a disk that is full, and says so. Ctrl-C ends the wait, and what could not be
        written is saved in the temporary directory.

        Raises
        ------
        LogError
            If a person gave up waiting, with what is to be done; or the thread has failed of a bug
            of this package.
        """
        self._complained_at = -math.inf  # a person reads again that this waits, and for what
        self._closing.set()
        self._wake.set()
        try:
            self._await_thread()
            if self._bug is not None:
                raise LogError("the log's thread has failed: a bug of dask_hpo") from self._bug
        finally:
            self._lock.release()

    def _await_thread(self) -> None:
        """Wait until all is written; after Ctrl-C only as long as a write takes.

        By an event, and never long at a time: a `Thread.join` that is interrupted may take the
        thread for dead, and since Polars was imported a signal does not end a wait without end.
        """
        try:
            while not self._ended.wait(RETRY_INTERVAL_S):
                pass
        except KeyboardInterrupt:
            self._given_up.set()
            self._wake.set()
            self._ended.wait(PATIENCE_S)
            if self._pending:
                raise self._rescue() from None
            raise

    def _rescue(self) -> LogError:
        """Save what waits in memory, and return what a person is to know."""
        self._take_in()
        rows = f"{len(self._unwritten)} rows"
        failed = f"{self._path}: {rows} could not be written ({_reason(self._trouble)})"
        name = self._parts.next_name
        try:
            folder = rescue(self._definition.name, name, self._unwritten, self._outputs)
        except OSError as error:
            return LogError(
                f"{failed}, nor be saved in the temporary directory ({_reason(error)}), and are "
                "lost; make room on both before the next run"
            )
        return LogError(
            f"{failed}; they are saved in {folder}, with what trials wrote. Make room, then move "
            f"{name} into {self._path / 'events'} if it is there, and what is in output into "
            f"{self._path / 'output'}"
        )

    @property
    def _pending(self) -> bool:
        """Whether anything is to be written."""
        waits = self._rows or len(self._unwritten) or self._outputs or self._end
        return bool(waits) or self._clock_is_due

    def _begin(self, part_rows: int, *, resume: bool) -> Parts:
        try:
            if resume:
                return self._resume(part_rows)
            return Parts.create(self._path, self._definition, part_rows)
        except OSError as error:
            raise LogError(
                f"{self._path}: the log cannot be written there ({_reason(error)}); "
                "make room, or give path= another directory"
            ) from error
        except pa.ArrowInvalid as error:
            raise LogError(
                f"{self._path / 'events'}: a part there is not what dask_hpo wrote ({error}); "
                "restore it, or move it away if its rows may be missed"
            ) from error

    def _resume(self, part_rows: int) -> Parts:
        parts = Parts.open(self._path, self._definition, part_rows)
        if self._definition.log_version != LOG_VERSION:  # a log of an earlier version until here
            self._definition = dataclasses.replace(self._definition, log_version=LOG_VERSION)
            write_definition(self._path, self._definition)
        self._clock = self._clock_on_disk = read_clock(self._path)
        # The experiment's seconds stood still between two drivers, the calendar did not.
        self._zero = datetime.now(timezone.utc) - timedelta(seconds=self._clock)
        (self._path / "end.json").unlink(missing_ok=True)
        return parts

    # The thread

    def _run(self) -> None:
        try:
            while not (self._closing.is_set() and (self._given_up.is_set() or not self._pending)):
                self._wake.wait(RETRY_INTERVAL_S if self._trouble else None)
                self._closing.wait(self._flush_interval_s)  # let rows gather
                self._wake.clear()
                self.flush()
        except BaseException as error:  # noqa: BLE001 - shown by the next append or close
            self._bug = error
        finally:
            self._ended.set()

    def _write_queued(self) -> None:
        self._take_in()
        if not self._pending:
            return
        try:
            self._check_place()
            self._write_rows()
            self._write_outputs()
            self._write_clock()
            self._write_end()
        except OSError as error:
            self._pause(error)
        else:
            self._recover()

    def _take_in(self) -> None:
        """Make a table of the rows that are queued."""
        rows = [self._rows.popleft() for _ in range(len(self._rows))]
        late = new_metrics(rows, self._metrics)
        if late:
            self._metrics += late
            self._schema = schema_of(self._definition, self._metrics)
            self._unwritten = in_schema(self._unwritten, self._schema)
        if rows:
            table = to_table(rows, self._definition, self._columns, self._metrics, self._zero)
            self._unwritten = pa.concat_tables([self._unwritten, table])

    def _check_place(self) -> None:
        """Write nothing to where the directory was: an empty mount point is not ours to fill."""
        try:
            there = read_definition(self._path).started == self._definition.started
        except LogError:
            there = False
        if not there:
            raise OSError(errno.ENOENT, "its directory is not there: unmounted, or renamed away?")

    def _write_rows(self) -> None:
        if self._parts.schema != self._schema:
            self._parts.widen(self._schema)
        while len(self._unwritten):
            self._unwritten = self._unwritten.slice(self._parts.append(self._unwritten))

    def _write_outputs(self) -> None:
        while self._outputs:
            name, text = self._outputs[0]
            (self._path / "output").mkdir(exist_ok=True)
            (self._path / "output" / name).write_text(text, encoding="utf-8", errors="replace")
            self._outputs.popleft()

    @property
    def _clock_is_due(self) -> bool:
        ahead = self._clock - self._clock_on_disk
        return ahead >= CLOCK_INTERVAL_S or (ahead > 0 and self._closing.is_set())

    def _write_clock(self) -> None:
        if self._clock_is_due:
            clock = self._clock
            self._replace("clock", f"{clock!r}\n".encode("ascii"))
            self._clock_on_disk = clock

    def _write_end(self) -> None:
        if self._end is not None:
            self._replace("end.json", self._end)
            self._end = None

    def _replace(self, name: str, content: bytes) -> None:
        replace_file(self._path / name, content, self._path / f".{name}.scratch")

    def _pause(self, error: OSError) -> None:
        now = time.monotonic()
        told = now - self._complained_at < COMPLAINT_INTERVAL_S
        if not told or _reason(error) != _reason(self._trouble):
            self._complained_at = now
            logger.error(
                "%s: the log cannot be written (%s). %d rows wait in memory and nothing is lost "
                "while the driver lives; make room, and writing goes on by itself%s",
                self._path,
                _reason(error),
                len(self._unwritten),
                ". The run is over and waits for that; Ctrl-C saves them in the temporary directory"
                if self._closing.is_set()
                else "",
            )
        self._trouble = error

    def _recover(self) -> None:
        if self._trouble is not None:
            logger.warning("%s: the log is written again, whole", self._path)
        self._trouble = None


def _reason(error: OSError | None) -> str:
    return "no reason is known" if error is None else str(error.strerror or error)
