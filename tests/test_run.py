"""Whole experiments on a real cluster of worker processes."""

from __future__ import annotations

import math
import os
import platform
import signal
import sys
import threading
import time

import cloudpickle
import pandas as pd
import pytest
from conftest import DaskProcesses, wait_until

from dask_hpo import (
    FIFOScheduler,
    RandomSearcher,
    ScriptObjective,
    SearchSpace,
    StoppingCriterion,
    Tuner,
    choice,
    load_experiment,
    loguniform,
    randint,
    uniform,
)
from dask_hpo.cluster.ask import ask
from dask_hpo.errors import (
    ClusterError,
    ExperimentExistsError,
    ObjectiveError,
    OptionError,
    TooManyFailuresError,
    VersionMismatchError,
)
from dask_hpo.report import report

# The workers of these tests run elsewhere and cannot import this file.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

SPACE = {"x": uniform(0, 1), "n": randint(1, 5)}


def tuner(objective, client, root, *, space=SPACE, metric="error", mode="min", limits=None, **more):
    scheduler = FIFOScheduler(
        space,
        more.pop("searcher", "random"),
        metric=metric,
        mode=mode,
        random_seed=more.pop("seed", 0),
        points_to_evaluate=more.pop("points_to_evaluate", ()),
    )
    criterion = StoppingCriterion(**(limits or {"max_num_trials_started": 8}))
    return Tuner(objective, scheduler, criterion, client=client, path=root, progress=False, **more)


def in_background(run):
    """Start a run in a thread; return the thread and a list that gets the experiment at its end."""
    seen = []
    thread = threading.Thread(target=lambda: seen.append(run.run()))
    thread.start()
    return thread, seen


def square(x, n):
    return x * x + n


def curve(x, n):
    for step in range(1, n + 1):
        report(error=x / step, epoch=step)


def configs(experiment):
    trials = experiment.trials.sort_values("trial_id")
    return trials[["config_x", "config_n"]].to_dict("records")


# The search itself


@pytest.mark.parametrize("isolation", ["process", "spawn", "thread"])
def test_random_search(client, tmp_path, isolation):
    experiment = tuner(square, client, tmp_path, isolation=isolation).run()
    searcher = RandomSearcher(SearchSpace(SPACE), seed=0)
    expected = [searcher.suggest(i) for i in range(8)]
    assert configs(experiment) == [{"config_x": c["x"], "config_n": c["n"]} for c in expected]
    values = experiment.trials.sort_values("trial_id")["value"]
    assert list(values) == [square(**c) for c in expected]
    assert experiment.status == "finished"
    assert experiment.best.value == min(values)
    assert experiment.best.config == expected[experiment.best.trial_id]
    assert set(experiment.trials["state"]) == {"completed"}


def test_configurations_do_not_depend_on_the_number_of_workers(client, tmp_path):
    one = tuner(square, client, tmp_path, n_workers=1, isolation="thread").run()
    four = tuner(square, client, tmp_path, n_workers=4, isolation="thread").run()
    assert configs(one) == configs(four)


@pytest.mark.parametrize("isolation", ["process", "thread"])
def test_reports_arrive_all_in_order_and_before_the_end(client, tmp_path, isolation):
    experiment = tuner(curve, client, tmp_path, isolation=isolation).run()
    events = experiment.events
    for trial_id, rows in events.groupby("trial_id", sort=False):
        n = rows["config_n"].iloc[0]
        assert list(rows["kind"]) == ["start", *["report"] * n, "end"], trial_id
        assert list(rows["step"]) == [0, *range(1, n + 1), n]
        reports = rows[rows["kind"] == "report"]
        assert list(reports["value"]) == [rows["config_x"].iloc[0] / s for s in reports["step"]]
        assert list(reports["epoch"]) == list(reports["step"])
        assert rows["time"].is_monotonic_increasing


def test_no_more_trials_at_once_than_slots(client, tmp_path):
    experiment = tuner(lambda x, n: time.sleep(0.1) or x, client, tmp_path, n_workers=3).run()
    assert experiment.events["slots"].max() == 3
    running = experiment.events["kind"].map({"start": 1, "end": -1}).fillna(0).cumsum()
    assert running.max() == 3


def returns_a_dict(x, n):
    report(error=x, epoch=1)
    return {"error": x / 2, "size": n}


def returns_a_numpy_scalar(x, n):
    import numpy

    return numpy.array(x, dtype="float32")


