"""Where checkpoints are and which stay: what a person chooses, and what workers and trials hear."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from dask_hpo.checkpoints.record import Policy
from dask_hpo.core.metric import Metric
from dask_hpo.errors import OptionError

#: A file that the driver puts beside the trials' directories: a worker that sees it shares them.
TOKEN_FILE = ".dask-hpo-token"  # noqa: S105 - it opens nothing


@dataclass(frozen=True, slots=True)
class Checkpoints:
    """Where the checkpoints of an experiment are, and which of them stay.

    Parameters
    ----------
    path
        A directory on a file system that the workers share, or an fsspec URL such as
        ``"s3://bucket/folder"``; each experiment has a directory of its name in it. None: the
        folder ``checkpoints`` in the experiment's own directory.
    keep_last
        So many of the last checkpoints of each trial stay, at least 1.
    keep_best
        And so many of those at whose step the best values of the metric were reported.
    keep_trials
        When a trial is over, only so many of the best trials keep their checkpoints; None: all.
        The driver removes the others', and so it must see the path.

    Raises
    ------
    OptionError
        If an argument breaks a rule.
    """

    path: str | os.PathLike[str] | None = None
    keep_last: int = 1
    keep_best: int = 1
    keep_trials: int | None = None

    def __post_init__(self) -> None:
        _check_count("keep_last", self.keep_last, at_least=1)
        _check_count("keep_best", self.keep_best, at_least=0)
        if self.keep_trials is not None:
            _check_count("keep_trials", self.keep_trials, at_least=1)
        if self.path is not None:
            _check_path(os.fspath(self.path))

    def store(self, experiment: Path, metric: Metric, token: str) -> Store:
        """Return what the workers must know.

        Parameters
        ----------
        experiment
            The experiment's directory.
        metric
            By which the best checkpoints are chosen.
        token
            What no other experiment has, and this one whichever driver goes on with it.
        """
        return Store(
            root=self._root(experiment),
            chosen=self.path is not None,
            policy=Policy(metric, self.keep_last, self.keep_best),
            token=token,
        )

    def to_json_dict(self) -> dict[str, Any]:
        """Return the arguments as plain data, which `as_checkpoints` takes."""
        path = None if self.path is None else os.fspath(self.path)
        return {**asdict(self), "path": path}

    def _root(self, experiment: Path) -> str:
        if self.path is None:
            return str(experiment / "checkpoints")
        path = os.fspath(self.path)
        if is_url(path):
            return f"{path.rstrip('/')}/{experiment.name}"
        return str(Path(path).expanduser().absolute() / experiment.name)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a trial's checkpoints are, as an attempt of it hears it.

    ``location`` is a directory or a URL. ``warning`` is for a person whose trial uses it.
    """

    location: str
    attempt: int
    policy: Policy
    warning: str = ""


@dataclass(frozen=True, slots=True)
class Store:
    """Where the checkpoints of all trials of an experiment are, as workers hear it.

    ``chosen``: a person gave the path. ``token``: what ``TOKEN_FILE`` in ``root`` says.
    """

    root: str
    chosen: bool
    policy: Policy
    token: str
    warning: str = ""

    def location(self, trial_id: int) -> str:
        """Return the directory, or the URL, of a trial's checkpoints."""
        return f"{self.root}/trial-{trial_id:06d}"

    def place(self, trial_id: int, attempt: int) -> Place:
        """Return where the checkpoints of a trial are, for an attempt of it."""
        return Place(self.location(trial_id), attempt, self.policy, self.warning)

    def as_seen_here(self) -> Store:
        """Return the store as this machine can use it: with a warning if it does not share it.

        A path that a person chose is used in any case: the workers may share it among themselves
        and not with the driver.
        """
        if is_url(self.root) or _read(Path(self.root, TOKEN_FILE)) == self.token:
            return self
        if self.chosen:
            return replace(
                self,
                warning=f"checkpoints={self.root}: this is not the directory that the driver sees "
                "there; unless the workers share it among themselves, an attempt on another "
                "machine starts afresh; give checkpoints= a path that all share or an fsspec URL",
            )
        # The token keeps another experiment of that name, on this machine, apart.
        name = f"{Path(self.root).parent.name}-{self.token}"
        own = Path(tempfile.gettempdir(), f"dask-hpo-checkpoints-{os.getuid()}", name)
        return replace(
            self,
            root=str(own),
            warning=f"checkpoints are not shared: workers do not see the driver's {self.root}, and "
            f"write to {own} on their own machines, so an attempt on another "
            "machine starts afresh; give checkpoints= a shared path or an fsspec URL",
        )


def as_checkpoints(value: Any) -> Checkpoints:
    """Return the options that are given as themselves, plain data, a path or URL, or None.

    Raises
    ------
    OptionError
        If it is none of them, or breaks a rule.
    """
    if isinstance(value, Checkpoints):
        return value
    if value is None or isinstance(value, (str, os.PathLike)):
        return Checkpoints(value)
    if isinstance(value, Mapping):
        return Checkpoints(**value)
    raise OptionError(
        f"checkpoints={value!r}: give a path on a shared file system, an fsspec URL such as "
        "'s3://bucket/folder', a Checkpoints(...), or None"
    )


def is_url(path: str) -> bool:
    """Tell whether a location is a URL, to be synced, and not a directory."""
    return "://" in path


def _check_count(name: str, value: Any, *, at_least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
        raise OptionError(f"{name}={value!r}: a whole number from {at_least} up; give one")


def _check_path(path: str) -> None:
    if not path:
        raise OptionError("checkpoints='': a path or a URL is not empty; give one, or None")
    if is_url(path):
        _check_protocol(path)


def _check_protocol(url: str) -> None:
    from fsspec import get_filesystem_class  # noqa: PLC0415 - most experiments use no URL

    protocol = url.partition("://")[0]
    try:
        get_filesystem_class(protocol)
    except (ImportError, ValueError) as error:
        raise OptionError(
            f"checkpoints={url!r}: fsspec cannot use {protocol!r} ({error}); install the package "
            "that it asks for here and on the workers, or correct the URL"
        ) from error


def _read(file: Path) -> str | None:
    try:
        return file.read_text()
    except OSError:
        return None
