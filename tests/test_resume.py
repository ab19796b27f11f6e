"""What dies and what is kept: drivers, workers, Dask schedulers and connections."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import cloudpickle
import psutil
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from conftest import DaskProcesses, wait_until
from distributed import Client

from dask_hpo import (
    FIFOScheduler,
    RandomSearcher,
    SearchSpace,
    StoppingCriterion,
    Tuner,
    load_experiment,
    uniform,
)
from dask_hpo.errors import LogError, ObjectiveError, OptionError, SchedulerLostError

cloudpickle.register_pickle_by_value(sys.modules[__name__])

#: Reports ten times, and leaves a line in a side file for each execution and for each end.
SCRIPT = """
import argparse, os, time
from pathlib import Path
from dask_hpo import Reporter

parser = argparse.ArgumentParser()
parser.add_argument("--x", type=float)
parser.add_argument("--wait", type=float)
parser.add_argument("--side")
args = parser.parse_args()
trial = f"{os.environ['DASK_HPO_TRIAL_ID']}-{os.environ['DASK_HPO_ATTEMPT']}"
side = Path(args.side)

def note(what):
    with (side / what).open("a") as file:
        file.write(trial + "\\n")

note("begun")
report = Reporter()
for epoch in range(1, 11):
    time.sleep(args.wait / 10)
    report(epoch=epoch, error=args.x / epoch)