def test_what_an_objective_may_return(client, tmp_path):
    experiment = tuner(returns_a_dict, client, tmp_path).run()
    trials = experiment.trials.sort_values("trial_id")
    assert list(trials["value"]) == list(trials["config_x"] / 2)
    ends = experiment.events.query("kind == 'end'")
    assert list(ends["size"]) == list(ends["config_n"])
    arrays = tuner(returns_a_numpy_scalar, client, tmp_path).run().trials
    assert arrays["value"].notna().all()


def test_mode_max(client, tmp_path):
    experiment = tuner(curve, client, tmp_path, mode="max").run()
    assert experiment.best.value == experiment.trials["config_x"].max()


def test_points_to_evaluate_go_first_and_an_exhausted_space_ends(client, tmp_path):
    space = {"x": choice([0.1, 0.2]), "n": choice([1, 2, 3])}
    experiment = tuner(
        square,
        client,
        tmp_path,
        space=space,
        points_to_evaluate=[{"x": 0.2, "n": 3}],
        limits={"max_wallclock_time": 60},
    ).run()
    rows = configs(experiment)
    assert rows[0] == {"config_x": 0.2, "config_n": 3}
    assert len(rows) == 6
    assert len({tuple(row.values()) for row in rows}) == 6
    assert experiment.summary().reason == "exhausted"


class D2LStyle:
    """The interface of the searchers in d2l.ai's chapters."""

    def __init__(self):
        self.updates = []
        self.sampled = 0

    def sample_configuration(self):
        self.sampled += 1
        return {"x": self.sampled / 100, "n": 1}

    def update(self, config, error, additional_info=None):
        self.updates.append((config["x"], error))


def test_a_searcher_in_the_style_of_d2l(client, tmp_path):
    searcher = D2LStyle()
    tuner(square, client, tmp_path, searcher=searcher).run()
    assert sorted(searcher.updates) == [(i / 100, (i / 100) ** 2 + 1) for i in range(1, 9)]


SCRIPT = """
import argparse
import helper
from dask_hpo import Reporter

parser = argparse.ArgumentParser()
parser.add_argument("--learning_rate", type=float)
parser.add_argument("--batch_size", type=int)
parser.add_argument("--max_epochs", type=int)
args = parser.parse_args()
report = Reporter()
for epoch in range(1, args.max_epochs + 1):
    report(epoch=epoch, validation_error=helper.error(args.learning_rate, epoch))
print("trained")
"""


def test_a_script_and_its_files_travel_to_workers_in_other_folders(client, tmp_path):
    folder = tmp_path / "scripts"
    folder.mkdir()
    (folder / "train_script.py").write_text(SCRIPT)
    (folder / "helper.py").write_text("def error(rate, epoch):\n    return rate / epoch\n")
    objective = ScriptObjective(folder / "train_script.py", files=["helper.py"])
    (folder / "helper.py").unlink()  # what was read is what is sent
    space = {
        "learning_rate": loguniform(1e-5, 1e-1),
        "batch_size": randint(8, 128),
        "max_epochs": 3,
    }
    experiment = tuner(objective, client, tmp_path, space=space, metric="validation_error").run()
    trials = experiment.trials
    assert set(trials["state"]) == {"completed"}
    assert list(trials["value"]) == list(trials["config_learning_rate"] / 3)
    outputs = sorted((experiment.path / "output").glob("*.stdout"))
    assert len(outputs) == 8
    assert outputs[0].read_text() == "trained\n"


# Stopping


def sleeps_for_ever(x, n):
    while True:
        time.sleep(60)


def ignores_sigterm(x, n):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    report(error=x)
    while True:
        time.sleep(60)


@pytest.mark.parametrize("isolation", ["process", "spawn"])
@pytest.mark.parametrize("objective", [sleeps_for_ever, ignores_sigterm])
def test_the_clock_stops_trials_that_never_report_again(client, tmp_path, objective, isolation):
    run = tuner(
        objective,
        client,
        tmp_path,
        limits={"max_wallclock_time": 2},
        isolation=isolation,
        grace_period_s=0.3,
    )
    start = time.monotonic()
    experiment = run.run()
    assert 2 <= time.monotonic() - start < 20
    assert set(experiment.trials["state"]) == {"stopped"}
    assert len(experiment.trials) == 4
    assert experiment.summary().reason == "max_wallclock_time"


