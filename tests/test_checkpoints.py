"""Checkpoints: whole or not there, kept by policy, and found by the next attempt elsewhere."""

from __future__ import annotations

import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from pathlib import Path

import cloudpickle
import fsspec
import psutil
import pytest
from conftest import wait_until

from dask_hpo import Checkpoints, FIFOScheduler, StoppingCriterion, Tuner, choice, uniform
from dask_hpo.checkpoints.folder import CheckpointDir
from dask_hpo.checkpoints.keeper import Keeper
from dask_hpo.checkpoints.options import Place, as_checkpoints
from dask_hpo.checkpoints.record import MARKER, Policy
from dask_hpo.core.events import Outcome, Record, TrialEnded
from dask_hpo.core.metric import Metric
from dask_hpo.core.trial import Trial, TrialState
from dask_hpo.errors import ExperimentExistsError, OptionError
from dask_hpo.report import checkpoint_dir, report, thread_channel

# The workers of these tests run elsewhere and cannot import this file.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


@pytest.fixture(autouse=True)
def temporary_folders(tmp_path, monkeypatch):
    """Hold what is synced with URLs here: as at a killed attempt, nothing closes it."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


@pytest.fixture(params=["path", "file://", "memory://"])
def location(request, tmp_path):
    if request.param == "path":
        return str(tmp_path / "trial")
    if request.param == "file://":
        return f"file://{tmp_path}/bucket/trial"
    return f"memory://bucket-{uuid.uuid4().hex}/trial"


def names_at(location):
    """Return the names of the checkpoints that are really there, incomplete ones too."""
    system, path = fsspec.core.url_to_fs(location)
    found = system.find(path) if system.exists(path) else []
    names = {file.removeprefix(path).strip("/").split("/")[0] for file in found}
    return sorted(name for name in names if not name.startswith("."))


def attempt(location, number=1, *, keep_last=1, keep_best=0, mode="min"):
    return CheckpointDir(
        Place(location, number, Policy(Metric("error", mode), keep_last, keep_best))
    )


def save(folder, step, **metrics):
    if metrics:
        folder.note(step, metrics)
    with folder.save(step=step) as path:
        (path / "state.json").write_text(json.dumps(step))
        (path / "deep").mkdir()
        (path / "deep" / "weights").write_bytes(bytes([step % 256]) * 1000)


def state_of(checkpoint):
    deep = checkpoint / "deep" / "weights"
    assert deep.read_bytes() == bytes([checkpoint.step % 256]) * 1000
    return json.loads(Path(checkpoint, "state.json").read_text())


# One trial's directory


def test_the_next_attempt_finds_the_latest(location):
    first = attempt(location)
    assert first.latest() is None
    for step in (0, 1, 2, 10):
        save(first, step)
        assert first.latest().step == step
    first.close()
    second = attempt(location, 2)
    assert (second.latest().step, state_of(second.latest())) == (10, 10)
    assert names_at(location) == ["step-000010"]
    second.close()


def test_a_block_that_raises_leaves_nothing(location):
    folder = attempt(location)
    save(folder, 1)
    with pytest.raises(FileNotFoundError), folder.save(step=2) as path:
        (path / "missing" / "half").touch()
    assert folder.latest().step == 1
    assert [entry.name for entry in folder.path.iterdir()] == ["step-000001"]
    assert attempt(location, 2).latest().step == 1


def test_the_same_step_again_replaces_it_without_a_gap(location):
    folder = attempt(location, keep_last=2)
    save(folder, 1)
    for content in ("first", "second", "third"):
        with folder.save(step=2) as path:
            (path / "which").write_text(content)
    assert (folder.latest() / "which").read_text() == "third"
    assert (attempt(location, 2, keep_last=2).latest() / "which").read_text() == "third"
    assert names_at(location) == ["step-000001", "step-000002-3"]


@pytest.mark.parametrize("mode", ["min", "max"])
def test_the_last_and_the_best_stay_over_attempts(location, mode):
    sign = 1 if mode == "min" else -1
    policy = {"keep_last": 2, "keep_best": 2, "mode": mode}
    first = attempt(location, **policy)
    for step, error in enumerate([5, 1, 3, float("nan"), 2, 4]):
        save(first, step, error=sign * error)
    expected = ["step-000001", "step-000004", "step-000005"]
    assert names_at(location) == expected
    first.close()
    second = attempt(location, 2, **policy)
    for step in (6, 7, 8):
        save(second, step, error=sign * 10)
    assert names_at(location) == ["step-000001", "step-000004", "step-000007", "step-000008"]


def test_a_value_may_be_reported_after_the_checkpoint_was_saved(location):
    first = attempt(location, keep_best=1)
    for step, error in enumerate([3, 1, 2, 4]):
        save(first, step)
        first.note(step, {"error": error})
    assert names_at(location) == ["step-000001", "step-000003"]
    second = attempt(location, 2, keep_best=1)
    save(second, 4, error=2)
    assert names_at(location) == ["step-000001", "step-000004"]


@pytest.mark.parametrize("location", ["file://", "memory://"], indirect=True)
def test_an_upload_that_was_interrupted_is_no_checkpoint(location):
    save(attempt(location), 1)
    system, path = fsspec.core.url_to_fs(location)
    system.makedirs(f"{path}/step-000002", exist_ok=True)
    system.pipe_file(f"{path}/step-000002/state.json", b"2")
    second = attempt(location, 2)
    assert second.latest().step == 1
    assert names_at(location) == ["step-000001"]


def test_a_failed_upload_keeps_the_one_before(tmp_path, monkeypatch):
    location = f"file://{tmp_path}/trial"
    folder = attempt(location)
    save(folder, 1)

    def fail(*_, **__):
        raise OSError("the network is gone")

    with monkeypatch.context() as patch:
        patch.setattr("fsspec.implementations.local.LocalFileSystem.put_file", fail)
        with pytest.raises(OSError, match="network"):
            save(folder, 2)
    assert folder.latest().step == 1
    assert [entry.name for entry in folder.path.iterdir()] == ["step-000001"]
    save(folder, 2)
    assert attempt(location, 2).latest().step == 2


def test_an_attempt_that_was_given_up_removes_nothing(location):
    first = attempt(location)
    save(first, 1)
    second = attempt(location, 2)
    latest = second.latest()
    save(first, 2)
    assert state_of(latest) == 1
    save(second, 2)
    save(second, 3)
    assert attempt(location, 3).latest().step == 3


def test_it_is_a_path_and_is_made_when_it_is_used(tmp_path):
    folder = attempt(str(tmp_path / "trial"))
    assert folder.latest() is None
    assert not (tmp_path / "trial").exists()
    assert os.fspath(folder) == str(folder) == str(tmp_path / "trial")
    (folder / "notes.txt").write_text("mine")
    save(folder, 1)
    assert (folder / "notes.txt").read_text() == "mine"


def test_what_cannot_be_a_step(tmp_path):
    folder = attempt(str(tmp_path))
    with pytest.raises(TypeError, match=r"step=1\.5"), folder.save(step=1.5):
        pass
    with pytest.raises(ValueError, match="step=-1"), folder.save(step=-1):
        pass


def test_a_place_that_cannot_be_written_says_so(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(OSError, match="give checkpoints= a path"),
        attempt(f"{tmp_path}/file/trial").save(step=1),
    ):
        pass


def test_reports_rank_checkpoints_in_a_thread(tmp_path):
    folder = attempt(str(tmp_path), keep_best=1)
    with thread_channel(lambda *_: None, folder):
        for step, error in enumerate([2, 1, 3, 4], start=1):
            report(error=error)
            save(checkpoint_dir(), step)
    assert names_at(str(tmp_path)) == ["step-000002", "step-000004"]


SAVES_FOR_EVER = """
import sys, time
from dask_hpo.checkpoints.folder import CheckpointDir
from dask_hpo.checkpoints.options import Place
from dask_hpo.checkpoints.record import Policy
from dask_hpo.core.metric import Metric
from dask_hpo.core.trial import Trial, TrialState

