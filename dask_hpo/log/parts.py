"""The folder of parts: rows are added at its end, whoever reads it and whatever kills the driver.

The folder must be whole at every moment for readers that know nothing of this package. So a part
is replaced atomically *under its own name* by a version that has more rows (see ``part.py``), until
it is full; then the next name begins. No name ever vanishes and rows are only added: a reader that
listed the folder earlier finds every file, and nothing is counted twice. The number of parts is
rows / ``part_rows``, and adding costs at most the writing of one part, however long the log is.

All parts have one schema, since DuckDB and Polars insist on it. When a metric appears late, the
parts that are full are written anew with a null column: all of them into a second directory, which
then changes places with the first in one step, so that a driver killed at any moment leaves parts
of one schema. (Where the system cannot do that, they are renamed one by one from the last to the
first: the first part, from which pyarrow and DuckDB take the schema, then never has a column that
another lacks. Opening the log again puts right what was cut short.) While there is one part only,
as is usual, its own replacement is all.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from dask_hpo.errors import LogError
from dask_hpo.log.definition import Definition
from dask_hpo.log.exchange import exchange, sync_directory
from dask_hpo.log.part import Part
from dask_hpo.log.rows import schema_of
from dask_hpo.log.versions import in_schema, metrics_of


class Parts:
    """The parts of one log, for the one who writes them. Use `create` or `open`.

    Every method raises OSError if the disk refuses; what readers see is whole then too, and the
    call may be repeated.

    Parameters
    ----------
    path
        The experiment's directory.
    schema
        The schema of the parts.
    part_rows
        Rows of a full part.
    """

    def __init__(self, path: Path, schema: pa.Schema, part_rows: int) -> None:
        self.schema = schema
        self._path = path
        self._part_rows = part_rows
        self._full = 0  #: parts that are full
        self._part = Part(*self._place(0))  #: the part that grows
        self._on_disk = schema.empty_table()  #: its rows

    @classmethod
    def create(cls, path: Path, definition: Definition, part_rows: int) -> Parts:
        """Make the folder, which is never seen without the first part.

        Raises
        ------
        LogError
            If there is one already.
        """
        parts = cls(path, schema_of(definition, [definition.metric]), part_rows)
        if parts._folder.exists():
            raise LogError(
                f"{parts._folder}: a log stands there already, and a new one never writes over it; "
                "give the experiment another name, or remove its directory"
            )
        parts._remove_scratch()
        parts._staging.mkdir()
        parts._part.prepare(parts._on_disk)
        parts._part.publish(parts._staging / parts._part.path.name)
        parts._staging.rename(parts._folder)
        sync_directory(path)
        return parts

    @classmethod
    def open(cls, path: Path, definition: Definition, part_rows: int) -> Parts:
        """Go on with the folder that a driver left, of this version of the log or an earlier one.

        A folder that was never begun is made.
        """
        files = sorted((path / "events").glob("part-*.parquet"))
        if not files:
            return cls.create(path, definition, part_rows)
        schemas = [pq.read_schema(file) for file in files]
        metrics = max(map(metrics_of, schemas), key=len)  # each list begins with the shorter ones
        parts = cls(path, schema_of(definition, metrics), part_rows)
        parts._remove_scratch()
        parts._full = len(files) - 1
        parts._part = Part.open(*parts._place(parts._full))
        parts._on_disk = in_schema(pq.read_table(files[-1], partitioning=None), parts.schema)
        if not all(schema.equals(parts.schema) for schema in schemas):
            parts.widen(parts.schema)
        if len(parts._on_disk) >= part_rows:
            parts._begin_part()
        return parts

    def append(self, rows: pa.Table) -> int:
        """Add as many of these rows, at least one, as the growing part takes; return how many."""
        take = min(self._part_rows - len(self._on_disk), len(rows))
        grown = self._grown_by(rows, take)
        while not self._part.prepare(grown, whatever_its_size=len(grown) == 1):
            if len(self._on_disk):
                self._begin_part()
                return self.append(rows)
            take //= 2
            grown = self._grown_by(rows, take)
        self._part.publish()
        self._on_disk = grown
        if len(grown) >= self._part_rows:
            self._begin_part()
        return take

    def widen(self, schema: pa.Schema) -> None:
        """Give every part the columns of this schema; see the top of this file."""
        widened = in_schema(self._on_disk, schema)
        if self._full:
            self._stage(widened)
            self._put_staged_in_place()
        else:
            self._part.prepare(widened, whatever_its_size=True)
            self._part.publish()
        self._on_disk, self.schema = widened, schema

    @property
    def next_name(self) -> str:
        """The file name of the part after the one that grows."""
        begun = len(self._on_disk) > 0 or self._full == 0
        return self._place(self._full + begun)[0].name

    def _grown_by(self, rows: pa.Table, take: int) -> pa.Table:
        return pa.concat_tables([self._on_disk, rows.slice(0, take)]).combine_chunks()

    def _begin_part(self) -> None:
        """Call the growing part full; the next one has no file before it has a row."""
        self._full += 1
        self._part = Part(*self._place(self._full))
        self._on_disk = self.schema.empty_table()

    def _stage(self, widened: pa.Table) -> None:
        """Write all parts anew into a directory beside them."""
        shutil.rmtree(self._staging, ignore_errors=True)  # what a full disk cut short
        self._staging.mkdir()
        for number in range(self._full):
            part = Part.open(*self._place(number))
            table = in_schema(pq.read_table(part.path, partitioning=None), widened.schema)
            part.prepare(table, whatever_its_size=True)
            part.publish(self._staging / part.path.name)
        if len(widened):  # the last: its next versions count on this one to be seen
            self._part.prepare(widened, whatever_its_size=True)
            self._part.publish(self._staging / self._part.path.name)

    def _put_staged_in_place(self) -> None:
        if not exchange(self._staging, self._folder):
            for staged in sorted(self._staging.iterdir(), reverse=True):
                staged.replace(self._folder / staged.name)
        sync_directory(self._path)
        shutil.rmtree(self._staging, ignore_errors=True)

    @property
    def _folder(self) -> Path:
        return self._path / "events"

    @property
    def _staging(self) -> Path:
        return self._path / ".events.scratch"

    def _place(self, number: int) -> tuple[Path, Path]:
        """Return where a part stands, and where its next version is prepared, unseen by readers."""
        name = f"part-{number:06d}.parquet"
        return self._folder / name, self._path / f".{name}.scratch"

    def _remove_scratch(self) -> None:
        """Remove what a driver that was killed left half-written."""
        shutil.rmtree(self._staging, ignore_errors=True)
        for scratch in self._path.glob(".*.scratch"):
            scratch.unlink(missing_ok=True)
