"""The log under faults: a full disk, a directory that goes away, `kill -9` at any instant."""

from __future__ import annotations

import contextlib
import logging
import mmap
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import wait_until
from test_log import CONFIG, READERS, definition, report, write_trial, writer
from test_log_readers import counts
from test_log_resume import resume

from dask_hpo import load_experiment
from dask_hpo.errors import LogError
from dask_hpo.log import writer as writer_module
from dask_hpo.log.directory import create_experiment, read_end
from dask_hpo.log.reader import read_clock
from dask_hpo.log.replay import read_rows
from dask_hpo.log.writer import LogWriter


def command(*arguments):
    """Run what only root may, or skip the test."""
    done = subprocess.run(list(map(str, arguments)), check=False, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"this machine cannot {arguments[0]}: {done.stderr.strip()}")


@pytest.fixture
def disk(tmp_path):
    """Give a file system of its own of 8 MiB.

    It is no tmpfs, on a full one of which Linux kills with SIGBUS whoever reads a file with holes
    through a memory map, as Polars does.
    """
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("only root on Linux can mount a small file system to fill")
    image, folder = tmp_path / "image", tmp_path / "disk"
    image.write_bytes(b"")
    os.truncate(image, 8 << 20)
    folder.mkdir()
    if shutil.which("mkfs.ext4") is None:
        pytest.skip("this machine has no mkfs.ext4")
    command("mkfs.ext4", "-q", "-F", "-O", "^has_journal", image)
    command("mount", "-o", "loop", image, folder)
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def fill(disk, leave=0):
    """Fill a disk but for so many bytes, and return the file that fills it."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    os.truncate(ballast, ballast.stat().st_size - leave)
    return ballast


class Told(logging.Handler):
    """Call a function once, when the log says something to people."""

    def __init__(self, text, action):
        super().__init__()
        self.text, self.action = text, action
        self.messages = []

    def emit(self, record):
        self.messages.append(record.getMessage())
        if self.action is not None and self.text in self.messages[-1]:
            action, self.action = self.action, None
            action()


@contextlib.contextmanager
def told(text="", action=None):
    handler = Told(text, action)
    logging.getLogger("dask_hpo").addHandler(handler)
    try:
        yield handler
    finally:
        logging.getLogger("dask_hpo").removeHandler(handler)


@pytest.fixture
def heeds_ctrl_c():
    """Python ignores SIGINT where it was started in the background.

    Where it does not, the handler stays as it is: Polars has put one around it, with SA_RESTART.
    """
    before = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    if before is signal.SIG_IGN:
        signal.signal(signal.SIGINT, before)


def interrupt():
    signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)


# Full disks


def test_a_full_disk_pauses_the_log_and_all_is_written_when_there_is_room(disk):
    log = writer(disk, flush_interval_s=0.01)
    events = disk / "e" / "events"
    write_trial(log, 0)
    log.flush()
    ballast = fill(disk)
    with told() as handler:
        write_trial(log, 1)
        log.save_output(1, 1, "what it wrote\n", "")
        log.tick(7.5)
        wait_until(lambda: handler.messages)
        assert "No space left on device" in handler.messages[0]
        assert "make room" in handler.messages[0]
        assert counts(events) == dict.fromkeys(READERS, 4)
        write_trial(log, 2, late=1.0)
        log.flush()
        assert counts(events) == dict.fromkeys(READERS, 4)
        assert len(handler.messages) == 1  # loud, and once
        ballast.unlink()
        wait_until(lambda: "written again, whole" in handler.messages[-1])
    assert counts(events) == dict.fromkeys(READERS, 12)
    assert read_clock(disk / "e") == 7.5
    assert (disk / "e" / "output" / "trial-000001-1.stdout").read_text() == "what it wrote\n"
    log.close()


def test_the_end_waits_for_room_and_loses_nothing(disk):
    log = writer(disk, flush_interval_s=0.01)
    ballast = fill(disk)
    write_trial(log, 0)
    log.tick(1.0)
    log.finish("finished", "exhausted", 2.0)
    with told("The run is over and waits", ballast.unlink) as handler:
        log.close()
    assert any("Ctrl-C saves" in message for message in handler.messages)
    assert counts(disk / "e" / "events") == dict.fromkeys(READERS, 4)
    assert read_end(disk / "e")["reason"] == "exhausted"
    assert read_clock(disk / "e") == 1.0


def test_whoever_waits_is_told_again(disk, monkeypatch):
    monkeypatch.setattr(writer_module, "COMPLAINT_INTERVAL_S", 0.3)
    monkeypatch.setattr(writer_module, "RETRY_INTERVAL_S", 0.05)
    log = writer(disk, flush_interval_s=0.01)
    ballast = fill(disk)
    with told() as handler:
        write_trial(log, 0)
        wait_until(lambda: len(handler.messages) == 3)
        ballast.unlink()
        log.close()


@pytest.mark.usefixtures("heeds_ctrl_c")
def test_a_person_who_gives_up_keeps_the_rows(disk, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    log = writer(disk, flush_interval_s=0.01)
    write_trial(log, 0)
    log.flush()
    ballast = fill(disk)
    write_trial(log, 1, late=0.5)
    log.save_output(1, 1, "", "error\n")
    log.finish("finished", "exhausted", 2.0)
    with told("Ctrl-C", interrupt), pytest.raises(LogError, match=r"4 rows .*No space left") as e:
        log.close()
    (saved,) = tmp_path.glob("dask-hpo-e-*")
    assert str(saved) in str(e.value)
    assert (saved / "output" / "trial-000001-1.stderr").read_text() == "error\n"
    assert load_experiment(disk / "e").status == "dead"

    ballast.unlink()  # and now as the message says
    shutil.move(saved / "part-000001.parquet", disk / "e" / "events")
    log = resume(disk)
    write_trial(log, 2)
    log.close()
    assert counts(disk / "e" / "events") == dict.fromkeys(READERS, 12)
    assert [row.event.trial_id for row in read_rows(disk / "e")] == [0] * 4 + [1] * 4 + [2] * 4


@pytest.mark.usefixtures("heeds_ctrl_c")
def test_ctrl_c_while_the_disk_is_well_loses_nothing(tmp_path, monkeypatch):
    log = writer(tmp_path, flush_interval_s=0.01)
    write_trial(log, 0)
    log.finish("interrupted", "interrupted", 1.0)
    take_in = log._take_in
    interrupts = iter([interrupt])
    monkeypatch.setattr(log, "_take_in", lambda: (next(interrupts, int)(), take_in()))
    with pytest.raises(KeyboardInterrupt):
        log.close()
    assert len(read_rows(tmp_path / "e")) == 4
    assert read_end(tmp_path / "e")["status"] == "interrupted"
    resume(tmp_path).close()


# Directories that go away


def test_a_directory_that_is_renamed_away_and_back(tmp_path):
    log = writer(tmp_path, flush_interval_s=0.01)
    write_trial(log, 0)
    log.flush()
    with told() as handler:
        (tmp_path / "e").rename(tmp_path / "away")
        write_trial(log, 1)
        log.tick(9.0)
        wait_until(lambda: handler.messages)
        assert "unmounted, or renamed away" in handler.messages[0]
        assert not (tmp_path / "e").exists()
        (tmp_path / "away").rename(tmp_path / "e")
        wait_until(lambda: "written again, whole" in handler.messages[-1])
    log.close()
    assert len(read_rows(tmp_path / "e")) == 8


def test_nothing_is_written_to_an_empty_mount_point(disk, tmp_path):
    """The hardest case: the mount point is the experiment's own directory, and stays there."""
    what = definition()
    create_experiment(what, disk)
    point = tmp_path / "e"
    point.mkdir()
    command("mount", "--bind", disk / "e", point)
    log = LogWriter(point, what, flush_interval_s=0.01)
    with told() as handler:
        subprocess.run(["umount", "-l", point], check=True)
        write_trial(log, 0)
        log.save_output(0, 1, "out\n", "")
        wait_until(lambda: handler.messages)
        log.flush()
        assert list(point.iterdir()) == []
        command("mount", "--bind", disk / "e", point)
        wait_until(lambda: "written again, whole" in handler.messages[-1])
    log.close()
    assert len(read_rows(point)) == 4
    subprocess.run(["umount", "-l", point], check=True)


