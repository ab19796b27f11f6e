"""Tuner: the public face, and the one place where everything is wired."""

from __future__ import annotations

import contextlib
import dataclasses
import platform
import secrets
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timezone
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from dask_hpo import __version__
from dask_hpo.cluster.backend import DaskBackend
from dask_hpo.cluster.connect import connected, default_resources
from dask_hpo.cluster.process import default_isolation
from dask_hpo.cluster.worker import Settings
from dask_hpo.core.events import Command, Record, StopReason
from dask_hpo.core.stopping import StoppingCriterion
from dask_hpo.core.tuning import Best, OnStop, Tuning
from dask_hpo.errors import OptionError, TooManyFailuresError
from dask_hpo.experiment import Experiment, load_experiment
from dask_hpo.log.definition import Definition
from dask_hpo.log.directory import check_available, create_experiment, experiment_path
from dask_hpo.log.writer import LogWriter
from dask_hpo.objective import as_objective, check_signature
from dask_hpo.progress import Meter, make_progress
from dask_hpo.searchers import as_searcher

if TYPE_CHECKING:
    from dask_hpo.schedulers import FIFOScheduler

#: The loop wakes so often when nothing happens, for limits on time and for the display.
TICK_S = 0.1
ISOLATIONS = ("process", "spawn", "thread")


