"""Logs of every version of the format, each written by the package of its time, read by this one.

`fixtures/make_log.py` wrote them, and says with which versions.
"""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from fixtures.make_log import CONFIGS, TRACEBACK, events
from test_log import READERS

from dask_hpo import load_experiment
from dask_hpo.cluster.worker import worker_of
from dask_hpo.core.events import Failure, Outcome, TrialEnded, TrialStarted
from dask_hpo.core.tuning import Tuning
from dask_hpo.errors import LogError, ObjectiveError
from dask_hpo.log import parts as parts_module
from dask_hpo.log.definition import LOG_VERSION
from dask_hpo.log.directory import read_definition
from dask_hpo.log.reader import read_clock
from dask_hpo.log.replay import read_rows
from dask_hpo.log.writer import LogWriter
from dask_hpo.past import read_past
from dask_hpo.searchers import as_searcher

LOGS = Path(__file__).parent / "fixtures" / "logs"
VERSIONS = sorted(folder.name for folder in LOGS.iterdir())
pytestmark = pytest.mark.parametrize("version", VERSIONS)


@pytest.fixture
def copy(version, tmp_path):
    return shutil.copytree(LOGS / version, tmp_path / version)


def told(version):
    """Return what was appended to the log of a version, as text."""
    return [
        as_text(event, CONFIGS[event.trial_id], value, step, has_runs=version != "v1")
        for event, value, step in events()
    ]


def read(path):
    return [as_text(row.event, row.config, row.value, row.step) for row in read_rows(path)]


def as_text(event, *rest, has_runs=True):
    """Tell NaN from null and 1 from True, but for metrics, which are floats."""
    if isinstance(event, TrialStarted):
        event = event if has_runs else dataclasses.replace(event, run="")
    else:
        numbers = {
            name: float(metric) if isinstance(metric, (int, float)) else metric
            for name, metric in sorted(event.metrics.items())
        }
        event = dataclasses.replace(event, metrics=numbers)
    return repr((event, *rest))


def test_the_present_version_has_a_fixture(version):
    assert f"v{LOG_VERSION}" in VERSIONS
    assert read_definition(LOGS / version).log_version == int(version[1:])


def test_the_events_read_back(version):
    assert read(LOGS / version) == told(version)
    assert read_clock(LOGS / version) == (8.0 if version == "v1" else 9.5)


def test_the_experiment_is_read(version):
    experiment = load_experiment(LOGS / version)
    trials = experiment.trials.set_index("trial_id")
    assert list(trials["state"]) == [
        "completed",
        "failed",
        "stopped",
        "completed",
        "completed",
        "completed",
    ]
    assert list(trials["value"].drop([1, 2])) == [0.25, 0.125, 0.5, 0.625]
    assert math.isnan(trials["value"][1])
    assert list(trials["attempt"]) == [1, 1, 1, 2, 1, 1]
    assert len(experiment.attempts) == 7
    reports = experiment.reports
    assert len(reports) == 9
    assert list(reports["late"].dropna()) == [2.0]
    assert list(reports["metric_time"].dropna()) == [9.0]
    assert list(reports["metric_run"].dropna()) == [1.0, 1.0]
    best = experiment.best
    assert (best.trial_id, best.value, best.step) == (3, 0.125, 1)
    assert repr(best.config) == repr(CONFIGS[3])
    summary = experiment.summary()
    assert summary.trials == {"completed": 4, "failed": 1, "stopped": 1}
    assert (summary.status, summary.reason) == ("finished", "max_wallclock_time")
    assert summary.failures == ((1, "ValueError: täglich"),)
    assert summary.wallclock_time == 9.0
    assert summary.slot_utilisation == pytest.approx(11.75 / 18)


@pytest.mark.parametrize("reader", READERS)
def test_every_reader_reads_the_folder(version, reader):
    rows = READERS[reader](str(LOGS / version / "events"))
    assert len(rows) == 21
    assert sorted(rows["value"].dropna())[:2] == [0.125, 0.125]
    assert list(rows["traceback"].dropna()) == [TRACEBACK]


@pytest.mark.parametrize("exchanged", [True, False])
def test_another_driver_goes_on_with_it(version, copy, exchanged, monkeypatch):
    if not exchanged:
        monkeypatch.setattr(parts_module, "exchange", lambda first, second: False)
    for metric in ("later", "latest"):
        log = LogWriter(copy, read_definition(copy), resume=True, part_rows=16)
        failure = Failure("ValueError: no")
        for event in (
            TrialStarted(10.0, 6, 1, "w", "a run"),
            TrialEnded(11.0, 6, 1, Outcome.FAILED, {metric: 1.0, "run": 2.0}, failure),
        ):
            log.append(event, config=CONFIGS[1], value=0.5, worker="w", slots=2)
        log.close()
    assert read(copy)[:21] == told(version)
    rows = read_rows(copy)[21:]
    assert [row.event.run for row in rows[::2]] == ["a run"] * 2
    assert [row.event.metrics for row in rows[1::2]] == [
        {"later": 1.0, "run": 2.0},
        {"latest": 1.0, "run": 2.0},
    ]
    assert {len(read(str(copy / "events"))) for read in READERS.values()} == {25}
    assert read_definition(copy).log_version == LOG_VERSION
    for part in (copy / "events").iterdir():
        assert pq.read_schema(part).metadata[b"dask_hpo.log_version"] == b"%d" % LOG_VERSION
    assert load_experiment(copy).status == "dead"  # its end was taken back


def test_a_newer_version_is_refused(version, copy):
    what = json.loads((copy / "experiment.json").read_text())
    (copy / "experiment.json").write_text(json.dumps({**what, "log_version": 99}))
    for use in (load_experiment, read_rows):
        with pytest.raises(LogError, match=r"log_version=99.*newer dask_hpo.*install at least"):
            use(copy)


def test_an_experiment_is_resumed_from_it(version, copy):
    """Its last trial still runs: whatever the version, its next driver looks for that very run."""
    table = pq.read_table(copy / "events", partitioning=None)
    shutil.rmtree(copy / "events")
    (copy / "events").mkdir()
    over = pc.and_(pc.equal(table["trial_id"], 5), pc.equal(table["kind"], "end"))
    pq.write_table(table.filter(pc.invert(over)), copy / "events" / "part-000000.parquet")
    past = read_past(copy, None)
    scheduler = past.scheduler()
    searcher = as_searcher(scheduler.searcher, scheduler.space, past.definition.seed)
    tuning = Tuning(searcher, scheduler, past.stop_criterion(), scheduler.metric)
    past.replay(tuning)
    assert [trial.config for trial in tuning.trials] == CONFIGS
    (start,) = tuning.resume()
    assert (start.trial_id, start.attempt) == (5, 1)
    assert worker_of(start.run) == "tcp://127.0.0.1:1"
    assert past.definition.options == {"n_workers": 2, "resources": {}, "isolation": "process"}
    with pytest.raises(
        ObjectiveError, match="give it to Tuner"
    ):  # these logs came without a script
        past.objective()
