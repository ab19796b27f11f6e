"""What people read of an experiment, against what was written; and its pictures, drawn."""

from __future__ import annotations

import itertools
import math
import warnings

import matplotlib as mpl
import numpy as np
import pytest
from test_log import CONFIG, definition, report, writer

from dask_hpo import load_experiment
from dask_hpo.core.events import Failure, Outcome, TrialEnded, TrialStarted
from dask_hpo.errors import LogError
from dask_hpo.log.directory import create_experiment
from dask_hpo.log.writer import LogWriter
from dask_hpo.plots import overview, save

mpl.use("agg")


def write(root, events, *, mode="min", slots=2, finish=True, name="e"):
    """Write events, given as (event, value, step), as the driver would."""
    what = definition(name, mode=mode)
    log = LogWriter(create_experiment(what, root), what)
    for event, value, step in events:
        config = {**CONFIG, "x": event.trial_id / 10}
        log.append(event, config=config, value=value, worker="tcp://w:1", slots=slots, step=step)
    if finish:
        log.finish("finished", "exhausted", 10.0)
    log.close()
    return load_experiment(root / name)


def trial(number, values, outcome=Outcome.COMPLETED, *, start=0.0, end=5.0, attempt=1, best=min):
    """Return the events of an attempt that reports values at steps 1, 2, ..."""
    yield TrialStarted(start, number, attempt, "tcp://w:1"), math.nan, 0
    for step, value in enumerate(values, 1):
        event = report(number, step, error=value)
        yield event.__class__(start + 0.1 * step, number, attempt, step, event.metrics), value, step
    failure = Failure("ValueError: no", "Traceback") if outcome is Outcome.FAILED else None
    finite = [value for value in values if math.isfinite(value)]
    value = best(finite) if finite else math.nan
    yield TrialEnded(end, number, attempt, outcome, {}, failure), value, len(values)


def chain(*trials):
    return [event for events in trials for event in events]


def test_trials_and_the_best_at_any_step(tmp_path):
    experiment = write(
        tmp_path,
        chain(
            trial(0, [0.5, 0.2, 0.9]),
            trial(1, [math.nan, 0.3], Outcome.STOPPED),
            trial(2, [], Outcome.FAILED),
            trial(3, [math.inf, math.nan]),
        ),
    )
    trials = experiment.trials.set_index("trial_id")
    assert list(trials["state"]) == ["completed", "stopped", "failed", "completed"]
    assert list(trials["value"][:2]) == [0.2, 0.3]
    assert list(trials["best_step"][:2]) == [2, 2]
    assert trials["last_value"][0] == 0.9
    assert trials["failure"][2] == "ValueError: no"
    assert trials["duration"][0] == 5.0
    best = experiment.best
    assert (best.trial_id, best.value, best.step) == (0, 0.2, 2)
    assert best.config == {**CONFIG, "x": 0.0}
    assert {type(value) for value in best.config.values()} == {float, int, str, bool}


def test_mode_max(tmp_path):
    events = chain(trial(0, [1.0, 3.0, 2.0], best=max), trial(1, [-math.inf, 0.0], best=max))
    experiment = write(tmp_path, events, mode="max")
    assert experiment.best.value == 3.0
    assert list(experiment.trials["value"]) == [3.0, 0.0]
    assert list(experiment.incumbent()["value"]) == [1.0, 3.0]


def test_the_incumbent_improves_and_never_else(tmp_path):
    events = sorted(
        chain(trial(0, [5, 4, 4, 3]), trial(1, [6, 2, 7], start=0.05)), key=lambda e: e[0].now
    )
    incumbent = write(tmp_path, events).incumbent()
    assert list(incumbent["value"]) == [5, 4, 2]
    assert list(incumbent["trial_id"]) == [0, 0, 1]
    assert incumbent["time"].is_monotonic_increasing


def test_utilisation_is_busy_time_over_slot_time(tmp_path):
    experiment = write(tmp_path, chain(trial(0, [1], end=10.0), trial(1, [1], end=5.0)))
    assert experiment.slot_utilisation == pytest.approx(0.75)


def test_a_returned_value_is_a_report_too(tmp_path):
    events = [
        (TrialStarted(0.0, 0, 1, "w"), math.nan, 0),
        (TrialEnded(1.0, 0, 1, Outcome.COMPLETED, {"error": 0.25, "size": 3}), 0.25, 0),
    ]
    experiment = write(tmp_path, events)
    assert list(experiment.reports["value"]) == [0.25]
    assert list(experiment.reports["size"]) == [3]
    assert experiment.best.value == 0.25


def test_a_lost_attempt_is_no_trial_of_its_own(tmp_path):
    events = chain(
        trial(0, [0.5], Outcome.LOST, end=1.0), trial(0, [0.4], start=2.0, end=3.0, attempt=2)
    )
    experiment = write(tmp_path, events)
    (only,) = experiment.trials.to_dict("records")
    assert (only["state"], only["attempt"], only["start"], only["value"]) == (
        "completed",
        2,
        2.0,
        0.4,
    )
    assert list(experiment.attempts["status"]) == ["lost", "completed"]


