"""Experiments as people read them: DataFrames, the incumbent, a summary, all from the log alone."""

from __future__ import annotations

import functools
import html
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from dask_hpo.log.columns import ConfigColumn, config_columns
from dask_hpo.log.definition import Definition
from dask_hpo.log.directory import find, is_running, read_definition, read_end
from dask_hpo.log.reader import read_clock, read_events
from dask_hpo.log.rows import metric_column

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Failures that a summary shows; the rest are counted.
SHOWN_FAILURES = 5


@dataclass(frozen=True, slots=True)
class BestTrial:
    """The incumbent: its number, its best value and the step of it, its configuration."""

    trial_id: int
    value: float
    step: int
    config: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Summary:
    """An experiment in short.

    ``trials`` counts them by state; ``wallclock_time`` is in seconds; ``slot_utilisation`` is the
    share of the slots' time in which trials ran; ``failures`` are (trial number, error).
    """

    name: str
    status: str
    reason: str | None
    path: Path
    metric: str
    mode: str
    trials: Mapping[str, int]
    reports: int
    best: BestTrial | None
    wallclock_time: float
    slot_utilisation: float
    failures: tuple[tuple[int, str], ...]

    def __str__(self) -> str:
        counts = ", ".join(f"{number} {state}" for state, number in self.trials.items()) or "none"
        status = self.status if self.reason is None else f"{self.status} ({self.reason})"
        lines = [
            f"{self.name}: {status}",
            f"  trials       {counts}",
            f"  time         {self.wallclock_time:.1f} s, slots busy {self.slot_utilisation:.0%}",
            f"  best         {self._best_text()}",
            f"  log          {self.path}",
        ]
        if self.status in {"dead", "detached", "interrupted"}:
            lines.append(
                f"  to go on     dask hpo resume {self.name}, with --address if it had one"
            )
        lines += [f"  trial {number} failed: {error}" for number, error in self.failures[:5]]
        if len(self.failures) > SHOWN_FAILURES:
            lines.append(f"  and {len(self.failures) - SHOWN_FAILURES} more failures")
        return "\n".join(lines)

    def _best_text(self) -> str:
        if self.best is None:
            return f"no finite {self.metric} yet"
        config = ", ".join(f"{name}={_short(value)}" for name, value in self.best.config.items())
        return f"{self.metric} {self.best.value:.5g} (trial {self.best.trial_id}): {config}"

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(str(self))}</pre>"


def load_experiment(name_or_path: str | Path, path: str | Path | None = None) -> Experiment:
    """Load an experiment as its log stands now, also while it runs and from another process.

    Parameters
    ----------
    name_or_path
        The experiment's name, or the path of its directory.
    path
        The directory that experiments live in; None: Dask's configuration ``hpo.path``.

    Raises
    ------
    ExperimentNotFoundError
        If there is none; names that are near are suggested.
    """
    return Experiment(find(name_or_path, path))


