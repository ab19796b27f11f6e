"""What runs on a Dask worker: one trial, from its configuration to its end.

A worker plugin carries what all trials of an experiment share (the objective above all) to each
worker once, also to those that join later: a task holds a configuration and no more.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dask.system import CPU_COUNT
from distributed import Worker, get_worker
from distributed.diagnostics.plugin import WorkerPlugin

from dask_hpo import __version__
from dask_hpo.checkpoints.local import sweep
from dask_hpo.checkpoints.options import Place, Store, is_url
from dask_hpo.cluster import messages
from dask_hpo.cluster.attempt import Runner, TrialRequest, TrialResult
from dask_hpo.cluster.limits import Limits
from dask_hpo.cluster.memory import Course, Memory, Recalled
from dask_hpo.cluster.messages import Message, Outbox, Run
from dask_hpo.cluster.process import ProcessRunner
from dask_hpo.cluster.slots import DevicePool, slots_of, visible_devices
from dask_hpo.cluster.thread import ThreadRunner
from dask_hpo.core.events import Configuration
from dask_hpo.core.metric import Scalar
from dask_hpo.errors import ClusterError, VersionMismatchError
from dask_hpo.objective import Payload

GPU = "GPU"  #: the Dask resource whose amount becomes CUDA_VISIBLE_DEVICES


@dataclass(frozen=True, slots=True)
class Settings:
    """What all trials of an experiment share.

    ``uid`` tells experiments of one name apart. ``cpus_per_trial`` None: the machine's CPUs are
    divided by the slots on it. ``slots_by_host`` counts those, for hosts with several workers.
    """

    experiment: str
    uid: str
    payload: Payload
    metric: str
    isolation: str
    grace_period_s: float
    resources: Mapping[str, float]
    cpus_per_trial: int | None
    slots_by_host: Mapping[str, int]
    checkpoints: Store
    limits: Limits = Limits()  # noqa: RUF009 - frozen
    version: str = __version__

    @property
    def key(self) -> str:
        """What the keys of the experiment's tasks begin with."""
        return f"{self.experiment}-{self.uid}" if self.uid else self.experiment

    @property
    def plugin(self) -> str:
        """The name of the experiment's worker plugin."""
        return f"dask-hpo-{self.key}"

    @property
    def topic(self) -> str:
        """The Dask topic on which workers speak of this experiment's trials."""
        return f"dask-hpo-{self.key}"

    @property
    def ends_topic(self) -> str:
        """The Dask topic that keeps the ends of trials for a driver that is away."""
        return f"{self.topic}-ends"

    @property
    def fingerprint(self) -> str:
        """A digest of all that decides how a trial runs: equal ones run trials alike."""
        same = dataclasses.replace(self, slots_by_host={})
        return hashlib.sha256(repr(same).encode()).hexdigest()


def worker_of(run: str) -> str:
    """Return the address of the worker of a run."""
    return run.rsplit("/", 2)[0]


@dataclass(frozen=True, slots=True)
class End:
    """A task's result: the ``ended`` message, and what the trial wrote to stdout and stderr."""

    message: Message
    stdout: str
    stderr: str


