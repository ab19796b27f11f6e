"""Trial processes: real ones, forked from a template and started cold."""

import math
import os
import re
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import ModuleType, SimpleNamespace

import psutil
import pytest

from dask_hpo.cluster import preload
from dask_hpo.cluster.limits import Guard, Limits
from dask_hpo.cluster.process import ProcessRunner, TrialRequest, default_isolation
from dask_hpo.cluster.thread import ThreadRunner
from dask_hpo.core.events import Outcome
from dask_hpo.errors import ClusterError, ObjectiveError
from dask_hpo.objective import FunctionObjective, ScriptObjective, as_objective

LIMIT_S = 20.0
METHODS = ["fork", "spawn"]


def eventually(predicate):
    deadline = time.monotonic() + LIMIT_S
    while not (value := predicate()):
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.005)
    return value


def is_alive(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def processes_of(folder):
    """Return the templates and trial processes whose command line names the folder."""
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if any(str(folder) in argument for argument in process.info["cmdline"] or ())
    ]


@pytest.fixture(autouse=True)
def scratch(tmp_path, monkeypatch):
    """Hold temporary files of the test here, and find neither files nor processes left over."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    descriptors = psutil.Process().num_fds()
    yield folder
    assert processes_of(folder) == []
    assert list(folder.iterdir()) == []
    assert psutil.Process().num_fds() == descriptors


class Trials:
    """A runner with what it was told, for the tests' convenience."""

    def __init__(self, runner):
        self.runner = runner
        self.reports = []
        self.started = []
        self.told = threading.Event()

    def run(self, trial_id=0, *, devices=None, **config):
        def on_report(step, metrics, elapsed):
            self.reports.append((trial_id, step, dict(metrics)))
            self.told.set()

        request = TrialRequest(trial_id, 1, config, devices)
        return self.runner.run(request, on_report, lambda: self.started.append(trial_id))


@pytest.fixture
def make():
    """Return a function that makes the trials of an objective."""
    made = []

    def make(objective, method="fork", *, grace_period_s=5.0, ahead=None, cpu_threads=1, **limits):
        payload = as_objective(objective).payload()
        runner = ProcessRunner(
            payload,
            ahead,
            metric="error",
            cpu_threads=cpu_threads,
            method=method,
            grace_period_s=grace_period_s,
            limits=Limits(**limits),
        )
        made.append(runner)
        return Trials(runner)

    yield make
    for runner in made:
        runner.close()


@pytest.fixture(params=METHODS)
def trials(make, request):
    return lambda objective, **options: make(objective, request.param, **options)


# What an objective gives --------------------------------------------------------------------------


def test_reports_come_in_order_and_before_the_end(trials):
    def objective(count):
        from dask_hpo.report import Reporter

        report = Reporter()
        for i in range(count):
            report(error=i, note="x" * 500)
        return 7

    running = trials(objective)
    result = running.run(count=300)
    assert [step for _, step, _ in running.reports] == list(range(1, 301))
    assert [metrics["error"] for _, _, metrics in running.reports] == list(range(300))
    assert running.started == [0]
    assert result.outcome is Outcome.COMPLETED
    assert result.metrics == {"error": 7}
    assert result.elapsed > 0
    assert result.start_up_s > 0


@pytest.mark.parametrize(
    ("returned", "metrics"),
    [
        ("0.5", {"error": 0.5}),
        ("None", {}),
        ("{'a': 1, 'b': __import__('numpy').float32(0.5)}", {"a": 1, "b": 0.5}),
        ("__import__('numpy').array(0.25)", {"error": 0.25}),
    ],
)
def test_what_is_returned_becomes_metrics(make, returned, metrics):
    result = make(lambda expression: eval(expression)).run(expression=returned)  # noqa: PLW0108 - travels
    assert (result.outcome, result.metrics) == (Outcome.COMPLETED, metrics)


def test_a_tensor_is_a_number(make):
    pytest.importorskip("torch")

    def objective():
        import torch

        return torch.tensor(0.5)

    assert make(objective).run().metrics == {"error": 0.5}


def test_other_values_are_refused(make):
    result = make(lambda: "text").run()
    assert result.outcome is Outcome.FAILED
    assert result.failure.error.startswith("TypeError: the objective returned 'text' of type str")