note("ended")
print("the last line of", trial)
"""


class Search:
    """A search by the command line, in a process that may be killed."""

    def __init__(self, folder: Path, address: str | None, *, wait=0.5, trials=8) -> None:
        self.root, self.side, self.address = folder / "experiments", folder / "side", address
        self.side.mkdir()
        script = folder / "train.py"
        script.write_text(SCRIPT)
        self.trials = trials
        self.processes = []
        self.arguments = (
            *("run", script, "--param", "x=uniform(0, 1)", "--param", f"wait={wait}"),
            *("--param", f"side='{self.side}'", "--metric", "error", "--seed", "3"),
            *("--max-num-trials-started", trials, "--name", "search"),
        )

    def start(self, *arguments, address=True):
        where = ("--address", self.address) if self.address and address else ()
        command = [Path(sys.executable).with_name("dask"), "hpo", *(arguments or self.arguments)]
        command = [*map(str, command), *where, "--path", str(self.root)]
        process = subprocess.Popen(
            command, cwd=self.side, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.processes.append(process)
        return process

    def resume(self, *arguments):
        process = self.start("resume", "search", *arguments)
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 0, output
        return output

    def lines(self, what):
        with contextlib.suppress(FileNotFoundError):
            return (self.side / what).read_text().split()
        return []

    def experiment(self):
        return load_experiment("search", self.root)

    def check(self, *, attempts=None):
        """Check what must hold whatever died: see the names of the parts."""
        experiment = self.experiment()
        assert experiment.status == "finished"
        trials, events = experiment.trials, experiment.events
        assert list(trials["trial_id"]) == list(range(self.trials))
        assert set(trials["state"]) == {"completed"}
        searcher = RandomSearcher(SearchSpace({"x": uniform(0, 1)}), seed=3)
        assert list(trials["config_x"]) == [searcher.suggest(i)["x"] for i in range(self.trials)]
        ends = events[(events["kind"] == "end") & ~events["status"].isin(["lost", "stopped"])]
        assert sorted(ends["trial_id"]) == list(range(self.trials))
        for row in ends.itertuples():
            mine = events[(events["trial_id"] == row.trial_id) & (events["attempt"] == row.attempt)]
            assert list(mine["kind"]) == ["start", *["report"] * 10, "end"], row.trial_id
            assert list(mine["epoch"].dropna()) == list(range(1, 11))
            assert mine["time"].is_monotonic_increasing
        last = [f"{row.trial_id}-{row.attempt}" for row in ends.itertuples()]
        begun, ended = self.lines("begun"), self.lines("ended")
        assert len(set(begun)) == len(begun), "an attempt was executed twice"
        assert set(last) <= set(ended)
        if attempts is not None:
            assert set(trials["attempt"]) == attempts
        for line in last:
            trial, attempt = map(int, line.split("-"))
            output = self.root / "search" / "output" / f"trial-{trial:06d}-{attempt}.stdout"
            assert output.read_text() == f"the last line of {line}\n"
        return experiment


@pytest.fixture
def search(tmp_path):
    """Return a function that makes a search and whose processes are ended afterwards."""
    made = []

    def make(address, **more):
        made.append(Search(tmp_path, address, **more))
        return made[-1]

    yield make
    for process in [process for one in made for process in one.processes]:
        process.kill()
        process.communicate()


def kill(process):
    process.send_signal(signal.SIGKILL)
    process.wait()


# The driver dies


def test_a_killed_driver_is_resumed_and_nothing_runs_twice(dask_processes, search):
    dask_processes.add_worker(nthreads=2)
    one = search(dask_processes.address)
    driver = one.start()
    wait_until(lambda: len(one.lines("ended")) >= 3, what="three ends")
    kill(driver)
    assert one.experiment().status == "dead"
    one.resume()
    one.check(attempts={1})
    assert sorted(one.lines("begun")) == sorted(f"{i}-1" for i in range(8))


def test_what_ends_while_no_driver_lives_is_heard(dask_processes, search):
    dask_processes.add_worker(nthreads=2)
    one = search(dask_processes.address)
    driver = one.start()
    wait_until(lambda: len(one.lines("ended")) >= 2, what="two ends")
    kill(driver)
    at_most = len(one.lines("begun")) + 2  # what was submitted may yet begin, in its slot
    time.sleep(1)  # nobody submits another
    wait_until(lambda: len(one.lines("ended")) == len(one.lines("begun")), what="their ends")
    assert len(one.lines("begun")) <= at_most
    one.resume()
    one.check(attempts={1})


def test_a_driver_that_is_killed_again_and_again(dask_processes, search):
    dask_processes.add_worker(nthreads=2)
    one = search(dask_processes.address, wait=0.3, trials=12)
    driver = one.start()
    for ended in (2, 4, 6, 8):
        wait_until(lambda n=ended: len(one.lines("ended")) >= n, what="more ends")
        kill(driver)
        driver = one.start("resume", "search")
    output, _ = driver.communicate(timeout=60)
    assert driver.returncode == 0, output
    one.check(attempts={1})


def test_a_worker_that_dies_while_no_driver_lives(dask_processes, search):
    first = dask_processes.add_worker(nthreads=2)
    one = search(dask_processes.address, wait=2)
    driver = one.start()
    wait_until(lambda: len(one.lines("begun")) >= 2, what="two trials")
    time.sleep(0.7)  # some reports, and the log's second
    kill(driver)
    kill(first)
    dask_processes.add_worker(nthreads=2)
    one.resume()
    experiment = one.check()
    lost = experiment.events.query("status == 'lost'")
    assert sorted(lost["trial_id"]) == [0, 1]
    assert set(experiment.trials.set_index("trial_id")["attempt"].loc[[0, 1]]) == {2}


def test_the_cluster_of_the_driver_itself_dies_with_it(search):
    one = search(None, wait=1, trials=4)
    driver = one.start(*one.arguments, "--n-workers", "2")
    wait_until(lambda: len(one.lines("ended")) >= 1, what="an end")
    processes = psutil.Process(driver.pid).children(recursive=True)
    kill(driver)
    psutil.wait_procs(processes, timeout=30)
    one.resume()
    one.check()


def test_detach_and_resume(dask_processes, tmp_path):
    dask_processes.add_worker(nthreads=2)
    run = slow_tuner(dask_processes.client, tmp_path)
    thread = threading.Thread(target=run.run)
    thread.start()
    counts = run.tuning.counts
    wait_until(lambda: counts["completed"] >= 2 <= counts["running"], what="two ends, two running")
    run.detach()
    thread.join(30)
    detached = load_experiment(run.path)
    assert detached.status == "detached"
    assert len(detached.trials.query("state == 'running'")) == 2
    resumed = Tuner.resume(run.path, client=dask_processes.client, progress=False)
    experiment = resumed.run()
    assert experiment.status == "finished"
    assert list(experiment.trials["trial_id"]) == list(range(8))
    assert set(experiment.trials["attempt"]) == {1}
    assert set(experiment.events.groupby("trial_id")["kind"].agg(list).map(tuple)) == {
        ("start", "report", "report", "report", "end")
    }


def slow(x):
    from dask_hpo import Reporter

    report = Reporter()
    for step in (1, 2, 3):
        time.sleep(0.1)
        report(error=x / step)


def slow_tuner(client, root, *, limits=None, objective=slow, searcher="random", **more):
    scheduler = FIFOScheduler(
        {"x": uniform(0, 1)}, searcher, metric="error", mode="min", random_seed=0
    )
    limits = limits or {"max_num_trials_started": 8}
    return Tuner(
        objective,
        scheduler,
        StoppingCriterion(**limits),
        client=client,
        path=root,
        progress=False,
        **more,
    )


def test_sigterm_leaves_the_trials_to_a_resume(dask_processes, search):
    dask_processes.add_worker(nthreads=2)
    one = search(dask_processes.address, wait=1, trials=6)
    driver = one.start()
    wait_until(lambda: len(one.lines("ended")) >= 2, what="two ends")
    driver.terminate()
    output, _ = driver.communicate(timeout=30)
    assert driver.returncode == 143
    assert "dask hpo resume search" in output
    assert one.experiment().status == "detached"
    one.resume()
    one.check(attempts={1})


def test_what_ctrl_c_stopped_runs_again(dask_processes, search):
    dask_processes.add_worker(nthreads=2)
    one = search(dask_processes.address, wait=1, trials=6)
    driver = one.start()
    wait_until(lambda: len(one.lines("ended")) >= 2, what="two ends")
    wait_until(lambda: len(one.lines("begun")) >= 4, what="two more")
    driver.send_signal(signal.SIGINT)
    output, _ = driver.communicate(timeout=30)
    assert driver.returncode == 130
    assert "dask hpo resume search" in output
    assert set(one.experiment().trials["state"]) == {"completed", "stopped"}
    one.resume()
    trials = one.check().trials
    assert list(trials["attempt"]) == [1, 1, 2, 2, 1, 1]


def test_what_has_ended_meanwhile_waits_for_nothing(dask_processes, tmp_path):
    """Its slot has another trial by now, and its end is heard all the same."""
    dask_processes.add_worker(nthreads=1)
    limits = {"max_num_trials_started": 1}
    run = slow_tuner(dask_processes.client, tmp_path, objective=lasts, limits=limits)
    thread = threading.Thread(target=run.run)
    thread.start()
    wait_until(lambda: run.tuning.counts["running"] == 1, what="the trial")
    run.detach()
    thread.join(30)
    busy = dask_processes.client.submit(time.sleep, 20, pure=False)
    time.sleep(4)
    begun = time.monotonic()
    done = Tuner.resume(run.path, client=dask_processes.client, progress=False).run()
    assert list(done.trials["state"]) == ["completed"]
    assert time.monotonic() - begun < 12
    busy.cancel()


def test_detach_needs_a_cluster_of_its_own(tmp_path):
    with pytest.raises(OptionError, match="ends with it"):
        slow_tuner(None, tmp_path).detach()


def test_a_run_that_is_broken_off_and_resumed_on_the_same_workers(dask_processes, tmp_path):
    """Its trials were killed; what they said must not pass for what their successors say."""
    dask_processes.add_worker(nthreads=2)
    run = slow_tuner(dask_processes.client, tmp_path, limits={"max_num_trials_started": 4})
    reports = run.tuning.handle

    def handle(event):
        commands = reports(event)
        if run.tuning.evaluations == 3:
            raise KeyboardInterrupt
        return commands

    run.tuning.handle = handle
    with pytest.raises(KeyboardInterrupt):
        run.run()
    assert load_experiment(run.path).summary().reason == "interrupted"
    events = Tuner.resume(run.path, client=dask_processes.client, progress=False).run().events
    for _, rows in events.groupby(["trial_id", "attempt"]):
        assert rows["run"].nunique() == 1
        if rows["status"].iloc[-1] == "completed":
            assert list(rows["kind"]) == ["start", "report", "report", "report", "end"]
    assert set(events.query("status == 'completed'")["trial_id"]) == {0, 1, 2, 3}


class Guess:
    """A searcher that would suggest something else each time."""

    def suggest(self, trial_id):
        return {"x": random.random()}

    def observe(self, observation):
        pass


def test_the_log_says_what_ran_whatever_would_be_suggested_today(dask_processes, tmp_path):
    dask_processes.add_worker(nthreads=2)
    run = slow_tuner(dask_processes.client, tmp_path, searcher=Guess(), objective=lasts)
    thread = threading.Thread(target=run.run)
    thread.start()
    wait_until(lambda: run.tuning.counts["running"] == 2, what="two trials")
    ran = [trial.config["x"] for trial in run.tuning.trials]
    run.detach()
    thread.join(30)
    forget_the_start_of(0, run.path)
    experiment = Tuner.resume(
        run.path,
        client=dask_processes.client,
        searcher=Guess(),
        stop_criterion=StoppingCriterion(max_num_trials_started=2),
        progress=False,
    ).run()
    assert list(experiment.trials["config_x"]) == ran
    assert list(experiment.trials["value"]) == ran
    assert list(experiment.trials["attempt"]) == [1, 1]


def lasts(x):
    time.sleep(3)
    return x


def forget_the_start_of(trial_id, path):
    """Take the rows of a trial out of a log, as if the driver had died before it wrote them."""
    (part,) = (path / "events").iterdir()
    table = pq.read_table(part)
    pq.write_table(table.filter(pc.not_equal(table["trial_id"], trial_id)), part)


def test_a_resume_that_comes_to_nothing_leaves_the_end_as_it_was(dask_processes, tmp_path):
    dask_processes.add_worker(nthreads=2)
    done = slow_tuner(dask_processes.client, tmp_path, searcher=Counting()).run()
    forget_the_start_of(0, done.path)
    other = Tuner.resume(
        done.path,
        client=dask_processes.client,
        searcher=Nothing(),
        stop_criterion=StoppingCriterion(max_num_trials_started=9),
        progress=False,
    )
    with pytest.raises(OptionError, match="no configuration for trial 0"):
        other.run()
    assert load_experiment(done.path).status == "finished"


class Nothing(Guess):
    def suggest(self, trial_id):
        return None


def test_another_objective_is_the_experiments_from_then_on(dask_processes, tmp_path):
    dask_processes.add_worker(nthreads=2)
    done = slow_tuner(dask_processes.client, tmp_path).run()
    for limit, objective in ((9, lasts), (10, None)):
        more = StoppingCriterion(max_num_trials_started=limit)
        Tuner.resume(
            done.path,
            client=dask_processes.client,
            objective=objective,
            stop_criterion=more,
            progress=False,
        ).run()
    trials = load_experiment(done.path).trials
    assert list(trials["reports"]) == [3] * 8 + [1, 1]  # what `lasts` returns is its one value
    assert "lasts" in load_experiment(done.path).definition.objective


def test_a_worker_that_is_frozen_holds_up_no_resume(dask_processes, tmp_path, caplog):
    workers = [dask_processes.add_worker(nthreads=1) for _ in range(2)]
    run = slow_tuner(dask_processes.client, tmp_path)
    thread = threading.Thread(target=run.run)
    thread.start()
    wait_until(lambda: run.tuning.counts["completed"] >= 2, what="two ends")
    run.detach()
    thread.join(30)
    workers[0].send_signal(signal.SIGSTOP)
    try:
        resumed = Tuner.resume(run.path, client=dask_processes.client, progress=False)
        thread = threading.Thread(target=resumed.run)
        thread.start()
        enough = 5  # besides what is on the frozen one
        wait_until(lambda: resumed.tuning.counts["completed"] >= enough, 60, "some ends")
    finally:
        workers[0].send_signal(signal.SIGCONT)
    thread.join(60)
    assert set(load_experiment(run.path).trials["state"]) == {"completed"}
    assert "does not answer within" in caplog.text


# Who may resume, and with what


def test_a_driver_that_lives_is_not_pushed_aside(dask_processes, search):
    dask_processes.add_worker(nthreads=2)
    one = search(dask_processes.address, wait=1, trials=4)
    driver = one.start()
    wait_until(lambda: one.lines("begun"), what="a trial")
    second = one.start("resume", "search")
    output, _ = second.communicate(timeout=30)
    assert second.returncode == 1
    assert "another driver is writing this experiment" in output
    driver.communicate(timeout=60)
    one.check(attempts={1})


def test_a_finished_experiment_goes_on_with_a_larger_limit(dask_processes, tmp_path):
    dask_processes.add_worker(nthreads=2)
    first = slow_tuner(dask_processes.client, tmp_path).run()
    again = Tuner.resume(first.path, client=dask_processes.client, progress=False).run()
    assert again.status == "finished"
    assert len(again.events) == len(first.events)
    more = StoppingCriterion(max_num_trials_started=11)
    run = Tuner.resume(
        first.path, client=dask_processes.client, stop_criterion=more, progress=False
    )
    assert list(run.run().trials["trial_id"]) == list(range(11))
    assert load_experiment(first.path).definition.stop_criterion["max_num_trials_started"] == 11


def test_time_goes_on_where_it_stood(dask_processes, tmp_path):
    dask_processes.add_worker(nthreads=2)
    limits = {"max_wallclock_time": 2.5}
    run = slow_tuner(dask_processes.client, tmp_path, limits=limits)
    thread = threading.Thread(target=run.run)
    thread.start()
    wait_until(lambda: run.tuning.now > 1.5, what="a second and a half")
    run.detach()
    thread.join(30)
    time.sleep(2)  # does not count: no driver lived
    begun = time.monotonic()
    resumed = Tuner.resume(run.path, client=dask_processes.client, progress=False)
    experiment = resumed.run()
    assert 0.3 < time.monotonic() - begun < 2.3
    assert 2.5 <= experiment.wallclock_time < 4
    assert experiment.summary().reason == "max_wallclock_time"
    late = experiment.events["timestamp"].max() - experiment.events["timestamp"].min()
    assert late.total_seconds() > 3.5, "the log's dates are those of the calendar"


class Counting:
    """A searcher that is an object."""

    def suggest(self, trial_id):
        return {"x": trial_id / 100}

    def observe(self, observation):
        pass


def test_a_searcher_that_is_an_object_must_be_given_again(dask_processes, tmp_path):
    dask_processes.add_worker(nthreads=2)
    done = slow_tuner(dask_processes.client, tmp_path, searcher=Counting()).run()
    with pytest.raises(OptionError, match="give the same to Tuner"):
        Tuner.resume(done.path, client=dask_processes.client)
    run = Tuner.resume(
        done.path,
        client=dask_processes.client,
        searcher=Counting(),
        stop_criterion=StoppingCriterion(max_num_trials_started=10),
        progress=False,
    )
    assert list(run.run().trials["config_x"]) == [i / 100 for i in range(10)]


def test_an_objective_that_is_gone_must_be_given_again(dask_processes, tmp_path):
    dask_processes.add_worker(nthreads=2)
    done = slow_tuner(dask_processes.client, tmp_path).run()
    (done.path / "objective" / "function.pickle").unlink()
    with pytest.raises(ObjectiveError, match=r"Tuner.resume\(..., objective="):
        Tuner.resume(done.path, client=dask_processes.client)
    Tuner.resume(done.path, client=dask_processes.client, objective=slow, progress=False).run()


# The Dask scheduler, or the way to it


class Restartable(DaskProcesses):
    """A cluster whose Dask scheduler comes back at its old address."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        super().__init__(folder, "--port", str(self.port))

    def kill_scheduler(self):
        kill(self.processes[0])
        for worker in self.processes[1:]:
            kill(worker)

    def restart(self, nthreads):
        self.client.close()
        self.address_file.unlink(missing_ok=True)
        self.processes[:] = [
            self._start("scheduler", "--port", str(self.port), "--no-dashboard", *self._file)
        ]
        wait_until(self.address_file.exists, 60, "the Dask scheduler's start")
        self.client = Client(self.address)
        self.add_worker(nthreads=nthreads)


