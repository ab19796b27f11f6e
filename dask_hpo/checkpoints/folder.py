"""What ``checkpoint_dir()`` returns: a trial's directory, with complete checkpoints in it."""

from __future__ import annotations

import logging
import math
import operator
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import SupportsIndex

from dask_hpo.checkpoints.local import LocalStorage
from dask_hpo.checkpoints.options import Place, is_url
from dask_hpo.checkpoints.record import Policy, Record, latest
from dask_hpo.checkpoints.remote import RemoteStorage
from dask_hpo.core.metric import Metric, Scalar

logger = logging.getLogger("dask_hpo")

#: Names the directory for a script that is started by hand; it then goes on from what is there.
BY_HAND = "DASK_HPO_CHECKPOINTS"
_MAX_VALUES = 1_000  # of the metric: a checkpoint's value is reported near the time of its saving


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A complete checkpoint: the folder it was written to, and its step.

    It can be used like the path: ``checkpoint / "model.pt"``, ``open(checkpoint / "state.json")``.
    """

    path: Path
    step: int

    def __fspath__(self) -> str:
        return str(self.path)

    def __truediv__(self, name: str | os.PathLike[str]) -> Path:
        return self.path / name


class CheckpointDir:
    """The directory of a trial's checkpoints, the same for all of its attempts.

    It can be used like a path (``checkpoint_dir() / "notes.txt"``), and is made when it is first
    used. Only what is written inside `save` is a checkpoint: whole or not there at all. Where the
    checkpoints go to a URL, only they are synced: other files in the directory stay on the machine
    and go when the attempt ends.

    Parameters
    ----------
    place
        Where the trial's checkpoints are and which stay; None outside a trial.
    scratch
        Where folders that are synced with a URL are made; None: with other temporary files.
    """

    def __init__(self, place: Place | None = None, scratch: str | None = None) -> None:
        self._given = place
        self._scratch = scratch
        self._lock = threading.RLock()
        self._temporary: str | None = None
        self._storage: LocalStorage | RemoteStorage | None = None
        self._records: list[Record] = []  #: of complete checkpoints
        self._values: dict[int, float] = {}  #: of the metric, by step

    @property
    def path(self) -> Path:
        """The directory, which exists."""
        directory = self._open().directory
        directory.mkdir(parents=True, exist_ok=True)
        return directory

    def __fspath__(self) -> str:
        return str(self.path)

    def __str__(self) -> str:
        return str(self.path)

    def __truediv__(self, name: str | os.PathLike[str]) -> Path:
        return self.path / name

    def __repr__(self) -> str:
        return f"<CheckpointDir {self._given.location if self._given else 'outside a trial'}>"

    @contextmanager
    def save(self, *, step: SupportsIndex) -> Iterator[Path]:
        """Write a checkpoint to the folder given, complete when the block ends without an error.

        Parameters
        ----------
        step
            The training step (epoch) after which training goes on from this checkpoint, from 0.
            To rank it by the metric (``keep_best``) report that with the same step.

        Yields
        ------
        pathlib.Path
            An empty folder. When the block ends, its files are forced to disk, it gets its name
            (and is uploaded, where checkpoints go to a URL), and checkpoints that the experiment
            does not keep are removed.

        Raises
        ------
        TypeError, ValueError
            If the step is no integer from 0 up.
        OSError
            If it cannot be written there; the checkpoints before it remain.
        """
        number = _check_step(step)
        folder = self._open().scratch()
        try:
            yield folder
            self._complete(folder, number)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def latest(self) -> Checkpoint | None:
        """Return the complete checkpoint of the highest step, downloaded if need be, or None."""
        with self._lock:
            storage = self._open()
            record = latest(self._records)
            return None if record is None else Checkpoint(storage.fetch(record), record.step)

    def note(self, step: int, metrics: Mapping[str, Scalar]) -> None:
        """Remember the metric's value at a step, for ranking the checkpoint of that step."""
        if self._given is None or not self._given.policy.keep_best:
            return
        metric = self._given.policy.metric
        if metric.name not in metrics:
            return
        self._values[step] = metric.value(metrics)
        if len(self._values) > _MAX_VALUES:
            del self._values[next(iter(self._values))]

    def close(self) -> None:
        """Remove the folder that was synced with a URL, if there was one."""
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)

    @property
    def _place(self) -> Place:
        """Where the checkpoints are; decided at the first use outside a trial."""
        if self._given is None:
            self._given = _by_hand()
        return self._given

    def _open(self) -> LocalStorage | RemoteStorage:
        with self._lock:
            if self._storage is None:
                storage = self._make_storage()
                self._records = storage.open()
                self._storage = storage
                self._tidy(storage)  # an attempt may have been killed before it did
            return self._storage

    def _make_storage(self) -> LocalStorage | RemoteStorage:
        location, attempt = self._place.location, self._place.attempt
        if not is_url(location):
            return LocalStorage(Path(location), attempt)
        if self._temporary is None:
            self._temporary = tempfile.mkdtemp(prefix=".dask-hpo-checkpoints-", dir=self._scratch)
        return RemoteStorage(location, Path(self._temporary), attempt)

    def _complete(self, folder: Path, step: int) -> None:
        with self._lock:
            storage = self._open()
            versions = [record.version for record in self._records if record.step == step]
            record = Record(step, max(versions, default=0) + 1, self._values.get(step, math.nan))
            self._records.append(storage.add(folder, record))
            self._tidy(storage)

    def _tidy(self, storage: LocalStorage | RemoteStorage) -> None:
        try:
            self._note_values(storage)
            self._remove_superfluous(storage)
        except Exception as error:  # noqa: BLE001 - the checkpoint is safe: training goes on
            logger.warning("an older checkpoint was not removed: %s", error)

    def _note_values(self, storage: LocalStorage | RemoteStorage) -> None:
        """Write down what was reported of a step after its checkpoint was saved."""
        for i, record in enumerate(self._records[:-1]):
            value = self._values.get(record.step, math.nan)
            if math.isnan(record.value) and not math.isnan(value):
                self._records[i] = replace(record, value=value)
                storage.update(self._records[i])

    def _remove_superfluous(self, storage: LocalStorage | RemoteStorage) -> None:
        superfluous = self._place.policy.superfluous(self._records)
        if superfluous and not storage.is_newest():
            return  # a later attempt may be reading them: this one was given up and still runs
        for record in superfluous:
            storage.remove(record)
            self._records.remove(record)


def _by_hand() -> Place:
    """Return a new directory: what is tried by hand should not go on from the try before.

    No metric is known there, so none is best.
    """
    now = datetime.now().astimezone()
    new = Path("checkpoints", f"{now:%Y%m%d-%H%M%S}-{os.getpid()}")
    location = os.environ.get(BY_HAND) or str(new.absolute())
    return Place(location, 1, Policy(Metric("value"), keep_last=1, keep_best=0))


def _check_step(step: SupportsIndex) -> int:
    try:
        number = operator.index(step)
    except TypeError:
        raise TypeError(
            f"step={step!r}: a step is an integer, such as an epoch; write save(step=3)"
        ) from None
    if number < 0:
        raise ValueError(f"step={number}: steps of checkpoints count from 0; give one from 0 up")
    return number
