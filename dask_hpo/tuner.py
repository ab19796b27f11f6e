"""Tuner: the public face, and the one place where everything is wired."""

from __future__ import annotations

import dataclasses
import logging
import os
import platform
import secrets
import shlex
from collections.abc import Mapping
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dask_hpo import __version__
from dask_hpo.checkpoints.keeper import Keeper
from dask_hpo.checkpoints.options import Checkpoints, as_checkpoints
from dask_hpo.cluster.backend import DaskBackend
from dask_hpo.cluster.connect import connected, default_resources
from dask_hpo.cluster.limits import parse_limits
from dask_hpo.cluster.process import default_isolation
from dask_hpo.cluster.worker import Settings
from dask_hpo.core.events import StopReason
from dask_hpo.core.stopping import StoppingCriterion
from dask_hpo.core.tuning import Best, OnStop, Tuning
from dask_hpo.driver import Clock, Driver
from dask_hpo.errors import OptionError, SchedulerLostError, TooManyFailuresError
from dask_hpo.experiment import Experiment, load_experiment
from dask_hpo.log.definition import Definition
from dask_hpo.log.directory import (
    check_available,
    create_experiment,
    experiment_path,
    read_definition,
    read_end,
    remove_experiment,
)
from dask_hpo.log.reader import read_clock
from dask_hpo.log.writer import LogWriter
from dask_hpo.objective import as_objective, check_signature
from dask_hpo.past import Past, read_past
from dask_hpo.progress import Meter, make_progress
from dask_hpo.searchers import as_searcher
from dask_hpo.stored_objective import describe_payload, store

if TYPE_CHECKING:
    from dask_hpo.schedulers import FIFOScheduler

logger = logging.getLogger("dask_hpo")

