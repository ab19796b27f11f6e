"""Reporting: what a metric becomes, where it goes, and that it costs nothing worth speaking of."""

import array
import enum
import fcntl
import json
import math
import os
import signal
import subprocess
import sys
import termios
import threading
import tracemalloc
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
from conftest import wait_until

from dask_hpo.errors import TrialStopped
from dask_hpo.report import PipeChannel, Reporter, coerce, report, set_channel, thread_channel

PIPE_BYTES = 64 * 1024  # of a new pipe on Linux


class Colour(enum.IntEnum):
    RED = 3


class Hostile:
    def __repr__(self):
        raise RuntimeError("no repr for you")

    def item(self):
        raise RuntimeError("no item either")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.5, 0.5),
        (True, True),
        (None, None),
        ("text", "text"),
        (np.float32(0.5), 0.5),
        (np.float64(0.5), 0.5),
        (np.int64(3), 3),
        (np.bool_(1), True),
        (np.array(0.25), 0.25),
        (np.array([[7]]), 7),
        (Decimal("0.5"), 0.5),
        (Fraction(1, 4), 0.25),
        (Fraction(10**400), math.inf),
        (2**63 - 1, 2**63 - 1),
        (2**63, float(2**63)),
        (-(2**63), -(2**63)),
        (-(10**400), -math.inf),
        (Colour.RED, 3),
        (1 + 2j, "(1+2j)"),
        ([1, 2], "[1, 2]"),
        (np.array([1, 2]), "array([1, 2])"),
        ("\ud800", "\\ud800"),
        (Hostile(), "<Hostile without a readable value>"),
    ],
)
def test_a_value_becomes_a_plain_one(value, expected):
    result = coerce(value)
    assert result == expected
    assert type(result) is type(expected)


def test_nan_and_infinity_stay():
    assert math.isnan(coerce(np.float32("nan")))
    assert coerce(np.inf) == math.inf


def test_long_strings_are_cut():
    assert len(coerce("x" * 5_000)) == 1_000
    assert len(coerce(list(range(5_000)))) == 1_000


def test_a_tensor_gives_its_item():
    torch = pytest.importorskip("torch")
    assert coerce(torch.tensor(0.5, requires_grad=True)) == 0.5
    assert coerce(torch.tensor([3])) == 3


def test_outside_a_trial_a_report_is_printed(capsys):
    set_channel(None)
    report(validation_error=0.123, epoch=1)
    Reporter()(validation_error=np.float32(0.5))
    report(step=10, note="late")
    report(self=1)
    assert capsys.readouterr().out.splitlines() == [
        "step 1: validation_error=0.123 epoch=1",
        "step 2: validation_error=0.5",
        "step 10: note=late",
        "step 11: self=1",
    ]


def test_a_report_without_metrics_is_refused():
    with pytest.raises(TypeError, match=r"write report\(validation_error=0.1\)"):
        report(step=3)


def test_a_step_is_an_integer():
    with pytest.raises(TypeError, match=r"step=1\.5: a step is an integer"):
        report(step=1.5, error=1)


def test_a_thread_has_a_channel_of_its_own(capsys):
    set_channel(None)
    heard = []

    def send(step, metrics, elapsed):
        assert elapsed >= 0
        heard.append((step, metrics))

    with thread_channel(send):
        report(error=1)
        other = threading.Thread(target=report, kwargs={"error": 2})
        other.start()
        other.join()
        report(error=3, step=np.int64(7))
    report(error=4)
    assert heard == [(1, {"error": 1}), (7, {"error": 3})]
    assert capsys.readouterr().out == "step 1: error=2\nstep 2: error=4\n"


def test_a_stop_comes_through_except_exception():
    def send(*_):
        raise TrialStopped

    def careless():  # as training loops are
        try:
            report(error=1)
        except Exception:  # noqa: BLE001 - the point of the test
            pytest.fail("the stop was swallowed")

    with thread_channel(send), pytest.raises(TrialStopped):
        careless()


@pytest.fixture
def pipe():
    reader, writer = os.pipe()
    set_channel(PipeChannel(writer))
    yield reader, writer
    set_channel(None)
    os.close(reader)


