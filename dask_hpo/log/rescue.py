"""What a full disk never took, saved in the temporary directory when a person gives up waiting."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa

from dask_hpo.log.part import Part


def rescue(
    experiment: str, part_name: str, rows: pa.Table, outputs: Iterable[tuple[str, str]]
) -> Path:
    """Save rows as a part of the log, and what trials wrote; return the new folder of both.

    Raises
    ------
    OSError
        If the temporary directory cannot be written either.
    """
    folder = Path(tempfile.mkdtemp(prefix=f"dask-hpo-{experiment}-"))
    if len(rows):
        part = Part(folder / part_name, folder / ".scratch")
        part.prepare(rows, whatever_its_size=True)
        part.publish()
    (folder / "output").mkdir()
    for name, text in outputs:
        (folder / "output" / name).write_text(text, encoding="utf-8", errors="replace")
    return folder
