"""The Dask backend: commands become futures, and what the cluster says becomes events.

``as_completed`` is the engine. It is iterated on the client's event loop and puts what completed
into one queue; reports and changes of the workers go into the same queue, in the order in which the
client heard them. The driver's thread takes the queue's contents as events.

An end travels twice: as a message, ahead of the future, and as the future's result. The future says
*when* the slot is free; the result is fetched only where the message was lost, or where the trial
wrote something (which is too long for a message).
"""

from __future__ import annotations

import asyncio
import logging
import pickle
import queue
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from distributed import Client, Future, as_completed

from dask_hpo.cluster.messages import Message, failure_of
from dask_hpo.cluster.worker import End, Settings, TrialTask, stop_trials, worker_of
from dask_hpo.cluster.workers import WorkerWatch
from dask_hpo.core.events import (
    Command,
    Event,
    Failure,
    Outcome,
    Reported,
    SlotsChanged,
    StartTrial,
    StopRequested,
    StopTrial,
    Tick,
    TrialEnded,
    TrialStarted,
)

logger = logging.getLogger("dask_hpo")


@dataclass(slots=True)
class Flight:
    """An attempt whose task is with Dask, and what was heard of it."""

    trial_id: int
    attempt: int
    future: Future
    allowed: frozenset[str]  #: the workers that it was submitted to
    run: str = ""
    worker: str = ""
    end: Message | None = None
    stopping: bool = False


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch of messages, with the driver's time when it was heard."""

    heard: float
    content: dict[str, Any]


@dataclass(frozen=True, slots=True)
class WorkersChanged:
    """So many slots there are now; these workers are gone, and those are there."""

    now: float
    slots: int
    gone: frozenset[str]
    present: frozenset[str]


@dataclass(frozen=True, slots=True)
class Completed:
    """A future that resolved.

    ``end`` is its result where that was fetched; ``error`` says in one line why it has none.
    """

    future: Future
    end: End | None = None
    error: str = ""


OnOutput = Callable[[int, int, str, str], None]


