"""Checkpoints behind an fsspec URL, worked on in a folder of the machine and synced.

A checkpoint's files are uploaded first and its marker last, so that an interrupted upload is never
taken for a checkpoint; the marker is the first to go. The folder holds the newest one only.
"""

from __future__ import annotations

from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from typing import Any

from dask_hpo.checkpoints.local import LocalStorage
from dask_hpo.checkpoints.record import ATTEMPT, MARKER, Record, from_marker, is_name, is_newest


def file_system(url: str) -> tuple[Any, str]:
    """Return the fsspec file system of a URL, and the URL's path on it."""
    from fsspec.core import url_to_fs  # noqa: PLC0415 - most trials use no URL

    system, path = url_to_fs(url)
    return system, path.rstrip("/")


def remove_tree(url: str) -> None:
    """Remove all that is at a URL; it may be gone already."""
    system, path = file_system(url)
    _remove(system, path)


def list_names(url: str) -> list[str]:
    """Return the names of what is directly under a URL; empty if nothing is."""
    return _names(*file_system(url))


class RemoteStorage:
    """The checkpoints of a trial at a URL, synced with the folder ``directory``."""

    def __init__(self, url: str, directory: Path, attempt: int) -> None:
        self.directory = directory
        self._attempt = attempt
        self._local = LocalStorage(
            directory, 1, durable=False
        )  # its folder is this attempt's alone
        self._system, self._root = file_system(url)

    def open(self) -> list[Record]:
        """Tidy up after earlier attempts and return the records of their complete checkpoints."""
        if self._attempt > 1:
            self._system.makedirs(self._root, exist_ok=True)
            self._system.pipe_file(self._path(ATTEMPT.format(self._attempt)), b"")
        records = []
        for name, files in self._files_by_checkpoint().items():
            if MARKER in files:
                records.append(from_marker(name, self._system.cat_file(self._path(name, MARKER))))
            elif self._attempt > 1:
                _remove(self._system, self._path(name))
        return records

    def is_newest(self) -> bool:
        """Tell whether no later attempt uses the URL."""
        return is_newest(self._attempt, _names(self._system, self._root))

    def scratch(self) -> Path:
        """Return a new hidden folder, to be written and then added."""
        return self._local.scratch()

    def add(self, scratch: Path, record: Record) -> Record:
        """Upload a folder that is written as the checkpoint of a record, and return the record."""
        before = self._local.open()
        record = self._local.add(scratch, record)
        try:
            self._upload(record)
        except BaseException:
            self._local.remove(record)
            raise
        for old in before:
            self._local.remove(old)
        return record

    def fetch(self, record: Record) -> Path:
        """Return where a checkpoint can be read, downloaded if it is not here."""
        path = self._local.path(record)
        if not path.exists():
            scratch = self._local.scratch()
            self._download(record, scratch)
            self._local.add(scratch, record)
        return path

    def update(self, record: Record) -> None:
        """Write the marker of a complete checkpoint anew."""
        self._system.pipe_file(self._path(record.name, MARKER), record.to_json())

    def remove(self, record: Record) -> None:
        """Remove a checkpoint; it may be gone already."""
        with suppress(FileNotFoundError):
            self._system.rm_file(self._path(record.name, MARKER))
        _remove(self._system, self._path(record.name))

    def _path(self, *parts: str) -> str:
        return "/".join([self._root, *parts])

    def _files_by_checkpoint(self) -> dict[str, set[str]]:
        self._system.invalidate_cache()
        found: defaultdict[str, set[str]] = defaultdict(set)
        with suppress(FileNotFoundError):
            for path in self._system.find(self._root):
                name, _, file = path.removeprefix(f"{self._root}/").partition("/")
                if is_name(name):
                    found[name].add(file)
        return found

    def _upload(self, record: Record) -> None:
        folder = self._local.path(record)
        files = [file for file in folder.rglob("*") if file.is_file() and file != folder / MARKER]
        targets = [self._path(record.name, file.relative_to(folder).as_posix()) for file in files]
        for parent in {self._path(record.name), *(t.rpartition("/")[0] for t in targets)}:
            self._system.makedirs(parent, exist_ok=True)  # does nothing in an object store
        if files:
            self._system.put([str(file) for file in files], targets)
        self._system.pipe_file(self._path(record.name, MARKER), record.to_json())

    def _download(self, record: Record, folder: Path) -> None:
        root = self._path(record.name)
        sources = self._system.find(root)
        targets = [folder / source.removeprefix(f"{root}/") for source in sources]
        for parent in {target.parent for target in targets}:
            parent.mkdir(parents=True, exist_ok=True)
        self._system.get(sources, [str(target) for target in targets])


def _names(system: Any, path: str) -> list[str]:
    system.invalidate_cache()
    with suppress(FileNotFoundError):
        return [name.rstrip("/").rpartition("/")[2] for name in system.ls(path, detail=False)]
    return []


def _remove(system: Any, path: str) -> None:
    with suppress(FileNotFoundError):
        system.rm(path, recursive=True)
