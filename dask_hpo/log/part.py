"""One Parquet part that grows under its own name, whatever reader looks on, in whatever steps.

A part is replaced atomically by a version with more rows. That alone is not enough: some readers
ask for a file's size, open it, read the footer, and open it again for the rows, and a version may
be replaced between any two of these steps (Polars and DuckDB were seen to fail in one read of a
hundred while a part was replaced every few milliseconds). So all versions of a part are laid out
such that each step makes sense in the next version, too:

- the size is the same, and the footer begins at the same place and has the same length (zeros fill
  it up behind its end, which readers do not look at);
- the rows of a version stand in the next one of ``REGIONS`` regions, and those of the versions
  before it stay where they were: a footer that was read a moment ago still points at its rows.

    PAR1 | region 0 | region 1 | region 2 | region 3 | footer, zeros | length | PAR1

What is not written is a hole in the file: it has a size but takes no room on the disk.
"""

from __future__ import annotations

import os
from collections import deque
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from dask_hpo.log.exchange import sync_directory

MAGIC = b"PAR1"
#: A superseded version stays readable for so many more versions, less one.
REGIONS = 4
REGION_BYTES = 512 * 1024
#: Room for a footer, by four times the size that it has first.
MIN_FOOTER_BYTES = 16 * 1024


class Part:
    """A part, from its first version to its last.

    Parameters
    ----------
    path
        The file; readers see it.
    scratch
        A file beside the folder of parts, on the same file system; readers do not see it.
    """

    def __init__(self, path: Path, scratch: Path) -> None:
        self.path = path
        self._scratch = scratch
        self._next_region = 0
        self._recent: deque[tuple[int, bytes]] = deque(maxlen=REGIONS - 1)  #: (region, rows)
        self._region_bytes = REGION_BYTES
        self._footer_bytes = 0
        self._prepared = b""

    @classmethod
    def open(cls, path: Path, scratch: Path) -> Part:
        """Return the part that stands at a path, so that its next version fits the one there."""
        part = cls(path, scratch)
        metadata = pq.read_metadata(path)
        with path.open("rb") as file:
            file.seek(-8, os.SEEK_END)
            end = file.tell()
            part._footer_bytes = int.from_bytes(file.read(4), "little")
            part._region_bytes = (end - part._footer_bytes - len(MAGIC)) // REGIONS
            if metadata.num_row_groups:
                group = metadata.row_group(0)
                columns = [group.column(i) for i in range(group.num_columns)]
                offset = columns[0].dictionary_page_offset or columns[0].data_page_offset
                region = (offset - len(MAGIC)) // part._region_bytes
                file.seek(part._offset(region))
                rows = file.read(sum(column.total_compressed_size for column in columns))
                part._recent.append((region, rows))
                part._next_region = (region + 1) % REGIONS
        return part

    def prepare(self, table: pa.Table, *, whatever_its_size: bool = False) -> bool:
        """Write the next version, with these rows, to the scratch file, and to the disk.

        Returns False, and has done nothing, if the rows have no room in a region; with
        ``whatever_its_size`` the regions grow instead.

        Raises
        ------
        OSError
            If it cannot be written; the part is as it was.
        """
        rows, footer = _encode(table, self._offset(self._next_region))
        if len(rows) > self._region_bytes:
            if not whatever_its_size:
                return False
            self._region_bytes, self._next_region = len(rows), 0
            self._recent.clear()
            rows, footer = _encode(table, self._offset(0))
        if len(footer) > self._footer_bytes:
            self._footer_bytes = max(MIN_FOOTER_BYTES, 4 * len(footer))
        self._write([*self._recent, (self._next_region, rows)], footer)
        self._prepared = rows
        return True

    def publish(self, place: Path | None = None) -> None:
        """Put what was prepared into the part's place, or for now into another directory's."""
        place = place or self.path
        self._scratch.replace(place)
        if self._prepared:  # noted before what may still fail: readers see this version now
            self._recent.append((self._next_region, self._prepared))
            self._next_region = (self._next_region + 1) % REGIONS
        sync_directory(place.parent)

    def _write(self, regions: list[tuple[int, bytes]], footer: bytes) -> None:
        with self._scratch.open("wb") as file:
            file.write(MAGIC)
            for region, rows in regions:
                file.seek(self._offset(region))
                file.write(rows)
            file.seek(self._offset(REGIONS))
            file.write(footer.ljust(self._footer_bytes, b"\0"))
            file.write(self._footer_bytes.to_bytes(4, "little") + MAGIC)
            file.flush()
            os.fsync(file.fileno())

    def _offset(self, region: int) -> int:
        return len(MAGIC) + region * self._region_bytes


def _encode(table: pa.Table, offset: int) -> tuple[bytes, bytes]:
    """Return the rows, to be put at an offset of a Parquet file, and the footer that finds them."""
    stream = pa.BufferOutputStream()
    with pq.ParquetWriter(stream, table.schema, compression="zstd", compression_level=1) as writer:
        # Arrow takes the place of the rows from the stream's position, behind the first magic.
        stream.write(bytes(offset - len(MAGIC)))
        if len(table):
            writer.write_table(table, row_group_size=len(table))
    content = stream.getvalue().to_pybytes()
    footer_length = int.from_bytes(content[-8:-4], "little")
    return content[offset : -8 - footer_length], content[-8 - footer_length : -8]