@pytest.fixture
def restartable(tmp_path):
    folder = tmp_path / "dask"
    folder.mkdir()
    processes = Restartable(folder)
    yield processes
    processes.close()


def test_a_dask_scheduler_that_comes_back(restartable, search):
    restartable.add_worker(nthreads=2)
    one = search(restartable.address, wait=1)
    driver = one.start()
    wait_until(lambda: len(one.lines("ended")) >= 2, what="two ends")
    restartable.kill_scheduler()
    restartable.restart(nthreads=2)
    output, _ = driver.communicate(timeout=60)
    assert driver.returncode == 0, output
    assert "is gone" in output
    assert "is back" in output
    experiment = one.check()
    assert experiment.trials["attempt"].max() == 2


def test_a_dask_scheduler_that_stays_away(restartable, search):
    restartable.add_worker(nthreads=2)
    one = search(restartable.address, wait=0.5)
    driver = one.start(*one.arguments, "--reconnect-timeout", "2")
    wait_until(lambda: len(one.lines("ended")) >= 2, what="two ends")
    restartable.kill_scheduler()
    output, _ = driver.communicate(timeout=60)
    assert driver.returncode == 1
    command = output.strip().splitlines()[-1].split()
    assert command[:4] == ["dask", "hpo", "resume", "search"]
    assert one.experiment().status == "interrupted"
    restartable.restart(nthreads=2)
    resumed = one.start(*command[2:], address=False)
    output, _ = resumed.communicate(timeout=60)
    assert resumed.returncode == 0, output
    one.check()