def test_on_stop_wait_lets_running_trials_end(client, tmp_path):
    def slow(x, n):
        time.sleep(1.5)
        return x

    experiment = tuner(
        slow, client, tmp_path, limits={"max_wallclock_time": 1}, on_stop="wait"
    ).run()
    assert set(experiment.trials["state"]) == {"completed"}
    assert len(experiment.trials) == 4


def test_a_stopped_trial_in_a_thread_ends_at_its_next_report(client, tmp_path):
    def endless(x, n):
        while True:
            report(error=x)
            time.sleep(0.01)

    experiment = tuner(
        endless, client, tmp_path, limits={"max_num_evaluations": 50}, isolation="thread"
    ).run()
    assert set(experiment.trials["state"]) == {"stopped"}
    assert experiment.summary().reason == "max_num_evaluations"


# What goes wrong


def fails_often(x, n):
    print("about to fail")
    raise ValueError(f"x is {x}")


def test_a_high_failure_rate_gives_up_with_the_first_traceback(client, tmp_path):
    run = tuner(fails_often, client, tmp_path, limits={"max_wallclock_time": 60})
    with pytest.raises(TooManyFailuresError, match="ValueError: x is") as error:
        run.run()
    assert "in fails_often" in str(error.value)
    experiment = load_experiment(run.path)
    assert experiment.status == "failed"
    ends = experiment.events.query("kind == 'end'")
    failed = ends[ends["status"] == "failed"]
    assert failed["failure"].str.startswith("ValueError: x is").all()
    assert failed["output_tail"].str.contains("about to fail").all()


def fails_sometimes(x, n):
    if n == 1:
        os._exit(7)
    return x


def test_a_trial_that_ends_its_process_is_one_failed_trial(client, tmp_path):
    experiment = tuner(
        fails_sometimes, client, tmp_path, limits={"max_num_trials_started": 20}
    ).run()
    trials = experiment.trials
    assert set(trials.loc[trials["config_n"] == 1, "state"]) == {"failed"}
    assert set(trials.loc[trials["config_n"] != 1, "state"]) == {"completed"}
    assert trials.loc[trials["config_n"] == 1, "failure"].str.contains("status 7").all()


@pytest.mark.parametrize("value", [math.nan, math.inf, "high", None])
def test_a_value_that_is_no_number_ranks_worst(client, tmp_path, value):
    def objective(x, n):
        report(error=value if n > 1 else x)

    experiment = tuner(objective, client, tmp_path, limits={"max_num_trials_started": 20}).run()
    trials = experiment.trials
    assert set(trials["state"]) == {"completed"}
    assert experiment.best.config["n"] == 1
    assert experiment.best.value == trials.loc[trials["config_n"] == 1, "value"].min()


def test_a_misspelt_metric_says_what_was_reported(client, tmp_path):
    def objective(x, n):
        report(eror=x, accuracy=1 - x)

    run = tuner(objective, client, tmp_path, limits={"max_wallclock_time": 60})
    with pytest.raises(TooManyFailuresError, match="accuracy, eror"):
        run.run()


def test_an_exception_that_only_the_trial_knows(client, tmp_path):
    def objective(x, n):
        class Odd(Exception):
            def __init__(self, a, b):
                super().__init__(a)
                self.lock = threading.Lock()

        raise Odd("strange", 2)

    run = tuner(objective, client, tmp_path, limits={"max_wallclock_time": 60})
    with pytest.raises(TooManyFailuresError, match="Odd: strange"):
        run.run()


def test_an_objective_whose_module_the_workers_lack(client, tmp_path, monkeypatch):
    (tmp_path / "only_here.py").write_text("def objective(x, n):\n    return x\n")
    monkeypatch.syspath_prepend(tmp_path)
    import only_here

    run = tuner(only_here.objective, client, tmp_path, limits={"max_wallclock_time": 60})
    with pytest.raises(TooManyFailuresError, match="No module named 'only_here'"):
        run.run()


def test_an_objective_that_cannot_be_pickled(client, tmp_path):
    lock = threading.Lock()
    with pytest.raises(ObjectiveError, match="lock"):
        tuner(lambda x, n: lock, client, tmp_path).run()


def test_a_name_that_exists(client, tmp_path):
    tuner(square, client, tmp_path, name="twice", isolation="thread").run()
    before = load_experiment(tmp_path / "twice").events
    with pytest.raises(ExperimentExistsError, match="twice"):
        tuner(square, client, tmp_path, name="twice").run()
    pd.testing.assert_frame_equal(load_experiment(tmp_path / "twice").events, before)