# kill -9

# Forks a writer for each line it reads, and kills it after so many seconds. A fork is faster than
# a new interpreter, and this process has no thread that a fork would lose.
KILLER = """
import mmap, os, signal, struct, sys, time
from pathlib import Path

sys.path.insert(0, {tests!r})
import test_log_faults

root = Path({root!r})
for line in sys.stdin:
    pid = os.fork()
    if pid == 0:
        test_log_faults.write_numbered(root)
    time.sleep(float(line))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    print(time.monotonic(), flush=True)
"""
MAX_ROWS = 100_000


def append_times(root):
    """Map when each row was appended, in seconds of the monotonic clock; 0 if it never was."""
    with (root.parent / "append-times").open("r+b") as file:
        return np.frombuffer(mmap.mmap(file.fileno(), 0), dtype=float)


def append_numbered(log, number):
    """Append the row of this number; a metric appears late every 100 rows."""
    late = {f"late_{number // 100}": 1.0} if number % 100 > 50 else {}
    event = report(number, 1, error=0.5, **late)
    log.append(event, config=CONFIG, value=0.5, worker="w", slots=1, step=1)


def write_numbered(root):
    """Go on with the log until killed."""
    log = resume(root, part_rows=30, flush_interval_s=0.002)
    times = append_times(root)
    number = len(read_rows(root / "e"))
    while True:
        for _ in range(5):
            times[number] = time.monotonic()
            append_numbered(log, number)
            number += 1
        time.sleep(0.002)  # the pace of a large cluster


