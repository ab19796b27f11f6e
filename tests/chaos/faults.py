"""Does to a run what its schedule says, undoes it in time, and counts what was done by kind."""

from __future__ import annotations

import contextlib
import functools
import heapq
import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TextIO

import psutil
from clock import WrongClock
from cluster import Cluster, alive
from disk import SmallDisk
from network import Network
from schedule import Fault, Kind
from units import Unit

Undo = Callable[[], None]
_POLL_S = 0.02


@dataclass
class Injector:
    """What can be got at, and what was ``done``; None: there is none."""

    cluster: Cluster
    driver: Unit
    clock: WrongClock
    disk: SmallDisk | None
    network: Network | None
    done: list[Fault]
    killed: set[int] = field(default_factory=set)  #: they take a moment to be gone

    def run(self, faults: Sequence[Fault], limit_s: float, log: TextIO) -> bool:
        """Inject the faults until the driver is done; False if it is not by the limit.

        What was begun is undone in any case. ``log`` gets a line for each fault.
        """
        begun = time.monotonic()
        order = itertools.count()
        todo = list(faults)
        undo: list[tuple[float, int, Undo]] = []
        try:
            while not self.driver.done and (now := time.monotonic() - begun) < limit_s:
                while undo and undo[0][0] <= now:
                    heapq.heappop(undo)[2]()
                while todo and todo[0].at_s <= now:
                    fault = todo.pop(0)
                    target, action = self._inject(fault)
                    log.write(f"{now:5.1f} s: {fault}: {target or 'nothing there for it'}\n")
                    if action is not None:
                        heapq.heappush(undo, (now + fault.duration_s, next(order), action))
                time.sleep(_POLL_S)
        finally:
            for _, _, action in undo:
                action()
        return self.driver.done

    def _inject(self, fault: Fault) -> tuple[str, Undo | None]:
        """Do one thing, and count it if there was something to do it to."""
        try:
            target, undo = self._do(fault)
        except psutil.NoSuchProcess:  # it ended by itself, just now
            return "", None
        if target:
            self.done.append(fault)
        return target, undo

    def _do(self, fault: Fault) -> tuple[str, Undo | None]:
        """Return to what it was done, empty for nothing, and what undoes it."""
        verb, _, noun = fault.kind.value.partition("-")
        if verb in {"kill", "stop"}:
            return self._signal(verb, self._candidates(noun), fault)
        match fault.kind:
            case Kind.WORKER_JOINS:
                return self.cluster.add_worker(nanny=fault.pick < 0.5).name, None
            case Kind.WORKER_LEAVES if len(self.cluster.workers) > 1:
                unit = _pick(self.cluster.workers, fault)
                self.cluster.dismiss(unit)
                return unit.name, None
            case Kind.DISK_FULL if self.disk is not None:
                self.disk.fill()
                return str(self.disk.place), self.disk.free
            case Kind.CUT_WORKER | Kind.CUT_DRIVER if self.network is not None:
                self.network.cut(noun)
                return noun, functools.partial(self.network.mend, noun)
            case Kind.CLOCK_STEP:
                self.clock.step(fault.step_s)
                return "every process", None
        return "", None

    def _candidates(self, noun: str) -> list[psutil.Process]:
        if noun == "worker":
            return self.cluster.worker_processes()
        if noun == "nanny":
            return self.cluster.nannies()
        unit = self.driver if noun == "driver" else self.cluster.scheduler
        process = alive(unit.pid)
        return [] if process is None else [process]

    def _signal(
        self, verb: str, candidates: list[psutil.Process], fault: Fault
    ) -> tuple[str, Undo | None]:
        candidates = [process for process in candidates if process.pid not in self.killed]
        if not candidates:
            return "", None
        process = _pick(candidates, fault)
        if verb == "kill":
            process.kill()
            self.killed.add(process.pid)
            return f"process {process.pid}", None
        process.suspend()
        return f"process {process.pid}", lambda: _go_on(process)


def _pick(candidates, fault):
    return candidates[int(fault.pick * len(candidates))]


def _go_on(process: psutil.Process) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.resume()