class Tuner:
    """Tune hyperparameters on a Dask cluster.

    Parameters
    ----------
    objective
        What a trial runs: a `ScriptObjective`, the path of a script, or a function that is called
        as ``objective(**configuration)``.
    scheduler
        Holds the search space, the searcher, the metric and its mode.
    stop_criterion
        When to end; None: when the space is exhausted or a person stops it.
    n_workers
        Run at most so many trials at once. Without a client it also sizes the local cluster.
    client
        A `distributed.Client`, an address, a Dask cluster, or None for a cluster on this machine.
    resources
        Dask resources that each trial takes, such as ``{"GPU": 1}`` (the default where workers
        offer GPUs), ``{"GPU": 2}``, ``{"GPU": 0.5}``, or ``{}`` for a thread alone.
    isolation
        ``"process"``: a process of its own, forked warm (the default on Linux). ``"spawn"``:
        started cold. ``"thread"``: in the worker's thread, for functions only.
    on_stop
        When the stopping criterion is met, ``"stop"`` running trials or ``"wait"`` for them.
    grace_period_s
        Seconds between SIGTERM and SIGKILL for a trial that is stopped.
    cpus_per_trial
        CPU threads (OMP, torch) of a trial; None: the machine's CPUs divided by its slots.
    name
        Name of the experiment and of its directory; None: the objective's name and the time.
    path
        The directory that experiments live in; None: Dask's configuration ``hpo.path``, by default
        ``~/dask-hpo``.
    progress
        ``"auto"`` shows what suits the terminal or notebook, False nothing.

    Raises
    ------
    OptionError, SpaceError, ObjectiveError
        If an argument breaks a rule. Errors of the cluster and of the log come from `run`.
    """

    def __init__(
        self,
        objective: Any,
        scheduler: FIFOScheduler,
        stop_criterion: StoppingCriterion | None = None,
        *,
        n_workers: int | None = None,
        client: Any = None,
        resources: Mapping[str, float] | None = None,
        isolation: str | None = None,
        on_stop: OnStop = "stop",
        grace_period_s: float = 5.0,
        cpus_per_trial: int | None = None,
        name: str | None = None,
        path: str | Path | None = None,
        progress: bool | str = "auto",
    ) -> None:
        self.objective = as_objective(objective)
        self.scheduler = scheduler
        self.stop_criterion = stop_criterion or StoppingCriterion()
        self.n_workers = _positive("n_workers", n_workers)
        self.client = client
        self.resources = _check_resources(resources)
        self.isolation = _one_of("isolation", isolation or default_isolation(), ISOLATIONS)
        self.on_stop = _one_of("on_stop", on_stop, ("stop", "wait"))
        self.grace_period_s = grace_period_s
        self.cpus_per_trial = _positive("cpus_per_trial", cpus_per_trial)
        self.name = name or _name_for(self.objective.name)
        self.seed = secrets.randbits(31) if scheduler.random_seed is None else scheduler.random_seed
        self.dashboard_link: str | None = None
        self._backend: DaskBackend | None = None
        self._stop_requested = False
        self._root = None if path is None else Path(path)
        self._progress = progress
        self._searcher = as_searcher(
            scheduler.searcher, scheduler.space, self.seed, scheduler.points_to_evaluate
        )
        check_signature(self.objective, list(scheduler.space))
        self.tuning = Tuning(
            self._searcher, scheduler, self.stop_criterion, scheduler.metric, on_stop=on_stop
        )

    @property
    def best(self) -> Best | None:
        """The incumbent: trial number, value and configuration; None before the first value."""
        return self.tuning.best

    def run(self) -> Experiment:
        """Run the experiment to its end and return it.

        Ctrl-C stops it cleanly, with everything kept; a second Ctrl-C does not wait for the trials.

        Raises
        ------
        ClusterError
            If the cluster cannot run the trials.
        LogError
            If the experiment's directory cannot be made (the name is taken, no permission) or what
            was heard cannot be written.
        TooManyFailuresError
            If so many trials failed that the experiment gave up; with the first traceback.
        """
        if self.tuning.finished or self.tuning.trials:
            raise OptionError(
                f"the tuner of {self.name!r} has run already: one tuner is one experiment; "
                "make a new Tuner for another"
            )
        check_available(self.name, self._root)
        with connected(
            self.client,
            n_workers=self.n_workers,
            isolation=self.isolation,
            resources=self.resources,
        ) as client:
            self.dashboard_link = client.dashboard_link
            resources = default_resources(client) if self.resources is None else self.resources
            self._run(client, resources)
        if self.tuning.stop_reason is StopReason.FAILURE_RATE:
            raise TooManyFailuresError(self._why_it_gave_up())
        return load_experiment(self.path)

    def stop(self) -> None:
        """End the run soon, as Ctrl-C does; from any thread, also before it begins."""
        self._stop_requested = True
        if self._backend is not None:
            self._backend.request_stop()

    @property
    def interrupted(self) -> bool:
        """Whether a person ended the run."""
        return self.tuning.stop_reason is StopReason.INTERRUPTED

    @property
    def path(self) -> Path:
        """The experiment's directory."""
        return experiment_path(self.name, self._root)

    def _run(self, client: Any, resources: Mapping[str, float]) -> None:
        settings = self._settings(resources)
        log = self._open_log(resources)
        started = time.monotonic()

        def clock() -> float:
            return time.monotonic() - started

        backend = DaskBackend(
            client,
            settings,
            clock=clock,
            max_slots=self.n_workers,
            on_output=log.save_output,
        )
        try:
            try:
                backend.start()
                self._backend = backend
                if self._stop_requested:
                    backend.request_stop()
                self._loop(backend, log, clock)
            finally:
                backend.close()
        except BaseException:
            if not self.tuning.trials:
                log.close()
                shutil.rmtree(self.path, ignore_errors=True)  # nothing half-made is left behind
            else:
                self._finish(log, "interrupted", "error", clock())
            raise
        reason = self.tuning.stop_reason
        assert reason is not None
        self._finish(log, _status_of(reason), reason.value, clock())

    def _loop(self, backend: DaskBackend, log: LogWriter, clock: Callable[[], float]) -> None:
        """Events in, commands out, until the state machine says that it is finished."""
        meter = Meter(self.name, self.scheduler.metric, self.tuning)
        progress = make_progress(self._progress)
        shown = -progress.interval_s
        with _call_on_interrupt(self.stop):
            try:
                while not self.tuning.finished:
                    commands: list[Command] = []
                    for event in backend.wait(TICK_S):
                        commands += self.tuning.handle(event)
                    backend.execute(commands)
                    _write_records(log, commands)
                    if clock() - shown >= progress.interval_s:
                        shown = clock()
                        progress.update(meter.snapshot(shown))
            finally:
                progress.close(meter.snapshot(clock()))

    def _open_log(self, resources: Mapping[str, float]) -> LogWriter:
        definition = self._definition(resources)
        path = create_experiment(definition, self._root)
        try:
            return LogWriter(path, definition)
        except BaseException:
            shutil.rmtree(path, ignore_errors=True)
            raise

    @staticmethod
    def _finish(log: LogWriter, status: str, reason: str, wallclock_time: float) -> None:
        try:
            log.finish(status, reason, wallclock_time)
        finally:
            log.close()

    def _settings(self, resources: Mapping[str, float]) -> Settings:
        return Settings(
            experiment=self.name,
            payload=self.objective.payload(),
            metric=self.scheduler.metric.name,
            isolation=self.isolation,
            grace_period_s=self.grace_period_s,
            resources=dict(resources),
            cpus_per_trial=self.cpus_per_trial,
            slots_by_host={},
        )

    def _definition(self, resources: Mapping[str, float]) -> Definition:
        space = self.scheduler.space
        return Definition(
            name=self.name,
            metric=self.scheduler.metric.name,
            mode=self.scheduler.metric.mode,
            space=space.definitions(),
            config_types={name: kind.__name__ for name, kind in space.column_types().items()},
            started=datetime.now(timezone.utc),
            seed=self.seed,
            searcher=repr(self.scheduler.searcher),
            scheduler=repr(self.scheduler),
            objective=self.objective.describe(),
            stop_criterion=dataclasses.asdict(self.stop_criterion),
            n_workers=self.n_workers,
            resources=dict(resources),
            isolation=self.isolation,
            dask_hpo_version=__version__,
            versions={"python": platform.python_version()},
        )

    def _why_it_gave_up(self) -> str:
        assert self.tuning.first_failure is not None
        trial_id, failure = self.tuning.first_failure
        statistics = self.tuning.statistics
        details = failure.traceback or failure.output
        return (
            f"{statistics.failed} trials failed and {statistics.completed} completed: with "
            f"max_failure_rate={self.stop_criterion.max_failure_rate:g} the experiment "
            f"{self.name!r} gave up. The first was trial {trial_id}: {failure.error}\n{details}"
        ).rstrip()

    def __repr__(self) -> str:
        return f"<Tuner {self.name!r}: {self.objective.describe()}, {self.scheduler!r}>"