def test_an_exception_of_any_class_arrives_as_text(trials):
    def objective():
        class OwnError(Exception):
            def __reduce__(self):
                raise RuntimeError("cannot be pickled")

        print("last words", file=sys.stderr)
        raise OwnError("two\nlines")

    result = trials(objective).run()
    assert result.outcome is Outcome.FAILED
    assert result.failure.error.endswith("OwnError: two lines")
    assert "in objective" in result.failure.traceback
    assert "child.py" not in result.failure.traceback
    assert "last words" in result.failure.output
    assert "last words" in result.stderr


def test_a_long_message_hides_no_frame(make):
    def objective():
        raise ValueError("first " + "x" * 10**8 + " last")

    failure = make(objective).run().failure
    assert failure.error.startswith("ValueError: first xxx")
    assert len(failure.error) < 3_000
    assert "in objective" in failure.traceback
    assert failure.traceback.endswith("xxx last\n")
    assert len(failure.traceback) < 6_000


def test_other_values_are_cut(make):
    error = make(lambda: b"x" * 10**8).run().failure.error
    assert error.startswith("TypeError: the objective returned b'xxx")
    assert "xxx... of type bytes: an objective returns a number" in error
    assert len(error) < 300


def test_a_missing_module_says_what_to_do(make, tmp_path, monkeypatch):
    (tmp_path / "gone_on_workers.py").write_text("def objective(): return 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    from gone_on_workers import objective

    running = make(objective)
    (tmp_path / "gone_on_workers.py").unlink()
    error = running.run().failure.error
    assert error.startswith("ImportError: No module named")
    assert "upload_file" in error


# How a process ends -------------------------------------------------------------------------------


def test_an_exit_without_a_word(trials):
    def objective():
        print("almost", file=sys.stderr)
        os._exit(3)

    result = trials(objective).run()
    assert result.outcome is Outcome.FAILED
    assert "exited with status 3 without an error message" in result.failure.error
    assert result.failure.error.endswith("stderr ends: almost")


def test_a_segmentation_fault(trials):
    def objective():
        import ctypes

        ctypes.string_at(0)

    result = trials(objective).run()
    assert result.outcome is Outcome.FAILED
    assert "killed by SIGSEGV (segmentation fault)" in result.failure.error
    assert "in objective" in result.failure.output  # faulthandler's word


def test_a_kill_from_outside(trials):
    result = trials(lambda: os.kill(os.getpid(), signal.SIGKILL)).run()
    assert result.outcome is Outcome.FAILED
    assert "out-of-memory" in result.failure.error


def test_sys_exit(make):
    assert make(lambda: sys.exit(0)).run().outcome is Outcome.COMPLETED
    failed = make(lambda: sys.exit(4)).run()
    assert failed.failure.error.startswith("SystemExit: exited with status 4")
    assert make(lambda: sys.exit("no data")).run().failure.error == "SystemExit: no data"


def test_threads_left_over_do_not_hold_it(make):
    def objective():
        threading.Thread(target=time.sleep, args=(1000,)).start()
        return 1

    assert make(objective).run().outcome is Outcome.COMPLETED


def test_exit_handlers_run(make):
    def objective():
        import atexit

        folder = tempfile.TemporaryDirectory()  # has a finalizer of its own
        atexit.register(print, "goodbye")
        print(folder.name)
        objective.folder = folder
        return 1

    folder, goodbye = make(objective).run().stdout.splitlines()
    assert goodbye == "goodbye"
    assert not Path(folder).exists()


def test_an_exit_that_hangs_is_cut_short(make):
    def objective():
        import atexit

        atexit.register(time.sleep, 1000)
        return 1

    result = make(objective, grace_period_s=0.1).run()
    assert (result.outcome, result.metrics) == (Outcome.COMPLETED, {"error": 1})


def test_a_grandchild_is_gone_after_the_end(trials):
    def objective():
        from dask_hpo.report import report

        child = subprocess.Popen(["sleep", "1000"])
        pid = os.fork()
        if pid == 0:
            time.sleep(1000)
        report(first=child.pid, second=pid)
        os._exit(0)

    running = trials(objective)
    running.run()
    ((_, _, pids),) = running.reports
    assert [pid for pid in pids.values() if psutil.pid_exists(pid)] == []


def test_a_process_that_escapes_holds_nothing_up(make):
    def objective():
        return subprocess.Popen(["sleep", "1000"], start_new_session=True).pid

    running = make(objective)
    pid = running.run().metrics["error"]
    assert is_alive(pid)
    running.runner.close()
    assert not is_alive(pid)


# Stopping -----------------------------------------------------------------------------------------


def stop_when_told(running, **config):
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(running.run, **config)
        assert running.told.wait(LIMIT_S)
        assert running.runner.stop(0, 1)
        return future.result(LIMIT_S)


def test_a_stop_ends_a_trial_that_never_reports_again(trials):
    def objective():
        from dask_hpo.report import report

        report(error=1)
        time.sleep(1000)

    running = trials(objective)
    result = stop_when_told(running)
    assert (result.outcome, result.failure) == (Outcome.STOPPED, None)
    assert len(running.reports) == 1
    assert not running.runner.stop(0, 1)


def test_a_trial_that_ignores_sigterm_is_killed(trials):
    def objective():
        from dask_hpo.report import report

        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        report(error=1)
        time.sleep(1000)

    begun = time.monotonic()
    assert stop_when_told(trials(objective, grace_period_s=0.2)).outcome is Outcome.STOPPED
    assert time.monotonic() - begun < 15


def test_a_stopped_trial_leaves_no_shared_memory(trials):
    def objective():
        from multiprocessing.shared_memory import SharedMemory

        from dask_hpo.report import report

        report(name=SharedMemory(create=True, size=1000).name)
        time.sleep(1000)

    running = trials(objective)
    stop_when_told(running)
    assert not Path("/dev/shm", running.reports[0][2]["name"]).exists()


def test_a_trial_may_use_its_grace_period(make):
    def objective():
        from dask_hpo.report import report

        signal.signal(signal.SIGTERM, lambda *_: (report(saved=1), sys.exit(0)))
        report(error=1)
        time.sleep(1000)

    running = make(objective)
    assert stop_when_told(running).outcome is Outcome.STOPPED
    assert running.reports[-1][2] == {"saved": 1}


def test_an_unknown_attempt_is_not_stopped(make):
    running = make(lambda: 1)
    running.run()
    assert not running.runner.stop(0, 1)
    assert not running.runner.stop(5, 1)


def test_a_stop_that_comes_before_the_process(make, tmp_path):
    running = make(lambda: open(tmp_path / "ran", "w").close())
    template = running.runner._live_link()._process
    template.send_signal(signal.SIGSTOP)  # as busy as one that imports
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(running.run, 0)
        eventually(lambda: running.runner.stop(0, 1))
        assert future.result(LIMIT_S).outcome is Outcome.STOPPED
    template.send_signal(signal.SIGCONT)
    assert running.run(1).outcome is Outcome.COMPLETED
    assert running.started == [1]


def test_a_closed_runner_loses_its_trials(make):
    def objective():
        from dask_hpo.report import report

        report(error=1)
        time.sleep(1000)

    running = make(objective)
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(running.run)
        assert running.told.wait(LIMIT_S)
        running.runner.close()
        assert future.result(LIMIT_S).outcome is Outcome.LOST
    with pytest.raises(ClusterError, match="closed"):
        running.run()


def test_a_callback_that_raises_leaves_no_process(make):
    def objective():
        from dask_hpo.report import report

        report(pid=os.getpid())
        time.sleep(1000)

    pids = []

    def on_report(step, metrics, elapsed):
        pids.append(metrics["pid"])
        raise RuntimeError("ours")

    with pytest.raises(RuntimeError, match="ours"):
        make(objective).runner.run(TrialRequest(0, 1, {}), on_report, lambda: None)
    eventually(lambda: not is_alive(pids[0]))


# Limits -------------------------------------------------------------------------------------------


def group_of(pid):
    """Return the processes of a group; one that was just swept may not be listed any more."""
    found = []
    for other in psutil.pids():
        with suppress(OSError):
            found += [other] * (os.getpgid(other) == pid)
    return found


def test_a_trial_that_runs_too_long_has_failed(trials):
    def objective():
        import itertools

        from dask_hpo.report import report

        print("in the middle of it")
        for _ in itertools.repeat(0):
            report(pid=os.getpid())
            time.sleep(0.01)

    running = trials(objective, trial_timeout_s=0.3)
    result = running.run()
    assert result.outcome is Outcome.FAILED
    assert re.match(
        r"TrialTimeout: the trial ran for \d\.\d s, longer than trial_timeout=0\.3 s; give it more",
        result.failure.error,
    )
    assert "in objective" in result.failure.traceback
    assert result.failure.output == result.stdout == "in the middle of it\n"
    assert group_of(running.reports[0][2]["pid"]) == []
    assert running.reports[-1][1] > 10  # it was heard until then
    assert result.elapsed >= 0.3


def test_a_trial_that_falls_silent_shows_where_it_hangs(trials):
    def objective():
        import ctypes

        from dask_hpo.report import report

        def quiet():
            ctypes.PyDLL(None).sleep(1000)  # in C, with the interpreter's lock held

        threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
        for _ in range(5):
            time.sleep(0.25)
            report(pid=os.getpid())
        quiet()

    running = trials(objective, report_timeout_s=1, grace_period_s=0.1)
    result = running.run()
    assert result.outcome is Outcome.FAILED
    assert re.match(
        r"ReportTimeout: the trial reported nothing for \d\.\d s, longer than report_timeout=1 s",
        result.failure.error,
    )
    assert "in quiet" in result.failure.traceback
    assert result.failure.traceback.count("most recent call first") == 2
    assert "child.py" not in result.failure.traceback
    assert len(running.reports) == 5
    assert result.stderr == ""


def test_a_trial_that_never_reports_is_silent_from_its_start(make):
    result = make(lambda: time.sleep(1000), report_timeout_s=0.2).run()
    assert result.failure.error.startswith("ReportTimeout")


def test_a_limit_ends_the_trials_children_too(trials):
    def objective():
        from dask_hpo.report import report

        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        subprocess.Popen(["sleep", "1000"])
        if os.fork():
            report(pid=os.getpid())
        time.sleep(1000)

    running = trials(objective, trial_timeout_s=0.3, grace_period_s=0.2)
    result = running.run()
    assert result.failure.error.startswith("TrialTimeout")
    assert group_of(running.reports[0][2]["pid"]) == []


def test_a_trial_beyond_its_limit_may_use_its_grace_period(make):
    def objective():
        from dask_hpo.report import report

        signal.signal(signal.SIGTERM, lambda *_: (report(saved=1), sys.exit(0)))
        time.sleep(1000)

    running = make(objective, trial_timeout_s=0.2)
    assert running.run().failure.error.startswith("TrialTimeout")
    assert running.reports == [(0, 1, {"saved": 1})]


def test_what_comes_first_counts(make):
    def objective(late):
        import atexit

        from dask_hpo.report import report

        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        report(error=1)
        if late:
            time.sleep(1000)
        atexit.register(time.sleep, 1000)
        return 2

    # A result before the limits, which pass while the process ends.
    before = make(objective, trial_timeout_s=0.3, report_timeout_s=0.3, grace_period_s=0.6)
    assert before.run(late=False).outcome is Outcome.COMPLETED
    # A stop before the limits, which pass in the grace period.
    stopped = make(objective, trial_timeout_s=1, report_timeout_s=1, grace_period_s=1.2)
    assert stop_when_told(stopped, late=True).outcome is Outcome.STOPPED
    # A limit before the stop.
    late = make(objective, trial_timeout_s=0.1, grace_period_s=1)
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(late.run, late=True)
        key = eventually(lambda: next(iter(late.runner._attempts.values()), None))
        eventually(lambda: key._watch is not None and key._watch.course.breach)
        late.runner.stop(0, 1)
        assert future.result(LIMIT_S).failure.error.startswith("TrialTimeout")


def test_a_result_that_waits_to_be_read_is_not_too_late(make):
    def objective():
        from dask_hpo.report import report

        report(error=1)
        return 2

    def busy(*_):
        time.sleep(0.5)  # longer than the trial has

    running = make(objective, trial_timeout_s=0.3, report_timeout_s=0.3)
    result = running.runner.run(TrialRequest(0, 1, {}), busy, lambda: None)
    assert (result.outcome, result.metrics) == (Outcome.COMPLETED, {"error": 2})


def test_what_a_trial_says_on_its_way_out_does_not_start_its_clocks_again():
    guard = Guard(Limits(trial_timeout_s=1, report_timeout_s=1))
    guard.started()
    assert guard.due < math.inf
    guard.ending()
    guard.started()
    guard.reported()
    assert guard.due == math.inf
    assert guard.check() is None


def test_a_trial_that_grows_is_killed(trials):
    def objective():
        from dask_hpo.report import report

        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        report(pid=os.getpid())
        grown = [bytearray(b"x" * 2**20)]
        while True:
            grown.append(bytearray(b"x" * 2**20))
            time.sleep(0.001)

    running = trials(objective, memory_limit_bytes=200 * 2**20, grace_period_s=1000)
    result = running.run()
    assert result.outcome is Outcome.FAILED
    assert result.failure.error.startswith("MemoryLimitExceeded: the trial's processes used ")
    assert "more than memory_limit=200.00 MiB" in result.failure.error
    assert group_of(running.reports[0][2]["pid"]) == []


def test_the_memory_of_children_counts(make):
    def objective():
        from dask_hpo.report import report

        report(pid=os.getpid())
        for _ in range(4):
            if os.fork() == 0:
                own = b"x" * (100 * 2**20)
                time.sleep(1000)
                print(len(own))
        time.sleep(1000)

    running = make(objective, memory_limit_bytes=300 * 2**20)
    assert running.run().failure.error.startswith("MemoryLimitExceeded")
    assert group_of(running.reports[0][2]["pid"]) == []


def test_memory_that_is_shared_counts_once(make, library):
    library("large_library", "data = b'x' * (200 * 2**20)")

    def objective():
        import large_library

        children = []
        for _ in range(3):
            children.append(os.fork())
            if children[-1] == 0:
                time.sleep(1000)
        resident = sum(psutil.Process(pid).memory_info().rss for pid in [os.getpid(), *children])
        time.sleep(1)  # for a few looks
        return resident + len(large_library.data[:0])

    limit = 400 * 2**20
    result = make(objective, ahead=("large_library",), memory_limit_bytes=limit).run()
    assert result.outcome is Outcome.COMPLETED
    assert result.metrics["error"] > 2 * limit


def test_a_stopped_trial_still_must_not_grow(make):
    def objective():
        from dask_hpo.report import report

        def grow(*_):
            grown = b"x" * (300 * 2**20)
            time.sleep(1000)
            print(len(grown))

        signal.signal(signal.SIGTERM, grow)
        report(error=1)
        time.sleep(1000)

    running = make(objective, memory_limit_bytes=200 * 2**20, grace_period_s=1000)
    assert stop_when_told(running).outcome is Outcome.STOPPED


# Faults -------------------------------------------------------------------------------------------

HOST = """
import os, sys, tempfile, time
from dask_hpo.cluster.process import ProcessRunner, TrialRequest
from dask_hpo.objective import FunctionObjective

def objective():
    import signal, subprocess
    from dask_hpo.report import report
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    escaped = subprocess.Popen(["sleep", "1000"], start_new_session=True)
    report(pid=os.getpid(), escaped=escaped.pid)
    time.sleep(1000)

tempfile.tempdir = sys.argv[1]
runner = ProcessRunner(
    FunctionObjective(objective).payload(),
    metric="error", cpu_threads=1, method=sys.argv[2], grace_period_s=1,
)
runner.run(
    TrialRequest(0, 1, {}),
    lambda step, metrics, elapsed: print(metrics["pid"], metrics["escaped"], flush=True),
    lambda: None,
)
"""


@pytest.mark.parametrize("method", METHODS)
def test_a_killed_worker_takes_its_trials_along(scratch, method):
    command = [sys.executable, "-c", HOST, str(scratch), method]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as worker:
        pids = [int(word) for word in worker.stdout.readline().split()]
        assert len(pids) == 2
        worker.kill()
    eventually(lambda: not any(map(is_alive, pids)))
    eventually(lambda: not processes_of(scratch))
    assert list(scratch.iterdir()) == []


def test_a_killed_template_loses_its_trials_and_is_replaced(make):
    def objective(wait):
        from dask_hpo.report import report

        report(pid=os.getpid())
        time.sleep(wait)

    running = make(objective)
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(running.run, wait=1000)
        assert running.told.wait(LIMIT_S)
        running.runner._live_link()._process.kill()
        result = future.result(LIMIT_S)
    assert result.outcome is Outcome.LOST
    assert "template process died" in result.failure.error
    eventually(lambda: not is_alive(running.reports[0][2]["pid"]))
    assert running.run(1, wait=0).outcome is Outcome.COMPLETED


def test_a_flood_of_output_is_bounded(trials):
    def objective():
        for _ in range(50):
            sys.stdout.write("x" * 1_000_000)
        print("the end")
        return 1

    result = trials(objective).run()
    assert result.outcome is Outcome.COMPLETED
    assert len(result.stdout) == 64 * 1024
    assert result.stdout.endswith("the end\n")


def test_a_sibling_does_not_notice_a_crash(trials):
    def objective(crash):
        from dask_hpo.report import report

        report(error=1)
        if crash:
            os.abort()
        time.sleep(0.2)
        return 2

    running = trials(objective)
    with ThreadPoolExecutor(2) as pool:
        fine = pool.submit(running.run, 0, crash=False)
        crashed = pool.submit(running.run, 1, crash=True)
        assert crashed.result().outcome is Outcome.FAILED
        assert fine.result().metrics == {"error": 2}


def test_many_at_once(make):
    def objective(x):
        from dask_hpo.report import report

        report(x=x)
        return x

    running = make(objective)
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda i: running.run(i, x=i), range(40)))
    assert [result.metrics["error"] for result in results] == list(range(40))
    assert sorted(running.reports) == [(i, 1, {"x": i}) for i in range(40)]


