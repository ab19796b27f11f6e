"""The command line, as a person uses it: real processes, exit statuses, what is printed."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest
from click.testing import CliRunner
from conftest import wait_until

from dask_hpo import load_experiment
from dask_hpo.cli import hpo

SCRIPT = """
import argparse, os, time
from dask_hpo import Reporter

parser = argparse.ArgumentParser()
parser.add_argument("--learning_rate", type=float)
parser.add_argument("--batch_size", type=int)
parser.add_argument("--max_epochs", type=int)
parser.add_argument("--wait", type=float, default=0)
args = parser.parse_args()
report = Reporter()
for epoch in range(1, args.max_epochs + 1):
    report(epoch=epoch, validation_error=args.learning_rate / epoch)
    time.sleep(args.wait)
"""

ARGUMENTS = (
    "--param",
    "learning_rate=loguniform(1e-5, 1e-1)",
    "--param",
    "batch_size=randint(8, 128)",
    "--param",
    "max_epochs=3",
    "--metric",
    "validation_error",
    "--mode",
    "min",
    "--seed",
    "0",
    "--n-workers",
    "2",
)


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "train.py"
    path.write_text(SCRIPT)
    return path


def dask(*arguments, cwd, **more):
    """Run `dask ...` in the environment of the tests."""
    command = [Path(sys.executable).with_name("dask"), *map(str, arguments)]
    return subprocess.run(
        command, check=False, cwd=cwd, capture_output=True, text=True, timeout=120, **more
    )


def test_run_list_show_plot(script, tmp_path):
    root = tmp_path / "experiments"
    done = dask(
        *("hpo", "run", script, *ARGUMENTS, "--max-num-trials-completed", 6),
        *("--max-wallclock-time", 60, "--name", "first", "--path", root),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert str(root / "first") in done.stdout
    assert "best" in done.stdout

    listed = dask("hpo", "list", "--path", root, cwd=tmp_path)
    assert listed.returncode == 0, listed.stderr
    assert "first" in listed.stdout

    shown = dask("hpo", "show", "first", "--json", "--path", root, cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    summary = json.loads(shown.stdout)
    experiment = load_experiment(root / "first")
    assert summary["name"] == "first"
    assert summary["status"] == "finished"
    assert summary["path"] == str(root / "first")
    assert 6 <= summary["trials"]["completed"] <= 7  # one may end as the other is being stopped
    assert summary["best"]["trial_id"] == experiment.best.trial_id
    assert summary["best"]["value"] == experiment.best.value
    assert summary["best"]["config"]["max_epochs"] == 3
    assert summary["wallclock_time"] > 0
    assert 0 < summary["slot_utilisation"] <= 1

    text = dask("hpo", "show", root / "first", cwd=tmp_path)
    assert text.returncode == 0, text.stderr
    assert "first" in text.stdout

    drawn = dask("hpo", "plot", "first", "-o", "picture.png", "--path", root, cwd=tmp_path)
    assert drawn.returncode == 0, drawn.stderr
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_the_environment_names_the_place_of_experiments(script, tmp_path):
    env = {**os.environ, "DASK_HPO__PATH": str(tmp_path / "elsewhere")}
    done = dask(
        *("hpo", "run", script, *ARGUMENTS, "--max-num-trials-started", 2, "--name", "there"),
        cwd=tmp_path,
        env=env,
    )
    assert done.returncode == 0, done.stderr
    assert load_experiment(tmp_path / "elsewhere" / "there").status == "finished"


def test_run_on_an_existing_cluster(script, tmp_path, shared_cluster):
    done = dask(
        *("hpo", "run", script, *ARGUMENTS, "--max-num-trials-started", 4),
        *("--address", shared_cluster.address, "--path", tmp_path, "--name", "there"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    workers = set(load_experiment(tmp_path / "there").events["worker"])
    assert workers <= set(shared_cluster.workers())


SAVES = """
from dask_hpo import checkpoint_dir
with checkpoint_dir().save(step=args.max_epochs) as folder:
    (folder / "model").write_text("weights")