def test_ctrl_c_ends_the_wait_for_a_dask_scheduler(restartable, search):
    restartable.add_worker(nthreads=2)
    one = search(restartable.address, wait=0.5)
    driver = one.start()
    wait_until(lambda: len(one.lines("ended")) >= 2, what="two ends")
    restartable.kill_scheduler()
    time.sleep(1)
    driver.send_signal(signal.SIGINT)
    output, _ = driver.communicate(timeout=20)
    assert driver.returncode == 1
    assert "dask hpo resume search" in output


def test_a_dask_scheduler_that_is_frozen_is_given_up_in_time(restartable, search):
    restartable.add_worker(nthreads=2)
    one = search(restartable.address)
    driver = one.start(*one.arguments, "--reconnect-timeout", "3")
    wait_until(lambda: len(one.lines("ended")) >= 2, what="two ends")
    scheduler = restartable.processes[0]
    scheduler.send_signal(signal.SIGSTOP)
    try:
        output, _ = driver.communicate(timeout=90)
    finally:
        scheduler.send_signal(signal.SIGCONT)
    assert driver.returncode == 1
    assert "has not answered for" in output
    assert "dask hpo resume search" in output
    one.resume()
    one.check(attempts={1})


class Cable:
    """A way to a Dask scheduler that can be cut: a proxy of TCP connections."""

    def __init__(self, address: str) -> None:
        host, port = address.removeprefix("tcp://").split(":")
        self._target = host, int(port)
        self._server = socket.create_server(("127.0.0.1", 0))
        self.address = f"tcp://127.0.0.1:{self._server.getsockname()[1]}"
        self._open: list[socket.socket] = []
        self._whole = True
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        with contextlib.suppress(OSError):
            while True:
                ours, _ = self._server.accept()
                if not self._whole:
                    ours.close()
                    continue
                theirs = socket.create_connection(self._target)
                self._open += [ours, theirs]
                for ends in ((ours, theirs), (theirs, ours)):
                    threading.Thread(target=self._pump, args=ends, daemon=True).start()

    @staticmethod
    def _pump(source, sink):
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def cut(self):
        self._whole = False
        for end in self._open:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def mend(self):
        self._whole = True

    def close(self):
        self.cut()
        self._server.close()
        for end in self._open:
            end.close()


