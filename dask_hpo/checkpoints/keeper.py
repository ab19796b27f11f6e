"""The driver's side of checkpoints: a token for the workers, and room for those of the best trials.

Removing may take long (a large directory, an object store), so it happens in a thread of its own,
and an error there costs disk space and nothing else.
"""

from __future__ import annotations

import heapq
import logging
import math
import shutil
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from dask_hpo.checkpoints import remote
from dask_hpo.checkpoints.options import TOKEN_FILE, Checkpoints, is_url
from dask_hpo.core.events import Command, Outcome, Record, TrialEnded
from dask_hpo.core.metric import Metric
from dask_hpo.core.trial import ACTIVE, Trial, TrialState
from dask_hpo.errors import ExperimentExistsError, OptionError

logger = logging.getLogger("dask_hpo")


class Keeper:
    """Keeps the checkpoints of one experiment in order while it runs.

    Parameters
    ----------
    checkpoints
        What a person chose.
    experiment
        The experiment's directory.
    metric
        By which trials are ranked.
    token
        What no other experiment has, and this one whichever driver goes on with it.
    """

    def __init__(
        self, checkpoints: Checkpoints, experiment: Path, metric: Metric, token: str
    ) -> None:
        self.store = checkpoints.store(experiment, metric, token)
        self._metric = metric
        self._keep_trials = checkpoints.keep_trials
        self._best: list[tuple[float, int]] = []  #: a heap of (-loss, -trial number): worst first
        self._thread = ThreadPoolExecutor(1, "dask-hpo-checkpoints")

    def open(self, past: Sequence[Trial] | None = None) -> None:
        """Get the place ready, of a new experiment or of one that is gone on with.

        Parameters
        ----------
        past
            The trials so far of an experiment that is gone on with.

        Raises
        ------
        ExperimentExistsError
            If there are checkpoints of another experiment of that name.
        OptionError
            If the URL cannot be read.
        """
        names = _names(self.store.root)
        if past is None and any(name.startswith("trial-") for name in names):
            raise ExperimentExistsError(
                f"checkpoints: {self.store.root} holds those of an earlier experiment, and trials "
                "would go on from them; give another name, or remove that directory"
            )
        if not is_url(self.store.root):
            self._write_token()
        for trial in past or ():
            if trial.state not in ACTIVE and self._keep_trials is not None:
                failed = trial.state is TrialState.FAILED
                self._rank(trial.trial_id, math.inf if failed else trial.loss)

    def heed(self, commands: Sequence[Command], active: Collection[int]) -> None:
        """Make room after trials that are over; those with a number in ``active`` go on."""
        if self._keep_trials is None:
            return
        for command in commands:
            if isinstance(command, Record):
                event = command.event
                if isinstance(event, TrialEnded) and event.trial_id not in active:
                    failed = event.outcome is Outcome.FAILED
                    loss = math.inf if failed else self._metric.loss(command.value)
                    self._rank(event.trial_id, loss)

    def close(self) -> None:
        """Finish removing; leave nothing where no trial wrote a checkpoint."""
        self._thread.shutdown()
        if not is_url(self.store.root):
            with suppress(OSError):
                if [entry.name for entry in Path(self.store.root).iterdir()] == [TOKEN_FILE]:
                    shutil.rmtree(self.store.root)

    def _write_token(self) -> None:
        # Where the driver cannot write, the workers may: they say so if a trial asks.
        with suppress(OSError):
            root = Path(self.store.root)
            root.mkdir(parents=True, exist_ok=True)
            (root / TOKEN_FILE).write_text(self.store.token)

    def _rank(self, trial_id: int, loss: float) -> None:
        """Enter a trial into the ranking, and let the worst go where there are too many."""
        assert self._keep_trials is not None
        heapq.heappush(self._best, (-loss, -trial_id))
        if len(self._best) > self._keep_trials:
            _, number = heapq.heappop(self._best)
            self._thread.submit(_remove, self.store.location(-number))


def _names(root: str) -> list[str]:
    """Return the names of what is at a location; empty if nothing is."""
    if is_url(root):
        return _names_at_url(root)
    try:
        return [entry.name for entry in Path(root).iterdir()]
    except OSError:
        return []


def _names_at_url(url: str) -> list[str]:
    try:
        return remote.list_names(url)
    except Exception as error:
        raise OptionError(
            f"checkpoints: {url} cannot be read from here ({type(error).__name__}: {error}); give "
            "a URL that exists, and the driver and the workers the right to use it"
        ) from error


def _remove(location: str) -> None:
    try:
        if is_url(location):
            remote.remove_tree(location)
        elif Path(location).exists():
            shutil.rmtree(location)
    except Exception as error:  # noqa: BLE001 - whatever a file system raises
        logger.warning("%s: the trial's checkpoints were not removed (%s)", location, error)