def test_an_attempt_runs_once_at_a_time(make):
    def objective():
        from dask_hpo.report import report

        report(error=1)
        time.sleep(1000)

    running = make(objective)
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(running.run)
        assert running.told.wait(LIMIT_S)
        with pytest.raises(ClusterError, match="trial 0, attempt 1 runs here already"):
            running.run()
        running.runner.stop(0, 1)
        future.result(LIMIT_S)


# What a trial sees --------------------------------------------------------------------------------


def test_a_trial_sees_nothing_of_another(trials):
    seen = []

    def objective():
        import json

        seen.append(1)
        json.count = getattr(json, "count", 0) + 1
        return {"seen": len(seen), "count": json.count}

    running = trials(objective)
    for i in range(2):
        assert running.run(i).metrics == {"seen": 1, "count": 1}


def test_a_function_runs_in_the_workers_folder(trials):
    def objective():
        print(Path.cwd())

    assert trials(objective).run().stdout.strip() == str(Path.cwd())


def test_siblings_draw_different_numbers(make):
    def objective():
        import random

        import numpy as np

        return {"random": random.random(), "numpy": np.random.random()}  # noqa: NPY002 - the global one

    running = make(objective, ahead=("numpy",))
    first, second = running.run(0).metrics, running.run(1).metrics
    assert first["random"] != second["random"]
    assert first["numpy"] != second["numpy"]