def test_a_connection_that_breaks_while_trials_run_on(dask_processes, search):
    dask_processes.add_worker(nthreads=2)
    cable = Cable(dask_processes.address)
    try:
        one = search(cable.address)
        driver = one.start()
        for ended in (2, 4):
            wait_until(lambda n=ended: len(one.lines("ended")) >= n, what="ends")
            cable.cut()
            time.sleep(1)  # trials report and end meanwhile
            cable.mend()
        output, _ = driver.communicate(timeout=60)
        assert driver.returncode == 0, output
        one.check(attempts={1})
    finally:
        cable.close()


def test_a_client_of_the_users_own_breaks(dask_processes, tmp_path):
    dask_processes.add_worker(nthreads=2)
    cable = Cable(dask_processes.address)
    try:
        with Client(cable.address, set_as_default=False) as client:
            run = slow_tuner(client, tmp_path, limits={"max_num_trials_started": 12})
            seen = []
            thread = threading.Thread(target=lambda: seen.append(run.run()))
            thread.start()
            wait_until(lambda: run.tuning.counts["completed"] >= 2, what="two ends")
            cable.cut()
            time.sleep(0.5)
            cable.mend()
            thread.join(60)
            assert list(seen[0].trials["trial_id"]) == list(range(12))
            assert set(seen[0].trials["attempt"]) == {1}
    finally:
        cable.close()


