"""Trials that misbehave in every way we know, in one experiment, beside trials that do not."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
import types
from contextlib import suppress
from pathlib import Path

import cloudpickle
import psutil
import pytest
from conftest import wait_until

from dask_hpo import FIFOScheduler, StoppingCriterion, Tuner, choice
from dask_hpo.errors import OptionError
from dask_hpo.report import report

# The workers of these tests run elsewhere and cannot import this file.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

MEGABYTE = 10**6
FOR_EVER = 1_000


def hangs():
    while True:
        report(error=1)
        time.sleep(0.05)


def falls_silent():
    report(error=1)
    time.sleep(FOR_EVER)


def ignores_sigterm():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(FOR_EVER)


def grows():
    if os.fork() == 0:
        grown = []
        while True:
            grown.append(b"x" * MEGABYTE)
    time.sleep(FOR_EVER)


def exits():
    print("what it wrote last", file=sys.stderr)
    os._exit(7)


def crashes():
    import ctypes

    ctypes.string_at(0)


def raises_what_only_it_knows():
    module = sys.modules["only_there"] = types.ModuleType("only_there")
    exec("class OddError(Exception): pass", module.__dict__)
    raise module.OddError("a strange thing")


def returns_a_lock():
    return threading.Lock()


def returns_a_generator():
    return (i for i in range(3))


def returns_bytes():
    return bytes(100 * MEGABYTE)


def returns_an_array():
    import numpy as np

    return np.zeros(100 * MEGABYTE // 8)


def leaves_children():
    subprocess.Popen(["sleep", str(FOR_EVER)])
    if os.fork() == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(FOR_EVER)
    return 1


def floods_stdout():
    for _ in range(200):
        sys.stdout.write("x" * MEGABYTE)
        report(error=2)
    return 1


def reports_a_long_text():
    report(error=1, text="x" * 100 * MEGABYTE)


WAITS = "waits"
#: How each ends, and words of the reason
KINDS = {
    hangs: ("failed", r"^TrialTimeout: .* longer than trial_timeout=8 s"),
    falls_silent: ("failed", r"^ReportTimeout: .* longer than report_timeout=3 s"),
    ignores_sigterm: ("failed", r"^ReportTimeout: .* longer than report_timeout=3 s"),
    grows: ("failed", r"^MemoryLimitExceeded: .* more than memory_limit=476\.84 MiB"),
    exits: ("failed", r"exited with status 7 .* stderr ends: what it wrote last"),
    crashes: ("failed", r"killed by SIGSEGV \(segmentation fault\)"),
    raises_what_only_it_knows: ("failed", r"^OddError: a strange thing$"),
    returns_a_lock: ("failed", r"the objective returned <unlocked _thread\.lock.*> of type lock"),
    returns_a_generator: ("failed", r"the objective returned <generator.*> of type generator"),
    returns_bytes: ("failed", r"the objective returned b'\\x00.*\.\.\. of type bytes"),
    returns_an_array: ("failed", r"the objective returned array\(.* of type ndarray"),
    # These are no failures: they cost nobody anything.
    leaves_children: ("completed", None),
    floods_stdout: ("completed", None),
    reports_a_long_text: ("completed", None),
}
FUNCTIONS = {function.__name__: function for function in KINDS}
EXPECTED = {function.__name__: end for function, end in KINDS.items()}


def objective(kind, well, folder):
    Path(folder, os.environ["DASK_HPO_TRIAL_ID"]).write_text(str(os.getpid()))
    if kind == WAITS:
        while not Path(folder, "release").exists():
            report(error=9)
            time.sleep(0.05)
        return None
    if not well:
        return FUNCTIONS[kind]()
    for step in range(10, 0, -1):
        report(error=step + len(kind))
        time.sleep(0.05)
    return len(kind)


def groups(pids):
    """Return the processes of these groups."""
    found = []
    for pid in psutil.pids():
        with suppress(OSError):
            found += [pid] * (os.getpgid(pid) in pids)
    return found


def test_each_misbehaviour_is_one_failed_trial_and_nothing_else(dask_processes, tmp_path):
    worker = dask_processes.add_worker(nthreads=2)
    folder = tmp_path / "pids"
    folder.mkdir()
    space = {
        "kind": choice([*EXPECTED, WAITS]),
        "well": choice([False, True]),
        "folder": str(folder),
    }
    run = Tuner(
        objective,
        FIFOScheduler(space, "grid", metric="error", random_seed=0),
        StoppingCriterion(max_wallclock_time=120, max_failure_rate=1.0),
        client=dask_processes.client,
        path=tmp_path,
        progress=False,
        trial_timeout=8,
        report_timeout=3,
        memory_limit="500 MB",
        grace_period_s=0.3,
    )
    seen = []
    thread = threading.Thread(target=lambda: seen.append(run.run()))
    thread.start()
    others = 2 * len(EXPECTED)
    try:
        # Two that wait hold both slots then: every trial before them has left its own.
        wait_until(
            lambda: len(run.tuning.trials) == others + 2 and len(run.tuning.active) == 2,
            timeout=100,
            what="the end of all that misbehave",
        )
        wait_until((folder / str(others + 1)).exists, what="the last trial")
        pids = {int((folder / str(number)).read_text()) for number in range(others)}
        assert groups(pids) == []
        assert psutil.Process(worker.pid).memory_info().rss < 400 * MEGABYTE
    finally:
        (folder / "release").touch()
        thread.join(60)
    (experiment,) = seen

    ends = experiment.events.query("kind == 'end'").set_index("trial_id")
    assert ends.index.is_unique
    assert sorted(ends.index) == list(range(others + 2))
    for _, end in ends[~ends["config_well"] & (ends["config_kind"] != WAITS)].iterrows():
        status, words = EXPECTED[end["config_kind"]]
        assert end["status"] == status, end["failure"]
        if words is not None:
            assert re.search(words, end["failure"]), end["failure"]
            assert len(end["failure"]) < 400
    for _, end in ends[ends["config_well"] & (ends["config_kind"] != WAITS)].iterrows():
        assert (end["status"], end["value"]) == ("completed", len(end["config_kind"]))
    assert set(ends.loc[ends["config_kind"] == WAITS, "status"]) == {"completed"}

    silent = ends[(ends["config_kind"] == "falls_silent") & ~ends["config_well"]].iloc[0]
    assert "in falls_silent" in silent["traceback"]
    large = ends[ends["config_kind"].isin(["returns_bytes", "returns_an_array"])]
    assert large["elapsed"].max() < 3
    blocks = sum(file.stat().st_blocks for file in experiment.path.rglob("*"))
    assert blocks * 512 < MEGABYTE


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"trial_timeout": 0}, "trial_timeout=0: a positive number of seconds"),
        ({"report_timeout": "5"}, "report_timeout='5': a positive number of seconds"),
        ({"trial_timeout": float("inf")}, "trial_timeout=inf"),
        ({"memory_limit": "much"}, "memory_limit='much': a positive number of bytes"),
        ({"memory_limit": "-4 GB"}, "memory_limit='-4 GB'"),
        ({"memory_limit": True}, "memory_limit=True"),
        ({"memory_limit": 10**9, "isolation": "thread"}, "a thread cannot be killed"),
        ({"trial_timeout": 5, "isolation": "thread"}, "trial_timeout=5 with isolation='thread'"),
        ({"max_lost_attempts": -1}, "max_lost_attempts=-1: a whole number from 0 up"),
        ({"max_lost_attempts": 0.5}, r"max_lost_attempts=0\.5"),
    ],
)
def test_limits_that_are_none(options, words):
    scheduler = FIFOScheduler({"x": choice([1, 2])}, "random", metric="error")
    with pytest.raises(OptionError, match=words):
        Tuner(lambda x: x, scheduler, **options)


def test_how_often_a_lost_trial_runs_again():
    scheduler = FIFOScheduler({"x": choice([1, 2])}, "random", metric="error")
    assert Tuner(lambda x: x, scheduler, max_lost_attempts=0).tuning._max_lost_attempts == 0


@pytest.mark.parametrize(
    ("memory_limit", "expected"),
    [("4 GB", 4 * 10**9), ("1.5GiB", 3 * 2**29), (10**9, 10**9), (2e9, 2 * 10**9), (None, None)],
)
def test_memory_is_given_as_people_write_it(memory_limit, expected):
    scheduler = FIFOScheduler({"x": choice([1, 2])}, "random", metric="error")
    tuner = Tuner(lambda x: x, scheduler, memory_limit=memory_limit, isolation="process")
    assert tuner.limits.memory_limit_bytes == expected