class Experiment:
    """A view of one log, taken when it was loaded. See `load_experiment`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.definition: Definition = read_definition(path)
        end = read_end(path)
        #: running, finished, failed, interrupted, detached, or dead (no end, and no driver)
        self.status: str = end["status"] if end else "running" if is_running(path) else "dead"
        self._end = end

    @property
    def name(self) -> str:
        """The experiment's name."""
        return self.definition.name

    @functools.cached_property
    def events(self) -> pd.DataFrame:
        """All rows of the log, in the order in which the driver heard them."""
        events = read_events(self.path)
        assert isinstance(events, pd.DataFrame)
        return events

    @functools.cached_property
    def reports(self) -> pd.DataFrame:
        """Rows that carry a value of their own: reports, and ends whose objective returned one."""
        events = self.events
        returned = (events["kind"] == "end") & events[self._metric_column].notna()
        reports = events[(events["kind"] == "report") | returned].copy()
        is_end = reports["kind"] == "end"
        reports.loc[is_end, "value"] = reports.loc[is_end, self._metric_column]
        drop = ["kind", "run", "status", "failure", "traceback", "output_tail"]
        return reports.drop(columns=drop).reset_index(drop=True)

    @functools.cached_property
    def trials(self) -> pd.DataFrame:
        """One row for each trial, by number.

        ``state`` is running, completed, stopped, failed, or lost (its driver died); ``value`` the
        best it gave at any step and ``best_step`` that step; ``start``, ``end`` and ``duration``
        are in seconds, of its last attempt.
        """
        starts = self._last(self.events[self.events["kind"] == "start"])
        ends = self.events[(self.events["kind"] == "end") & (self.events["status"] != "lost")]
        last_attempt = self.events.groupby("trial_id")["attempt"].transform("max")
        ends = self._last(ends[ends["attempt"] == last_attempt.loc[ends.index]])
        configs = [column for column in self.events.columns if column.startswith("config_")]
        trials = self._last(self.events)[configs]
        trials.insert(0, "state", ends["status"].reindex(trials.index))
        open_state = "running" if self.status in {"running", "detached"} else "lost"
        trials["state"] = trials["state"].fillna(open_state)
        trials = trials.join(self._values())
        trials["attempt"] = self.events.groupby("trial_id")["attempt"].max()
        trials["worker"] = starts["worker"]
        trials["start"] = starts["time"]
        trials["end"] = ends["time"]
        # By the worker's clock, for the driver may have heard late; a lost attempt has none.
        heard = trials["end"] - trials["start"]
        trials["duration"] = ends["elapsed"].where(ends["elapsed"] > 0, heard)
        trials["failure"] = ends["failure"]
        return trials.sort_index().reset_index()

    @property
    def best(self) -> BestTrial | None:
        """The trial with the best finite value at any step; None if no value is finite."""
        reports = self._finite_reports()
        if reports.empty:
            return None
        values = reports["value"]
        row = reports.loc[values.idxmin() if self._minimise else values.idxmax()]
        config = {
            column.name: _plain(column, row[f"config_{column.name}"])
            for column in config_columns(self.definition)
        }
        return BestTrial(int(row["trial_id"]), float(row["value"]), int(row["step"]), config)

    def incumbent(self) -> pd.DataFrame:
        """Return the best value so far at each moment it improved: time (seconds), trial, value."""
        reports = self._finite_reports().sort_values("time", kind="stable")
        so_far = reports["value"].cummin() if self._minimise else reports["value"].cummax()
        improved = so_far.ne(so_far.shift())
        return reports.loc[improved, ["time", "trial_id", "value"]].reset_index(drop=True)

    @property
    def wallclock_time(self) -> float:
        """Seconds that drivers spent on it; while one does, as of a few seconds ago."""
        return read_clock(self.path) if self._end is None else float(self._end["wallclock_time"])

    @property
    def slot_utilisation(self) -> float:
        """The share of the slots' time in which attempts ran, from 0 to 1; NaN before the first."""
        offered = self._slot_seconds()
        attempts = self.attempts
        busy = float((attempts["end"].fillna(self.wallclock_time) - attempts["start"]).sum())
        return min(1.0, float(busy / offered)) if offered > 0 else math.nan

    @functools.cached_property
    def attempts(self) -> pd.DataFrame:
        """One row for each attempt: trial, attempt, worker, start and end (seconds), status."""
        events = self.events
        keys = ["trial_id", "attempt"]
        starts = events.loc[events["kind"] == "start", [*keys, "worker", "time"]]
        ends = events.loc[events["kind"] == "end", [*keys, "time", "status"]]
        starts = starts.rename(columns={"time": "start"})
        ends = ends.rename(columns={"time": "end"})
        return starts.merge(ends, on=keys, how="left")

    def summary(self) -> Summary:
        """Return the experiment in short."""
        trials = self.trials
        counts = {str(state): int(n) for state, n in trials["state"].value_counts().items()}
        failed = trials[trials["state"] == "failed"]
        return Summary(
            name=self.name,
            status=self.status,
            reason=self._end["reason"] if self._end else None,
            path=self.path,
            metric=self.definition.metric,
            mode=self.definition.mode,
            trials=counts,
            reports=len(self.reports),
            best=self.best,
            wallclock_time=self.wallclock_time,
            slot_utilisation=self.slot_utilisation,
            failures=tuple(zip(failed["trial_id"].astype(int), failed["failure"], strict=True)),
        )

    def to_json_dict(self) -> dict[str, Any]:
        """Return the summary as plain data for JSON; what is no number there is None."""
        summary = self.summary()
        best = summary.best
        return {
            "name": summary.name,
            "status": summary.status,
            "reason": summary.reason,
            "path": str(summary.path),
            "metric": summary.metric,
            "mode": summary.mode,
            "trials": dict(summary.trials),
            "reports": summary.reports,
            "best": best
            and {
                "trial_id": best.trial_id,
                "value": best.value,
                "step": best.step,
                "config": dict(best.config),
            },
            "wallclock_time": summary.wallclock_time,
            "slot_utilisation": _or_none(summary.slot_utilisation),
            "failures": [{"trial_id": n, "error": error} for n, error in summary.failures],
        }

    def line(self) -> str:
        """Return the experiment in one line, for lists."""
        best = self.best
        value = "-" if best is None else f"{best.value:.5g}"
        started = f"{self.definition.started.astimezone():%Y-%m-%d %H:%M}"
        number = self.events["trial_id"].nunique()
        return (
            f"{self.name:40} {self.status:11} {started} {number:6} trials "
            f"{self.definition.metric} {value}"
        )

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the incumbent's trajectory; see `dask_hpo.plots.incumbent`."""
        from dask_hpo import plots  # noqa: PLC0415 - matplotlib is loaded when something is drawn

        return plots.incumbent(self, ax)

    def plot_learning_curves(self, ax: Axes | None = None) -> Axes:
        """Draw what each trial reported; see `dask_hpo.plots.learning_curves`."""
        from dask_hpo import plots  # noqa: PLC0415 - matplotlib is loaded when something is drawn

        return plots.learning_curves(self, ax)

    def plot_slots(self, ax: Axes | None = None) -> Axes:
        """Draw which trial ran where and when; see `dask_hpo.plots.slots`."""
        from dask_hpo import plots  # noqa: PLC0415 - matplotlib is loaded when something is drawn

        return plots.slots(self, ax)

    def __repr__(self) -> str:
        return f"<Experiment {self.name!r}: {self.status}, {self.path}>"

    def _repr_html_(self) -> str:
        return self.summary()._repr_html_()

    # Small steps

    @property
    def _minimise(self) -> bool:
        return self.definition.mode == "min"

    @property
    def _metric_column(self) -> str:
        return metric_column(self.definition.metric)

    def _finite_reports(self) -> pd.DataFrame:
        return self.reports[np.isfinite(self.reports["value"].to_numpy(float))]

    def _last(self, rows: pd.DataFrame) -> pd.DataFrame:
        return rows.drop_duplicates("trial_id", keep="last").set_index("trial_id")

    def _values(self) -> pd.DataFrame:
        """Return value, its step, the last value and the number of reports, by trial."""
        finite = self._finite_reports().sort_values(
            "value", ascending=self._minimise, kind="stable"
        )
        best = finite.drop_duplicates("trial_id").set_index("trial_id")
        last = self._last(self.reports)
        values = pd.DataFrame(index=last.index)
        # A trial whose values are all NaN or infinite shows the last of them.
        values["value"] = best["value"].reindex(last.index).fillna(last["value"])
        values["best_step"] = best["step"].reindex(last.index).astype("Int64")
        values["last_value"] = last["value"]
        values["reports"] = self.reports.groupby("trial_id").size().astype("Int64")
        return values

    def _slot_seconds(self) -> float:
        """Integrate the number of slots over the experiment's time."""
        events = self.events.sort_values("time", kind="stable")
        if events.empty:
            return 0.0
        times = np.append(events["time"].to_numpy(float), self.wallclock_time)
        before_first: float = times[0] * float(events["slots"].iloc[0])
        spans = np.clip(np.diff(times), 0, None)
        offered: float = spans @ events["slots"].to_numpy(float)
        return before_first + offered


def _plain(column: ConfigColumn, value: Any) -> Any:
    """Return a value of the DataFrame as the objective got it."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None  # pandas has it so, or has made a float of an int beside it
    kind = {"float": float, "int": int, "str": str, "bool": bool}[column.kind]
    return column.decode(kind(value))


def _or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
