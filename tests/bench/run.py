"""The benchmarks of the README: each is a ratio within one run on one machine, log and reports on.

    make bench                        all of them, about five minutes
    python tests/bench/run.py fork    some of them, by name

Prints one table in Markdown.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path

import psutil
from distributed import Client, LocalCluster, as_completed

import dask_hpo
from dask_hpo import FIFOScheduler, StoppingCriterion, Tuner, load_experiment, uniform
from dask_hpo.cluster.attempt import TrialRequest
from dask_hpo.cluster.process import ProcessRunner
from dask_hpo.core.events import Outcome, TrialEnded, TrialStarted
from dask_hpo.log.directory import create_experiment
from dask_hpo.log.writer import LogWriter
from dask_hpo.objective import ScriptObjective

SPACE = {"x": uniform(0, 1)}


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table."""

    what: str
    measured: str
    target: str
    reached: bool


# Objectives: at the top level, so that workers unpickle them by reference to this file's functions.


def no_op(x: float) -> float:
    return x


def sleep_a_second(x: float) -> dict[str, float]:
    begin = time.time()
    time.sleep(1)
    return {"error": x, "begin": begin, "finish": time.time()}


def sleep_30s(x: float) -> float:
    end = time.monotonic() + 30
    while time.monotonic() < end:
        time.sleep(0.1)
    return x


def report_ten_times(x: float) -> float:
    from dask_hpo.report import Reporter

    report = Reporter()
    for step in range(10):
        report(error=x + step)
    return x


def report_at_10_hz(x: float) -> float:
    from dask_hpo.report import Reporter

    report = Reporter()
    end = time.monotonic() + 30
    while time.monotonic() < end:
        time.sleep(0.1)
        report(error=x)
    return x


@contextlib.contextmanager
def cluster(n_workers: int, threads: int) -> Iterator[Client]:
    with (
        LocalCluster(
            n_workers=n_workers,
            threads_per_worker=threads,
            dashboard_address=None,
            host="127.0.0.1",
            memory_limit=0,
        ) as local,
        Client(local) as client,
    ):
        yield client


def tune(client: Client, root: Path, objective: Callable[..., object], **options: object) -> float:
    """Run an experiment and return the seconds that its run() took."""
    isolation = options.pop("isolation", "process")
    n_workers = options.pop("n_workers", None)
    name = f"bench-{time.monotonic_ns()}"
    tuner = Tuner(
        objective,
        FIFOScheduler(SPACE, metric="error", random_seed=0),
        StoppingCriterion(**options),  # type: ignore[arg-type]
        client=client,
        isolation=isolation,  # type: ignore[arg-type]
        n_workers=n_workers,  # type: ignore[arg-type]
        path=root,
        name=name,
        progress=False,
    )
    start = time.perf_counter()
    tuner.run()
    return time.perf_counter() - start


# Benchmarks


def bare_loop(client: Client, n: int, in_flight: int, *, gather: bool) -> float:
    """Return the seconds of a bare loop: batches of completions, one map for each batch.

    ``gather``: results are fetched by one gather for each batch, else one by one behind the scenes.
    """
    start = time.perf_counter()
    submitted = 0

    def submit(count: int) -> list[object]:
        nonlocal submitted
        count = min(count, n - submitted)
        submitted += count
        values = [float(i) for i in range(count)]
        return client.map(no_op, values, pure=False)  # type: ignore[no-any-return]

    completed = as_completed(submit(in_flight), with_results=not gather)
    for batch in completed.batches():
        if gather:
            client.gather(batch)
        completed.update(submit(len(batch)))
    return time.perf_counter() - start


def bench_throughput(root: Path) -> list[Row]:
    n = 3_000
    ours, bare = [], []
    with cluster(2, 8) as client:
        bare_loop(client, 500, 16, gather=True)
        tune(client, root, no_op, isolation="thread", max_num_trials_started=500)
        for _ in range(3):
            bare.append(
                n / min(bare_loop(client, n, 16, gather=gather) for gather in (True, False))
            )
            ours.append(n / tune(client, root, no_op, isolation="thread", max_num_trials_started=n))
    ratio = statistics.median(a / b for a, b in zip(ours, bare, strict=True))
    rate = statistics.median(ours)
    return [
        Row(
            "no-op trials in threads, 2 workers x 8 threads, 16 in flight",
            f"{rate:.0f} trials/s; bare loop {statistics.median(bare):.0f}/s; ratio {ratio:.2f}",
            "ratio >= 0.9 and > 320 trials/s",
            ratio >= 0.9 and rate > 320,
        )
    ]