def test_it_says_how_to_go_on(restartable, tmp_path):
    restartable.add_worker(nthreads=2)
    run = slow_tuner(restartable.address, tmp_path / "a folder", reconnect_timeout=0.5)
    raised = []

    def go():
        with pytest.raises(SchedulerLostError) as error:
            run.run()
        raised.append(str(error.value))

    thread = threading.Thread(target=go)
    thread.start()
    wait_until(lambda: run.tuning.counts["completed"] >= 1, what="an end")
    restartable.kill_scheduler()
    thread.join(60)
    command = f"dask hpo resume {run.name} --address {restartable.address}"
    assert f"{command} --path '{tmp_path}/a folder'" in raised[0]


# Workers


def test_an_end_that_was_heard_counts_although_the_worker_died(dask_processes, tmp_path):
    """The worker dies right after its last word; the future has no result then."""
    worker = dask_processes.add_worker(nthreads=1)
    dask_processes.client.run(dies_after_its_last_word)
    run = slow_tuner(dask_processes.client, tmp_path, limits={"max_num_trials_started": 1})
    thread = threading.Thread(target=run.run)
    thread.start()
    worker.wait(60)
    thread.join(60)
    trials = load_experiment(run.path).trials
    assert list(trials["state"]) == ["completed"]
    assert list(trials["attempt"]) == [1]