def lines_of(reader):
    with open(reader, "rb", closefd=False) as file:
        return [json.loads(line) for line in file]


def test_threads_write_whole_lines_with_rising_steps(pipe):
    reader, writer = pipe
    heard = []
    listener = threading.Thread(target=lambda: heard.extend(lines_of(reader)))
    listener.start()
    wide = {f"metric_{i}": i / 3 for i in range(500)}  # far more than PIPE_BUF
    threads = [
        threading.Thread(target=lambda: [report(**wide) for _ in range(20)]) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    os.close(writer)
    listener.join()
    assert [step for _, step, _, _ in heard] == list(range(1, 81))
    assert all(metrics == wide for _, _, metrics, _ in heard)


def test_a_signal_handler_may_report_whatever_it_interrupts(pipe):
    reader, writer = pipe
    heard = []
    listener = threading.Thread(target=lambda: heard.extend(lines_of(reader)))
    listener.start()
    before = signal.signal(signal.SIGALRM, lambda *_: report(from_handler=1))
    signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
    wide = {f"metric_{i}": i / 3 for i in range(500)}
    try:
        for _ in range(300):
            report(**wide)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    report(last=1)
    os.close(writer)
    listener.join()
    metrics = [metrics for _, _, metrics, _ in heard]
    assert metrics.count(wide) == 300
    assert {"from_handler": 1} in metrics
    assert metrics[-1] == {"last": 1}


def signal_when_full(reader, thread):
    """Signal a thread when its write fills the pipe, and so waits for a reader."""
    count = array.array("i", [0])

    def is_full():
        fcntl.ioctl(reader, termios.FIONREAD, count)
        return count[0] == PIPE_BYTES

    wait_until(is_full, what="a full pipe")
    signal.pthread_kill(thread, signal.SIGALRM)


def test_a_handler_that_raises_in_a_report_spoils_no_other(pipe):
    class Interrupted(Exception):
        pass

    def interrupt(*_):
        raise Interrupted

    reader, writer = pipe
    before = signal.signal(signal.SIGALRM, interrupt)
    watcher = threading.Thread(target=signal_when_full, args=[reader, threading.get_ident()])
    watcher.start()
    with pytest.raises(Interrupted):
        report(**{f"metric_{i}": "x" * 500 for i in range(500)})  # more than the pipe holds
    watcher.join()
    signal.signal(signal.SIGALRM, before)
    listener = threading.Thread(target=report, kwargs={"last": 1})
    listener.start()
    with open(reader, "rb", closefd=False) as file:
        _, whole = file.readline(), file.readline()
    listener.join()
    os.close(writer)
    assert json.loads(whole)[2] == {"last": 1}


def test_a_thousand_metrics_at_once_and_no_more(pipe):
    with pytest.raises(TypeError, match="1,001 metrics at once: at most 1,000"):
        report(**{f"metric_{i}": i for i in range(1_001)})


def test_a_large_container_is_cut_before_it_is_shown():
    large = 10**7
    for value in (bytes(large), [0] * large, (0,) * large, dict.fromkeys(range(large // 10))):
        tracemalloc.start()
        text = coerce(value)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert text == repr(value)[:997] + "..."
        assert peak < 1_000_000


def test_a_report_to_a_worker_that_is_gone_is_no_error():
    reader, writer = os.pipe()
    os.close(reader)
    set_channel(PipeChannel(writer))
    try:
        report(error=1)
    finally:
        set_channel(None)
        os.close(writer)


def test_importing_it_loads_no_heavy_package():
    code = (
        "import sys; from dask_hpo.report import Reporter\n"
        "heavy = {'dask', 'distributed', 'pandas', 'numpy', 'torch', 'cloudpickle', 'asyncio'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert output.stdout == "[]\n"


def test_it_works_in_a_script_started_by_hand(tmp_path):
    script = tmp_path / "train.py"
    script.write_text("from dask_hpo.report import report\nreport(validation_error=0.123)\n")
    output = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    assert output.stdout == "step 1: validation_error=0.123\n"