def bench_refill(root: Path) -> list[Row]:
    with cluster(2, 8) as client:
        seconds = tune(client, root, sleep_a_second, max_num_trials_started=1600)
    name = max(root.iterdir(), key=lambda p: p.stat().st_mtime)
    ends = load_experiment(name).events.query("kind == 'end'")
    gaps = _refills(list(ends["begin"]), list(ends["finish"]), slots=16)
    p50, p99 = (gaps[int(len(gaps) * q)] * 1e3 for q in (0.5, 0.99))
    return [
        Row(
            "slot refill, 1 s trials in processes on 16 slots (end of one to start of the next)",
            f"median {p50:.0f} ms, p99 {p99:.0f} ms",
            "p99 < 50 ms",
            p99 < 50,
        ),
        Row("1,600 such trials", f"{seconds:.1f} s", "<= 105 s", seconds <= 105),
    ]


def _refills(begins: list[float], finishes: list[float], slots: int) -> list[float]:
    """Return the sorted gaps in seconds: each start takes the slot that was freed first."""
    later = sorted(begins)[slots:]
    return sorted(max(0.0, b - f) for b, f in zip(later, sorted(finishes), strict=False))


SCRIPT = """
import time
import torch
print(time.time(), flush=True)
from dask_hpo import Reporter
Reporter()(error=1.0)
"""


def bench_fork(root: Path) -> list[Row]:
    script = root / "script.py"
    script.write_text(SCRIPT)
    objective = ScriptObjective(script)
    cold = []
    for _ in range(3):
        start = time.time()
        out = subprocess.run([sys.executable, script], capture_output=True, check=True, text=True)
        cold.append(float(out.stdout.split()[0]) - start)
    runner = ProcessRunner(
        objective.payload(), metric="error", cpu_threads=1, method="fork", grace_period_s=5
    )
    warm = []
    for number in range(21):
        start = time.time()
        request = TrialRequest(number, 1, {})
        result = runner.run(request, lambda *_: None, lambda: None)
        assert result.outcome is Outcome.COMPLETED, result
        warm.append(float(result.stdout.split()[0]) - start)
    runner.close()
    first, *rest = warm
    median = statistics.median(rest)
    return [
        Row(
            "start of a trial, until its script has imported torch",
            f"forked {median * 1e3:.0f} ms (the first, which warms the template: {first:.1f} s); "
            f"`python script.py` {statistics.median(cold):.2f} s",
            "<= 50 ms",
            median <= 0.05,
        )
    ]


def bench_reports(root: Path) -> list[Row]:
    seconds = {}
    with cluster(2, 128) as client:
        for objective in (sleep_30s, report_at_10_hz):
            seconds[objective] = tune(client, root, objective, max_num_trials_started=256)
    ratio = seconds[report_at_10_hz] / seconds[sleep_30s]
    name = max(root.iterdir(), key=lambda p: p.stat().st_mtime)
    heard = len(load_experiment(name).events.query("kind == 'report'"))
    return [
        Row(
            "256 trials (processes) reporting at 10 Hz for 30 s, against the same without reports",
            f"{seconds[report_at_10_hz]:.1f} s against {seconds[sleep_30s]:.1f} s: "
            f"{(ratio - 1) * 100:+.1f} %, {heard:,} reports logged",
            "<= +2 %",
            ratio <= 1.02,
        )
    ]