def test_the_environment(trials, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")

    def objective():
        names = ["CUDA_VISIBLE_DEVICES", "DASK_HPO_TRIAL_ID", "DASK_HPO_ATTEMPT"]
        return {name: os.environ[name] for name in [*names, "OMP_NUM_THREADS"]}

    running = trials(objective, cpu_threads=2)
    assert running.run(17, devices="3,GPU-x").metrics == {
        "CUDA_VISIBLE_DEVICES": "3,GPU-x",
        "DASK_HPO_TRIAL_ID": "17",
        "DASK_HPO_ATTEMPT": "1",
        "OMP_NUM_THREADS": "2",
    }
    assert running.run(18).metrics["CUDA_VISIBLE_DEVICES"] == "0,1,2,3"


def test_torch_is_warm_and_uses_its_threads(make):
    pytest.importorskip("torch")

    def objective():
        warm = "torch" in sys.modules
        import torch

        return {"warm": warm, "threads": torch.get_num_threads(), "drawn": torch.rand(()).item()}

    running = make(objective, cpu_threads=1)
    first, second = running.run(0), running.run(1)
    assert first.metrics["warm"] is True
    assert first.metrics["threads"] == 1
    assert first.metrics["drawn"] != second.metrics["drawn"]


# Scripts ------------------------------------------------------------------------------------------

SCRIPT = """
import argparse, sys
from pathlib import Path
import helper
from dask_hpo.report import Reporter

parser = argparse.ArgumentParser()
parser.add_argument("--learning_rate", type=float)
parser.add_argument("--fast")
parser.add_argument("--layers")
parser.add_argument("--depth", type=int, default=9)
arguments = parser.parse_args()

class Local:
    pass

if __name__ == "__main__":
    import pickle
    pickle.loads(pickle.dumps(Local()))
    report = Reporter()
    text = Path("data/values.txt").read_text() + (Path(__file__).parent / "helper.py").name
    report(
        error=arguments.learning_rate, fast=arguments.fast, layers=arguments.layers,
        depth=arguments.depth, text=text, helped=helper.VALUE,
    )
"""


@pytest.fixture
def script(tmp_path):
    folder = tmp_path / "training"
    (folder / "data").mkdir(parents=True)
    (folder / "train.py").write_text(SCRIPT)
    (folder / "helper.py").write_text("VALUE = 5\n")
    (folder / "data" / "values.txt").write_text("shipped ")
    return ScriptObjective(folder / "train.py", files=["helper.py", "data"])


def test_a_script_runs_as_by_hand(trials, script):
    running = trials(script)
    result = running.run(learning_rate=0.1, fast=True, layers=[1, 2], depth=None)
    assert result.failure is None
    assert running.reports == [
        (
            0,
            1,
            {
                "error": 0.1,
                "fast": "true",
                "layers": "[1, 2]",
                "depth": 9,
                "text": "shipped helper.py",
                "helped": 5,
            },
        )
    ]


def test_a_script_that_refuses_its_arguments(make, script):
    result = make(script).run(unknown=1)
    assert result.outcome is Outcome.FAILED
    assert result.failure.error.startswith("SystemExit: exited with status 2")
    assert "unrecognized arguments: --unknown 1" in result.failure.error


def test_a_traceback_in_a_script_names_its_line(make, tmp_path):
    (tmp_path / "wrong.py").write_text("x = 1\nraise ValueError(x)\n")
    failure = make(str(tmp_path / "wrong.py")).run().failure
    assert failure.error == "ValueError: 1"
    assert "line 2" in failure.traceback
    assert "raise ValueError(x)" in failure.traceback


# The template's imports ---------------------------------------------------------------------------


@pytest.fixture
def library(tmp_path, monkeypatch):
    """Return a function that installs a library, for the templates of this test."""
    folder = tmp_path / "packages"
    (folder / "some.dist-info").mkdir(parents=True)  # an installer's mark
    monkeypatch.syspath_prepend(folder)
    return lambda name, source: (folder / f"{name}.py").write_text(textwrap.dedent(source))


def use(name):
    """Return an objective that says whether the module was imported ahead."""

    def objective():
        import importlib

        ahead = name in sys.modules
        importlib.import_module(name)
        return {"ahead": ahead}

    return objective


def test_a_library_is_imported_ahead(make, library):
    library("quiet_library", "value = 1")
    assert make(use("quiet_library"), ahead=("quiet_library",)).run().metrics == {"ahead": True}


def test_the_users_own_module_is_not_but_what_it_imports_is(make, library, tmp_path, monkeypatch):
    library("quiet_library", "value = 1")
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "own_module.py").write_text("import quiet_library\n")
    monkeypatch.syspath_prepend(tmp_path / "own")
    ahead = ("own_module",)
    assert make(use("own_module"), ahead=ahead).run().metrics == {"ahead": False}
    assert make(use("quiet_library"), ahead=ahead).run().metrics == {"ahead": True}


