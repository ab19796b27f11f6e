"""A log that another driver goes on with: rows read back, what a killed one left, the clock."""

from __future__ import annotations

import dataclasses
import math
import tempfile

import pyarrow.parquet as pq
import pytest
from conftest import wait_until
from hypothesis import given
from hypothesis import strategies as st
from test_log import definition, report, write_trial, writer
from test_log_readers import counts

from dask_hpo import load_experiment
from dask_hpo.core.events import Failure, Outcome, Reported, TrialEnded, TrialStarted
from dask_hpo.core.space import SearchSpace, choice, uniform
from dask_hpo.errors import LogError
from dask_hpo.log import parts as parts_module
from dask_hpo.log.directory import create_experiment, read_definition
from dask_hpo.log.reader import read_clock
from dask_hpo.log.replay import read_rows
from dask_hpo.log.rows import Row
from dask_hpo.log.writer import LogWriter


def resume(root, **options):
    path = root / "e"
    return LogWriter(path, read_definition(path), resume=True, **options)


# Rows read back

OPTIONS = {
    "text": ["a", "1", "null", '"a"', "", None],
    "mixed": ["7", 7, True, "true", 1.5, '"7"', '"', "a", "[1]", "NaN", 2**62, None],
    "number": [1, 2.5, -(2**50), None],
    "flag": [True, None, False],
    "whole": [2**63 - 1, -(2**63), 0],
}
CHOICES = {name: choice(options) for name, options in OPTIONS.items()}
SPACE = SearchSpace({**CHOICES, "none": None, "x": uniform(-1, 1)})
configurations = st.fixed_dictionaries(
    {
        **{name: st.sampled_from(options) for name, options in OPTIONS.items()},
        "none": st.none(),
        "x": st.floats(-1, 1),
    }
)
metrics = st.dictionaries(
    st.sampled_from(["error", "Run", "metric_error", "config_x", "time", "other"]),
    st.one_of(
        st.floats(), st.integers(-(2**53), 2**53), st.booleans(), st.none(), st.text(max_size=9)
    ),
)
times = st.floats(0, 1e6)
texts = st.text(max_size=9)
trials = st.integers(0, 3)
attempts = st.integers(1, 9)


@st.composite
def written(draw):
    """Draw an event with what the state machine says beside it."""
    now, trial_id, attempt, elapsed = draw(st.tuples(times, trials, attempts, times))
    worker, step, value = draw(st.tuples(texts, st.integers(0, 2**40), st.floats()))
    match draw(st.sampled_from(["start", "report", "end"])):
        case "start":
            event = TrialStarted(now, trial_id, attempt, worker, draw(texts))
            step, value = 0, math.nan
        case "report":
            event = Reported(now, trial_id, attempt, step, draw(metrics), elapsed)
        case _:
            failure = draw(st.none() | st.builds(Failure, texts, texts, texts))
            outcome = draw(st.sampled_from(Outcome))
            event = TrialEnded(now, trial_id, attempt, outcome, draw(metrics), failure, elapsed)
    return event, value, step, worker


def exact(row):
    """Return a row as text, which tells NaN from null, -0.0 from 0.0 and 1 from 1.0 and True."""
    event = row.event
    if not isinstance(event, TrialStarted):
        numbers = {
            name: float(value) if isinstance(value, (int, float)) else value
            for name, value in sorted(event.metrics.items())
        }
        event = dataclasses.replace(event, metrics=numbers)
    return repr(dataclasses.replace(row, event=event, config=sorted(row.config.items())))


@given(st.lists(written(), max_size=12), st.lists(configurations, min_size=4, max_size=4))
def test_rows_read_back_are_those_that_were_written(events, configs):
    kinds = {name: kind.__name__ for name, kind in SPACE.column_types().items()}
    what = definition(space=SPACE.definitions(), config_types=kinds)
    rows = [
        Row(event, configs[event.trial_id], value, step, worker, 3)
        for event, value, step, worker in events
    ]
    with tempfile.TemporaryDirectory() as root:
        path = create_experiment(what, root)
        log = LogWriter(path, what, part_rows=5)
        for row in rows:
            log.append(
                row.event,
                config=row.config,
                value=row.value,
                step=row.step,
                worker=row.worker,
                slots=row.slots,
            )
        log._closing.set()  # no pause for rows to gather
        log.close()
        assert list(map(exact, read_rows(path))) == list(map(exact, rows))


def test_the_best_configuration_has_the_types_of_the_space(tmp_path):
    space = SearchSpace({"features": choice([1, 0.5]), "opt": choice(["1", 1, "a"])})
    kinds = {name: kind.__name__ for name, kind in space.column_types().items()}
    what = definition(space=space.definitions(), config_types=kinds)
    log = LogWriter(create_experiment(what, tmp_path), what)
    config = {"features": 1, "opt": "1"}
    event = report(0, 1, error=0.5)
    log.append(event, config=config, value=0.5, worker="w", slots=1, step=1)
    log.close()
    best = load_experiment(tmp_path / "e").best.config
    assert repr(best) == repr(config)