class TrialHost(WorkerPlugin):  # type: ignore[misc]  # distributed is not typed for us
    """Runs the trials of one experiment on one worker."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._runner: Runner | None = None  #: stays None where the worker cannot run trials

    def setup(self, worker: Worker) -> None:
        """Get ready on a worker.

        Raises
        ------
        VersionMismatchError
            If the worker has another version of this package than the driver.
        """
        settings = self.settings
        if settings.version != __version__:
            raise VersionMismatchError(
                f"the worker {worker.address} has dask_hpo {__version__}, the driver "
                f"{settings.version}: both must be the same; install dask_hpo=="
                f"{settings.version} on the worker"
            )
        self.fingerprint = settings.fingerprint
        self._memory: Memory[End] = Memory()
        self._address = worker.address
        self._runs = itertools.count()
        # A process may host the experiment twice, one after the other: a run's name comes once.
        self._incarnation = f"{os.getpid()}-{secrets.token_hex(4)}"
        self._outbox = Outbox(
            worker.address,
            # Always by way of the loop: from its own thread log_event would send at once, and
            # overtake what another thread has handed over before.
            lambda batch, holds_end: worker.loop.add_callback(
                worker.log_event,
                [settings.topic, settings.ends_topic] if holds_end else settings.topic,
                batch,
            ),
            lambda delay, function: worker.loop.add_callback(
                worker.loop.call_later, delay, function
            ),
        )
        self._gpus = float(settings.resources.get(GPU, 0))
        offered = float(worker.state.total_resources.get(GPU, 0))
        self._devices = DevicePool(visible_devices(os.environ, offered) if self._gpus else [])
        self._checkpoints = settings.checkpoints.as_seen_here()
        self._runner = self._make_runner(worker)

    def teardown(self, worker: Worker) -> None:  # noqa: ARG002 - the signature is Dask's
        """End what still runs."""
        if self._runner is not None:
            self._runner.close()

    @property
    def ready(self) -> bool:
        """Whether this worker can run trials."""
        return self._runner is not None

    def run(self, trial_id: int, attempt: int, config: Configuration, key: str) -> End:
        """Run one trial, by a task of this key, and return its end; its reports go out on the way.

        An attempt that runs here already is joined, and one that has ended is not run again: its
        task was submitted anew by a driver that resumed.
        """
        name = f"{self._address}/{self._incarnation}/{next(self._runs)}"
        course, is_new = self._memory.begin(trial_id, attempt, config, name, key)
        if not is_new:
            return self._joined(course)
        try:
            end = self._run(course)
        except BaseException:
            self._memory.forget(course)
            raise
        self._memory.end(course, end)
        self._outbox.post_now(end.message)
        return end

    def _run(self, course: Course[End]) -> End:
        run = Run(course.trial_id, course.attempt, course.run)

        def post(message: Message) -> None:
            course.messages.append(message)
            self._outbox.post(message)

        def on_report(step: int, metrics: Mapping[str, Scalar], elapsed: float) -> None:
            post(messages.reported(run, step, metrics, elapsed))

        def on_started() -> None:
            post(messages.started(run))

        assert self._runner is not None
        place = self._checkpoints.place(course.trial_id, course.attempt)
        devices = self._devices.acquire(self._gpus) if self._gpus else None
        try:
            request = TrialRequest(
                course.trial_id,
                course.attempt,
                course.config,
                None if devices is None else ",".join(devices),
                place,
            )
            result = self._runner.run(request, on_report, on_started)
        finally:
            if devices is not None:
                self._devices.release(self._gpus, devices)
        end = _end(run, course.config, result, _tidy(place))
        course.messages.append(end.message)
        return end

    @staticmethod
    def _joined(course: Course[End]) -> End:
        course.over.wait()
        if course.result is None:
            raise ClusterError(
                f"trial {course.trial_id}, attempt {course.attempt} could not be run; the worker's "
                "log says why"
            )
        return course.result

    def recall(self) -> list[Recalled]:
        """Return what is remembered of the attempts that ran here and of those that run."""
        return self._memory.recall()

    def end_of(self, trial_id: int, attempt: int) -> End | None:
        """Return the end of an attempt that ran here, if it is remembered."""
        return self._memory.result(trial_id, attempt)

    def stop(self, trial_id: int, attempt: int) -> bool:
        """Stop an attempt that runs here; False if none does."""
        return self._runner is not None and self._runner.stop(trial_id, attempt)

    def _make_runner(self, worker: Worker) -> Runner:
        settings = self.settings
        if settings.isolation == "thread":
            return ThreadRunner(settings.payload, metric=settings.metric)
        runner = ProcessRunner(
            settings.payload,
            metric=settings.metric,
            cpu_threads=self._cpu_threads(worker),
            method="fork" if settings.isolation == "process" else "spawn",
            grace_period_s=settings.grace_period_s,
            limits=settings.limits,
        )
        runner.warm_up()
        return runner

    def _cpu_threads(self, worker: Worker) -> int:
        """Share the machine's CPUs out by slot, instead of every trial taking all of them."""
        settings = self.settings
        if settings.cpus_per_trial is not None:
            return settings.cpus_per_trial
        here = slots_of(worker.state.total_resources, worker.state.nthreads, settings.resources)
        host = worker.address.rsplit(":", 1)[0].split("://")[-1]
        cpus: int = CPU_COUNT
        return max(1, cpus // max(1, here, settings.slots_by_host.get(host, 0)))


def _end(run: Run, config: Configuration, result: TrialResult, warning: str) -> End:
    message = messages.ended(
        run,
        config,
        result.outcome,
        metrics=result.metrics,
        failure=result.failure,
        elapsed=result.elapsed,
        has_output=bool(result.stdout or result.stderr),
        warning=result.warning or warning,
    )
    return End(message, result.stdout, result.stderr)


def _tidy(place: Place) -> str:
    """Sweep up after an attempt, however it ended; return the warning of a place that was used."""
    if is_url(place.location) or not os.path.exists(place.location):  # noqa: PTH110 - cheap
        return ""
    sweep(Path(place.location), place.attempt)
    return place.warning


def host_on_this_worker(plugin: str) -> TrialHost:
    """Return the host of this name on the worker that runs the current task.

    Raises
    ------
    VersionMismatchError
        If the worker could not set itself up for the experiment; its log says why.
    """
    worker = get_worker()
    host = worker.plugins.get(plugin)
    if host is None or not host.ready:
        raise VersionMismatchError(
            f"the worker {worker.address} is not ready for trials of {plugin!r}: its log says "
            f"why; it needs dask_hpo {__version__} and the packages that the objective imports"
        )
    assert isinstance(host, TrialHost)
    return host


def ready_for(plugin: str, dask_worker: Any) -> str:
    """Return the fingerprint of the settings by which a worker runs trials; empty if it cannot."""
    host = dask_worker.plugins.get(plugin)
    return host.fingerprint if host is not None and host.ready else ""


def recall(plugin: str, dask_worker: Any) -> list[Recalled]:
    """Return what the worker that this is sent to remembers of an experiment's attempts."""
    host = dask_worker.plugins.get(plugin)
    return host.recall() if host is not None and host.ready else []


def recall_end(plugin: str, trial_id: int, attempt: int, dask_worker: Any) -> End | None:
    """Return the end of an attempt, with its output, from the worker that this is sent to."""
    host = dask_worker.plugins.get(plugin)
    return host.end_of(trial_id, attempt) if host is not None and host.ready else None


def run_trial(plugin: str, trial_id: int, attempt: int, config: Configuration) -> End:
    """Run a trial on this worker: the body of a trial's Dask task."""
    key = get_worker().get_current_task()
    return host_on_this_worker(plugin).run(trial_id, attempt, config, key)


def stop_trials(plugin: str, attempts: list[tuple[int, int]], dask_worker: Any) -> None:
    """Stop attempts, given as (trial number, attempt), on the worker that this is sent to."""
    host = dask_worker.plugins.get(plugin)
    if host is not None:
        for trial_id, attempt in attempts:
            host.stop(trial_id, attempt)


class TrialTask:
    """A call of ``run_trial`` that happens where it is unpickled.

    The Dask scheduler unpickles the graph it is sent. A task ``pickle.loads(pickled TrialTask)`` is
    opaque bytes to it, and so it need not have this package, nor what a configuration may hold.
    """

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return run_trial, self.arguments
