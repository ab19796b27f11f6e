"""Runs the rig for one seed after the other, and prints a line for each and the faults by kind.

    python tests/chaos/run.py --seed 0 --runs 200
    python tests/chaos/run.py --seed 17 --runs 1 --kinds kill-driver,stop-driver

It ends at the first run with a broken invariant: with status 1, the command that replays it, and
its folder, which holds every process's log. The same seed gives the same faults at the same times;
who runs what just then is up to the machine, so a rare failure may need some replays.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import disk
from outcome import Outcome
from rig import Rig
from schedule import ALL, Kind, Schedule, draw


def main() -> int:
    """Do the runs; return the exit status."""
    arguments = parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that a run still ends in order
    if Kind.DISK_FULL in arguments.kinds and disk.why_not():
        print(f"no {Kind.DISK_FULL.value}: {disk.why_not()}")
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    done: Counter[Kind] = Counter()
    runs = 0
    for outcome in outcomes(arguments, folder):
        runs += 1
        done.update(fault.kind for fault in outcome.done)
        print(outcome.line(), flush=True)
        if outcome.broken:
            print(outcome.report())
            break
        shutil.rmtree(outcome.folder)
    else:
        folder.rmdir()
    print(f"{runs} runs, {done.total()} faults:")
    for kind in filter(ALL.__contains__, Kind):
        print(f"{done[kind]:6d} {kind.value}")
    return 1 if outcome.broken else 0


def outcomes(arguments: argparse.Namespace, folder: Path) -> Iterator[Outcome]:
    """Yield every run's outcome, in the order of the seeds; ``jobs`` run at a time."""
    seeds = range(arguments.seed, arguments.seed + arguments.runs)
    schedules = [draw(seed, arguments.kinds) for seed in seeds]
    folders = [folder / str(seed) for seed in seeds]
    if arguments.jobs == 1:
        yield from map(one_run, schedules, folders)
        return
    with ProcessPoolExecutor(arguments.jobs, mp_context=get_context("spawn")) as pool:
        try:
            yield from pool.map(one_run, schedules, folders)
        finally:
            pool.shutdown(cancel_futures=True)


def one_run(schedule: Schedule, folder: Path) -> Outcome:
    """Do one run, in this process."""
    return Rig(schedule, folder).run()


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--seed", type=int, default=0, help="of the first run; the next has the next"
    )
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument(
        "--kinds",
        type=lambda text: frozenset(map(Kind, text.split(","))),
        default=ALL,
        help=f"of faults, of {','.join(kind.value for kind in Kind if kind in ALL)}; default: all",
    )
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