def test_a_text_column_of_strings_holds_them_as_they_are(tmp_path):
    """Whoever selects config_opt = '16' in SQL finds it, without the quotes of JSON."""
    what = definition(space={"opt": "choice(['16', 'true'])"}, config_types={"opt": "str"})
    log = LogWriter(create_experiment(what, tmp_path), what)
    log.append(report(0, 1), config={"opt": "16"}, value=0.5, worker="w", slots=1, step=1)
    log.close()
    assert pq.read_table(tmp_path / "e" / "events")["config_opt"].to_pylist() == ["16"]


# What a driver left


def test_a_log_goes_on_where_it_ended(tmp_path):
    log = writer(tmp_path, part_rows=5)
    for number in range(3):
        write_trial(log, number)
    log.finish("finished", "exhausted", 2.0)
    log.close()
    assert load_experiment(tmp_path / "e").status == "finished"
    log = resume(tmp_path, part_rows=5)
    assert load_experiment(tmp_path / "e").status == "running"
    assert not (tmp_path / "e" / "end.json").exists()
    write_trial(log, 3)
    log.flush()
    write_trial(log, 4, late=1.0)
    log.close()
    assert set(counts(tmp_path / "e" / "events").values()) == {20}
    assert [row.event.trial_id for row in read_rows(tmp_path / "e")] == [
        number for number in range(5) for _ in range(4)
    ]
    assert len(list((tmp_path / "e" / "events").iterdir())) == 4


def test_a_log_whose_last_part_is_full_goes_on_in_the_next(tmp_path):
    log = writer(tmp_path, part_rows=4)
    write_trial(log, 0)
    log.close()
    before = (tmp_path / "e" / "events" / "part-000000.parquet").read_bytes()
    log = resume(tmp_path, part_rows=4)
    write_trial(log, 1)
    log.close()
    assert (tmp_path / "e" / "events" / "part-000000.parquet").read_bytes() == before
    assert len(read_rows(tmp_path / "e")) == 8


def test_a_log_that_was_never_begun_is_begun(tmp_path):
    path = create_experiment(definition(), tmp_path)
    (path / ".events.scratch").mkdir()
    log = resume(tmp_path)
    write_trial(log, 0)
    log.close()
    assert len(read_rows(path)) == 4


def test_a_log_that_a_living_driver_writes_is_not_taken_over(tmp_path):
    log = writer(tmp_path)
    with pytest.raises(LogError, match="another driver is writing"):
        resume(tmp_path)
    log.close()
    resume(tmp_path).close()


def test_a_widening_cut_short_is_completed(tmp_path, monkeypatch):
    """Where directories cannot change places, the last part is renamed first."""
    monkeypatch.setattr(parts_module, "exchange", lambda first, second: False)
    log = writer(tmp_path, part_rows=4)
    for number in range(3):
        write_trial(log, number)
    log.close()
    folder = tmp_path / "e" / "events"
    narrow = {part: part.read_bytes() for part in sorted(folder.iterdir())[:2]}
    log = resume(tmp_path, part_rows=4)
    write_trial(log, 3, late=1.0, later=2.0)
    log.close()
    for part, content in narrow.items():
        part.write_bytes(content)
    assert len({tuple(pq.read_schema(part).names) for part in folder.iterdir()}) == 2
    (tmp_path / "e" / ".part-000003.parquet.scratch").write_bytes(b"half")

    log = resume(tmp_path, part_rows=4)
    assert len({tuple(pq.read_schema(part).names) for part in folder.iterdir()}) == 1
    write_trial(log, 4, late=1.0)
    log.close()
    assert set(counts(folder).values()) == {20}
    reports = [row.event for row in read_rows(tmp_path / "e") if isinstance(row.event, Reported)]
    assert [event.metrics.get("late") for event in reports] == [None] * 6 + [1.0] * 4
    assert not list((tmp_path / "e").glob(".*.scratch"))


def test_a_part_that_is_none_is_said_to_be_none(tmp_path):
    writer(tmp_path).close()
    (tmp_path / "e" / "events" / "part-000000.parquet").write_bytes(b"no Parquet")
    for _ in range(2):  # and the lock is not kept
        with pytest.raises(LogError, match="restore"):
            resume(tmp_path)


# The clock


def test_the_clock_outlives_the_driver(tmp_path):
    log = writer(tmp_path)
    path = tmp_path / "e"
    assert read_clock(path) == 0.0
    log.tick(4.9)
    write_trial(log, 0)
    log.flush()
    assert not (path / "clock").exists()
    assert read_clock(path) == 1.0  # that of the last row
    log.tick(5.5)
    wait_until(lambda: read_clock(path) == 5.5)
    log.tick(6.25)
    log.close()
    assert read_clock(path) == 6.25

    log = resume(tmp_path)
    log.tick(6.5)
    log.close()
    assert read_clock(path) == 6.5
    (path / "clock").write_text("noon")
    with pytest.raises(LogError, match="remove the file"):
        read_clock(path)


def test_a_clock_that_stands_still_is_not_written(tmp_path):
    log = writer(tmp_path)
    log.tick(7.0)
    wait_until((tmp_path / "e" / "clock").exists)
    written_at = (tmp_path / "e" / "clock").stat().st_mtime_ns
    log.tick(7.0)
    log.close()
    assert (tmp_path / "e" / "clock").stat().st_mtime_ns == written_at
