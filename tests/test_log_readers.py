"""The folder of parts after its writer was killed, at each step that it takes on the disk."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from test_log import READERS, append, create_experiment, definition, report, write_trial, writer

from dask_hpo.errors import LogError
from dask_hpo.log import parts as parts_module
from dask_hpo.log.directory import is_running
from dask_hpo.log.writer import LogWriter

KILLED_WHILE_WIDENING = """
import os, sys
sys.path.insert(0, {tests!r})
from pathlib import Path
import test_log


def write(root, kill_at):
    log = test_log.writer(root, part_rows=8, flush_interval_s=1000)
    for number in range(5):
        test_log.write_trial(log, number)
    log.flush()
    steps = iter(range(1, kill_at))

    def audit(event, arguments):
        if (
            event in ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir")
            and isinstance(arguments[0], (str, bytes, os.PathLike))
            and str(root) in os.fsdecode(arguments[0])
            and next(steps, None) is None
        ):
            os._exit(9)

    sys.addaudithook(audit)
    test_log.write_trial(log, 5, late=1.0)
    log.flush()
    os._exit(0)


kill_at, code = 0, 9
while code == 9:  # no thread runs before the fork, and a fork is faster than a new interpreter
    kill_at += 1
    pid = os.fork()
    if pid == 0:
        write(Path({root!r}) / str(kill_at), kill_at)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
sys.exit(code)
"""


def counts(folder):
    return {name: len(read(str(folder))) for name, read in READERS.items()}


def test_a_writer_killed_at_any_step_of_widening_leaves_one_schema(tmp_path):
    """Every step: writers do the same, and each is killed one step on the disk later."""
    code = KILLED_WHILE_WIDENING.format(tests=str(Path(__file__).parent), root=str(tmp_path))
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=60)
    seen = [counts(root / "e" / "events") for root in tmp_path.iterdir()]
    assert len(seen) > 10  # or the hook has missed what the writer does
    assert all(rows in (dict.fromkeys(READERS, 20), dict.fromkeys(READERS, 24)) for rows in seen)


def test_parts_are_widened_where_directories_cannot_change_places(tmp_path, monkeypatch):
    monkeypatch.setattr(parts_module, "exchange", lambda first, second: False)
    log = writer(tmp_path, part_rows=5)
    for number in range(3):
        write_trial(log, number)
    log.flush()
    write_trial(log, 3, late=1.0)
    log.close()
    assert counts(tmp_path / "e" / "events") == dict.fromkeys(READERS, 16)
    assert not list((tmp_path / "e").glob(".*.scratch"))


def test_a_log_is_never_written_over(tmp_path):
    log = writer(tmp_path)
    append(log, report(0, 1, error=1.0), 1.0, 1)
    log.close()
    with pytest.raises(LogError, match="stands there already"):
        LogWriter(tmp_path / "e", definition())
    assert counts(tmp_path / "e" / "events") == dict.fromkeys(READERS, 1)


def test_a_second_writer_leaves_the_files_of_the_first_alone(tmp_path):
    log = writer(tmp_path, flush_interval_s=1000)
    scratch = tmp_path / "e" / ".part-000000.parquet.scratch"
    scratch.write_bytes(b"a version that the first writer is about to publish")
    with pytest.raises(LogError, match="another driver"):
        LogWriter(tmp_path / "e", definition())
    assert scratch.exists()
    log.close()


def test_the_folder_of_parts_is_never_seen_without_a_part(tmp_path):
    path = create_experiment(definition(), tmp_path)
    assert not (path / "events").exists()
    LogWriter(path, definition()).close()
    assert counts(path / "events") == dict.fromkeys(READERS, 0)


def test_two_who_ask_at_once_do_not_take_each_other_for_the_driver(tmp_path):
    writer(tmp_path).close()
    answers = []
    threads = [
        threading.Thread(
            target=lambda: answers.extend(is_running(tmp_path / "e") for _ in range(500))
        )
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 2000
    assert not any(answers)


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root may become another user"
)
def test_someone_who_may_only_read_sees_that_it_runs(tmp_path):
    log = writer(tmp_path)
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == 0 and not folder.stat().st_mode & 0o001:
            folder.chmod(folder.stat().st_mode | 0o005)
    pid = os.fork()
    if pid == 0:
        os.setgid(65534)
        os.setuid(65534)
        os._exit(3 if is_running(tmp_path / "e") else 4)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 3
    log.close()
