"""What runs in a trial's own process: the objective, once, and then nothing more.

Everything the trial says travels over one pipe, a line of JSON for each message: ``started``,
``report`` and ``result`` (see ``watch.py``, which reads them).
"""

from __future__ import annotations

import atexit
import faulthandler
import io
import json
import os
import pickle
import random
import shutil
import signal
import sys
import types
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

from dask_hpo.checkpoints.folder import CheckpointDir
from dask_hpo.checkpoints.options import Place
from dask_hpo.cluster.attempt import failure_of, metrics_of
from dask_hpo.core.events import Failure
from dask_hpo.core.metric import Scalar
from dask_hpo.report import PipeChannel, coerce, set_channel


@dataclass(frozen=True, slots=True)
class Job:
    """One attempt, as the worker writes it to a file for the trial's process.

    ``objective``: the file with the pickled function, or the folder with the script's files;
    ``config``: the pickled configuration, unpickled where its errors are the trial's; ``stacks``:
    the file for `write_stacks_when_asked`.
    """

    trial_id: int
    attempt: int
    kind: Literal["function", "script"]
    objective: str
    script: str
    arguments: tuple[str, ...]
    config: bytes
    metric: str
    devices: str | None
    cpu_threads: int
    directory: str
    stacks: str
    path: tuple[str, ...]
    checkpoints: Place | None


def main(job_file: str, descriptor: str) -> NoReturn:
    """Run the job in this process, which was started cold for it, and exit."""
    run(job_file, int(descriptor))


def run(job_file: str, descriptor: int) -> NoReturn:
    """Run the job in this process and exit; ``descriptor``: the write end of the trial's pipe."""
    os.set_inheritable(descriptor, False)  # noqa: FBT003 - its signature
    job: Job = pickle.loads(Path(job_file).read_bytes())  # noqa: S301 - the worker's own bytes
    _prepare(job)
    channel = PipeChannel(descriptor)
    set_channel(channel, CheckpointDir(job.checkpoints, job.directory))
    channel.send_message(["started"])
    metrics, failure, status = _outcome(job)
    flat = None if failure is None else [failure.error, failure.traceback]
    channel.send_message(["result", metrics, flat, status, channel.elapsed()])
    _exit(status)


def _outcome(job: Job) -> tuple[dict[str, Scalar], Failure | None, int]:
    """Return metrics, failure and exit status; whatever the user's code raises is a value."""
    try:
        config = pickle.loads(job.config)  # noqa: S301 - the driver's own bytes
        run_it = _run_script if job.kind == "script" else _call
        returned = run_it(job, config)
        return metrics_of(returned, job.metric), None, 0
    except SystemExit as error:
        return _exited(error)
    except BaseException as error:  # noqa: BLE001 - KeyboardInterrupt too ends only this trial
        return {}, failure_of(error), 1


def _exited(error: SystemExit) -> tuple[dict[str, Scalar], Failure | None, int]:
    if error.code is None or error.code == 0:
        return {}, None, 0
    if isinstance(error.code, int):
        line = f"SystemExit: exited with status {error.code}"
        return {}, Failure(line, failure_of(error).traceback), error.code & 0xFF or 1
    return {}, failure_of(error), 1


def _call(job: Job, config: Mapping[str, Any]) -> Any:
    try:
        function = pickle.loads(Path(job.objective).read_bytes())  # noqa: S301 - the driver's bytes
    except ImportError as error:
        raise ImportError(
            f"{error}: the objective needs this module on every worker, and this one lacks it; "
            "install it there, or send it along with client.upload_file or "
            "cloudpickle.register_pickle_by_value"
        ) from error
    return function(**config)


def _run_script(job: Job, config: Mapping[str, Any]) -> None:
    """Run the script as ``python script.py`` would, as the module ``__main__``."""
    shutil.copytree(job.objective, job.directory, dirs_exist_ok=True)
    path = str(Path(job.directory, job.script))
    sys.argv = [path, *job.arguments, *_options(config)]
    sys.path.insert(0, job.directory)
    module = sys.modules["__main__"]
    module.__file__ = path
    module.__dict__["__builtins__"] = __builtins__
    exec(compile(Path(path).read_bytes(), path, "exec"), module.__dict__)  # noqa: S102


def _options(config: Mapping[str, Any]) -> list[str]:
    options = []
    for name, value in config.items():
        if value is not None:
            options += [f"--{name}", _option_text(value)]
    return options


def _option_text(value: Any) -> str:
    if isinstance(value, (list, tuple, dict)):
        return json.dumps(value, default=coerce)
    plain = coerce(value)
    if isinstance(plain, bool):
        return "true" if plain else "false"
    return str(plain)


def _prepare(job: Job) -> None:
    """Make this process the trial's: folder, environment, streams, randomness, threads."""
    if job.kind == "script":
        # With its files around it. A function stays in the worker's folder, as any Dask task does.
        os.chdir(job.directory)
        os.environ["PWD"] = job.directory
    _set_environment(job)
    sys.path.extend(entry for entry in job.path if entry not in sys.path)
    sys.argv = [job.script or "objective"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    sys.stdout = sys.__stdout__ = _stream(1)  # type: ignore[misc]
    sys.stderr = sys.__stderr__ = _stream(2)  # type: ignore[misc]
    faulthandler.enable()
    write_stacks_when_asked(job.stacks)
    _disown_exit_handlers()
    _reseed()
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(job.cpu_threads)


def write_stacks_when_asked(file: str) -> None:
    """Have SIGQUIT write to the file where every thread stands, as it does for Java and Go.

    The handler is C and needs no lock of Python's, so it also shows a trial that hangs in C.
    """
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT, 0o600)
    faulthandler.register(signal.SIGQUIT, descriptor)


def _stream(descriptor: int) -> io.TextIOWrapper:
    """Open one anew, written by line: what was printed before a crash is not lost in a buffer."""
    return open(descriptor, "w", 1, encoding="utf-8", errors="backslashreplace", closefd=False)


def _set_environment(job: Job) -> None:
    os.environ["DASK_HPO_TRIAL_ID"] = str(job.trial_id)
    os.environ["DASK_HPO_ATTEMPT"] = str(job.attempt)
    if job.devices is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = job.devices


def _disown_exit_handlers() -> None:
    """Forget what the template registered: its temporary folders are not this trial's to remove."""
    atexit._clear()  # noqa: SLF001 - there is no public way
    registry = getattr(weakref.finalize, "_registry", {})
    for finalizer in list(registry):
        finalizer.atexit = False
    weakref.finalize._registered_with_atexit = False  # type: ignore[attr-defined]  # noqa: SLF001


def _reseed() -> None:
    """Draw new states for the global generators: forked siblings would share the template's."""
    random.seed()
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        numpy_random.seed()
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.default_generator.seed()


def _exit(status: int) -> NoReturn:
    """Leave without waiting for the trial's threads, but with its exit handlers and its output."""
    try:
        atexit._run_exitfuncs()  # noqa: SLF001 - what the interpreter does when it ends
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(status)
