"""The Dask backend: commands become futures, and what the cluster says becomes events.

``as_completed`` is the engine. It is iterated on the client's event loop and puts what completed
into one queue; reports and changes of the workers go into the same queue, in the order in which the
client heard them. The driver's thread takes the queue's contents as events.

An end travels twice: as a message, ahead of the future, and as the future's result. The future says
*when* the slot is free; the result is fetched only where the message was lost, or where the trial
wrote something (which is too long for a message).

A trial runs on when its driver dies. A driver that comes later (or the same one, after its
connection broke) asks the workers what they remember, hears what it missed, and submits the same
keys again, each to the worker that knows the attempt: the task there joins what runs (see
``memory.py``). Without a driver Dask would take a worker for idle, and
perhaps let it go; so a task that lasts is left to the Dask scheduler to finish (`fire_and_forget`).
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import pickle
import queue
import secrets
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from distributed import Client, Future, as_completed, fire_and_forget

from dask_hpo.cluster.ask import ask
from dask_hpo.cluster.flight import (
    Batch,
    Broken,
    Completed,
    Flight,
    WorkersChanged,
    ended,
    lost,
    reported,
)
from dask_hpo.cluster.memory import Recalled
from dask_hpo.cluster.messages import Message
from dask_hpo.cluster.recall import Recollection, has_ended, recollect
from dask_hpo.cluster.stops import Stops
from dask_hpo.cluster.worker import End, Settings, TrialTask, recall_end, worker_of
from dask_hpo.cluster.workers import POLL_S, WorkerWatch
from dask_hpo.core.events import (
    Command,
    Event,
    Failure,
    Outcome,
    SetAside,
    SlotsChanged,
    StartTrial,
    StopRequested,
    StopTrial,
    Tick,
    TrialEnded,
    TrialFound,
    TrialStarted,
)
from dask_hpo.errors import SchedulerLostError

logger = logging.getLogger("dask_hpo")

#: A task that lasts longer is the Dask scheduler's to finish, whether or not its driver lives.
LASTING_S = 2.0


Item = Batch | Completed | WorkersChanged | Broken | Event
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
    patience_s
        A Dask scheduler that does not answer for so many seconds is given up.
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
        patience_s: float,
        on_output: OnOutput,
    ) -> None:
        self._client = client
        self._settings = settings
        self._clock = clock
        self._on_output = on_output
        self._queue: queue.SimpleQueue[Item] = queue.SimpleQueue()
        self._missed: list[Event] = []  #: what happened before this driver came
        self._waiting: list[StartTrial] = []  #: for a worker to come
        self._young: deque[tuple[float, Flight]] = deque()  #: with the time of their submission
        self._recollection = Recollection()
        self._taken_up: set[str] = set()  #: the runs of an earlier driver that are ours now
        self._keys = settings.key  #: what those of our tasks begin with
        self._broken = ""
        self._flights: dict[tuple[int, int], Flight] = {}  #: by trial number and attempt
        self._stops = Stops(client, settings.plugin)
        self._by_key: dict[str, Flight] = {}
        self._warned: set[str] = set()  #: each warning of a worker is shown once
        self._completed = as_completed(loop=client.loop)
        self._something_to_await = asyncio.Event()
        self._pump: asyncio.Future[None] | None = None
        self._workers = WorkerWatch(
            client,
            settings,
            max_slots,
            patience_s=patience_s,
            on_change=self._workers_changed,
            on_break=self._connection_broke,
        )

    # Life

    def start(self) -> None:
        """Make the workers ready and begin to listen.

        Raises
        ------
        ClusterError
            If a worker cannot run the trials: another version, a package that it lacks.
        """
        self._listen()
        self._workers.start()

    def attach(self, commands: Sequence[Command], known: int) -> None:
        """Do what `start` does, and go on with trials that an earlier driver started.

        Parameters
        ----------
        commands
            What takes up the active trials: `StartTrial`, and `StopTrial` for those being stopped.
        known
            The number of trials that the state machine knows. What the cluster knows beyond them
            comes as `TrialFound`.

        Raises
        ------
        ClusterError
            As `start`.
        """
        self._listen()  # first: what is heard twice is told apart, what is not heard is lost
        self._workers.start()
        # An earlier driver's task may be stuck under an attempt's usual key, where nobody runs it.
        self._keys = f"{self._settings.key}-{secrets.token_hex(2)}"
        self._recollection = recollect(self._client, self._settings, self._workers.answering)
        for found in self._recollection.beyond(known):
            self._find(found)
        self.execute(commands)
        current = {c.trial_id: c.attempt for c in commands if isinstance(c, StartTrial)}
        for stray in self._recollection.strays(self._taken_up, current):
            self._stops.send(worker_of(stray.run), stray.trial_id, stray.attempt)

    def close(self) -> None:
        """Let go of everything: tasks, the workers' plugin, and with it whatever still runs."""
        try:
            if self.is_connected and self._flights:
                futures = [flight.future for flight in self._flights.values()]
                self._client.cancel(futures, force=True)
            self._workers.close()
            self._stop_listening()
        except (OSError, asyncio.TimeoutError) as error:
            # The Dask scheduler went away in between. What it left on the workers ends with them.
            logger.debug("the cluster could not be told of the end: %s", error)

    def leave(self) -> None:
        """Let go, and let what runs run on."""
        if self.is_connected:
            fire_and_forget([flight.future for flight in self._flights.values() if flight.run])
        self._workers.leave()
        self._stop_listening()

    @property
    def is_connected(self) -> bool:
        """Whether the connection to the Dask scheduler holds."""
        return not self._broken and self._client.status == "running"

    def _listen(self) -> None:
        self._client.subscribe_topic(self._settings.topic, self._hear)
        self._client.loop.add_callback(self._start_pump)

    def _stop_listening(self) -> None:
        if self._client.status in {"running", "connecting"}:
            self._client.sync(self._stop_pump)
        if self.is_connected:
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
        """Return what happened, in order; after ``timeout_s`` seconds of silence a `Tick`.

        Raises
        ------
        SchedulerLostError
            If the connection to the Dask scheduler is broken, and all that was heard is returned.
        """
        events, self._missed = self._missed, []
        if events:
            return events
        if self._broken:
            raise SchedulerLostError(self._broken)
        self._look_after_those_that_last()
        try:
            events += self._events_of(self._queue.get(timeout=timeout_s))
            while True:
                events += self._events_of(self._queue.get_nowait())
        except queue.Empty:
            return events or [Tick(self._clock())]

    def _look_after_those_that_last(self) -> None:
        """Tell the Dask scheduler to finish what has run for a while, even without a driver."""
        before = self._clock() - LASTING_S
        while self._young and self._young[0][0] < before:
            _, flight = self._young.popleft()
            if self._flights.get((flight.trial_id, flight.attempt)) is not flight:
                continue
            if flight.run:
                flight.lasting = True
                fire_and_forget(flight.future)
            else:  # what waits for a worker needs its driver
                self._young.append((self._clock(), flight))

    def request_stop(self) -> None:
        """Put a `StopRequested` among the events; safe in a signal handler and in any thread."""
        self._queue.put(StopRequested(self._clock()))

    def _hear(self, event: tuple[float, dict[str, Any]]) -> None:
        """Take a batch of messages, on the client's event loop: it must cost nothing here."""
        self._queue.put(Batch(self._clock(), event[1]))

    def _workers_changed(self, slots: int) -> None:
        self._queue.put(WorkersChanged(self._clock(), slots, self._workers.present))

    def _connection_broke(self, reason: str) -> None:
        self._queue.put(Broken(reason))

    def _events_of(self, item: Item) -> list[Event]:
        if self._broken:
            return []  # the rest is noise: every future is cancelled, every worker unseen
        if isinstance(item, Broken):
            self._broken = item.reason
            return []
        if isinstance(item, Batch):
            return self._events_of_batch(item)
        if isinstance(item, Completed):
            return self._events_of_completed(item)
        if isinstance(item, WorkersChanged):
            return self._events_of_change(item)
        return [item]

    def _events_of_change(self, change: WorkersChanged) -> list[Event]:
        gone: list[Event] = [
            self._lose(flight, change.now)
            for flight in list(self._flights.values())
            if self._is_gone(flight, change)
        ]
        return [*gone, SlotsChanged(change.now, change.slots)]

    def _events_of_batch(self, batch: Batch) -> list[Event]:
        events: list[Event] = []
        for message in batch.content["messages"]:
            now = batch.heard - (batch.content["sent"] - message["at"])
            flight = self._flights.get((message["trial_id"], message["attempt"]))
            if flight is not None:
                events += self._events_of_message(flight, message, now)
            elif message["kind"] != "ended":  # of an attempt that was given up
                self._stops.send(worker_of(message["run"]), message["trial_id"], message["attempt"])
        return events

    def _events_of_message(self, flight: Flight, message: Message, now: float) -> list[Event]:
        now = flight.now = max(now, flight.now)
        match message["kind"]:
            case "started" if not flight.run:
                return [self._begin(flight, message["run"], now)]
            case _ if not flight.run:  # its start was lost on the way
                begin = self._begin(flight, message["run"], now)
                return [begin, *self._events_of_message(flight, message, now)]
            case _ if message["run"] != flight.run:
                # The attempt's worker is gone, and Dask runs the task again. Attempts are ours.
                self._stops.send(worker_of(message["run"]), flight.trial_id, flight.attempt)
                return [self._lose(flight, now)]
            case "reported" if message["elapsed"] > flight.elapsed:
                flight.elapsed = message["elapsed"]
                return [reported(message, now)]
            case "ended":
                flight.end = message
        return []

    @staticmethod
    def _is_gone(flight: Flight, change: WorkersChanged) -> bool:
        """Tell whether the worker that runs an attempt left, or all that might have run it did."""
        if flight.worker:
            return flight.worker not in change.present
        return flight.allowed.isdisjoint(change.present)

    def _begin(self, flight: Flight, run: str, now: float) -> TrialStarted:
        flight.run, flight.worker = run, worker_of(run)
        if flight.stopping:
            self._stops.send(flight.worker, flight.trial_id, flight.attempt)
        return TrialStarted(now, flight.trial_id, flight.attempt, flight.worker, run)

    def _lose(self, flight: Flight, now: float) -> TrialEnded:
        """Give up an attempt whose worker is gone, and the task with it; if it ended, it ended."""
        self._drop(flight)
        self._cancel([flight.future])
        if flight.end is not None:
            return ended(flight.end, now)
        return lost(flight.trial_id, flight.attempt, now, flight.worker)

    def _cancel(self, futures: list[Future]) -> None:
        """Take back tasks, which the Dask scheduler would else finish without us."""
        self._client.loop.add_callback(partial(self._client.cancel, futures, force=True))

    def _drop(self, flight: Flight) -> None:
        del self._by_key[flight.future.key], self._flights[flight.trial_id, flight.attempt]

    def _events_of_completed(self, completed: Completed) -> list[Event]:
        flight = self._by_key.get(completed.future.key)
        if flight is None:
            return []
        if completed.future.cancelled() and not flight.taken_back:
            self._broken = "the connection to it broke"  # nobody else cancels all our futures
            return []
        end = flight.end if completed.end is None else completed.end.message
        fetched = completed.end is not None or completed.error or flight.taken_back
        if not fetched and (end is None or end["has_output"] or not completed.future.done()):
            self._client.loop.add_callback(self._fetch, completed.future)
            return []
        self._drop(flight)
        if flight.lasting:
            self._cancel([flight.future])  # or Dask would keep its result for nobody
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
        return [*events, ended(end, now)]

    def _warn(self, warning: str) -> None:
        if warning and warning not in self._warned:
            self._warned.add(warning)
            logger.warning("%s", warning)

    async def _fetch(self, future: Future) -> None:
        """Get the result of a future, on the client's event loop."""
        result = await self._gathered(future)
        if result.error:
            # Soon it is known whether the connection broke, or the worker is gone. Then others say
            # what becomes of the attempt, and what it wrote is not given up for lost.
            await asyncio.sleep(2 * POLL_S)
            result = await self._gathered(future)
        self._queue.put(result)

    async def _gathered(self, future: Future) -> Completed:
        try:
            return Completed(future, await self._client.gather(future, asynchronous=True))
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - whatever Dask raises
            return Completed(future, error=f"{type(error).__name__}: {error}")

    def _end_without_result(self, flight: Flight, error: str, now: float) -> TrialEnded:
        outcome = Outcome.STOPPED if flight.taken_back else Outcome.LOST
        return TrialEnded(now, flight.trial_id, flight.attempt, outcome, failure=Failure(error))

    # Commands

    def execute(self, commands: Sequence[Command]) -> None:
        """Do what the state machine wants. Commands of one batch of events go out together."""
        starts: list[StartTrial] = []
        stops: list[StopTrial] = []
        for command in commands:
            match command:
                case StartTrial():
                    if not self._is_taken_up(command):
                        starts.append(command)
                case StopTrial():
                    stops.append(command)
                case SetAside():
                    self._workers.set_aside(command)
                case _:
                    pass
        self._waiting += starts
        if self._waiting:
            self._submit_waiting()
        if stops:
            self._stop(stops)

    def _is_taken_up(self, start: StartTrial) -> bool:
        """Go on with an attempt where it runs; False if it is to be submitted as a new one."""
        recalled = self._recollection.of(start.trial_id, start.attempt, start.run)
        if recalled is not None:
            self._adopt(start, recalled)
        elif start.run:  # it was seen running, and nobody knows of it any more
            worker = worker_of(start.run)
            self._missed.append(lost(start.trial_id, start.attempt, self._clock(), worker))
        return recalled is not None or bool(start.run)

    def _find(self, recalled: Recalled) -> None:
        """Take up an attempt of which the log does not know."""
        if recalled.config is not None:  # else it is lost, and runs anew under its number
            trial_id, attempt = recalled.trial_id, recalled.attempt
            self._missed.append(TrialFound(self._clock(), trial_id, recalled.config, attempt))
            self._adopt(StartTrial(trial_id, attempt, recalled.config), recalled)

    def _adopt(self, start: StartTrial, recalled: Recalled) -> None:
        """Hear what was missed of an attempt, and await its end or take that of a dead worker."""
        self._taken_up.add(recalled.run)
        if recalled.config is not None and recalled.config != start.config:
            # The searcher would suggest another one today.
            config, now = recalled.config, self._clock()
            self._missed.append(TrialFound(now, start.trial_id, config, start.attempt))
            start = dataclasses.replace(start, config=config)
        is_there = recalled.remembered and worker_of(recalled.run) in self._workers.present
        if is_there and not has_ended(recalled):
            self._join(start, recalled)
        else:
            self._take_end(start, recalled)
        if is_there and has_ended(recalled):
            self._client.loop.add_callback(self._fetch_output, recalled)

    def _join(self, start: StartTrial, recalled: Recalled) -> None:
        """Submit the task again to the worker that executes it."""
        worker = worker_of(recalled.run)
        flight = self._submit([start], frozenset([worker]), [recalled.key])[0]
        self._hear_what_was_missed(flight, start, recalled)

    def _take_end(self, start: StartTrial, recalled: Recalled) -> None:
        """Take the end of an attempt as it was kept; without one it is lost."""
        if not has_ended(recalled):
            worker = worker_of(recalled.run)
            self._missed.append(lost(start.trial_id, start.attempt, self._clock(), worker))
            return
        flight = Flight(start.trial_id, start.attempt, None, frozenset())
        self._hear_what_was_missed(flight, start, recalled)
        self._missed.append(ended(recalled.messages[-1], flight.now))

    async def _fetch_output(self, recalled: Recalled) -> None:
        """Get what a trial wrote that ended while no driver was there."""
        trial_id, attempt, worker = recalled.trial_id, recalled.attempt, worker_of(recalled.run)
        plugin = self._settings.plugin
        answers = await ask(self._client, [worker], recall_end, plugin, trial_id, attempt)
        end = answers.get(worker)
        if isinstance(end, End):
            self._on_output(trial_id, attempt, end.stdout, end.stderr)

    def _hear_what_was_missed(self, flight: Flight, start: StartTrial, recalled: Recalled) -> None:
        if start.run:
            flight.run, flight.elapsed = start.run, start.elapsed
            flight.worker = worker_of(start.run)
        now = self._clock()
        for message in recalled.messages:  # all of them are of this very run
            self._missed += self._events_of_message(flight, message, now)

    def _submit_waiting(self) -> None:
        """Submit what waits, as far as there are slots: Dask assigns all that it is given at once.

        A second worker that joins a moment later would find nothing left to do.
        """
        workers, slots = self._workers.accepted, self._workers.slots
        free = slots - len(self._flights)
        if free < len(self._waiting):  # some may run on workers that get no more
            free = slots - sum(not f.worker or f.worker in workers for f in self._flights.values())
        free = max(0, free) if workers else 0
        starts, self._waiting = self._waiting[:free], self._waiting[free:]
        if starts:
            self._submit(starts, workers, [self._key(start) for start in starts])

    def _key(self, start: StartTrial) -> str:
        return f"{self._keys}-{start.trial_id}-{start.attempt}"

    def _submit(
        self, starts: list[StartTrial], workers: frozenset[str], keys: list[str]
    ) -> list[Flight]:
        settings = self._settings
        tasks = [
            pickle.dumps(TrialTask(settings.plugin, start.trial_id, start.attempt, start.config))
            for start in starts
        ]
        futures = self._client.map(
            pickle.loads,
            tasks,
            key=keys,
            pure=False,
            retries=0,
            resources=dict(settings.resources) or None,
            workers=list(workers),
        )
        flights = [
            Flight(start.trial_id, start.attempt, future, workers)
            for start, future in zip(starts, futures, strict=True)
        ]
        for flight in flights:
            self._flights[flight.trial_id, flight.attempt] = flight
            self._by_key[flight.future.key] = flight
        now = self._clock()
        self._young.extend((now, flight) for flight in flights)
        self._completed.update(futures)
        self._client.loop.add_callback(self._something_to_await.set)
        return flights

    def _stop(self, stops: list[StopTrial]) -> None:
        cancelled: list[Future] = []
        for stop in stops:
            flight = self._flights.get((stop.trial_id, stop.attempt))
            if flight is None:
                self._stop_waiting(stop)
                continue
            flight.stopping = True
            if flight.run:
                self._stops.send(flight.worker, flight.trial_id, flight.attempt)
            else:
                flight.taken_back = True
                cancelled.append(flight.future)
        if cancelled:
            self._cancel(cancelled)

    def _stop_waiting(self, stop: StopTrial) -> None:
        """End an attempt that waits for a worker to come; one that has ended is not there."""
        for start in self._waiting:
            if (start.trial_id, start.attempt) == (stop.trial_id, stop.attempt):
                self._waiting.remove(start)
                now = self._clock()
                self._missed.append(TrialEnded(now, stop.trial_id, stop.attempt, Outcome.STOPPED))
                return