def test_a_library_with_threads_is_left_to_the_trials(make, library):
    library("quiet_library", "value = 1")
    library(
        "busy_library",
        """
        import threading, time
        threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
        """,
    )
    ahead = ("busy_library", "quiet_library")
    running = make(use("busy_library"), ahead=ahead)
    result = running.run()
    assert result.metrics == {"ahead": False}
    assert "busy_library starts threads" in result.warning
    assert running.run(1).warning == ""  # once is enough
    assert make(use("quiet_library"), ahead=ahead).run().metrics == {"ahead": True}


@pytest.mark.parametrize(
    ("source", "has_gpu", "expected"),
    [
        ("import torch; torch.cuda.is_available()", True, "asks for GPUs"),
        ("import torch; torch.cuda.is_available()", False, None),
        ("import torch; torch.cuda.is_initialized = lambda: True", False, "initialises CUDA"),
        ("import torch", True, None),
    ],
)
def test_a_library_that_touches_gpus_is_left_out(library, monkeypatch, source, has_gpu, expected):
    def available():
        assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
        return False

    cuda = SimpleNamespace(
        is_available=available, device_count=lambda: 0, is_initialized=lambda: False
    )
    torch = ModuleType("torch")
    torch.cuda = cuda
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.delitem(sys.modules, "curious_library", raising=False)
    monkeypatch.setattr(preload, "_has_gpu", lambda: has_gpu)
    monkeypatch.setattr(threading, "active_count", lambda: 1)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5")
    library("curious_library", source)
    unsafe = preload.import_ahead(["torch", "curious_library"])
    assert unsafe == (expected and ("curious_library", expected))
    assert cuda.is_available is available
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "5"


