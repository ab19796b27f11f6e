"""The loop of one experiment: events in, commands out, through breaks of the connection."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any

from dask_hpo.cluster.backend import DaskBackend
from dask_hpo.cluster.connect import Endpoint
from dask_hpo.core.events import Command, Record
from dask_hpo.core.tuning import Tuning
from dask_hpo.errors import SchedulerLostError
from dask_hpo.log.writer import LogWriter
from dask_hpo.progress import Meter, Progress

logger = logging.getLogger("dask_hpo")

#: The loop wakes so often when nothing happens, for limits on time and for the display.
TICK_S = 0.1

MakeBackend = Callable[[Any, "Clock"], DaskBackend]


class Clock:
    """Seconds of the experiment: those of earlier drivers, and on from there."""

    def __init__(self, before: float = 0.0) -> None:
        self._zero = time.monotonic() - before

    def __call__(self) -> float:
        """Return the seconds since the experiment began, without those between two drivers."""
        return time.monotonic() - self._zero


class Driver:
    """Runs the state machine of one experiment against a cluster until it is finished.

    Parameters
    ----------
    tuning
        The state machine; new, or with the past replayed.
    log
        Gets what the state machine records.
    make_backend
        Makes a backend on a client, with the experiment's clock.
    clock
        The experiment's clock.
    progress, meter
        What shows the run, and what takes its measure.
    heed
        Hears of the commands, once they are carried out.
    resumed
        Whether the cluster may know trials of this experiment already.
    reconnect_timeout_s
        Wait so long for a Dask scheduler that is gone.
    how_to_resume
        Returns the command that resumes, for an address.
    """

    def __init__(
        self,
        tuning: Tuning,
        log: LogWriter,
        make_backend: MakeBackend,
        *,
        clock: Clock,
        progress: Progress,
        meter: Meter,
        heed: Callable[[Sequence[Command]], None],
        resumed: bool,
        reconnect_timeout_s: float,
        how_to_resume: Callable[[str], str],
    ) -> None:
        self._tuning = tuning
        self._log = log
        self._make_backend = make_backend
        self._clock = clock
        self._progress = progress
        self._meter = meter
        self._heed = heed
        self._resumed = resumed
        self._reconnect_timeout_s = reconnect_timeout_s
        self._how_to_resume = how_to_resume
        self._backend: DaskBackend | None = None
        self._stop_requested = False
        self._shown = -progress.interval_s
        self.detached = False

    def run(self, client: Any) -> None:
        """Run to the end, or until the driver is detached.

        Ctrl-C, once, stops the experiment in order. SIGTERM, with which systems end a process that
        they start again later, leaves the trials to a resume.

        Raises
        ------
        SchedulerLostError
            If the connection to the Dask scheduler broke and it did not come back in time.
        """
        with (
            contextlib.ExitStack() as own,
            _call_on_signal(signal.SIGINT, self.stop),
            _call_on_signal(signal.SIGTERM, self.detach),
            self._shown_to_the_end(),
        ):
            endpoint = Endpoint.of(client)
            while not self._run_on(client, endpoint):
                client = self._reconnected(endpoint)
                own.close()
                own.enter_context(client)
                logger.warning("the Dask scheduler is back: the experiment goes on")

    @contextlib.contextmanager
    def _shown_to_the_end(self) -> Iterator[None]:
        try:
            yield
        finally:
            self._progress.close(self._meter.snapshot(self._clock()))

    def detach(self) -> None:
        """End the run soon and let its trials run on; from any thread, and in a signal handler."""
        self.detached = True

    def stop(self) -> None:
        """End the experiment soon; from any thread, and in a signal handler."""
        self._stop_requested = True
        if self._backend is not None:
            self._backend.request_stop()

    def _run_on(self, client: Any, endpoint: Endpoint) -> bool:
        """Run on this client; False if the connection broke."""
        backend = self._make_backend(client, self._clock)
        try:
            self._begin(backend)
            self._loop(backend)
        except SchedulerLostError as error:
            backend.leave()
            self._say_lost(endpoint, error)
            return False
        except BaseException:
            backend.close()
            raise
        if self.detached and not self._tuning.finished:
            backend.leave()
        else:
            backend.close()
        return True

    def _begin(self, backend: DaskBackend) -> None:
        try:
            if self._resumed:
                backend.attach(self._tuning.resume(), known=len(self._tuning.trials))
            else:
                backend.start()
        except (OSError, asyncio.TimeoutError) as error:  # nothing else that is asked for does I/O
            raise SchedulerLostError(f"{type(error).__name__} as trials were to begin") from error
        self._resumed = True  # whatever comes after this
        self._backend = backend
        if self._stop_requested:
            backend.request_stop()

    def _loop(self, backend: DaskBackend) -> None:
        """Events in, commands out, until the state machine says that it is finished."""
        tuning = self._tuning
        while not tuning.finished and not self.detached:
            commands: list[Command] = []
            for event in backend.wait(TICK_S):
                commands += tuning.handle(event)
            backend.execute(commands)
            _write_records(self._log, commands)
            self._heed(commands)
            now = self._clock()
            self._log.tick(now)
            if now - self._shown >= self._progress.interval_s:
                self._shown = now
                self._progress.update(self._meter.snapshot(now))

    def _say_lost(self, endpoint: Endpoint, error: SchedulerLostError) -> None:
        logger.warning(
            "the Dask scheduler at %s is gone (%s): what was heard is in the log. Waiting up to "
            "%g s for it to come back; its workers ended with it, and must be started again, too. "
            "Ctrl-C ends the wait",
            endpoint.address,
            error,
            self._reconnect_timeout_s,
        )

    def _reconnected(self, endpoint: Endpoint) -> contextlib.AbstractContextManager[Any]:
        client = endpoint.reconnect(
            self._reconnect_timeout_s, lambda: self._stop_requested or self.detached
        )
        if client is None:
            how_long = (
                "and a person ended the wait for it"
                if self._stop_requested or self.detached
                else f"for more than reconnect_timeout={self._reconnect_timeout_s:g} s"
            )
            raise SchedulerLostError(
                f"the Dask scheduler at {endpoint.address} is gone {how_long}: all that was heard "
                f"is in the log. When it runs again, go on with\n"
                f"    {self._how_to_resume(endpoint.address)}"
            )
        return client  # type: ignore[no-any-return]  # distributed is not typed for us


def _write_records(log: LogWriter, commands: list[Command]) -> None:
    for command in commands:
        if isinstance(command, Record):
            log.append(
                command.event,
                config=command.config,
                value=command.value,
                step=command.step,
                worker=command.worker,
                slots=command.slots,
            )


@contextlib.contextmanager
def _call_on_signal(number: signal.Signals, function: Callable[[], None]) -> Iterator[None]:
    """Call a function at the first signal of this number, and leave the second as it is."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may handle signals
        return

    def on_signal(_: int, frame: FrameType | None) -> None:  # noqa: ARG001 - signal's
        signal.signal(number, previous)
        function()

    previous = signal.signal(number, on_signal)
    try:
        yield
    finally:
        signal.signal(number, previous)
