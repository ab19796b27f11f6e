"""From a seed to what a run does and suffers, its options and its faults: same seed, same run."""

from __future__ import annotations

import enum
import random
from collections.abc import Collection
from dataclasses import dataclass


class Kind(str, enum.Enum):
    """What can be done to a run."""

    KILL_DRIVER = "kill-driver"
    KILL_WORKER = "kill-worker"
    KILL_NANNY = "kill-nanny"
    KILL_SCHEDULER = "kill-scheduler"
    STOP_DRIVER = "stop-driver"  #: SIGSTOP, and SIGCONT some seconds later
    STOP_WORKER = "stop-worker"
    STOP_NANNY = "stop-nanny"
    STOP_SCHEDULER = "stop-scheduler"
    WORKER_JOINS = "worker-joins"
    WORKER_LEAVES = "worker-leaves"
    DISK_FULL = "disk-full"
    CLOCK_STEP = "clock-step"
    CUT_WORKER = "cut-worker"  #: off from the Dask scheduler, nobody is told
    CUT_DRIVER = "cut-driver"


#: What may be drawn: a cut needs a network, see `test_partition.py`.
ALL = frozenset(Kind) - {Kind.CUT_WORKER, Kind.CUT_DRIVER}
#: Faults after which an attempt may be lost and its trial run again; besides them, long cuts.
LOSING = frozenset({Kind.KILL_WORKER, Kind.KILL_NANNY, Kind.KILL_SCHEDULER, Kind.WORKER_LEAVES})
#: A connection that was silent for longer is dead; Dask takes no shorter time. See `network.py`.
TCP_TIMEOUT_S = 11.0

#: What a run draws its faults from. A mixed run finds what comes of two faults at once; one without
#: a loss holds to the strict rules (each trial ran once, every report is in the log).
THEMES: tuple[tuple[int, frozenset[Kind]], ...] = (
    (6, ALL),
    (2, frozenset({Kind.KILL_DRIVER, Kind.STOP_DRIVER})),
    (2, ALL - LOSING),
    (1, frozenset({Kind.KILL_SCHEDULER, Kind.KILL_DRIVER})),
)
_WEIGHTS = {
    Kind.KILL_DRIVER: 4,
    Kind.KILL_WORKER: 3,
    Kind.KILL_NANNY: 3,
    Kind.KILL_SCHEDULER: 2,
    Kind.WORKER_JOINS: 2,
    Kind.WORKER_LEAVES: 2,
    Kind.DISK_FULL: 2,
    Kind.CLOCK_STEP: 2,
}  # the others: 1
_FIRST_S, _LAST_S = 0.5, 9.0  #: trials run from the third second or so
_STEP_S = 3600.0


@dataclass(frozen=True, slots=True)
class Fault:
    """Something done ``at_s`` seconds after the first driver was started.

    ``pick``, from 0 to 1, chooses among the processes that live then. ``duration_s``: until it is
    undone (SIGCONT, room on the disk). ``step_s``: by how much the clock is set forward.
    """

    at_s: float
    kind: Kind
    pick: float = 0.0
    duration_s: float = 0.0
    step_s: float = 0.0

    @property
    def loses(self) -> bool:
        """Whether an attempt may be lost by it."""
        cut = self.kind is Kind.CUT_WORKER and self.duration_s > TCP_TIMEOUT_S
        return cut or self.kind in LOSING

    def __str__(self) -> str:
        if self.kind is Kind.CLOCK_STEP:
            return f"{self.kind.value} by {self.step_s:+.0f} s"
        lasts = self.kind is Kind.DISK_FULL or self.kind.value.startswith(("stop-", "cut-"))
        return f"{self.kind.value} for {self.duration_s:.1f} s" if lasts else self.kind.value


@dataclass(frozen=True, slots=True)
class Schedule:
    """One run.

    ``allowed``: the kinds that faults were drawn from, a part of what names the run. ``resume_by``:
    ``"python"`` or ``"cli"``, how a killed driver is followed.
    """

    seed: int
    allowed: frozenset[Kind]
    trials: int
    isolation: str
    resume_by: str
    faults: tuple[Fault, ...]

    @property
    def kinds(self) -> frozenset[Kind]:
        """The kinds of its faults."""
        return frozenset(fault.kind for fault in self.faults)


def draw(seed: int, kinds: Collection[Kind] = ALL) -> Schedule:
    """Return the run of a seed, with faults of these kinds only."""
    random_ = random.Random(seed)
    weights = [weight for weight, _ in THEMES]
    theme = random_.choices([theme for _, theme in THEMES], weights)[0]
    among = theme & set(kinds) or set(kinds)
    return Schedule(
        seed=seed,
        allowed=frozenset(kinds),
        trials=random_.randint(20, 40),
        isolation=random_.choices(["process", "spawn", "thread"], [6, 2, 2])[0],
        resume_by=random_.choice(["python", "cli"]),
        faults=tuple(_draw_faults(random_, [kind for kind in Kind if kind in among])),
    )


def _draw_faults(random_: random.Random, kinds: list[Kind]) -> list[Fault]:
    weights = [_WEIGHTS.get(kind, 1) for kind in kinds]
    number = random_.randint(2, 6) if kinds else 0
    faults = [
        Fault(
            at_s=random_.uniform(_FIRST_S, _LAST_S),
            kind=random_.choices(kinds, weights)[0],
            pick=random_.random(),
            duration_s=random_.uniform(0.5, 5.0),
            step_s=random_.choice([-_STEP_S, _STEP_S]),
        )
        for _ in range(number)
    ]
    return sorted(faults, key=lambda fault: fault.at_s)