def test_a_template_imports_before_the_first_trial_is_asked_for(make):
    running = make(lambda: 1)
    running.runner.warm_up()
    template = running.runner._live_link()
    assert running.run().outcome is Outcome.COMPLETED
    assert running.runner._live_link() is template


def test_an_idle_template_ends_and_another_comes(make, monkeypatch):
    monkeypatch.setattr("dask_hpo.cluster.process._IDLE_S", 0.01)
    running = make(os.getppid)
    first = running.run(0).metrics["error"]
    eventually(lambda: not is_alive(first))
    assert running.run(1).metrics["error"] != first


def test_a_library_that_cannot_be_imported_fails_in_the_trial(make, library):
    library("broken_library", "import no_such_module_at_all")
    failure = make(use("broken_library"), ahead=("broken_library",)).run().failure
    assert failure.error == "ModuleNotFoundError: No module named 'no_such_module_at_all'"


def test_a_library_that_crashes_fails_in_the_trial(make, library):
    library("crashing_library", "import os; os._exit(9)")
    failure = make(use("crashing_library"), ahead=("crashing_library",)).run().failure
    assert "exited with status 9" in failure.error


# Threads instead of processes ---------------------------------------------------------------------


def test_a_trial_in_a_thread():
    def objective(x):
        from dask_hpo.report import report

        report(x=x)
        return x

    running = Trials(ThreadRunner(FunctionObjective(objective).payload(), metric="error"))
    result = running.run(x=3)
    assert (result.outcome, result.metrics) == (Outcome.COMPLETED, {"error": 3})
    assert (running.reports, running.started) == ([(0, 1, {"x": 3})], [0])