def _name_for(objective: str) -> str:
    now = datetime.now().astimezone()  # in the person's own time
    return f"{objective}-{now:%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


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


def _status_of(reason: StopReason) -> str:
    if reason is StopReason.FAILURE_RATE:
        return "failed"
    return "interrupted" if reason is StopReason.INTERRUPTED else "finished"


@contextlib.contextmanager
def _call_on_interrupt(stop: Callable[[], None]) -> Iterator[None]:
    """Turn the first Ctrl-C into a request to stop, and leave the second as it is."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may handle signals
        return

    def on_interrupt(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - signal's
        signal.signal(signal.SIGINT, previous)
        stop()

    previous = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


def _positive(name: str, value: int | None) -> int | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise OptionError(f"{name}={value!r}: a whole number from 1 up, or None; give one")
    return value


def _one_of(name: str, value: Any, allowed: tuple[str, ...]) -> Any:
    if value not in allowed:
        raise OptionError(f"{name}={value!r}: must be one of {', '.join(map(repr, allowed))}")
    return value


def _check_resources(resources: Mapping[str, float] | None) -> dict[str, float] | None:
    if resources is None:
        return None
    for name, amount in resources.items():
        if isinstance(amount, bool) or not isinstance(amount, (int, float)) or not amount > 0:
            raise OptionError(
                f"resources={dict(resources)!r}: the amount of {name!r} must be a positive number; "
                "give for example {'GPU': 1} or {'GPU': 0.5}"
            )
        if name == "GPU" and amount > 1 and amount != int(amount):
            raise OptionError(
                f"resources={dict(resources)!r}: above one GPU only whole GPUs can be shared out; "
                f"give {{'GPU': {int(amount)}}} or {{'GPU': {int(amount) + 1}}}"
            )
    return dict(resources)
