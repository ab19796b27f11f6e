"""The objective of a run: it reports, ends as its configuration says, and keeps its own account.

The account stands in the run's folder, apart from everything that the tuner writes: a line in
``begun`` when an execution begins, and a file in ``ended/`` just before it returns or raises.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import time
from pathlib import Path

from dask_hpo import choice, randint, uniform
from dask_hpo.report import report

#: The variable that marks every process of a run, whoever started it; the run's folder.
MARK = "DASK_HPO_CHAOS"


def space(isolation: str) -> dict[str, object]:
    """Return the search space of a run; only a trial with a process can have a child swept."""
    endings = ["returns", "raises"] + ["leaves a child"] * (isolation != "thread")
    return {
        "x": uniform(0, 1),
        "steps": randint(2, 8),
        "seconds": uniform(0.2, 1.5),
        "ending": choice(endings),
    }


def train(x, steps, seconds, ending):
    """Train for some seconds; no other execution, not even of the same trial, has these values."""
    folder = Path(os.environ[MARK])
    trial, attempt = who_am_i()
    execution = int.from_bytes(os.urandom(6), "big")
    with (folder / "begun").open("a") as begun:  # one short line: appended in one piece
        begun.write(f"{trial} {attempt} {execution} {os.getpid()}\n")
    if ending == "leaves a child":
        subprocess.Popen(["sleep", "600"])
    errors = []
    for step in range(1, steps + 1):
        time.sleep(seconds / steps)
        errors.append(x / step + random.random())
        report(error=errors[-1], execution=execution)
    returned = None if ending == "raises" else x + random.random()
    account = {"trial": trial, "attempt": attempt, "execution": execution}
    account |= {"errors": errors, "returned": returned}
    unseen = folder / f".{execution}.json"
    unseen.write_text(json.dumps(account))
    unseen.replace(folder / "ended" / f"{trial}-{attempt}-{execution}.json")
    if returned is None:
        raise ValueError(f"execution {execution} was to fail")
    return {"error": returned, "execution": execution}


def who_am_i() -> tuple[int, int]:
    """Return the number of this trial and of its attempt."""
    if "DASK_HPO_TRIAL_ID" in os.environ:
        return int(os.environ["DASK_HPO_TRIAL_ID"]), int(os.environ["DASK_HPO_ATTEMPT"])
    from distributed import get_worker  # a trial in a thread: its task is named after it

    _, trial, attempt = get_worker().get_current_task().rsplit("-", 2)
    return int(trial), int(attempt)
