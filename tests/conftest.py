"""Real clusters of scheduler and worker processes for the tests that need one."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

import hypothesis
import psutil
import pytest
from distributed import Client

START_TIMEOUT_S = 60

# The same examples in every run; HYPOTHESIS_PROFILE=default looks further.
hypothesis.settings.register_profile("seeded", derandomize=True, deadline=None)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "seeded"))


def wait_until(condition, timeout=30.0, what="the condition"):
    """Wait for something to become true, and fail if it does not; the truth is returned."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{what} did not come true within {timeout} s"
        time.sleep(0.01)
    return value


class DaskProcesses:
    """A Dask scheduler and workers as processes on the loopback address, ended at close."""

    def __init__(self, folder: Path, *scheduler_arguments: str) -> None:
        self.folder = folder
        self.processes: list[subprocess.Popen] = []
        self.address_file = folder / "scheduler.json"
        self._start("scheduler", "--port", "0", "--no-dashboard", *self._file, *scheduler_arguments)
        wait_until(self.address_file.exists, START_TIMEOUT_S, "the Dask scheduler's start")
        self.client = Client(scheduler_file=str(self.address_file))
        self.address = self.client.scheduler.address

    @property
    def _file(self):
        return "--scheduler-file", str(self.address_file)

    def _start(self, kind, *arguments, env=None):
        log = (self.folder / f"{kind}-{len(self.processes)}.log").open("w")
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "distributed.cli.dask_" + kind,
                "--host",
                "127.0.0.1",
                *arguments,
            ],
            cwd=self.folder,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(env or {})},
        )
        log.close()
        self.processes.append(process)
        return process

    def add_worker(self, *arguments, nthreads=1, wait=True, env=None):
        """Start a worker process without a nanny; the process is the worker."""
        before = self.workers()
        process = self._start(
            "worker",
            *self._file,
            *("--no-nanny", "--no-dashboard", "--nthreads", str(nthreads), "--memory-limit", "0"),
            *arguments,
            env=env,
        )
        if wait:
            wait_until(lambda: len(self.workers()) > len(before), START_TIMEOUT_S, "a worker")
        return process

    def workers(self):
        return self.client.sync(self.client.scheduler.identity)["workers"]

    def close(self):
        """End everything through the Dask scheduler; a signal may leave a worker waiting for it."""
        if self.processes[0].poll() is None:
            self.client.shutdown()
        else:  # a test has killed the Dask scheduler
            self.client.close()
            for process in self.processes:
                process.kill()
        for process in self.processes:
            process.wait(START_TIMEOUT_S)


@pytest.fixture
def dask_processes(tmp_path):
    folder = tmp_path / "dask"
    folder.mkdir()
    processes = DaskProcesses(folder)
    yield processes
    processes.close()


@pytest.fixture(scope="session")
def shared_cluster(tmp_path_factory):
    """Two worker processes with two threads each, shared by the tests that do not harm them."""
    processes = DaskProcesses(tmp_path_factory.mktemp("dask"))
    processes.add_worker(nthreads=2)
    processes.add_worker(nthreads=2)
    yield processes
    processes.close()


@pytest.fixture
def client(shared_cluster):
    return shared_cluster.client


@pytest.fixture
def trial_processes():
    """Return a function that lists the trial processes of this machine's user by experiment."""

    def find(marker):
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if marker in process.environ().get("DASK_HPO_TEST_MARKER", ""):
                    found.append(process)
        return found

    return find
