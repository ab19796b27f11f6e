"""Checkpoints in a directory: one is there entirely or not at all, whatever is killed.

A checkpoint is written to a hidden scratch folder, forced to disk and renamed; it goes by a rename
back to a hidden name. Hidden folders are what a killed attempt may leave, and are swept away.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from dask_hpo.checkpoints.record import ATTEMPT, MARKER, Record, from_marker, is_name, is_newest

_HIDDEN = re.compile(r"\.(?:scratch|removed)-(\d+)-\w+")


def sweep(directory: Path, attempt: int) -> None:
    """Remove what attempts up to this one left half written or half removed.

    Not what a later one is writing: an attempt that was given up may still run for a moment.
    """
    with suppress(OSError):  # no directory, or another sweeps it too
        for entry in list(directory.iterdir()):
            hidden = _HIDDEN.fullmatch(entry.name)
            if hidden is not None and int(hidden[1]) <= attempt:
                shutil.rmtree(entry, ignore_errors=True)


class LocalStorage:
    """The checkpoints of a trial in its directory, which needs not exist yet.

    ``durable``: a checkpoint is to outlive a crash of the machine, not only of its processes.
    """

    def __init__(self, directory: Path, attempt: int, *, durable: bool = True) -> None:
        self.directory = directory
        self._attempt = attempt
        self._durable = durable

    def open(self) -> list[Record]:
        """Tidy up after earlier attempts and return the records of their complete checkpoints."""
        if self._attempt > 1:
            self.directory.mkdir(parents=True, exist_ok=True)
            (self.directory / ATTEMPT.format(self._attempt)).touch()
            sweep(self.directory, self._attempt - 1)
        return list(self._complete())

    def is_newest(self) -> bool:
        """Tell whether no later attempt uses the directory."""
        return is_newest(self._attempt, os.listdir(self.directory))  # noqa: PTH208 - names

    def scratch(self) -> Path:
        """Return a new hidden folder, to be written and then added."""
        folder = self._hidden("scratch")
        try:
            folder.mkdir(parents=True)
        except OSError as error:
            raise OSError(
                error.errno,
                f"{self.directory}: checkpoints cannot be written there on this machine "
                f"({error.strerror}); give checkpoints= a path that the workers can write",
            ) from error
        return folder

    def add(self, scratch: Path, record: Record) -> Record:
        """Make a folder that is written the checkpoint of a record; return that, as it is named."""
        (scratch / MARKER).write_bytes(record.to_json())
        if self._durable:
            _force_to_disk(scratch)
        while not _rename(scratch, self.path(record)):  # an older attempt that still runs was first
            record = replace(record, version=record.version + 1)
        if self._durable:
            _force_folder(self.directory)
        return record

    def path(self, record: Record) -> Path:
        """Return where a checkpoint is, or would be."""
        return self.directory / record.name

    def fetch(self, record: Record) -> Path:
        """Return where a checkpoint can be read."""
        return self.path(record)

    def update(self, record: Record) -> None:
        """Write the marker of a complete checkpoint anew."""
        marker = self.path(record) / MARKER
        scratch = marker.with_suffix(".new")
        scratch.write_bytes(record.to_json())
        scratch.replace(marker)

    def remove(self, record: Record) -> None:
        """Remove a checkpoint; it may be gone already."""
        removed = self._hidden("removed")
        with suppress(FileNotFoundError):
            self.path(record).rename(removed)
            shutil.rmtree(removed)

    def _hidden(self, what: str) -> Path:
        return self.directory / f".{what}-{self._attempt}-{secrets.token_hex(6)}"

    def _complete(self) -> Iterator[Record]:
        with suppress(FileNotFoundError, NotADirectoryError):
            for folder in list(self.directory.iterdir()):
                if is_name(folder.name) and (folder / MARKER).is_file():
                    yield from_marker(folder.name, (folder / MARKER).read_bytes())


def _rename(scratch: Path, path: Path) -> bool:
    """Give a folder its name; False if it is taken."""
    try:
        scratch.rename(path)
    except OSError as error:
        if error.errno in {errno.EEXIST, errno.ENOTEMPTY}:
            return False
        raise
    return True


def _force_to_disk(folder: Path) -> None:
    for name, _, files in os.walk(folder):
        for file in files:
            with Path(name, file).open("rb") as content:
                os.fsync(content.fileno())
        _force_folder(Path(name))


def _force_folder(folder: Path) -> None:
    with suppress(OSError):  # Windows and some network file systems do not do it
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