def test_a_tuner_runs_once(client, tmp_path):
    once = tuner(square, client, tmp_path, isolation="thread")
    once.run()
    with pytest.raises(OptionError, match="has run already"):
        once.run()


def test_nothing_is_left_behind_when_the_cluster_is_not_there(tmp_path):
    run = tuner(square, "tcp://127.0.0.1:1", tmp_path)
    with pytest.raises(ClusterError, match=r"tcp://127\.0\.0\.1:1"):
        run.run()
    assert not run.path.exists()


def test_a_local_cluster_does_not_offer_what_it_lacks(tmp_path):
    run = tuner(square, None, tmp_path, resources={"FPGA": 1}, n_workers=1)
    with pytest.raises(ClusterError, match="FPGA"):
        run.run()
    assert not run.path.exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"n_workers": 0}, "n_workers=0"),
        ({"isolation": "docker"}, "'docker'"),
        ({"on_stop": "pause"}, "'pause'"),
        ({"resources": {"GPU": 0}}, "'GPU'"),
        ({"resources": {"GPU": 1.5}}, "whole GPUs"),
        ({"cpus_per_trial": -1}, "cpus_per_trial=-1"),
    ],
)
def test_bad_options(options, words, tmp_path):
    with pytest.raises(OptionError, match=words):
        tuner(square, None, tmp_path, **options)


def test_a_client_that_is_none(tmp_path):
    with pytest.raises(OptionError, match="client=42"):
        tuner(square, 42, tmp_path).run()


# Workers that come, go, differ, and have GPUs


def test_the_dask_scheduler_needs_no_package_of_ours(tmp_path):
    folder = tmp_path / "dask"
    folder.mkdir()
    (folder / "without.py").write_text("import sys\nsys.modules['dask_hpo'] = None\n")
    processes = DaskProcesses(folder, "--preload", str(folder / "without.py"))
    try:
        processes.add_worker()
        experiment = tuner(square, processes.client, tmp_path).run()
        assert set(experiment.trials["state"]) == {"completed"}
    finally:
        processes.close()


def test_workers_that_join_and_leave(dask_processes, tmp_path, caplog):
    def slow(x, n):
        time.sleep(0.2)
        return x

    first = dask_processes.add_worker(nthreads=1)
    run = tuner(slow, dask_processes.client, tmp_path, limits={"max_wallclock_time": 120})
    thread, seen = in_background(run)
    wait_until(lambda: run.tuning.counts["completed"] >= 1, what="a first trial")
    dask_processes.add_worker(nthreads=2)
    wait_until(lambda: run.tuning.slots == 3, what="three slots")
    wait_until(lambda: len(run.tuning.active) == 3, what="three trials at once")
    first.send_signal(signal.SIGTERM)
    wait_until(lambda: run.tuning.slots == 2, what="two slots")
    run.stop()
    thread.join(30)
    (experiment,) = seen
    assert experiment.events["worker"].nunique() == 2
    assert experiment.status == "interrupted"


def test_a_killed_worker_costs_an_attempt_and_nothing_else(dask_processes, tmp_path):
    release = tmp_path / "release"

    def waits(x, n, path):
        report(error=x, pid=os.getpid())
        while not os.path.exists(path):
            time.sleep(0.02)
        return x

    victim = dask_processes.add_worker(nthreads=1)
    dask_processes.add_worker(nthreads=2)
    space = {**SPACE, "path": str(release)}
    run = tuner(
        waits,
        dask_processes.client,
        tmp_path,
        space=space,
        n_workers=2,
        limits={"max_num_trials_started": 3},
    )
    thread, seen = in_background(run)
    wait_until(lambda: run.tuning.evaluations == 2, what="two running trials")
    victim.kill()
    wait_until(
        lambda: any(trial.attempt == 2 for trial in run.tuning.trials), what="a second attempt"
    )
    release.touch()
    thread.join(60)
    (experiment,) = seen
    assert set(experiment.trials["state"]) == {"completed"}
    ends = experiment.events.query("kind == 'end'")
    (lost,) = ends[ends["status"] == "lost"].to_dict("records")
    again = ends.query("trial_id == @lost['trial_id'] and attempt == 2").iloc[0]
    assert again["config_x"] == lost["config_x"] == again["value"]
    starts = experiment.events.query("kind == 'start'")
    assert sorted(zip(starts["trial_id"], starts["attempt"], strict=True)) == sorted(
        [(0, 1), (1, 1), (2, 1), (lost["trial_id"], 2)]
    )