def test_a_failure_in_a_thread_is_a_value():
    running = Trials(ThreadRunner(FunctionObjective(lambda: sys.exit(3)).payload(), metric="e"))
    result = running.run()
    assert (result.outcome, result.failure.error) == (Outcome.FAILED, "SystemExit: 3")


def test_a_report_in_a_thread_ends_a_stopped_trial():
    def objective():
        from dask_hpo.report import report

        while True:
            report(error=1)

    running = Trials(ThreadRunner(FunctionObjective(objective).payload(), metric="error"))
    assert stop_when_told(running).outcome is Outcome.STOPPED
    assert not running.runner.stop(0, 1)


def test_a_trial_in_a_thread_sees_nothing_of_another():
    seen = []

    def objective():
        seen.append(1)
        return len(seen)

    running = Trials(ThreadRunner(FunctionObjective(objective).payload(), metric="error"))
    assert [running.run(i).metrics["error"] for i in range(3)] == [1, 1, 1]


def test_a_script_needs_a_process(script):
    with pytest.raises(ObjectiveError, match="a script needs a process"):
        ThreadRunner(script.payload(), metric="error")


def test_the_isolation_of_this_system():
    expected = {"linux": "process", "darwin": "spawn"}.get(sys.platform, "thread")
    assert default_isolation() == expected