ISOLATIONS = ("process", "spawn", "thread")
#: Arguments of a tuner that a resume takes from the definition.
RESUMED_OPTIONS = (
    "n_workers",
    "resources",
    "isolation",
    "on_stop",
    "grace_period_s",
    "trial_timeout",
    "report_timeout",
    "memory_limit",
    "cpus_per_trial",
    "max_lost_attempts",
    "reconnect_timeout",
)


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
    trial_timeout, report_timeout
        A trial fails that runs longer than so many seconds, or that reports nothing for so long;
        its failure shows where it hung. None: it may.
    memory_limit
        A trial fails whose processes together use more: bytes, or a text such as ``"4 GB"``. What
        is shared with other trials, the imports of a warm start, counts in proportion.
    max_lost_attempts
        A trial whose worker died is run again so many times before it fails.
    cpus_per_trial
        CPU threads (OMP, torch) of a trial; None: the machine's CPUs divided by its slots.
    reconnect_timeout
        Seconds to wait for a Dask scheduler that went away; then the run ends with a
        `SchedulerLostError` that says how to resume.
    name
        Name of the experiment and of its directory; None: the objective's name and the time.
    path
        The directory that experiments live in; None: Dask's configuration ``hpo.path``, by default
        ``~/dask-hpo``.
    checkpoints
        Where `checkpoint_dir()` of a trial is: a path that the workers share, an fsspec URL, or a
        `Checkpoints`, which also says how many stay; None: in the experiment's directory.
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
        trial_timeout: float | None = None,
        report_timeout: float | None = None,
        memory_limit: int | str | None = None,
        max_lost_attempts: int = 3,
        cpus_per_trial: int | None = None,
        reconnect_timeout: float = 300.0,
        name: str | None = None,
        path: str | Path | None = None,
        checkpoints: Checkpoints | str | os.PathLike[str] | None = None,
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
        self.trial_timeout = trial_timeout
        self.report_timeout = report_timeout
        self.memory_limit = memory_limit
        self.limits = parse_limits(trial_timeout, report_timeout, memory_limit, self.isolation)
        self.cpus_per_trial = _positive("cpus_per_trial", cpus_per_trial)
        self.max_lost_attempts = _check_lost_attempts(max_lost_attempts)
        self.reconnect_timeout = reconnect_timeout
        self.checkpoints = as_checkpoints(checkpoints)
        self.name = name or _name_for(self.objective.name)
        self.seed = secrets.randbits(31) if scheduler.random_seed is None else scheduler.random_seed
        self.dashboard_link: str | None = None
        self._uid = secrets.token_hex(3)
        self._past: Past | None = None
        self._driver: Driver | None = None
        self._stop_requested = False
        self._root = None if path is None else Path(path).absolute()
        self._progress = progress
        self._searcher = as_searcher(
            scheduler.searcher, scheduler.space, self.seed, scheduler.points_to_evaluate
        )
        check_signature(self.objective, list(scheduler.space))
        self.tuning = Tuning(
            self._searcher,
            scheduler,
            self.stop_criterion,
            scheduler.metric,
            on_stop=on_stop,
            max_lost_attempts=self.max_lost_attempts,
        )

    @property
    def best(self) -> Best | None:
        """The incumbent: trial number, value and configuration; None before the first value."""
        return self.tuning.best

    @classmethod
    def resume(
        cls,
        name_or_path: str | Path,
        *,
        client: Any = None,
        path: str | Path | None = None,
        stop_criterion: StoppingCriterion | None = None,
        objective: Any = None,
        searcher: Any = None,
        progress: bool | str = "auto",
    ) -> Tuner:
        """Return a tuner that goes on with an experiment from its log; call its `run`.

        Trials keep their numbers and configurations, time counts on, searcher and scheduler come to
        the state that they had. What still runs on the cluster is attached to, what ended meanwhile
        is heard, and what is gone runs again as its next attempt.

        Parameters
        ----------
        name_or_path, path
            As for `load_experiment`.
        client, progress
            As for a new tuner.
        stop_criterion
            Another one from now on; None: the one that the experiment has.
        objective
            What the experiment runs from now on; None: what its directory keeps. Trials that run
            the other one end, and run again as their next attempt.
        searcher
            The searcher, where it was given as an object; it must be the same each time.

        Raises
        ------
        ExperimentNotFoundError
            If there is none.
        LogError
            If a driver that lives writes the experiment, or it cannot be read.
        ObjectiveError, OptionError
            If the objective, or the searcher, must be given.
        """
        past = read_past(name_or_path, path)
        new = None if objective is None else as_objective(objective)
        tuner = cls(
            past.objective() if new is None else new,
            past.scheduler(searcher),
            stop_criterion or past.stop_criterion(),
            client=client,
            name=past.definition.name,
            path=past.path.parent,
            progress=progress,
            **past.definition.options,
        )
        tuner._uid = past.definition.uid
        tuner._past = past.changed(stop_criterion, new)
        return tuner

    def run(self) -> Experiment:
        """Run the experiment to its end and return it.

        Ctrl-C stops it cleanly, with everything kept; a second Ctrl-C does not wait for the trials.

        Raises
        ------
        ClusterError
            If the cluster cannot run the trials; a `SchedulerLostError` if it went away.
        LogError
            If the experiment's directory cannot be made (the name is taken, no permission) or what
            was heard cannot be written.
        TooManyFailuresError
            If so many trials failed that the experiment gave up; with the first traceback.
        """
        if self.tuning.finished or self.tuning.trials:
            raise OptionError(
                f"the tuner of {self.name!r} has run already: one tuner is one experiment; "
                "make a new Tuner for another, or go on with this one by Tuner.resume"
            )
        if self._past is None:
            check_available(self.name, self._root)
        elif self._past.is_over():
            logger.warning(
                "%s has finished: there is nothing to go on with; give a larger limit", self.name
            )
            return load_experiment(self.path)
        with connected(
            self.client,
            n_workers=self.n_workers,
            isolation=self.isolation,
            resources=self.resources,
        ) as client:
            self.dashboard_link = client.dashboard_link
            self.resources = default_resources(client) if self.resources is None else self.resources
            self._run(client)
        if self.tuning.stop_reason is StopReason.FAILURE_RATE:
            raise TooManyFailuresError(self._why_it_gave_up())
        return load_experiment(self.path)

    def stop(self) -> None:
        """End the run soon, as Ctrl-C does; from any thread, also before it begins."""
        self._stop_requested = True
        if self._driver is not None:
            self._driver.stop()

    def detach(self) -> None:
        """End the run and let its trials run on, for `resume` to go on with; from another thread.

        Raises
        ------
        OptionError
            If the tuner has no cluster but the one that ends with it, or does not run.
        """
        if self.client is None:
            raise OptionError(
                "detach(): the cluster of this tuner ends with it, and the trials too; give "
                "client= a cluster of its own, such as the address of a `dask scheduler`"
            )
        if self._driver is None:
            raise OptionError(f"detach(): the tuner of {self.name!r} does not run; run it first")
        self._driver.detach()

    @property
    def interrupted(self) -> bool:
        """Whether a person ended the run."""
        return self.tuning.stop_reason is StopReason.INTERRUPTED

    @property
    def path(self) -> Path:
        """The experiment's directory."""
        return experiment_path(self.name, self._root) if self._past is None else self._past.path

    def _run(self, client: Any) -> None:
        log, clock = self._open_log()
        keeper = Keeper(self.checkpoints, self.path, self.scheduler.metric, self._uid)
        settings = self._settings(keeper)
        progress = make_progress(self._progress)
        driver = Driver(
            self.tuning,
            log,
            lambda client, clock: DaskBackend(
                client,
                settings,
                clock=clock,
                max_slots=self.n_workers,
                patience_s=self.reconnect_timeout,
                on_output=log.save_output,
            ),
            clock=clock,
            progress=progress,
            meter=Meter(self.name, self.scheduler.metric, self.tuning),
            heed=lambda commands: keeper.heed(commands, self.tuning.active),
            resumed=self._past is not None,
            reconnect_timeout_s=self.reconnect_timeout,
            how_to_resume=self._how_to_resume,
        )
        self._driver = driver
        if self._stop_requested:
            driver.stop()
        try:
            keeper.open(self.tuning.trials if self._past else None)
            try:
                driver.run(client)
            finally:
                keeper.close()
        except BaseException as error:
            new = not self.tuning.trials and self._past is None
            if new and not isinstance(error, SchedulerLostError):
                log.close()
                remove_experiment(self.path)  # nothing half-made is left behind
            else:
                self._finish(log, "interrupted", _reason_of(error), clock())
            raise
        if driver.detached and not self.tuning.finished:
            self._finish(log, "detached", "detached", clock())
            return
        reason = self.tuning.stop_reason
        assert reason is not None
        self._finish(log, _status_of(reason), reason.value, clock())

    def _open_log(self) -> tuple[LogWriter, Clock]:
        """Begin a log, or go on with the one of the past, which is replayed."""
        if self._past is None:
            return self._new_log(), Clock()
        path, end = self._past.path, read_end(self._past.path)
        log = LogWriter(path, read_definition(path), resume=True)
        try:
            clock = Clock(read_clock(path))
            self._past.write()
            self._past.replay(self.tuning)
        except BaseException:
            if end is not None:
                log.finish(**end)  # it ended as it did: nothing came of this
            log.close()
            raise
        return log, clock

    def _new_log(self) -> LogWriter:
        definition = self._definition()
        path = create_experiment(definition, self._root, partial(store, self.objective))
        try:
            return LogWriter(path, definition)
        except BaseException:
            remove_experiment(path)
            raise

    def _how_to_resume(self, address: str) -> str:
        if self.path.name != self.name:  # the directory was renamed
            return f"dask hpo resume {shlex.quote(str(self.path))} --address {address}"
        root = "" if self._root is None else f" --path {shlex.quote(str(self._root))}"
        return f"dask hpo resume {self.name} --address {address}{root}"

    @staticmethod
    def _finish(log: LogWriter, status: str, reason: str, wallclock_time: float) -> None:
        try:
            log.finish(status, reason, wallclock_time)
        finally:
            log.close()

    def _settings(self, keeper: Keeper) -> Settings:
        return Settings(
            experiment=self.name,
            uid=self._uid,
            payload=self.objective.payload(),
            metric=self.scheduler.metric.name,
            isolation=self.isolation,
            grace_period_s=self.grace_period_s,
            resources=dict(self.resources or {}),
            cpus_per_trial=self.cpus_per_trial,
            slots_by_host={},
            limits=self.limits,
            checkpoints=keeper.store,
        )

    def _definition(self) -> Definition:
        space = self.scheduler.space
        return Definition(
            name=self.name,
            uid=self._uid,
            metric=self.scheduler.metric.name,
            mode=self.scheduler.metric.mode,
            space=space.definitions(),
            config_types={name: kind.__name__ for name, kind in space.column_types().items()},
            started=datetime.now(timezone.utc),
            seed=self.seed,
            searcher=repr(self.scheduler.searcher),
            scheduler=type(self.scheduler).__name__,
            scheduler_options=self.scheduler.options,
            objective=self.objective.describe(),
            payload=describe_payload(self.objective),
            stop_criterion=dataclasses.asdict(self.stop_criterion),
            options={
                **{name: getattr(self, name) for name in RESUMED_OPTIONS},
                "checkpoints": self.checkpoints.to_json_dict(),
            },
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
            f"{self.name!r} gave up. Once that is put right, resume it with a larger rate: 1 never "
            f"gives up. The first was trial {trial_id}: {failure.error}\n{details}"
        ).rstrip()

    def __repr__(self) -> str:
        return f"<Tuner {self.name!r}: {self.objective.describe()}, {self.scheduler!r}>"


def _name_for(objective: str) -> str:
    now = datetime.now().astimezone()  # in the person's own time
    return f"{objective}-{now:%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


def _reason_of(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt):
        return StopReason.INTERRUPTED.value
    return "scheduler_lost" if isinstance(error, SchedulerLostError) else "error"


def _status_of(reason: StopReason) -> str:
    if reason is StopReason.FAILURE_RATE:
        return "failed"
    return "interrupted" if reason is StopReason.INTERRUPTED else "finished"


def _positive(name: str, value: int | None) -> int | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise OptionError(f"{name}={value!r}: a whole number from 1 up, or None; give one")
    return value


def _check_lost_attempts(value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise OptionError(
            f"max_lost_attempts={value!r}: a whole number from 0 up; give 0 to never run again "
            "what was lost"
        )
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
