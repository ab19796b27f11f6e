"""Trials in processes of their own: forked from a warm template, or started cold.

``ProcessRunner`` is the worker's side. A call of ``run`` writes the attempt to a file, asks the
template for a process and follows it to its end. When ``run`` returns, no process of the attempt's
group is left, and its folder is gone.
"""

from __future__ import annotations

import itertools
import os
import pickle
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from dask_hpo.cluster.attempt import (
    HERE,
    OnReport,
    OnStarted,
    Runner,
    TrialRequest,
    TrialResult,
)
from dask_hpo.cluster.child import Job
from dask_hpo.cluster.limits import Limits
from dask_hpo.cluster.link import TemplateLink
from dask_hpo.cluster.template import TemplateOptions
from dask_hpo.cluster.watch import Course, Watch, tail_text
from dask_hpo.core.events import Failure, Outcome
from dask_hpo.errors import ClusterError
from dask_hpo.objective import Payload

__all__ = ["ProcessRunner", "Runner", "TrialRequest", "TrialResult", "default_isolation"]

_IDLE_S = 600.0
_MAX_TEMPLATES = 3  # tries for one attempt: one may have been idle, one may die as it imports
_OUTPUT_CHARACTERS = 8_000  # a fatal error lists all extension modules behind its traceback


def default_isolation() -> Literal["process", "spawn", "thread"]:
    """Return how trials are kept apart unless the user says otherwise.

    ``"process"`` (forked from a warm template) on Linux; ``"spawn"`` (started cold) on macOS, whose
    frameworks do not survive a fork; ``"thread"`` on Windows, which has neither.
    """
    if sys.platform == "linux":
        return "process"
    return "spawn" if os.name == "posix" else "thread"