def bench_resume(root: Path) -> list[Row]:
    n = 10_000
    with cluster(2, 8) as client:
        tune(client, root, report_ten_times, isolation="thread", max_num_trials_started=n)
        (path,) = root.iterdir()
        more = StoppingCriterion(max_num_trials_started=n + 1)
        called = time.time()
        tuner = Tuner.resume(path, client=client, stop_criterion=more, progress=False)
        events = tuner.run().events
    started = events.query(f"kind == 'start' and trial_id == {n}")["timestamp"].iloc[0].timestamp()
    seconds = started - called
    return [
        Row(
            f"resume of {n:,} trials ({len(events):,} rows), until its next trial has started",
            f"{seconds:.1f} s",
            "< 3 s",
            seconds < 3,
        )
    ]


def bench_log(root: Path) -> list[Row]:
    n, chunk = 100_000, 10_000
    definition = _definition()
    writer = LogWriter(create_experiment(definition, root), definition)
    cpu, rss = [], []
    process = psutil.Process()
    for first in range(0, n, chunk):
        before = time.process_time()
        for i in range(first, first + chunk):
            config = {"x": i / n}
            start = TrialStarted(i * 0.01, i, 1, "tcp://127.0.0.1:1")
            writer.append(start, config=config, value=float("nan"), worker=start.worker, slots=16)
            end = TrialEnded(i * 0.01 + 0.009, i, 1, Outcome.COMPLETED, {"error": i / n})
            writer.append(end, config=config, value=i / n, worker=start.worker, slots=16, step=1)
        writer.flush()
        cpu.append(time.process_time() - before)
        rss.append(process.memory_info().rss / 2**20)
    writer.finish("finished", "exhausted", n * 0.01)
    writer.close()
    start = time.perf_counter()
    trials = load_experiment(root / definition.name).trials
    load = time.perf_counter() - start
    assert len(trials) == n
    first, last = statistics.median(cpu[:3]), statistics.median(cpu[-3:])
    return [
        Row(
            "append to the log, CPU per row, first 30,000 and last 30,000 of 100,000 trials",
            f"{first / chunk / 2 * 1e6:.1f} and {last / chunk / 2 * 1e6:.1f} us",
            "no growth",
            last <= 1.25 * first,
        ),
        Row(
            "memory of the writer's process after 20,000 and after 100,000 trials",
            f"{rss[1]:.0f} and {rss[-1]:.0f} MiB",
            "no growth",
            rss[-1] - rss[1] < 50,
        ),
        Row("load_experiment(...).trials, 100,000 trials", f"{load:.2f} s", "< 2 s", load < 2),
    ]


def _definition() -> object:
    from dask_hpo.log.definition import Definition

    return Definition(
        name=f"log-{time.monotonic_ns()}",
        metric="error",
        mode="min",
        space={"x": "uniform(0, 1)"},
        config_types={"x": "float"},
        started=datetime.now(timezone.utc),
        seed=0,
        searcher="random",
        scheduler="FIFOScheduler",
        objective="none",
        stop_criterion={},
        options={"n_workers": 16, "resources": {}, "isolation": "process"},
        dask_hpo_version=dask_hpo.__version__,
    )


BENCHES = {
    "throughput": bench_throughput,
    "refill": bench_refill,
    "fork": bench_fork,
    "reports": bench_reports,
    "log": bench_log,
    "resume": bench_resume,
}


def machine() -> str:
    """Name the machine: model of the processor, cores, Python and distributed."""
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.split(":")[1].strip() for line in lines if "model name" in line)
    import distributed

    return (
        f"{len(os.sched_getaffinity(0))} cores of {model}, Linux, Python "
        f"{platform.python_version()}, distributed {distributed.__version__}"
    )


def main(names: list[str]) -> int:
    unknown = sorted(set(names) - set(BENCHES))
    if unknown:
        print(f"unknown: {unknown}; there are {', '.join(BENCHES)}", file=sys.stderr)
        return 2
    warnings.simplefilter("ignore")
    rows = []
    for name in names or BENCHES:
        with tempfile.TemporaryDirectory() as folder:
            print(f"{name} ...", file=sys.stderr, flush=True)
            rows += BENCHES[name](Path(folder))
    print(f"{machine()}.\n\n| what | measured | target | |\n|---|---|---|---|")
    for row in rows:
        mark = "reached" if row.reached else "missed"
        print(f"| {row.what} | {row.measured} | {row.target} | {mark} |")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
