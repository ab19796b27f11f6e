"""Pictures of an experiment, with matplotlib: the incumbent, the learning curves, the slots."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from dask_hpo.errors import LogError

if TYPE_CHECKING:
    from dask_hpo.experiment import Experiment

# Okabe and Ito's palette, which colour-blind people can tell apart.
_BLUE, _ORANGE, _GREEN, _RED, _GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#999999"
_STATES = {
    "completed": _GREEN,
    "stopped": _ORANGE,
    "failed": _RED,
    "lost": _GREY,
    "running": _BLUE,
}
#: More curves than these say no more, and make a picture of megabytes.
_MAX_CURVES = 500
#: Trial numbers are written into the bars of a slot while there are so few trials.
_MAX_LABELLED = 60


def incumbent(experiment: Experiment, ax: Axes | None = None) -> Axes:
    """Draw the best value so far over time, with every value reported behind it."""
    ax = _axes(ax)
    scale, unit = _time_unit(experiment.wallclock_time)
    best = experiment.incumbent()
    _decorate(ax, f"{experiment.name}: best so far", f"time ({unit})", experiment.definition.metric)
    if best.empty:
        return _nothing_yet(ax)
    reports = experiment.reports
    ax.scatter(
        reports["time"] / scale,
        reports["value"],
        s=9,
        color=_GREY,
        alpha=0.35,
        linewidths=0,
        rasterized=len(reports) > 5_000,
    )
    times = np.append(best["time"], max(experiment.wallclock_time, best["time"].iloc[-1])) / scale
    values = np.append(best["value"], best["value"].iloc[-1])
    ax.step(times, values, where="post", color=_BLUE, linewidth=2, label="best so far")
    ax.plot(best["time"] / scale, best["value"], "o", color=_BLUE, markersize=4)
    last = best.iloc[-1]
    ax.annotate(
        f"trial {int(last['trial_id'])}: {last['value']:.4g}",
        (times[-1], values[-1]),
        xytext=(-4, 8 if experiment.definition.mode == "min" else -14),
        textcoords="offset points",
        ha="right",
        color=_BLUE,
        bbox={"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 1},
    )
    _fit_values(ax, reports["value"])
    dot = Line2D([], [], color=_GREY, marker="o", linestyle="", markersize=3, label="reported")
    _legend(ax, [dot, Line2D([], [], color=_BLUE, linewidth=2, label="best so far")])
    return ax


def learning_curves(experiment: Experiment, ax: Axes | None = None) -> Axes:
    """Draw the values of each trial over its steps, the best one on top.

    Of more than 500 trials the best 500 are drawn, and the title says so.
    """
    ax = _axes(ax)
    reports, trials = experiment.reports, experiment.trials
    _decorate(
        ax, f"{experiment.name}: learning curves", "step (report)", experiment.definition.metric
    )
    best = experiment.best
    if best is None:
        return _nothing_yet(ax)
    states = trials.set_index("trial_id")["state"]
    ranked = trials.dropna(subset=["value"]).sort_values(
        "value", ascending=experiment.definition.mode == "min"
    )
    shown = set(ranked["trial_id"].head(_MAX_CURVES))
    if len(ranked) > _MAX_CURVES:
        _title(ax, f"{experiment.name}: learning curves of the best {_MAX_CURVES}")
    for trial_id, curve in reports.groupby("trial_id"):
        if trial_id in shown and trial_id != best.trial_id:
            _curve(ax, curve, _STATES[states[trial_id]], width=0.9, alpha=0.4)
    own = reports[reports["trial_id"] == best.trial_id]
    _curve(ax, own, _BLUE, width=2.4, alpha=1.0)
    _fit_values(ax, reports["value"])
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    names = [state for state in _STATES if state in set(states[states.index.isin(shown)])]
    handles = [Line2D([], [], color=_STATES[state], label=state) for state in names]
    label = f"best: trial {best.trial_id}"
    _legend(ax, [Line2D([], [], color=_BLUE, linewidth=2.4, label=label), *handles])
    return ax


def slots(experiment: Experiment, ax: Axes | None = None) -> Axes:
    """Draw which trial ran in which slot when, so that idle slots are seen."""
    ax = _axes(ax)
    scale, unit = _time_unit(experiment.wallclock_time)
    utilisation = experiment.slot_utilisation
    busy = f", {utilisation:.0%} busy" if np.isfinite(utilisation) else ""
    _decorate(ax, f"{experiment.name}: slots{busy}", f"time ({unit})", "slot")
    attempts = experiment.attempts
    if attempts.empty:
        return _nothing_yet(ax)
    attempts = attempts.assign(
        end=attempts["end"].fillna(experiment.wallclock_time),
        status=attempts["status"].fillna("running"),
    )
    lanes = _lanes(attempts)
    for state, colour in _STATES.items():
        of_state = (attempts["status"] == state).to_numpy()
        _draw_bars(ax, attempts[of_state], lanes[of_state], scale, colour, of=len(attempts))
    if len(attempts) <= _MAX_LABELLED:
        _number_bars(ax, attempts, lanes, scale)
    ax.set_ylim(lanes.max() + 0.6, -0.6)
    ax.set_xlim(0, max(experiment.wallclock_time, attempts["end"].max()) / scale)
    ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    ax.grid(visible=False, axis="y")
    present = [state for state in _STATES if (attempts["status"] == state).any()]
    _legend(ax, [Patch(color=_STATES[state], label=state) for state in present])
    return ax


def overview(experiment: Experiment) -> Figure:
    """Draw all three pictures into one figure."""
    figure = plt.figure(figsize=(12, 8), layout="constrained")
    grid = figure.add_gridspec(2, 2, height_ratios=[3, 2])
    for draw, place in (
        (incumbent, grid[0, 0]),
        (learning_curves, grid[0, 1]),
        (slots, grid[1, :]),
    ):
        ax = draw(experiment, figure.add_subplot(place))
        _title(ax, ax.get_title(loc="left").removeprefix(f"{experiment.name}: ").capitalize())
    figure.suptitle(experiment.name)
    return figure


def save(experiment: Experiment, output: Path, kind: str = "all") -> None:
    """Draw one kind of picture (``incumbent``, ``learning-curves``, ``slots``, ``all``) to a file.

    Raises
    ------
    LogError
        If the file cannot be written, or its ending names no format of pictures.
    """
    draw = {"incumbent": incumbent, "learning-curves": learning_curves, "slots": slots}
    if kind == "all":
        figure = overview(experiment)
    else:
        figure = plt.figure(figsize=(8, 5), layout="constrained")
        draw[kind](experiment, figure.add_subplot())
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(output, dpi=120)
    except (OSError, ValueError) as error:
        raise LogError(
            f"{output}: the picture cannot be written ({error}); "
            "give a file that can be, ending in .png, .svg or .pdf"
        ) from error
    finally:
        plt.close(figure)


def _axes(ax: Axes | None) -> Axes:
    return ax if ax is not None else plt.subplots(figsize=(8, 5), layout="constrained")[1]


def _decorate(ax: Axes, title: str, x: str, y: str) -> None:
    _title(ax, title)
    ax.set_xlabel(x)
    ax.set_ylabel(y)
    ax.grid(visible=True, alpha=0.25)
    ax.spines[["top", "right"]].set_visible(False)


def _title(ax: Axes, title: str) -> None:
    ax.set_title(title, loc="left", fontsize="medium")


def _legend(ax: Axes, handles: list[Artist]) -> None:
    """Put the legend above the axes, at the right, where it hides nothing."""
    ax.legend(
        handles=handles,
        loc="lower right",
        bbox_to_anchor=(1, 1),
        ncols=len(handles),
        frameon=False,
        borderaxespad=0.2,
        fontsize="small",
        columnspacing=1.2,
        handlelength=1.2,
    )


def _nothing_yet(ax: Axes) -> Axes:
    ax.text(0.5, 0.5, "no values yet", transform=ax.transAxes, ha="center", color=_GREY)
    return ax


def _curve(ax: Axes, reports: pd.DataFrame, colour: str, *, width: float, alpha: float) -> None:
    marker = "o" if len(reports) == 1 else None
    ax.plot(
        reports["step"],
        reports["value"],
        color=colour,
        linewidth=width,
        alpha=alpha,
        marker=marker,
        markersize=4,
    )


def _time_unit(seconds: float) -> tuple[float, str]:
    """Return how many seconds a unit has, and its name, for a span of time."""
    if seconds < 300:
        return 1.0, "seconds"
    return (60.0, "minutes") if seconds < 3 * 3600 else (3600.0, "hours")


def _fit_values(ax: Axes, values: pd.Series[float]) -> None:
    """Choose the view so that one value of 1e30 does not flatten all others."""
    finite = values.to_numpy(float)
    finite = finite[np.isfinite(finite)]
    if len(finite) == 0:
        return
    low, high = finite.min(), finite.max()
    usual_low, usual_high = np.percentile(finite, [2, 98])
    spread = max(usual_high - usual_low, 1e-12 * max(1.0, abs(usual_high)))
    low, high = max(low, usual_low - 3 * spread), min(high, usual_high + 3 * spread)
    if low > 0 and high / low > 30:
        ax.set_yscale("log")
        ax.set_ylim(low / 1.3, high * 1.3)
    elif high > low:
        margin = 0.05 * (high - low)
        ax.set_ylim(low - margin, high + margin)


def _draw_bars(
    ax: Axes, attempts: pd.DataFrame, lanes: np.ndarray, scale: float, colour: str, *, of: int
) -> None:
    """Draw a bar for each attempt; of many as one collection, since 10^5 patches take 40 s."""
    left, right = attempts["start"].to_numpy() / scale, attempts["end"].to_numpy() / scale
    if of < 1_000:
        ax.barh(lanes, right - left, left=left, color=colour, edgecolor="white", linewidth=0.5)
        return
    low, high = lanes - 0.4, lanes + 0.4
    x = np.stack([left, right, right, left], axis=1)
    y = np.stack([low, low, high, high], axis=1)
    bars = PolyCollection(list(np.stack([x, y], axis=2)), facecolors=colour, rasterized=True)
    ax.add_collection(bars)


def _number_bars(ax: Axes, attempts: pd.DataFrame, lanes: np.ndarray, scale: float) -> None:
    """Write the trial's number into each bar that has room for it."""
    room = 0.015 * attempts["end"].max()
    for lane, attempt in zip(lanes, attempts.itertuples(), strict=True):
        if attempt.end - attempt.start > room:
            middle = (attempt.start + attempt.end) / 2 / scale
            number = str(attempt.trial_id)
            ax.text(middle, lane, number, ha="center", va="center", fontsize=7, color="white")


def _lanes(attempts: pd.DataFrame) -> np.ndarray:
    """Give each attempt a lane: the first free one of its worker, workers below each other."""
    lanes = np.zeros(len(attempts), dtype=int)
    first = 0
    for _, of_worker in attempts.reset_index(drop=True).groupby("worker", sort=True):
        free_from: list[float] = []
        for index, start, end in of_worker.sort_values("start")[["start", "end"]].itertuples():
            lane = next((i for i, free in enumerate(free_from) if free <= start + 1e-3), None)
            if lane is None:
                lane = len(free_from)
                free_from.append(0.0)
            free_from[lane] = end
            lanes[index] = first + lane
        first += len(free_from)
    return lanes
