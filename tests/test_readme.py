"""The README's code runs as it stands, but for shorter times and other places."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import duckdb
import pytest
from click.testing import CliRunner

from dask_hpo.cli import hpo
from dask_hpo.experiment import load_experiment

README = (Path(__file__).parent.parent / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)


def block(language, containing):
    (text,) = [body for kind, body in BLOCKS if kind == language and containing in body]
    return text


@pytest.fixture
def training_script(tmp_path):
    script = block("python", "error = ...").replace(
        "error = ...", "error = args.learning_rate / epoch"
    )
    (tmp_path / "train_script.py").write_text(script)
    return tmp_path


def environment(folder):
    return {**os.environ, "DASK_HPO__PATH": str(folder / "dask-hpo"), "MPLBACKEND": "agg"}


def test_the_example(training_script):
    code = block("python", "n_workers=4").replace(
        "max_wallclock_time=600", "max_num_trials_completed=4"
    )
    (training_script / "main.py").write_text(code)  # with no `if __name__ == "__main__"`
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "main.py"],
        check=False,
        cwd=training_script,
        capture_output=True,
        text=True,
        timeout=120,
        env=environment(training_script),
    )
    assert done.returncode == 0, done.stderr
    (path,) = (training_script / "dask-hpo").iterdir()
    assert len(load_experiment(path).trials) >= 4


def test_the_training_script_by_hand(training_script):
    done = subprocess.run(
        [sys.executable, "train_script.py", "--learning_rate", "0.5", "--max_epochs", "2"],
        check=False,
        cwd=training_script,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "validation_error=0.5" in done.stdout
    assert "validation_error=0.25" in done.stdout


def test_the_script_with_checkpoints(tmp_path):
    script = tmp_path / "train_script.py"
    script.write_text(block("python", "checkpoint_dir"))
    (tmp_path / "here").mkdir()

    def train(max_epochs):
        return subprocess.check_output(
            [*(sys.executable, script, "--learning_rate", "0.5"), "--max_epochs", str(max_epochs)],
            cwd=tmp_path,
            text=True,
            env={**os.environ, "DASK_HPO_CHECKPOINTS": str(tmp_path / "here")},
        )

    assert train(2).splitlines()[-1] == "step 2: validation_error=0.25"
    assert train(3) == "step 3: validation_error=0.125\n"


def test_the_commands_and_the_query(training_script):
    commands = block("console", "dask hpo run").replace("\\\n", " ")
    for line in commands.splitlines():
        command = line.removeprefix("$ ").replace(
            "--max-wallclock-time 600", "--max-num-trials-completed 4"
        )
        bin_folder = str(Path(sys.executable).parent)
        env = environment(training_script)
        env["PATH"] = bin_folder + os.pathsep + env["PATH"]
        done = subprocess.run(
            command,
            shell=True,
            check=False,
            cwd=training_script,
            capture_output=True,
            text=True,
            timeout=120,
            env=env,
        )
        assert done.returncode == 0, (command, done.stderr)
    assert (training_script / "first.png").exists()
    query = re.search(r'"""(.*?)"""', block("python", "duckdb"), re.DOTALL).group(1)
    rows = duckdb.sql(query.replace("~/dask-hpo", str(training_script / "dask-hpo"))).fetchall()
    best = load_experiment(training_script / "dask-hpo" / "first").best
    assert rows[0][0] == best.trial_id
    assert rows[0][3] == best.value


def test_every_command_stands_in_the_readme():
    listed = CliRunner().invoke(hpo, ["--help"]).output.split("Commands:")[1]
    for name in re.findall(r"^  (\w+)", listed, re.MULTILINE):
        assert f"dask hpo {name}" in README


def test_the_order_that_readers_need():
    titles = re.findall(r"^## (.*)$", README, re.MULTILINE)
    assert titles[:5] == [
        "Two commands",
        "The example",
        "What the demo draws",
        "On an existing cluster",
        "Reading the log",
    ]
