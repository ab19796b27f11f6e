"""A Dask scheduler and workers as supervised processes, and what they leave when they are gone."""

from __future__ import annotations

import contextlib
import random
import socket
import sys
from collections.abc import Mapping
from pathlib import Path

import psutil
from network import Network
from units import Supervisor, Unit

NTHREADS = 2


class Cluster:
    """A Dask scheduler at one address for its whole life, and workers that come and go.

    Parameters
    ----------
    network
        Where the Dask scheduler and the workers are hosts of their own; None: all on loopback.
    """

    def __init__(
        self,
        folder: Path,
        environment: Mapping[str, str],
        network: Network | None = None,
    ) -> None:
        self.folder = folder
        self.environment = dict(environment)
        self.supervisor = Supervisor()
        self.workers: list[Unit] = []
        self._leaving: list[Unit] = []
        self._network = network
        host, port = self._host("scheduler"), str(free_port())
        self.address = f"tcp://{host}:{port}"
        command = [*_dask("scheduler"), "--host", host, "--port", port, "--no-dashboard"]
        self.scheduler = self._add_unit("scheduler", self._at("scheduler", command))

    def add_worker(self, *, nanny: bool) -> Unit:
        """Start a worker; its unit's process is the nanny where it has one."""
        number = len([unit for unit in self.supervisor.units if unit is not self.scheduler])
        name = f"{'nanny' if nanny else 'worker'}-{number}"
        command = [*_dask("worker"), self.address, "--host", self._host("worker")]
        command += ["--no-dashboard", "--nthreads", str(NTHREADS), "--memory-limit", "0"]
        command += ["--no-nanny"] * (not nanny)
        unit = self._add_unit(name, self._at("worker", command))
        self.workers.append(unit)
        return unit

    def _host(self, name: str) -> str:
        return "127.0.0.1" if self._network is None else self._network.address(name)

    def _at(self, host: str, command: list[str]) -> list[str]:
        return command if self._network is None else [*self._network.at(host), *command]

    def _add_unit(self, name: str, command: list[str]) -> Unit:
        unit = Unit(name, lambda: command, self.environment, self.folder / f"{name}.log")
        self.supervisor.units.append(unit)
        return unit

    def nannies(self) -> list[psutil.Process]:
        """Return the nannies that live now."""
        return [p for unit in self.workers if is_nanny(unit) and (p := alive(unit.pid))]

    def worker_processes(self) -> list[psutil.Process]:
        """Return the workers that live now, those of nannies and the others."""
        own = [p for unit in self.workers if not is_nanny(unit) and (p := alive(unit.pid))]
        return own + [child for nanny in self.nannies() for child in _worker_of(nanny)]

    def dismiss(self, unit: Unit) -> None:
        """Have a worker leave in order, for good."""
        self.workers.remove(unit)
        self._leaving.append(unit)
        unit.dismiss()

    def close(self) -> list[str]:
        """End everything in order, the Dask scheduler last; return what had to be killed."""
        self.supervisor.close()
        for unit in list(self.workers):
            self.dismiss(unit)
        killed = [unit.name for unit in self._leaving if not unit.bury()]
        self.scheduler.dismiss()
        return killed + [self.scheduler.name] * (not self.scheduler.bury())


def _dask(kind: str) -> list[str]:
    return [sys.executable, "-m", f"distributed.cli.dask_{kind}"]


def is_nanny(unit: Unit) -> bool:
    """Tell whether a unit's process is a nanny."""
    return unit.name.startswith("nanny")


def alive(pid: int | None) -> psutil.Process | None:
    """Return the process of a number, if it lives."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return None if pid is None else psutil.Process(pid)
    return None


def _worker_of(nanny: psutil.Process) -> list[psutil.Process]:
    with contextlib.suppress(psutil.NoSuchProcess):
        return [p for p in nanny.children() if "--multiprocessing-fork" in _words(p)]
    return []


def _words(process: psutil.Process) -> list[str]:
    with contextlib.suppress(psutil.Error):
        return process.cmdline()
    return []


def free_port() -> int:
    """Return a port that is free, and stays so while the Dask scheduler is away.

    It lies below those that the system gives to whoever connects.
    """
    while True:
        port = random.SystemRandom().randint(20_000, 32_000)
        with socket.socket() as candidate, contextlib.suppress(OSError):
            candidate.bind(("127.0.0.1", port))
            return port
