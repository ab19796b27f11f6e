"""A run in a notebook's kernel: the display without widgets, and *Interrupt*."""

from __future__ import annotations

import time

import pytest
from conftest import wait_until
from jupyter_client.manager import start_new_kernel

from dask_hpo import load_experiment

CODE = """
import time
from dask_hpo import FIFOScheduler, StoppingCriterion, Tuner, uniform
from dask_hpo.report import report

def objective(x):
    for step in range({steps}):
        report(error=x / (step + 1))
        time.sleep(0.05)

scheduler = FIFOScheduler({{"x": uniform(0, 1)}}, metric="error", random_seed=0)
tuner = Tuner(
    objective,
    scheduler,
    StoppingCriterion(max_num_trials_started=4),
    n_workers=2,
    path={path!r},
    name="inside",
)
tuner.run()
"""


# Jupyter's own packages warn about each other, and leave sockets to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")


@pytest.fixture
def kernel():
    manager, client = start_new_kernel(kernel_name="python3")
    yield manager, client
    client.stop_channels()
    manager.shutdown_kernel(now=True)


def html_of(client, message_id, timeout=60):
    """Return the HTML that a cell displayed, in order, and its error if it ended with one."""
    shown = []
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        message = client.get_iopub_msg(timeout=timeout)
        if message["parent_header"].get("msg_id") != message_id:
            continue
        content = message["content"]
        if message["msg_type"] in ("display_data", "update_display_data", "execute_result"):
            shown.append(content["data"].get("text/html", ""))
        if message["msg_type"] == "error":
            return shown, "\n".join(content["traceback"])
        if message["msg_type"] == "status" and content["execution_state"] == "idle":
            return shown, None
    raise AssertionError(f"the cell did not end within {timeout} s")


def test_a_run_shows_a_table_and_returns_the_experiment(kernel, tmp_path):
    _, client = kernel
    shown, error = html_of(client, client.execute(CODE.format(steps=3, path=str(tmp_path))))
    assert error is None
    tables = [text for text in shown if "<table>" in text]
    assert len(tables) >= 2  # it was updated in place
    assert "slots busy" in tables[-1]
    assert "<td>4</td>" in tables[-1]  # four trials done
    assert "inside: finished" in shown[-1]


def test_interrupting_the_kernel_stops_cleanly(kernel, tmp_path):
    manager, client = kernel
    message_id = client.execute(CODE.format(steps=100_000, path=str(tmp_path)))
    path = tmp_path / "inside"
    wait_until(
        lambda: path.exists() and len(load_experiment(path).reports) > 2, 60, "reports on disk"
    )
    manager.interrupt_kernel()
    shown, error = html_of(client, message_id)
    assert error is None
    assert "inside: interrupted" in shown[-1]
    assert load_experiment(path).status == "interrupted"
    assert set(load_experiment(path).trials["state"]) == {"stopped"}