class ProcessRunner:
    """Runs attempts of one objective, each in a process group of its own.

    Parameters
    ----------
    payload
        The objective.
    preload
        Modules to import ahead; None takes those that the payload names.
    metric
        The name that a plain number returned by a function gets.
    cpu_threads
        How many threads numeric libraries use in each trial.
    method
        ``"fork"``: from a template that has imported ``preload``; ``"spawn"``: a new interpreter.
    grace_period_s
        Seconds between SIGTERM and SIGKILL for a trial that is stopped, and between a trial's
        result and SIGKILL for one that does not end.
    limits
        What each trial may use; one that uses more is ended and has failed.
    """

    def __init__(
        self,
        payload: Payload,
        preload: Sequence[str] | None = None,
        *,
        metric: str,
        cpu_threads: int,
        method: Literal["fork", "spawn"],
        grace_period_s: float,
        limits: Limits = Limits(),  # noqa: B008 - frozen
    ) -> None:
        self._payload = payload
        self._preload = list(payload.preload if preload is None else preload)
        self._metric = metric
        self._cpu_threads = cpu_threads
        self._cold = method == "spawn"
        self._grace_period_s = grace_period_s
        self._limits = limits
        self._lock = threading.Lock()
        self._attempts: dict[tuple[int, int], _Stoppable] = {}
        self._numbers = itertools.count()
        self._link: TemplateLink | None = None
        self._closed = False
        self._directory = Path(tempfile.mkdtemp(prefix="dask-hpo-"))
        self._objective = self._unpack()

    def run(self, request: TrialRequest, on_report: OnReport, on_started: OnStarted) -> TrialResult:
        """Run an attempt to its end; blocks, and may be called from many threads at once.

        Parameters
        ----------
        request
            The attempt. An attempt that runs here already may not be asked for again.
        on_report
            Called in this thread with every report, in order and before ``run`` returns.
        on_started
            Called in this thread once, when the attempt's process is ready to run the user's
            code, before any report; not at all for an attempt that ended before that.

        Returns
        -------
        TrialResult
            LOST if the template died or the runner was closed meanwhile; what the user's code
            does, short of that, gives the other outcomes.

        Raises
        ------
        ClusterError
            If this attempt runs here already, or the runner is closed.
        OSError
            If the system is out of descriptors or of space for temporary files.
        """
        asked = time.monotonic()
        attempt = (request.trial_id, request.attempt)
        stoppable = self._register(attempt)
        # Unlike the attempt's, this name never comes twice, whatever is asked for again.
        key = f"{request.trial_id}-{request.attempt}-{next(self._numbers)}"
        folder = self._directory / key
        try:
            folder.mkdir()
            for _ in range(_MAX_TEMPLATES):
                job_file = self._write_job(request, folder)
                link = self._live_link()
                if link is None:
                    break
                watch = Watch(
                    key,
                    job_file,
                    on_report,
                    on_started,
                    grace_period_s=self._grace_period_s,
                    limits=self._limits,
                )
                with stoppable.watched(watch):
                    course = watch.follow(link)
                if course.forked or course.cancelled or course.error:
                    return self._result(course, asked, _stacks_file(folder))
                self._replace(link)
            return self._result(Course(), asked, _stacks_file(folder))
        finally:
            with self._lock:
                del self._attempts[attempt]
            shutil.rmtree(folder, ignore_errors=True)
            Path(f"{folder}.job.claimed").unlink(missing_ok=True)
            _stacks_file(folder).unlink(missing_ok=True)

    def warm_up(self) -> None:
        """Start the template now, so that it imports while the first trial is on its way."""
        self._live_link()

    def stop(self, trial_id: int, attempt: int) -> bool:
        """Stop an attempt, whether or not it has started or ever reports; returns at once.

        Its process group gets SIGTERM, and ``grace_period_s`` later SIGKILL. False if no such
        attempt runs here.
        """
        with self._lock:
            stoppable = self._attempts.get((trial_id, attempt))
        if stoppable is None:
            return False
        stoppable.stop()
        return True

    def close(self) -> None:
        """Kill every attempt, end the template and remove the runner's files."""
        with self._lock:
            self._closed = True
            link, self._link = self._link, None
        if link is not None:
            link.close()
        shutil.rmtree(self._directory, ignore_errors=True)

    def _unpack(self) -> Path:
        if self._payload.kind == "function":
            file = self._directory / "objective.pickle"
            file.write_bytes(self._payload.function)
            return file
        folder = self._directory / "script"
        for name, content in self._payload.files.items():
            file = folder / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
        return folder

    def _register(self, attempt: tuple[int, int]) -> _Stoppable:
        trial_id, number = attempt
        with self._lock:
            if self._closed:
                raise ClusterError(
                    f"trial {trial_id}, attempt {number}: this runner was closed; make another"
                )
            if attempt in self._attempts:
                raise ClusterError(
                    f"trial {trial_id}, attempt {number} runs here already: an attempt runs once; "
                    "number the next attempt differently"
                )
            return self._attempts.setdefault(attempt, _Stoppable())

    def _write_job(self, request: TrialRequest, folder: Path) -> str:
        import cloudpickle  # noqa: PLC0415 - templates import this module's constants, not this

        payload = self._payload
        job = Job(
            trial_id=request.trial_id,
            attempt=request.attempt,
            kind=payload.kind,
            objective=str(self._objective),
            script=payload.script,
            arguments=payload.arguments,
            config=cloudpickle.dumps(dict(request.config)),
            metric=self._metric,
            devices=request.devices,
            cpu_threads=self._cpu_threads,
            directory=str(folder),
            stacks=str(_stacks_file(folder)),
            path=tuple(_import_path()),
            checkpoints=request.checkpoints,
        )
        file = Path(f"{folder}.job")
        file.write_bytes(pickle.dumps(job))
        return str(file)

    def _live_link(self) -> TemplateLink | None:
        """Return the template, started if need be; None if this runner was closed."""
        with self._lock:
            if self._closed:
                return None
            if self._link is None:
                options = TemplateOptions(
                    path=_import_path(),
                    directory=str(self._directory),
                    # Unpickling a function, or a configuration, imports cloudpickle.
                    preload=[] if self._cold else [*self._preload, "cloudpickle"],
                    cold=self._cold,
                    idle_s=_IDLE_S,
                    left_out={},
                )
                self._link = TemplateLink(options, self._cpu_threads)
            return self._link

    def _replace(self, link: TemplateLink) -> None:
        """Let go of a template that ended before it forked what it was asked for."""
        with self._lock:
            if self._link is not link:
                return
            self._link = None
            if link.close() != 0 and not link.served:
                # It died while importing. The trial will import the same, and its error is seen.
                self._preload = []

    def _result(self, course: Course, asked: float, stacks: Path) -> TrialResult:
        now = time.monotonic()
        started = course.started_at if course.started_at is not None else now
        outcome, failure = self._judge(course, stacks)
        result = course.result
        return TrialResult(
            outcome,
            result.metrics if result else {},
            failure,
            stdout=tail_text(course.stdout),
            stderr=tail_text(course.stderr),
            elapsed=result.elapsed if result else now - started,
            start_up_s=started - asked,
            warning=course.warning,
        )

    def _judge(self, course: Course, stacks: Path) -> tuple[Outcome, Failure | None]:
        output = (tail_text(course.stderr) or tail_text(course.stdout))[-_OUTPUT_CHARACTERS:]
        result = course.result
        if course.stopped:
            return Outcome.STOPPED, None
        if course.breach:
            return Outcome.FAILED, Failure(course.breach, _read_stacks(stacks), output)
        if result is not None and result.failure is None:
            return Outcome.COMPLETED, None
        if result is not None and result.failure is not None:
            error, traceback = result.failure
            if error.startswith("SystemExit: exited"):
                error += _ends(output)
            return Outcome.FAILED, Failure(error, traceback, output)
        if self._closed or course.exit_code is None:
            return Outcome.LOST, Failure(self._why_lost(course), output=output)
        return Outcome.FAILED, Failure(_death(course.exit_code, output), output=output)

    def _why_lost(self, course: Course) -> str:
        if self._closed:
            return "ClusterError: the worker was closed while the trial ran"
        if course.error:
            return f"ClusterError: the worker's system refused a process ({course.error})"
        if course.forked:
            return (
                "ClusterError: the template process died while the trial ran, most likely killed "
                "by the kernel's out-of-memory killer; give the trials more memory or run fewer"
            )
        return (
            "ClusterError: no template process could be started; the worker's log says why; "
            "check that its Python starts at all"
        )