def devices(x, n):
    seen = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    time.sleep(0.1)
    return {"error": x, "devices": len(seen.split(",")), "first": int(seen.split(",")[0])}


@pytest.mark.parametrize(
    ("resources", "at_once", "each"),
    [(None, 4, 1), ({"GPU": 1}, 4, 1), ({"GPU": 2}, 2, 2), ({"GPU": 0.5}, 8, 1)],
)
def test_gpus_are_shared_out(dask_processes, tmp_path, resources, at_once, each):
    dask_processes.add_worker("--resources", "GPU=4", nthreads=8)
    experiment = tuner(
        devices,
        dask_processes.client,
        tmp_path,
        resources=resources,
        limits={"max_num_trials_started": 12},
    ).run()
    ends = experiment.events.query("kind == 'end'")
    assert experiment.events["slots"].max() == at_once
    assert set(ends["devices"]) == {each}
    assert set(ends["first"]) <= {0, 1, 2, 3}
    assert len(set(ends["first"])) == (2 if each == 2 else 4)


def test_a_local_cluster_has_a_worker_for_each_gpu(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")  # as on a machine that has them
    experiment = tuner(devices, None, tmp_path, limits={"max_num_trials_started": 6}).run()
    ends = experiment.events.query("kind == 'end'")
    assert experiment.definition.options["resources"] == {"GPU": 1}
    assert ends["worker"].nunique() == 2
    assert set(ends["first"]) == {5, 7}
    assert set(ends["devices"]) == {1}


def test_trials_wait_for_a_resource_that_no_worker_offers_yet(dask_processes, tmp_path, caplog):
    dask_processes.add_worker("--resources", "CPU=1")
    run = tuner(
        square,
        dask_processes.client,
        tmp_path,
        resources={"GPU": 1},
        limits={"max_num_trials_started": 2},
    )
    thread, seen = in_background(run)
    wait_until(lambda: "no worker offers" in caplog.text, what="the message")
    assert "CPU=1" in caplog.text
    assert "GPU=1" in caplog.text
    dask_processes.add_worker("--resources", "GPU=1")
    thread.join(60)
    assert len(seen[0].trials) == 2


def test_more_workers_asked_for_than_there_are_slots(client, tmp_path, caplog):
    tuner(square, client, tmp_path, n_workers=64).run()
    assert "n_workers=64" in caplog.text
    assert "4 slots" in caplog.text


OTHER_VERSION = "import dask_hpo\ndask_hpo.__version__ = '9.9.9'\n"


def test_a_worker_with_another_version_of_the_package(dask_processes, tmp_path):
    (tmp_path / "other.py").write_text(OTHER_VERSION)
    dask_processes.add_worker("--preload", str(tmp_path / "other.py"))
    run = tuner(square, dask_processes.client, tmp_path)
    with pytest.raises(VersionMismatchError, match=r"9\.9\.9"):
        run.run()
    assert not run.path.exists()


def test_a_worker_with_another_python(client, tmp_path, monkeypatch):
    async def as_if_older(client, workers, function, *arguments):
        if function is platform.python_version:
            return dict.fromkeys(workers, "3.9.1")
        return await ask(client, workers, function, *arguments)

    monkeypatch.setattr("dask_hpo.cluster.workers.ask", as_if_older)
    run = tuner(square, client, tmp_path)
    with pytest.raises(VersionMismatchError, match=r"runs Python 3\.9\.1"):
        run.run()
    assert not run.path.exists()


def test_a_worker_with_another_version_that_joins_gets_no_trial(dask_processes, tmp_path, caplog):
    (tmp_path / "other.py").write_text(OTHER_VERSION)
    dask_processes.add_worker()
    run = tuner(
        lambda x, n: time.sleep(0.05) or x,
        dask_processes.client,
        tmp_path,
        limits={"max_wallclock_time": 120},
    )
    thread, seen = in_background(run)
    wait_until(lambda: run.tuning.counts["completed"] >= 1, what="a first trial")
    dask_processes.add_worker("--preload", str(tmp_path / "other.py"))
    wait_until(lambda: "gets no trials" in caplog.text, what="the message")
    done = run.tuning.counts["completed"]
    wait_until(lambda: run.tuning.counts["completed"] >= done + 5, what="five more trials")
    run.stop()
    thread.join(30)
    assert seen[0].events["worker"].nunique() == 1
    assert set(seen[0].trials["state"]) <= {"completed", "stopped"}
