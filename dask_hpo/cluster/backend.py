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
    """A trial's task that is with Dask.

    ``submitted_as`` is the attempt the task was submitted as. When Dask runs the task again by
    itself, ``attempt`` moves on and the task stays the same.
    """

    trial_id: int
    attempt: int
    submitted_as: int
    future: Future
    run: str = ""
    worker: str = ""
    end: Message | None = None
    stopping: bool = False
    unclaimed: bool = False  #: runs again, but the state machine has not asked for that yet


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch of messages, with the driver's time when it was heard."""

    heard: float
    content: dict[str, Any]


@dataclass(frozen=True, slots=True)
class WorkersChanged:
    """So many slots there are now, and these workers are gone."""

    now: float
    slots: int
    gone: frozenset[str]


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
        self._flights: dict[int, Flight] = {}
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
        if self._pump is not None:
            self._client.loop.add_callback(self._pump.cancel)
        if self._client.status == "running":
            self._client.cancel([flight.future for flight in self._flights.values()])
            self._client.unsubscribe_topic(self._settings.topic)

    def _start_pump(self) -> None:
        self._pump = asyncio.ensure_future(self._pump_completed())

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
        self._queue.put(WorkersChanged(self._clock(), slots, gone))

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
            self._lose_run(flight, change.now)
            for flight in self._flights.values()
            if flight.worker in change.gone
        ]
        return [*lost, SlotsChanged(change.now, change.slots)]

    def _events_of_batch(self, batch: Batch) -> list[Event]:
        events: list[Event] = []
        for message in batch.content["messages"]:
            flight = self._flights.get(message["trial_id"])
            if flight is None:
                continue
            now = batch.heard - (batch.content["sent"] - message["at"])
            events += self._events_of_message(flight, message, now)
        return events

    def _events_of_message(self, flight: Flight, message: Message, now: float) -> list[Event]:
        events: list[Event] = []
        if message["run"] != flight.run:
            if message["kind"] != "started":
                return []  # late news of a run that is over
            events += self._begin_run(flight, message["run"], now)
        elif message["kind"] == "reported":
            events.append(
                Reported(
                    now,
                    flight.trial_id,
                    flight.attempt,
                    message["step"],
                    message["metrics"],
                    message["elapsed"],
                )
            )
        elif message["kind"] == "ended":
            flight.end = message
        return events

    def _begin_run(self, flight: Flight, run: str, now: float) -> list[Event]:
        """Note that the task runs; if it ran before, that worker is gone and this one is new."""
        events: list[Event] = [self._lose_run(flight, now)] if flight.run else []
        flight.run, flight.worker = run, worker_of(run)
        events.append(TrialStarted(now, flight.trial_id, flight.attempt, flight.worker))
        if flight.stopping:
            self._send_stop([flight])
        return events

    def _lose_run(self, flight: Flight, now: float) -> TrialEnded:
        """Note that a run is lost with its worker. Dask runs the task again: the next attempt."""
        why = Failure(f"WorkerLost: the worker {flight.worker} that ran this attempt is gone")
        lost = TrialEnded(now, flight.trial_id, flight.attempt, Outcome.LOST, failure=why)
        flight.attempt += 1
        flight.unclaimed = True
        flight.run, flight.worker, flight.end = "", "", None
        return lost

    def _events_of_completed(self, completed: Completed) -> list[Event]:
        flight = self._by_key.get(completed.future.key)
        if flight is None:
            return []
        end = flight.end if completed.end is None else completed.end.message
        fetched = completed.end is not None or completed.error
        if not fetched and (end is None or end["has_output"] or not completed.future.done()):
            self._client.loop.add_callback(self._fetch, completed.future)
            return []
        del self._by_key[completed.future.key], self._flights[flight.trial_id]
        now = self._clock()
        if end is None:
            return [self._end_without_result(flight, completed.error, now)]
        events: list[Event] = []
        if end["run"] != flight.run:  # its start was not heard: the messages were lost on the way
            events += self._begin_run(flight, end["run"], now - end["elapsed"])
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
                    if not self._claim(command):
                        starts.append(command)
                case StopTrial():
                    flight = self._flights.get(command.trial_id)
                    if flight is not None and flight.attempt == command.attempt:
                        stops.append(flight)
                case _:
                    pass
        self._abandon_unclaimed(stops)
        if starts:
            self._submit(starts)
        if stops:
            self._stop(stops)

    def _claim(self, command: StartTrial) -> bool:
        """Tell whether the attempt that is asked for is one that Dask has begun by itself."""
        flight = self._flights.get(command.trial_id)
        if flight is None or flight.attempt != command.attempt:
            return False
        flight.unclaimed = False
        return True

    def _abandon_unclaimed(self, stops: list[Flight]) -> None:
        """Stop what Dask runs again although the state machine wants no more of it."""
        for flight in self._flights.values():
            if flight.unclaimed:
                flight.unclaimed = False
                stops.append(flight)

    def _submit(self, starts: list[StartTrial]) -> None:
        settings = self._settings
        tasks = [
            pickle.dumps(
                TrialTask(settings.experiment, start.trial_id, start.attempt, start.config)
            )
            for start in starts
        ]
        futures = self._client.map(
            pickle.loads,
            tasks,
            key=[f"{settings.experiment}-{start.trial_id}-{start.attempt}" for start in starts],
            pure=False,
            retries=0,
            resources=dict(settings.resources) or None,
            workers=self._workers.restriction,
        )
        for start, future in zip(starts, futures, strict=True):
            flight = Flight(start.trial_id, start.attempt, start.attempt, future)
            self._flights[start.trial_id] = self._by_key[future.key] = flight
        self._completed.update(futures)
        self._client.loop.add_callback(self._something_to_await.set)

    def _stop(self, flights: list[Flight]) -> None:
        waiting = []
        for flight in flights:
            flight.stopping = True
            if not flight.run:
                waiting.append(flight.future)
        if waiting:
            self._client.loop.add_callback(self._client.cancel, waiting)
        self._send_stop([flight for flight in flights if flight.run])

    def _send_stop(self, flights: list[Flight]) -> None:
        """Tell workers to stop trials, without waiting for their answer."""
        by_worker: dict[str, list[tuple[int, int]]] = {}
        for flight in flights:
            by_worker.setdefault(flight.worker, []).append((flight.trial_id, flight.submitted_as))
        for worker, attempts in by_worker.items():
            self._client.loop.add_callback(self._send_stop_to, worker, attempts)

    async def _send_stop_to(self, worker: str, attempts: list[tuple[int, int]]) -> None:
        try:
            await self._client.run(
                stop_trials, self._settings.experiment, attempts, workers=[worker]
            )
        except Exception as error:  # noqa: BLE001 - a worker that is gone has nothing to stop
            logger.debug("stop of %s on %s not delivered: %s", attempts, worker, error)