def _stacks_file(folder: Path) -> Path:
    return Path(f"{folder}.stacks")


def _read_stacks(file: Path) -> str:
    """Return where the threads of a trial stood, without our own frames around the user's."""
    try:
        lines = file.read_text(errors="replace").splitlines()
    except FileNotFoundError:  # it never ran, or the runner was closed
        return ""
    return "\n".join(line for line in lines if f'File "{HERE}' not in line)


def _import_path() -> list[str]:
    """Return ``sys.path`` as it is to be read in another working directory."""
    return [os.path.abspath(entry) for entry in sys.path]  # noqa: PTH100 - "" is this directory


class _Stoppable:
    """An attempt that can be stopped at any moment, between two templates as well."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._watch: Watch | None = None
        self._stopped = False

    def stop(self) -> None:
        with self._lock:
            self._stopped = True
            if self._watch is not None:
                self._watch.stop()

    def watched(self, watch: Watch) -> _Watched:
        return _Watched(self, watch)

    def attach(self, watch: Watch) -> None:
        with self._lock:
            self._watch = watch
            if self._stopped:
                watch.stop()

    def detach(self, watch: Watch) -> None:
        with self._lock:
            self._watch = None
            watch.close()


class _Watched:
    """The span in which a stop wakes a watch."""

    def __init__(self, stoppable: _Stoppable, watch: Watch) -> None:
        self._stoppable = stoppable
        self._watch = watch

    def __enter__(self) -> None:
        self._stoppable.attach(self._watch)

    def __exit__(self, *_: object) -> None:
        self._stoppable.detach(self._watch)


def _death(code: int, output: str) -> str:
    """Say how a process ended that sent no result."""
    if code >= 0:
        return (
            f"ChildProcessError: the trial's process exited with status {code} without an error "
            f"message{_ends(output)}"
        )
    name = signal.Signals(-code).name if -code in list(signal.Signals) else f"signal {-code}"
    reasons = {
        "SIGSEGV": " (segmentation fault)",
        "SIGKILL": ": most likely the kernel's out-of-memory killer; give each trial more memory "
        "or run fewer at once",
    }
    return f"ChildProcessError: the trial's process was killed by {name}{reasons.get(name, '')}"


def _ends(output: str) -> str:
    last = " | ".join(output.strip().splitlines()[-3:])[-300:]
    return f"; stderr ends: {last}" if last else "; it wrote nothing to stderr"