def dies_after_its_last_word():
    from dask_hpo.cluster import worker

    run = worker.TrialHost.run

    def run_and_die(self, *arguments):
        run(self, *arguments)
        time.sleep(0.3)  # the last word is on its way
        os._exit(1)

    worker.TrialHost.run = run_and_die


def fails_where_marked(x):
    if os.environ.get("DASK_HPO_TEST_BROKEN"):
        raise RuntimeError("this machine lacks a library")
    time.sleep(0.3)
    return x


def test_a_worker_on_which_everything_fails_is_set_aside(dask_processes, tmp_path, caplog):
    dask_processes.add_worker(nthreads=1)
    dask_processes.add_worker(nthreads=1, env={"DASK_HPO_TEST_BROKEN": "1"})
    limits = {"max_num_trials_started": 20}
    run = slow_tuner(dask_processes.client, tmp_path, limits=limits, objective=fails_where_marked)
    trials = run.run().trials
    failed = trials.query("state == 'failed'")
    assert 5 <= len(failed) <= 7  # some may have been on their way
    assert failed["worker"].nunique() == 1
    assert len(trials) == 20
    (message,) = [r.getMessage() for r in caplog.records if "no more trials" in r.getMessage()]
    assert failed["worker"].iloc[0] in message
    assert "this machine lacks a library" in message