class DaskBackend:
    """Runs trials on a Dask cluster.

    Parameters
    ----------
    client
        A synchronous client, connected.
    settings
        What every worker must know; see `Settings`.
    clock
        Seconds since the start of the experiment.
    max_slots
        Use at most so many slots; None: all that the workers offer.
    on_output
        Called with (trial number, attempt, stdout, stderr) of every trial that wrote something.
    """

    def __init__(
        self,
        client: Client,
        settings: Settings,
        *,
        clock: Callable[[], float],
        max_slots: int | None,
        on_output: OnOutput,
    ) -> None:
        self._client = client
        self._settings = settings
        self._clock = clock
        self._on_output = on_output
        self._queue: queue.SimpleQueue[Batch | Completed | WorkersChanged | Event] = (
            queue.SimpleQueue()
        )
        self._flights: dict[tuple[int, int], Flight] = {}  #: by trial number and attempt
        self._stops: defaultdict[str, deque[tuple[int, int]]] = defaultdict(deque)  #: by worker
        self._by_key: dict[str, Flight] = {}
        self._warned: set[str] = set()  #: each warning of a worker is shown once
        self._completed = as_completed(loop=client.loop)
        self._something_to_await = asyncio.Event()
        self._pump: asyncio.Future[None] | None = None
        self._workers = WorkerWatch(client, settings, max_slots, self._workers_changed)

    # Life

    def start(self) -> None:
        """Make the workers ready and begin to listen.

        Raises
        ------
        ClusterError
            If a worker cannot run the trials: another version, a package that it lacks.
        """
        self._client.subscribe_topic(self._settings.topic, self._hear)
        self._client.loop.add_callback(self._start_pump)
        self._workers.start()

    def close(self) -> None:
        """Let go of everything: tasks, the workers' plugin, and with it whatever still runs."""
        self._workers.close()
        if self._client.status == "running":
            self._client.sync(self._stop_pump)
            self._client.cancel([flight.future for flight in self._flights.values()])
            self._client.unsubscribe_topic(self._settings.topic)

    def _start_pump(self) -> None:
        self._pump = asyncio.ensure_future(self._pump_completed())

    async def _stop_pump(self) -> None:
        if self._pump is not None:
            self._pump.cancel()
            await asyncio.wait([self._pump])

    async def _pump_completed(self) -> None:
        while True:
            await self._something_to_await.wait()
            self._something_to_await.clear()
            async for future in self._completed:
                self._queue.put(Completed(future))

    # Events

    def wait(self, timeout_s: float) -> list[Event]:
        """Return what happened, in order; after ``timeout_s`` seconds of silence a `Tick`."""
        events: list[Event] = []
        try:
            events += self._events_of(self._queue.get(timeout=timeout_s))
            while True:
                events += self._events_of(self._queue.get_nowait())
        except queue.Empty:
            return events or [Tick(self._clock())]

    def request_stop(self) -> None:
        """Put a `StopRequested` among the events; safe in a signal handler and in any thread."""
        self._queue.put(StopRequested(self._clock()))

    def _hear(self, event: tuple[float, dict[str, Any]]) -> None:
        """Take a batch of messages, on the client's event loop: it must cost nothing here."""
        self._queue.put(Batch(self._clock(), event[1]))

    def _workers_changed(self, slots: int, gone: frozenset[str]) -> None:
        present = self._workers.accepted
        self._queue.put(WorkersChanged(self._clock(), slots, gone, present))

    def _events_of(self, item: Batch | Completed | WorkersChanged | Event) -> list[Event]:
        if isinstance(item, Batch):
            return self._events_of_batch(item)
        if isinstance(item, Completed):
            return self._events_of_completed(item)
        if isinstance(item, WorkersChanged):
            return self._events_of_change(item)
        return [item]

    def _events_of_change(self, change: WorkersChanged) -> list[Event]:
        lost: list[Event] = [
            self._lose(flight, change.now)
            for flight in list(self._flights.values())
            if self._is_gone(flight, change)
        ]
        return [*lost, SlotsChanged(change.now, change.slots)]

    def _events_of_batch(self, batch: Batch) -> list[Event]:
        events: list[Event] = []
        for message in batch.content["messages"]:
            now = batch.heard - (batch.content["sent"] - message["at"])
            flight = self._flights.get((message["trial_id"], message["attempt"]))
            if flight is not None:
                events += self._events_of_message(flight, message, now)
            elif message["kind"] == "started":  # Dask runs a task again that we gave up
                self._send_stop(worker_of(message["run"]), message["trial_id"], message["attempt"])
        return events

    def _events_of_message(self, flight: Flight, message: Message, now: float) -> list[Event]:
        match message["kind"]:
            case "started" if not flight.run:
                return [self._begin(flight, message["run"], now)]
            case "started":
                # The attempt's worker is gone, and Dask runs the task again. Attempts are ours.
                self._send_stop(worker_of(message["run"]), flight.trial_id, flight.attempt)
                return [self._lose(flight, now)]
            case "reported" if message["run"] == flight.run:
                return [
                    Reported(
                        now,
                        flight.trial_id,
                        flight.attempt,
                        message["step"],
                        message["metrics"],
                        message["elapsed"],
                    )
                ]
            case "ended" if message["run"] == flight.run:
                flight.end = message
        return []

    @staticmethod
    def _is_gone(flight: Flight, change: WorkersChanged) -> bool:
        """Tell whether the worker that runs an attempt left, or all that might have run it did."""
        if flight.worker:
            return flight.worker in change.gone
        return flight.allowed.isdisjoint(change.present)

    def _begin(self, flight: Flight, run: str, now: float) -> TrialStarted:
        flight.run, flight.worker = run, worker_of(run)
        if flight.stopping:
            self._send_stop(flight.worker, flight.trial_id, flight.attempt)
        return TrialStarted(now, flight.trial_id, flight.attempt, flight.worker)

    def _lose(self, flight: Flight, now: float) -> TrialEnded:
        """Give up an attempt whose worker is gone, and the task with it."""
        self._drop(flight)
        self._client.loop.add_callback(self._client.cancel, [flight.future])
        why = Failure(f"WorkerLost: the worker {flight.worker} that ran this attempt is gone")
        return TrialEnded(now, flight.trial_id, flight.attempt, Outcome.LOST, failure=why)

    def _drop(self, flight: Flight) -> None:
        del self._by_key[flight.future.key], self._flights[flight.trial_id, flight.attempt]

    def _events_of_completed(self, completed: Completed) -> list[Event]:
        flight = self._by_key.get(completed.future.key)
        if flight is None:
            return []
        end = flight.end if completed.end is None else completed.end.message
        fetched = completed.end is not None or completed.error
        if not fetched and (end is None or end["has_output"] or not completed.future.done()):
            self._client.loop.add_callback(self._fetch, completed.future)
            return []
        self._drop(flight)
        now = self._clock()
        if end is None:
            return [self._end_without_result(flight, completed.error, now)]
        events: list[Event] = []
        if not flight.run:  # its start was not heard: the message was lost on the way
            events.append(self._begin(flight, end["run"], now - end["elapsed"]))
        self._warn(end["warning"])
        if completed.end is not None:
            stdout, stderr = completed.end.stdout, completed.end.stderr
            self._on_output(flight.trial_id, flight.attempt, stdout, stderr)
        events.append(
            TrialEnded(
                now,
                flight.trial_id,
                flight.attempt,
                Outcome(end["outcome"]),
                end["metrics"],
                failure_of(end),
                end["elapsed"],
            )
        )
        return events

    def _warn(self, warning: str) -> None:
        if warning and warning not in self._warned:
            self._warned.add(warning)
            logger.warning("%s", warning)

    async def _fetch(self, future: Future) -> None:
        """Get the result of a future, on the client's event loop."""
        try:
            end = await self._client.gather(future, asynchronous=True)
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - whatever Dask raises
            self._queue.put(Completed(future, error=f"{type(error).__name__}: {error}"))
        else:
            self._queue.put(Completed(future, end))

    def _end_without_result(self, flight: Flight, error: str, now: float) -> TrialEnded:
        outcome = Outcome.STOPPED if flight.stopping and not flight.run else Outcome.LOST
        return TrialEnded(now, flight.trial_id, flight.attempt, outcome, failure=Failure(error))

    # Commands

    def execute(self, commands: Sequence[Command]) -> None:
        """Do what the state machine wants. Commands of one batch of events go out together."""
        starts: list[StartTrial] = []
        stops: list[Flight] = []
        for command in commands:
            match command:
                case StartTrial():
                    starts.append(command)
                case StopTrial():
                    flight = self._flights.get((command.trial_id, command.attempt))
                    if flight is not None:
                        stops.append(flight)
                case _:
                    pass
        if starts:
            self._submit(starts)
        if stops:
            self._stop(stops)

    def _submit(self, starts: list[StartTrial]) -> None:
        settings = self._settings
        tasks = [
            pickle.dumps(
                TrialTask(settings.experiment, start.trial_id, start.attempt, start.config)
            )
            for start in starts
        ]
        workers = self._workers.accepted
        futures = self._client.map(
            pickle.loads,
            tasks,
            key=[f"{settings.experiment}-{start.trial_id}-{start.attempt}" for start in starts],
            pure=False,
            retries=0,
            resources=dict(settings.resources) or None,
            workers=list(workers),
        )
        for start, future in zip(starts, futures, strict=True):
            flight = Flight(start.trial_id, start.attempt, future, workers)
            self._flights[start.trial_id, start.attempt] = self._by_key[future.key] = flight
        self._completed.update(futures)
        self._client.loop.add_callback(self._something_to_await.set)

    def _stop(self, flights: list[Flight]) -> None:
        for flight in flights:
            flight.stopping = True
            if flight.run:
                self._send_stop(flight.worker, flight.trial_id, flight.attempt)
        waiting = [flight.future for flight in flights if not flight.run]
        if waiting:
            self._client.loop.add_callback(self._client.cancel, waiting)

    def _send_stop(self, worker: str, trial_id: int, attempt: int) -> None:
        """Tell a worker to stop an attempt, without waiting for its answer."""
        self._stops[worker].append((trial_id, attempt))
        self._client.loop.add_callback(self._send_stops_to, worker)

    async def _send_stops_to(self, worker: str) -> None:
        waiting = self._stops[worker]
        attempts = [waiting.popleft() for _ in range(len(waiting))]
        if not attempts:
            return  # an earlier call took them along
        try:
            await self._client.run(
                stop_trials, self._settings.experiment, attempts, workers=[worker]
            )
        except Exception as error:  # noqa: BLE001 - a worker that is gone has nothing to stop
            logger.debug("stop of %s on %s not delivered: %s", attempts, worker, error)