"""


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_place_for_checkpoints(script, tmp_path, scheme):
    script.write_text(SCRIPT + SAVES)
    done = dask(
        *("hpo", "run", script, *ARGUMENTS, "--max-num-trials-started", 2, "--name", "there"),
        *("--path", tmp_path / "experiments", "--checkpoints", f"{scheme}{tmp_path}/store"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    files = sorted(str(f.relative_to(tmp_path / "store")) for f in tmp_path.rglob("model"))
    assert files == [f"there/trial-00000{i}/step-000003/model" for i in range(2)]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["--param", "x=loguniform(0, 1)"], "loguniform(0, 1)"),
        (["--param", "x=__import__('os')"], "__import__"),
        (["--param", "x"], "NAME=DOMAIN"),
        (["--param", "max_epochs=5"], "given twice"),
        (["--resources", "GPU"], "GPU=1"),
        (["--max-wallclock-time", "-3"], "max_wallclock_time=-3"),
        (["--name", "../up"], "../up"),
        (["--seed", "-1"], "random_seed=-1"),
        (["--trial-timeout", "0"], "trial_timeout=0"),
        (["--report-timeout", "-1"], "report_timeout=-1"),
        (["--memory-limit", "a lot"], "memory_limit='a lot'"),
        (["--max-lost-attempts", "-1"], "max_lost_attempts=-1"),
    ],
)
def test_bad_arguments_end_with_a_message_and_leave_nothing(script, tmp_path, changes, words):
    root = tmp_path / "experiments"
    result = CliRunner().invoke(
        hpo, ["run", str(script), *ARGUMENTS, *changes, "--path", str(root)]
    )
    assert result.exit_code == 1, result.output
    assert words in result.output
    assert "Traceback" not in result.output
    assert not root.exists()


def test_a_script_that_does_not_exist(tmp_path):
    result = CliRunner().invoke(hpo, ["run", str(tmp_path / "trian.py"), *ARGUMENTS])
    assert result.exit_code == 1
    assert "trian.py" in result.output


def test_a_script_that_crashes_shows_its_error_and_fails(script, tmp_path):
    script.write_text("import argparse\nraise SystemExit('no data in /data')\n")
    done = dask("hpo", "run", script, *ARGUMENTS, "--path", tmp_path / "e", cwd=tmp_path)
    assert done.returncode == 1
    assert "no data in /data" in done.stderr
    assert "gave up" in done.stderr


def test_scripts_that_hang_are_ended_and_show_where(script, tmp_path):
    script.write_text("import time\nprint('so far', flush=True)\ntime.sleep(1000)\n")
    limits = ("--report-timeout", 1, "--trial-timeout", 60, "--memory-limit", "4 GB")
    done = dask("hpo", "run", script, *ARGUMENTS, *limits, "--path", tmp_path, cwd=tmp_path)
    assert done.returncode == 1
    assert "ReportTimeout: the trial reported nothing for 1." in done.stderr
    assert "line 3 in <module>" in done.stderr


def test_show_an_experiment_that_does_not_exist(tmp_path):
    result = CliRunner().invoke(hpo, ["show", "nothing", "--path", str(tmp_path)])
    assert result.exit_code == 1
    assert "nothing" in result.output


def test_a_metric_that_is_never_a_number_is_no_success(script, tmp_path):
    script.write_text(SCRIPT.replace("args.learning_rate / epoch", "float('nan')"))
    done = dask(
        *("hpo", "run", script, *ARGUMENTS, "--max-num-trials-started", 2),
        *("--path", tmp_path / "e"),
        cwd=tmp_path,
    )
    assert done.returncode == 1
    assert "no trial gave a finite" in done.stderr


def descendants(process):
    return psutil.Process(process.pid).children(recursive=True)


def start_endless(script, tmp_path, **more):
    command = [
        *(Path(sys.executable).with_name("dask"), "hpo", "run", script, *ARGUMENTS),
        *("--param", "wait=60", "--name", "endless", "--path", tmp_path),
    ]
    return subprocess.Popen([str(part) for part in command], start_new_session=True, **more)


def reports_on_disk(path):
    return lambda: path.exists() and len(load_experiment(path).reports) >= 2


def test_ctrl_c_stops_cleanly_with_everything_kept(script, tmp_path):
    process = start_endless(
        script, tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    wait_until(reports_on_disk(tmp_path / "endless"), 60, "two reports on disk")
    running = descendants(process)
    assert load_experiment(tmp_path / "endless").status == "running"
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the driver and all its children
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    experiment = load_experiment(tmp_path / "endless")
    assert experiment.status == "interrupted"
    assert set(experiment.trials["state"]) == {"stopped"}
    assert len(experiment.reports) >= 2
    assert "best" in out
    assert psutil.wait_procs(running, timeout=10)[1] == []


def test_a_killed_driver_leaves_a_readable_log_and_no_process(script, tmp_path):
    process = start_endless(script, tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_until(reports_on_disk(tmp_path / "endless"), 60, "two reports on disk")
    running = descendants(process)
    process.kill()
    process.wait()
    assert psutil.wait_procs(running, timeout=30)[1] == []
    experiment = load_experiment(tmp_path / "endless")
    assert experiment.status == "dead"
    assert experiment.best is not None


def test_a_terminal_shows_a_live_line(script, tmp_path):
    leader, follower = pty.openpty()
    command = [
        *(Path(sys.executable).with_name("dask"), "hpo", "run", script, *ARGUMENTS),
        *("--max-num-trials-started", "6", "--path", tmp_path),
    ]
    process = subprocess.Popen(
        [str(part) for part in command],
        stdout=subprocess.DEVNULL,
        stderr=follower,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "140"},
    )
    os.close(follower)
    shown = bytearray()

    def read():
        try:
            while data := os.read(leader, 65536):
                shown.extend(data)
        except OSError:  # the other end is closed
            pass

    reader = threading.Thread(target=read)
    reader.start()
    assert process.wait(120) == 0
    reader.join(10)
    os.close(leader)
    text = shown.decode()
    for words in ("trials:", "running", "failed", "slots:", "reports/s", "best validation_error"):
        assert words in text


def test_every_command_has_help():
    for command in ("run", "list", "show", "plot", "demo"):
        result = CliRunner().invoke(hpo, [command, "--help"])
        assert result.exit_code == 0
        assert len(result.output) > 100
