"""One run of the rig: an experiment on a cluster of processes, its faults, and what came of it."""

from __future__ import annotations

import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from pathlib import Path

import disk
import invariants
import leftovers
import objective
from clock import WrongClock
from cluster import Cluster, alive
from disk import SmallDisk
from faults import Injector
from network import Network
from outcome import Outcome
from sampler import Sampler
from schedule import Fault, Kind, Schedule
from units import Unit

NAME = "chaos"
#: An experiment that is not at its end by then hangs.
LIMIT_S = 180.0
_WORKERS_WITH_NANNY = (True, False)
#: A driver may end with an error that it explains after these; after no other fault.
_EXCUSES = frozenset({Kind.DISK_FULL, Kind.KILL_SCHEDULER, Kind.STOP_SCHEDULER})
#: In a driver's log, where an exception passed the tuner and was no error for a person. (What Dask
#: writes of its own troubles has tracebacks, too.)
_ESCAPED = 'dask_hpo/tuner.py", line'


class Rig:
    """The parts of one run.

    Parameters
    ----------
    folder
        Its own; it is made.
    network
        Where its processes are on hosts of their own; None: all on loopback.
    """

    def __init__(self, schedule: Schedule, folder: Path, network: Network | None = None) -> None:
        self.schedule = schedule
        self.folder = folder
        self.root = folder / "root"
        self.experiment = self.root / NAME
        self.temporary = folder / "tmp"
        for needed in (self.temporary, folder / "ended"):
            needed.mkdir(parents=True)
        (folder / "begun").touch()
        self.disk = None
        if Kind.DISK_FULL in schedule.kinds and not disk.why_not():
            self.disk = SmallDisk(self.root)
        self.clock = WrongClock(folder / "clock")
        environment = {
            objective.MARK: str(folder),
            "TMPDIR": str(self.temporary),
            "PYTHONFAULTHANDLER": "1",
        }
        if Kind.CLOCK_STEP in schedule.kinds:
            environment |= self.clock.environment
        if network is not None:
            environment |= network.environment
        self.network = network
        self.cluster = Cluster(folder, environment, network)
        for nanny in _WORKERS_WITH_NANNY:
            self.cluster.add_worker(nanny=nanny)
        self.driver = Unit("driver", self._command, environment, folder / "driver.log", once=True)
        self.cluster.supervisor.units.append(self.driver)

    def run(self) -> Outcome:
        """Run it to its end, whatever that is, leave no process behind, and judge it."""
        outcome, begun = Outcome(self.schedule, self.folder), time.monotonic()
        sampler = Sampler(self.experiment / "events")
        injector = Injector(
            self.cluster, self.driver, self.clock, self.disk, self.network, outcome.done
        )
        try:
            outcome.broken += self._experiment(injector)
        finally:
            sampler.close()
            outcome.broken += self._close_cluster()
            outcome.broken += self._judge(outcome.done)
            if self.disk is not None:
                self.disk.unmount()
        outcome.broken += [sampler.broken] * bool(sampler.broken)
        outcome.broken += [*self._drivers(outcome.done), *leftovers.files(self.temporary)]
        outcome.readings = sum(sampler.readings.values())
        outcome.drivers = len(self.driver.statuses)
        outcome.seconds = time.monotonic() - begun
        return outcome

    def _experiment(self, injector: Injector) -> list[str]:
        with (self.folder / "faults.log").open("w", buffering=1) as log:
            if injector.run(self.schedule.faults, LIMIT_S, log):
                return leftovers.of_trials(self.folder)
        process = alive(self.driver.pid)
        if process is not None:
            process.send_signal(signal.SIGABRT)  # a fault, so it writes where it is
        return [f"the experiment was not at its end after {LIMIT_S:.0f} s"]

    def _close_cluster(self) -> list[str]:
        self.cluster.supervisor.close()
        self.driver.dismiss()
        killed = [self.driver.name] * (not self.driver.bury()) + self.cluster.close()
        return [f"{name} did not end when told to" for name in killed] + leftovers.processes(
            self.folder
        )

    def _drivers(self, done: list[Fault]) -> list[str]:
        """Return what drivers did that no fault excuses."""
        kinds = Counter(fault.kind for fault in done)
        statuses = self.driver.statuses
        excused = {0, -signal.SIGKILL} | ({1} if _EXCUSES & set(kinds) else set())
        broken = []
        killed = statuses.count(-signal.SIGKILL)
        if killed != kinds[Kind.KILL_DRIVER] or set(statuses) - excused:
            broken.append(f"drivers ended with {statuses}: see {self.driver.log}")
        if _ESCAPED in self.driver.log.read_text():
            broken.append(f"an exception that is no message escaped: see {self.driver.log}")
        return broken

    def _judge(self, done: list[Fault]) -> list[str]:
        """Hold the log against the invariants, if the experiment has an end."""
        if 0 not in self.driver.statuses:
            return []
        rows_lost = "are lost; make room" in self.driver.log.read_text()
        try:
            return invariants.broken(
                invariants.Run(self.schedule, self.folder, self.experiment, done, rows_lost)
            )
        except Exception:  # noqa: BLE001 - a log that cannot be judged is not what it should be
            return [f"the log cannot be judged:\n{traceback.format_exc()}"]

    def _command(self) -> list[str]:
        """Return what starts the next driver."""
        begun = (self.experiment / "experiment.json").exists()
        if not begun:  # killed before it had written anything of use: a person removes that
            shutil.rmtree(self.experiment, ignore_errors=True)
        at = [] if self.network is None else self.network.at("driver")
        python = [*at, sys.executable]
        where = ["--address", self.cluster.address]
        if begun and self.schedule.resume_by == "cli":
            command = [*python, "-m", "dask", "hpo", "resume", NAME]
            return [*command, *where, "--path", str(self.root)]
        return [
            *(*python, str(Path(__file__).with_name("driver.py"))),
            *("resume" if begun else "start", *where, "--root", str(self.root)),
            *("--seed", str(self.schedule.seed), "--trials", str(self.schedule.trials)),
            *("--isolation", self.schedule.isolation),
        ]
