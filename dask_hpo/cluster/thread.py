"""Trials in the worker's own threads: no isolation, no start-up time.

For objectives of milliseconds and for systems that cannot fork. A trial is stopped by its next
report; one that never reports runs to its end, and one that crashes takes the worker with it.
"""

from __future__ import annotations

import pickle
import threading
import time

from dask_hpo.checkpoints.folder import CheckpointDir
from dask_hpo.cluster.attempt import (
    OnReport,
    OnStarted,
    TrialRequest,
    TrialResult,
    failure_of,
    metrics_of,
)
from dask_hpo.core.events import Outcome
from dask_hpo.core.metric import Scalar
from dask_hpo.errors import ClusterError, ObjectiveError, TrialStopped
from dask_hpo.objective import Payload
from dask_hpo.report import thread_channel


class ThreadRunner:
    """Runs attempts of a function in the threads that ask for it.

    Parameters
    ----------
    payload
        The objective, a function.
    metric
        The name that a plain number returned by it gets.

    Raises
    ------
    ObjectiveError
        If the objective is a script.
    """

    def __init__(self, payload: Payload, *, metric: str) -> None:
        if payload.kind != "function":
            raise ObjectiveError(
                f"isolation='thread' with the script {payload.script!r}: a script needs a process "
                "of its own; use isolation='process' or 'spawn', or make it a function"
            )
        self._payload = payload
        self._metric = metric
        self._stops: dict[tuple[int, int], threading.Event] = {}

    def run(self, request: TrialRequest, on_report: OnReport, on_started: OnStarted) -> TrialResult:
        """Run an attempt in this thread to its end; see ``ProcessRunner.run``.

        Raises
        ------
        ClusterError
            If this attempt runs here already.
        """
        key = (request.trial_id, request.attempt)
        stop = threading.Event()
        if self._stops.setdefault(key, stop) is not stop:
            raise ClusterError(
                f"trial {key[0]}, attempt {key[1]} runs here already: an attempt runs once; "
                "number the next attempt differently"
            )
        try:
            return self._run(request, stop, on_report, on_started)
        finally:
            del self._stops[key]

    def stop(self, trial_id: int, attempt: int) -> bool:
        """Let the attempt's next report raise ``TrialStopped``; False if it does not run here."""
        stop = self._stops.get((trial_id, attempt))
        if stop is not None:
            stop.set()
        return stop is not None

    def close(self) -> None:
        """Stop every attempt at its next report."""
        for stop in list(self._stops.values()):
            stop.set()

    def _run(
        self,
        request: TrialRequest,
        stop: threading.Event,
        on_report: OnReport,
        on_started: OnStarted,
    ) -> TrialResult:
        def send(step: int, metrics: dict[str, Scalar], elapsed: float) -> None:
            if stop.is_set():
                raise TrialStopped(f"trial {request.trial_id} was stopped by the driver")
            on_report(step, metrics, elapsed)

        asked = time.monotonic()
        on_started()
        start = time.monotonic()
        outcome, metrics, failure = Outcome.COMPLETED, {}, None
        checkpoints = CheckpointDir(request.checkpoints)
        try:
            # Unpickled for every trial: what one leaves in the function's globals, no other sees.
            function = pickle.loads(self._payload.function)  # noqa: S301 - the driver's own bytes
            with thread_channel(send, checkpoints):
                metrics = metrics_of(function(**request.config), self._metric)
        except TrialStopped:
            outcome = Outcome.STOPPED
        except BaseException as error:  # noqa: BLE001 - SystemExit too must not end the worker
            outcome, failure = Outcome.FAILED, failure_of(error)
        finally:
            checkpoints.close()
        if stop.is_set():
            outcome, failure = Outcome.STOPPED, None
        return TrialResult(
            outcome,
            metrics,
            failure,
            elapsed=time.monotonic() - start,
            start_up_s=start - asked,
        )