@contextlib.contextmanager
def killed_writers(root):
    """Give a function that runs a writer for so many seconds, and returns when it was killed."""
    create_experiment(definition(), root)
    (root.parent / "append-times").write_bytes(bytes(8 * MAX_ROWS))
    code = KILLER.format(tests=str(Path(__file__).parent), root=str(root))
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as killer:

        def run(seconds):
            print(seconds, file=killer.stdin, flush=True)
            return float(killer.stdout.readline())

        yield run
        killer.stdin.close()


def rows_on_disk(root):
    """Return how many rows every reader sees, having checked that they are the first ones."""
    folder = root / "e" / "events"
    if not folder.exists():
        return 0
    for name in ("pandas", "polars", "duckdb"):
        numbers = READERS[name](str(folder))["trial_id"]
        assert list(numbers) == list(range(len(numbers))), name
    return len(numbers)


def test_a_log_outlives_fifteen_kills(tmp_path):
    root = tmp_path / "root"
    rng = random.Random(7)
    with killed_writers(root) as run:
        times = append_times(root)
        for _ in range(15):
            killed_at = run(rng.uniform(0.02, 0.6))
            rows = rows_on_disk(root)
            assert not (times[rows:] > 0).any() or times[rows:][times[rows:] > 0].min() > (
                killed_at - 1
            ), "at most the last second was not yet written"
            times[rows:] = 0
    assert len(pq.read_schema(root / "e" / "events" / "part-000000.parquet")) > 25  # late ones
    log = resume(root, part_rows=30)
    append_numbered(log, rows)
    log.close()
    assert rows_on_disk(root) == rows + 1
    assert not list((root / "e").glob(".*.scratch"))


def test_a_writer_that_is_killed_on_a_disk_that_is_full(disk):
    rng = random.Random(8)
    with killed_writers(disk) as run:
        run(0.2)
        ballast = fill(disk, leave=200_000)
        full = []
        for _ in range(8):
            run(rng.uniform(0.1, 0.6))
            full.append(rows_on_disk(disk))
        assert full == sorted(full)
        assert full[-1] == full[-2]  # there was room for no more
        ballast.unlink()
        run(0.5)
        rows = rows_on_disk(disk)
        assert rows > full[-1]
    log = resume(disk, part_rows=30)
    append_numbered(log, rows)
    log.close()
    assert rows_on_disk(disk) == rows + 1