def test_summary_and_json(tmp_path):
    failing = [trial(number, [], Outcome.FAILED) for number in range(1, 9)]
    experiment = write(tmp_path, chain(trial(0, [0.125]), *failing))
    summary = experiment.summary()
    assert summary.trials == {"completed": 1, "failed": 8}
    text = str(summary)
    assert "error 0.125 (trial 0)" in text
    assert "and 3 more failures" in text
    assert "<pre>" in experiment._repr_html_()
    plain = experiment.to_json_dict()
    assert plain["best"] == {
        "trial_id": 0,
        "value": 0.125,
        "step": 1,
        "config": {**CONFIG, "x": 0.0},
    }
    assert plain["reason"] == "exhausted"


def test_nothing_happened_yet(tmp_path):
    experiment = write(tmp_path, [], finish=False)
    assert experiment.status == "dead"
    assert experiment.best is None
    assert len(experiment.trials) == 0
    assert math.isnan(experiment.slot_utilisation)
    assert "no finite error yet" in str(experiment.summary())
    assert experiment.to_json_dict()["slot_utilisation"] is None


def test_it_is_running_while_its_writer_lives(tmp_path):
    log = writer(tmp_path)
    for event, value, step in list(trial(0, [0.5]))[:2]:
        log.append(event, config=CONFIG, value=value, worker="w", slots=1, step=step)
    log.flush()
    experiment = load_experiment(tmp_path / "e")
    assert experiment.status == "running"
    assert list(experiment.trials["state"]) == ["running"]
    log.close()
    assert load_experiment(tmp_path / "e").status == "dead"
    assert list(load_experiment(tmp_path / "e").trials["state"]) == ["lost"]


# Pictures


@pytest.fixture
def drawn(tmp_path):
    rng = np.random.default_rng(0)
    trials = []
    for number in range(30):
        start, values = number // 2 * 1.0, list(rng.uniform(0.1, 1) / np.arange(1, 9))
        outcome = [Outcome.COMPLETED, Outcome.STOPPED, Outcome.FAILED][(number % 7 == 0) * 2]
        trials.append(trial(number, values, outcome, start=start, end=start + 0.9))
    trials.append(trial(30, [1e30, math.nan], start=15.0, end=16.0))
    return write(tmp_path, chain(*trials))


def test_each_plot_says_what_it_shows(drawn):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for draw, x, y in (
            (drawn.plot, "time (seconds)", "error"),
            (drawn.plot_learning_curves, "step (report)", "error"),
            (drawn.plot_slots, "time (seconds)", "slot"),
        ):
            ax = draw()
            assert (ax.get_xlabel(), ax.get_ylabel()) == (x, y)
            assert ax.get_title(loc="left").startswith("e: ")
            ax.figure.canvas.draw()
            mpl.pyplot.close(ax.figure)


def test_one_wild_value_does_not_flatten_the_rest(drawn):
    for ax in (drawn.plot(), drawn.plot_learning_curves()):
        assert ax.get_ylim()[1] < 100
        mpl.pyplot.close(ax.figure)


def test_the_incumbent_line_is_the_incumbent(drawn):
    ax = drawn.plot()
    line = next(line for line in ax.get_lines() if line.get_label() == "best so far")
    assert list(line.get_ydata()[:-1]) == list(drawn.incumbent()["value"])
    mpl.pyplot.close(ax.figure)


def test_no_two_attempts_share_a_slot(drawn):
    ax = drawn.plot_slots()
    bars = [bar for bar in ax.patches if bar.get_width() > 0]
    assert len(bars) == 31
    by_lane = {}
    for bar in bars:
        lane = round(bar.get_y() + bar.get_height() / 2)
        by_lane.setdefault(lane, []).append((bar.get_x(), bar.get_x() + bar.get_width()))
    for spans in by_lane.values():
        spans.sort()
        for (_, end), (start, _) in itertools.pairwise(spans):
            assert end <= start + 1e-2
    mpl.pyplot.close(ax.figure)


def test_an_empty_experiment_is_drawn_with_a_note(tmp_path):
    experiment = write(tmp_path, [])
    figure = overview(experiment)
    texts = [text.get_text() for ax in figure.axes for text in ax.texts]
    assert texts == ["no values yet"] * 3
    mpl.pyplot.close(figure)


@pytest.mark.parametrize("kind", ["all", "incumbent", "learning-curves", "slots"])
def test_pictures_are_saved(drawn, tmp_path, kind):
    save(drawn, tmp_path / "new" / f"{kind}.png", kind)
    assert (tmp_path / "new" / f"{kind}.png").stat().st_size > 10_000
    with pytest.raises(LogError, match=r"\.png"):
        save(drawn, tmp_path / "picture.docx", kind)