def test_a_trial_that_waits_for_a_worker_gets_the_first_that_comes(dask_processes, tmp_path):
    """The only worker dies, and with it every place that its trials could be submitted to."""
    worker = dask_processes.add_worker(nthreads=2)
    run = slow_tuner(dask_processes.client, tmp_path)
    thread = threading.Thread(target=run.run)
    thread.start()
    wait_until(lambda: run.tuning.counts["running"] == 2, what="two trials")
    kill(worker)
    wait_until(lambda: run.tuning.slots == 0, what="the loss")
    wait_until(lambda: run.tuning.counts["submitted"] == 2, what="two that wait")
    dask_processes.add_worker(nthreads=2)
    thread.join(60)
    trials = load_experiment(run.path).trials
    assert list(trials["state"]) == ["completed"] * 8
    assert sorted(trials["attempt"])[-2:] == [2, 2]


def test_workers_that_come_one_by_one_share_what_waits(dask_processes, tmp_path):
    worker = dask_processes.add_worker(nthreads=2)
    limits = {"max_num_trials_started": 2}
    run = slow_tuner(dask_processes.client, tmp_path, objective=lasts, limits=limits)
    thread = threading.Thread(target=run.run)
    thread.start()
    wait_until(lambda: run.tuning.counts["running"] == 2, what="two trials")
    kill(worker)
    wait_until(lambda: run.tuning.counts["submitted"] == 2, what="two that wait")
    for _ in range(2):
        dask_processes.add_worker(nthreads=1)
    thread.join(60)
    attempts = load_experiment(run.path).attempts.query("attempt == 2")
    assert attempts["worker"].nunique() == 2
    assert attempts["start"].max() < attempts["end"].min()


def test_a_stop_in_the_middle_of_submissions_is_no_break(shared_cluster, tmp_path):
    """The cancel of a task crosses with the word that it has begun."""
    for _ in range(15):
        run = slow_tuner(shared_cluster.client, tmp_path, isolation="thread", n_workers=4)
        timer = threading.Timer(random.uniform(0.05, 0.3), run.stop)
        timer.start()
        assert run.run().status in {"interrupted", "finished"}
        timer.join()


def test_ctrl_c_while_no_worker_is_there(dask_processes, tmp_path):
    worker = dask_processes.add_worker(nthreads=2)
    run = slow_tuner(dask_processes.client, tmp_path)
    thread = threading.Thread(target=run.run)
    thread.start()
    wait_until(lambda: run.tuning.counts["running"] == 2, what="two trials")
    kill(worker)
    wait_until(lambda: run.tuning.slots == 0, what="the loss")
    run.stop()
    thread.join(30)
    assert load_experiment(run.path).status == "interrupted"


def test_lock(tmp_path):
    """The lock is the process's that holds it, and dies with it."""
    from dask_hpo.log.directory import hold_lock, is_running

    code = "import sys, time; from pathlib import Path; from dask_hpo.log.directory import *\n"
    code += f"lock = hold_lock(Path({str(tmp_path)!r})); print('held', flush=True); time.sleep(60)"
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    assert is_running(tmp_path)
    with pytest.raises(LogError, match="another driver"):
        hold_lock(tmp_path)
    kill(holder)
    holder.stdout.close()
    assert not is_running(tmp_path)
    hold_lock(tmp_path).release()
