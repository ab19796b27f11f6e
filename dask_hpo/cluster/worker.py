"""What runs on a Dask worker: one trial, from its configuration to its end.

A worker plugin carries what all trials of an experiment share (the objective above all) to each
worker once, also to those that join later: a task holds a configuration and no more.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dask.system import CPU_COUNT
from distributed import Worker, get_worker
from distributed.diagnostics.plugin import WorkerPlugin

from dask_hpo import __version__
from dask_hpo.cluster import messages
from dask_hpo.cluster.attempt import Runner, TrialRequest, TrialResult
from dask_hpo.cluster.messages import Message, Outbox, Run
from dask_hpo.cluster.process import ProcessRunner
from dask_hpo.cluster.slots import DevicePool, slots_of, visible_devices
from dask_hpo.cluster.thread import ThreadRunner
from dask_hpo.core.events import Configuration
from dask_hpo.core.metric import Scalar
from dask_hpo.errors import VersionMismatchError
from dask_hpo.objective import Payload

GPU = "GPU"  #: the Dask resource whose amount becomes CUDA_VISIBLE_DEVICES


@dataclass(frozen=True, slots=True)
class Settings:
    """What all trials of an experiment share.

    ``cpus_per_trial`` None: the machine's CPUs are divided by the slots on it. ``slots_by_host``
    counts those, for hosts with several workers.
    """

    experiment: str
    payload: Payload
    metric: str
    isolation: str
    grace_period_s: float
    resources: Mapping[str, float]
    cpus_per_trial: int | None
    slots_by_host: Mapping[str, int]
    version: str = __version__

    @property
    def topic(self) -> str:
        """The Dask topic on which workers speak of this experiment's trials."""
        return topic_of(self.experiment)


def topic_of(experiment: str) -> str:
    """Return the Dask topic of an experiment."""
    return f"dask-hpo-{experiment}"


def plugin_name(experiment: str) -> str:
    """Return the name under which the worker plugin of an experiment is registered."""
    return f"dask-hpo-{experiment}"


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
        self._address = worker.address
        self._runs = itertools.count()
        self._outbox = Outbox(
            worker.address,
            # Always by way of the loop: from its own thread log_event would send at once, and
            # overtake what another thread has handed over before.
            lambda batch: worker.loop.add_callback(worker.log_event, settings.topic, batch),
            lambda delay, function: worker.loop.add_callback(
                worker.loop.call_later, delay, function
            ),
        )
        self._gpus = float(settings.resources.get(GPU, 0))
        offered = float(worker.state.total_resources.get(GPU, 0))
        self._devices = DevicePool(visible_devices(os.environ, offered) if self._gpus else [])
        self._runner = self._make_runner(worker)

    def teardown(self, worker: Worker) -> None:  # noqa: ARG002 - the signature is Dask's
        """End what still runs."""
        if self._runner is not None:
            self._runner.close()

    @property
    def ready(self) -> bool:
        """Whether this worker can run trials."""
        return self._runner is not None

    def run(self, trial_id: int, attempt: int, config: Configuration) -> End:
        """Run one trial and return its end; everything it reports is sent on the way."""
        run = Run(trial_id, attempt, f"{self._address}/{os.getpid()}/{next(self._runs)}")
        outbox = self._outbox

        def on_report(step: int, metrics: Mapping[str, Scalar], elapsed: float) -> None:
            outbox.post(messages.reported(run, step, metrics, elapsed))

        def on_started() -> None:
            outbox.post(messages.started(run))

        assert self._runner is not None
        devices = self._devices.acquire(self._gpus) if self._gpus else None
        try:
            request = TrialRequest(
                trial_id, attempt, config, None if devices is None else ",".join(devices)
            )
            result = self._runner.run(request, on_report, on_started)
        finally:
            if devices is not None:
                self._devices.release(self._gpus, devices)
        end = _end(run, result)
        outbox.post_now(end.message)
        return end

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


def _end(run: Run, result: TrialResult) -> End:
    message = messages.ended(
        run,
        result.outcome,
        metrics=result.metrics,
        failure=result.failure,
        elapsed=result.elapsed,
        has_output=bool(result.stdout or result.stderr),
        warning=result.warning,
    )
    return End(message, result.stdout, result.stderr)


def host_on_this_worker(experiment: str) -> TrialHost:
    """Return the host of an experiment on the worker that runs the current task.

    Raises
    ------
    VersionMismatchError
        If the worker could not set itself up for the experiment; its log says why.
    """
    worker = get_worker()
    host = worker.plugins.get(plugin_name(experiment))
    if host is None or not host.ready:
        raise VersionMismatchError(
            f"the worker {worker.address} is not ready for trials of {experiment!r}: its log says "
            f"why; it needs dask_hpo {__version__} and the packages that the objective imports"
        )
    assert isinstance(host, TrialHost)
    return host


def is_ready(experiment: str, dask_worker: Any) -> bool:
    """Tell whether the worker that this is sent to can run trials of an experiment."""
    host = dask_worker.plugins.get(plugin_name(experiment))
    return host is not None and host.ready


def run_trial(experiment: str, trial_id: int, attempt: int, config: Configuration) -> End:
    """Run a trial on this worker: the body of a trial's Dask task."""
    return host_on_this_worker(experiment).run(trial_id, attempt, config)


def stop_trials(experiment: str, attempts: list[tuple[int, int]], dask_worker: Any) -> None:
    """Stop attempts, given as (trial number, attempt), on the worker that this is sent to."""
    host = dask_worker.plugins.get(plugin_name(experiment))
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
