"""Progress while a run goes on: a live line in a terminal, HTML in a notebook, a few lines else."""

from __future__ import annotations

import html
import sys
from dataclasses import dataclass
from typing import Any, Protocol, TextIO

from rich.console import Console
from rich.live import Live
from rich.text import Text

from dask_hpo.core.metric import Metric
from dask_hpo.core.trial import TrialState
from dask_hpo.core.tuning import Best, Tuning

#: Seconds between two lines where output is no terminal.
QUIET_INTERVAL_S = 30.0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A run at one moment. ``elapsed``: seconds; ``reports_per_s``: the mean since the last one."""

    name: str
    metric: Metric
    elapsed: float
    completed: int
    stopped: int
    failed: int
    running: int
    slots: int
    reports_per_s: float
    best: Best | None

    def line(self) -> str:
        """Return one line of plain text."""
        ended = f"{self.completed} done"
        if self.stopped:
            ended += f", {self.stopped} stopped"
        parts = [
            f"{duration(self.elapsed)}",
            f"trials: {ended}, {self.running} running, {self.failed} failed",
            f"slots: {min(self.running, self.slots)}/{self.slots} busy",
            f"{self.reports_per_s:.1f} reports/s",
            self.best_text(),
        ]
        return " | ".join(parts)

    def best_text(self) -> str:
        """Return the incumbent in words."""
        if self.best is None:
            return f"no {self.metric.name} yet"
        return f"best {self.metric.name} {self.best.value:.5g} (trial {self.best.trial_id})"


class Meter:
    """Takes snapshots of a state machine, with the rate of reports between two of them."""

    def __init__(self, name: str, metric: Metric, tuning: Tuning) -> None:
        self._name = name
        self._metric = metric
        self._tuning = tuning
        self._last = (0.0, 0)

    def snapshot(self, now: float) -> Snapshot:
        """Return the run as it stands. ``now``: seconds since the start."""
        tuning = self._tuning
        since, evaluations = self._last
        passed = now - since
        rate = (tuning.evaluations - evaluations) / passed if passed > 0 else 0.0
        self._last = (now, tuning.evaluations)
        counts = tuning.counts
        return Snapshot(
            name=self._name,
            metric=self._metric,
            elapsed=now,
            completed=counts[TrialState.COMPLETED],
            stopped=counts[TrialState.STOPPED],
            failed=counts[TrialState.FAILED],
            running=counts[TrialState.RUNNING] + counts[TrialState.STOPPING],
            slots=tuning.slots,
            reports_per_s=rate,
            best=tuning.best,
        )


class Progress(Protocol):
    """Shows snapshots to a person."""

    interval_s: float  #: show no more often than that

    def update(self, snapshot: Snapshot) -> None:
        """Show a snapshot."""
        ...

    def close(self, snapshot: Snapshot) -> None:
        """Show the last one and leave the screen in order."""
        ...


class TerminalProgress:
    """One line that is redrawn in place; messages of the run scroll above it."""

    interval_s = 0.25

    def __init__(self, stream: TextIO) -> None:
        self._console = Console(file=stream)
        self._live = Live(console=self._console, auto_refresh=False, redirect_stdout=False)
        self._live.start()

    def update(self, snapshot: Snapshot) -> None:
        """Redraw the line."""
        line = Text(snapshot.line(), overflow="ellipsis", no_wrap=True)
        self._live.update(line, refresh=True)

    def close(self, snapshot: Snapshot) -> None:
        """Leave the last line standing."""
        self.update(snapshot)
        self._live.stop()


class QuietProgress:
    """Now and then one line, for output that goes to a file or a pipe."""

    interval_s = QUIET_INTERVAL_S

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def update(self, snapshot: Snapshot) -> None:
        """Print a line."""
        print(snapshot.line(), file=self._stream, flush=True)

    close = update


class NotebookProgress:
    """A small table below the cell, updated in place without any widget."""

    interval_s = 0.5

    def __init__(self) -> None:
        from IPython.display import HTML, display  # noqa: PLC0415 - only where IPython runs

        self._html = HTML
        self._handle: Any = display(HTML(""), display_id=True)

    def update(self, snapshot: Snapshot) -> None:
        """Redraw the table."""
        self._handle.update(self._html(_html(snapshot)))

    close = update


class NoProgress:
    """Shows nothing."""

    interval_s = 3600.0

    def update(self, snapshot: Snapshot) -> None:
        """Show nothing."""

    close = update


def make_progress(show: bool | str) -> Progress:
    """Return what suits where the run goes on. ``show``: ``"auto"``, True, or False for nothing."""
    if not show:
        return NoProgress()
    if _in_notebook():
        return NotebookProgress()
    return TerminalProgress(sys.stderr) if sys.stderr.isatty() else QuietProgress(sys.stderr)


def duration(seconds: float) -> str:
    """Return a duration as people write it: ``45s``, ``3m05s``, ``2h07m``."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


def _in_notebook() -> bool:
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return type(shell).__name__ == "ZMQInteractiveShell"


def _html(snapshot: Snapshot) -> str:
    """Return the snapshot as HTML; whatever a person named is escaped."""
    cells = {
        "experiment": snapshot.name,
        "time": duration(snapshot.elapsed),
        "done": snapshot.completed,
        "stopped": snapshot.stopped,
        "running": snapshot.running,
        "failed": snapshot.failed,
        "slots busy": f"{min(snapshot.running, snapshot.slots)}/{snapshot.slots}",
        "reports/s": f"{snapshot.reports_per_s:.1f}",
        "best": snapshot.best_text(),
    }
    head = "".join(f"<th>{html.escape(name)}</th>" for name in cells)
    body = "".join(f"<td>{html.escape(str(value))}</td>" for value in cells.values())
    return f"<table><thead><tr>{head}</tr></thead><tbody><tr>{body}</tr></tbody></table>"