location, attempt = sys.argv[1:]
folder = CheckpointDir(Place(location, int(attempt), Policy(Metric("error"), 1, 1)))
latest = folder.latest()
step = latest.step + 1 if latest else 0
print("begins at", step, flush=True)
while True:
    start = time.monotonic()
    with folder.save(step=step) as path:
        for i in range(30):
            (path / str(i)).write_text(str(step) * 10_000)
    print(time.monotonic() - start, flush=True)
    step += 1
"""


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_kill_at_any_moment_leaves_whole_checkpoints(tmp_path, scheme):
    location, rng, step = f"{scheme}{tmp_path}/trial", random.Random(0), 0
    for number in range(1, 16):
        process = subprocess.Popen(
            [sys.executable, "-c", SAVES_FOR_EVER, location, str(number)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "TMPDIR": str(tmp_path)},
        )
        assert int(process.stdout.readline().split()[-1]) >= step
        for _ in range(rng.randrange(1, 4)):
            a_save_takes = float(process.stdout.readline())
        time.sleep(rng.uniform(0, a_save_takes))  # the moment of the kill
        process.kill()
        process.wait()
        process.stdout.close()
        reader = attempt(location, number + 1)
        latest = reader.latest()
        assert latest.step > step or number == 1
        step = latest.step
        for i in range(30):
            assert (latest / str(i)).read_text() == str(step) * 10_000
        assert names_at(location) == [Path(latest).name]
        reader.close()


def test_the_same_script_by_hand(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(
        "from dask_hpo import checkpoint_dir\n"
        "latest = checkpoint_dir().latest()\n"
        "step = latest.step + 1 if latest else 0\n"
        "with checkpoint_dir().save(step=step) as folder:\n"
        "    (folder / 'model').touch()\n"
        "print(step, checkpoint_dir())\n"
    )

    def start(**env):
        done = subprocess.run(
            [sys.executable, script],
            cwd=tmp_path,
            check=True,
            capture_output=True,
            text=True,
            env={**os.environ, **env},
        )
        return done.stdout.split()

    first, second = start(), start()
    assert first[0] == second[0] == "0"  # by hand each run is a new one
    assert Path(first[1]).parent == tmp_path / "checkpoints"
    assert start(DASK_HPO_CHECKPOINTS=first[1])[0] == "1"


def test_importing_it_loads_no_heavy_package():
    code = (
        "import sys; from dask_hpo import checkpoint_dir, Checkpoints; checkpoint_dir()\n"
        "print(sorted({'dask', 'distributed', 'pandas', 'numpy', 'fsspec'} & set(sys.modules)))"
    )
    output = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert output == "[]\n"


# What a person chooses


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (3, "checkpoints=3"),
        ("", "checkpoints=''"),
        ("nothing://bucket", "nothing"),
    ],
)
def test_bad_places(value, words):
    with pytest.raises(OptionError, match=words):
        as_checkpoints(value)


@pytest.mark.parametrize("option", [{"keep_last": 0}, {"keep_best": -1}, {"keep_trials": 0}])
def test_bad_policies(option):
    ((name, value),) = option.items()
    with pytest.raises(OptionError, match=f"{name}={value}"):
        Checkpoints(**option)


def ended(trial_id, value, outcome=Outcome.COMPLETED):
    return Record(TrialEnded(0.0, trial_id, 1, outcome), {}, value, 1, "", 1)


def test_the_best_trials_keep_their_checkpoints(location):
    keeper = Keeper(
        Checkpoints(location, keep_trials=2), Path("/experiments/first"), Metric("error"), "t"
    )
    keeper.open()
    assert keeper.store.location(17) == f"{location}/first/trial-000017"
    for trial_id in range(6):
        save(attempt(keeper.store.location(trial_id)), 1)
    ends = [ended(0, 3.0), ended(1, 1.0), ended(2, 0.0, Outcome.FAILED), ended(3, 2.0)]
    keeper.heed([*ends, ended(5, 9.0, Outcome.LOST)], active={4, 5})
    keeper.close()
    assert names_at(f"{location}/first") == [
        "trial-000001",
        "trial-000003",
        "trial-000004",
        "trial-000005",
    ]


def test_trials_of_the_past_are_ranked_with_those_to_come(location):
    keeper = Keeper(
        Checkpoints(location, keep_trials=1), Path("/experiments/first"), Metric("error"), "t"
    )
    for trial_id in range(3):
        save(attempt(keeper.store.location(trial_id)), 1)
    completed, failed = TrialState.COMPLETED, TrialState.FAILED
    keeper.open([Trial(0, {}, completed, loss=1.0), Trial(1, {}, failed, loss=0.0)])
    keeper.heed([ended(2, 2.0)], active={})
    keeper.close()
    assert names_at(f"{location}/first") == ["trial-000000"]


def test_checkpoints_of_an_experiment_of_that_name_are_not_gone_on_from(location):
    def keeper():
        return Keeper(Checkpoints(location), Path("/experiments/first"), Metric("error"), "t")

    first = keeper()
    first.open()
    save(attempt(first.store.location(0)), 1)
    first.close()
    with pytest.raises(ExperimentExistsError, match="first"):
        keeper().open()
    again = keeper()
    again.open(past=[])
    assert attempt(again.store.location(0), 2).latest().step == 1


# On a cluster


def trains(x, epochs, pause):
    """Train from the latest checkpoint on; who began without one waits for ever in one epoch."""
    latest = checkpoint_dir().latest()
    total, begun = 0.0, 1
    if latest is not None:
        total, begun = json.loads((latest / "state.json").read_text()), latest.step + 1
    for epoch in range(begun, epochs + 1):
        total += x
        report(step=epoch, error=total, begun=begun)
        with checkpoint_dir().save(step=epoch) as folder:
            (folder / "state.json").write_text(json.dumps(total))
        if epoch == pause and latest is None:
            report(step=epoch, paused=1)
            time.sleep(600)
    return {"error": total, "begun": begun}


def tuner(objective, client, root, space, *, trials=1, **more):
    scheduler = FIFOScheduler(space, "random", metric="error", mode="min", random_seed=0)
    criterion = StoppingCriterion(max_num_trials_started=trials)
    return Tuner(objective, scheduler, criterion, client=client, path=root, progress=False, **more)


def run_and_kill(run):
    """Kill the worker that runs the trial in the middle of it; return the experiment."""
    seen = []
    thread = threading.Thread(target=lambda: seen.append(run.run()))
    thread.start()
    wait_until(lambda: "paused" in run.tuning._reported_names.get(0, ()), what="epoch 4's end")
    port = run.tuning.active[0].worker.rsplit(":", 1)[1]
    (victim,) = [
        connection.pid
        for connection in psutil.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN and connection.laddr.port == int(port)
    ]
    psutil.Process(victim).kill()
    thread.join(60)
    run.stop()  # should it still wait
    return seen[0]


@pytest.mark.parametrize(
    ("isolation", "scheme"),
    [("process", None), *itertools.product(["process", "spawn", "thread"], ["", "file://"])],
)
def test_a_trial_goes_on_where_its_worker_was_killed(dask_processes, tmp_path, isolation, scheme):
    for _ in range(2):
        dask_processes.add_worker()
    checkpoints = None if scheme is None else f"{scheme}{tmp_path}/store"
    run = tuner(
        trains,
        dask_processes.client,
        tmp_path,
        {"x": uniform(0, 1), "epochs": 6, "pause": 4},
        isolation=isolation,
        checkpoints=checkpoints,
        name="first",
    )
    experiment = run_and_kill(run)
    ends = experiment.events.query("kind == 'end'")
    assert list(ends["status"]) == ["lost", "completed"]
    x = experiment.trials["config_x"].iloc[0]
    last = ends.iloc[-1]
    # Dask itself runs the lost task again, until it is told not to: that may have got further.
    assert (last["attempt"], last["begun"] in {5, 6, 7}) == (2, True)
    assert last["error"] == pytest.approx(6 * x)
    starts = experiment.events.query("kind == 'start'")
    assert starts["worker"].nunique() == 2
    root = experiment.path / "checkpoints" if scheme is None else tmp_path / "store" / "first"
    kept = names_at(str(root / "trial-000000"))
    assert {"step-000001", "step-000006"} <= set(kept)  # the best is one that attempt 1 saved
    assert len(kept) <= 3


def test_the_policy_bounds_the_disk_while_it_runs(client, tmp_path):
    def trains_long(x):
        for epoch in range(60):
            report(step=epoch, error=(x + epoch * 0.618) % 1)
            with checkpoint_dir().save(step=epoch) as folder:
                (folder / "weights").write_bytes(b"w" * 1000)

    run = tuner(
        trains_long,
        client,
        tmp_path,
        {"x": uniform(0, 1)},
        trials=8,
        checkpoints=Checkpoints(keep_last=2, keep_best=2, keep_trials=2),
    )
    most, thread = 0, threading.Thread(target=run.run)
    thread.start()
    while thread.is_alive():
        found = list((run.path / "checkpoints").glob("trial-*/step-*"))
        per_trial = [sum(p.parent.name == f"trial-{i:06d}" for p in found) for i in range(8)]
        most = max(most, *per_trial)
        time.sleep(0.005)
    thread.join()
    assert 2 <= most <= 5  # four, and the newest before an older one goes
    trials = sorted((run.path / "checkpoints").glob("trial-*"))
    values = {i: trial.value for i, trial in enumerate(run.tuning.trials)}
    best = sorted(values, key=values.get)[:2]
    assert [trial.name for trial in trials] == [f"trial-{i:06d}" for i in sorted(best)]
    for trial in trials:
        assert len(list(trial.iterdir())) <= 4


def test_trials_that_use_none_leave_nothing(client, tmp_path):
    run = tuner(lambda x: x, client, tmp_path, {"x": uniform(0, 1)}, trials=4, checkpoints=tmp_path)
    run.run()
    assert not (tmp_path / "checkpoints").exists()
    assert not list(run.path.glob("checkpoints*"))


def test_a_stopped_trial_leaves_nothing_half_written(client, tmp_path):
    def never_ends(x):
        with checkpoint_dir().save(step=1):
            pass
        with checkpoint_dir().save(step=2) as folder:
            (folder / "half").touch()
            report(error=x)
            while True:
                time.sleep(1)

    scheduler = FIFOScheduler({"x": uniform(0, 1)}, "random", metric="error", random_seed=0)
    run = Tuner(
        never_ends,
        scheduler,
        StoppingCriterion(max_num_evaluations=2),
        client=client,
        n_workers=2,
        path=tmp_path,
        progress=False,
    )
    run.run()
    left = {p.name for p in (run.path / "checkpoints").glob("trial-*/*")}
    assert left == {"step-000001"}


def test_workers_that_do_not_share_the_directory_say_so_once(
    dask_processes, tmp_path, caplog, monkeypatch
):
    """A worker that has another machine's disk is one for which the token is not there."""
    hidden = tmp_path / "hides.py"
    hidden.write_text(
        "from dask_hpo.checkpoints import options\noptions._read = lambda file: None\n"
    )
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    dask_processes.add_worker("--preload", str(hidden), nthreads=2, env={"TMPDIR": str(temporary)})
    quiet = tuner(lambda x: x, dask_processes.client, tmp_path, {"x": uniform(0, 1)}, trials=4)
    quiet.run()
    assert "checkpoints" not in caplog.text
    space = {"x": choice([0.1, 0.2, 0.3]), "epochs": 3, "pause": 0}
    run = tuner(trains, dask_processes.client, tmp_path, space, trials=3)
    experiment = run.run()
    assert set(experiment.trials["state"]) == {"completed"}
    assert caplog.text.count("checkpoints are not shared") == 1
    assert str(run.path / "checkpoints") in caplog.text
    found = list(temporary.glob("dask-hpo-checkpoints-*/*/trial-*/step-*"))
    assert len({path.parent.name for path in found}) == 3
    assert all((path / MARKER).exists() for path in found)
