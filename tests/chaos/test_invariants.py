"""The rig's judge is a witness only if it notices: a good run, spoilt in one way at a time."""

from __future__ import annotations

import dataclasses
import sys

import invariants
import pandas as pd
import pytest
from rig import Rig
from schedule import Fault, Kind, draw

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the rig is for Linux")


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    schedule = dataclasses.replace(draw(0), trials=8, isolation="process", faults=())
    rig = Rig(schedule, tmp_path_factory.mktemp("chaos") / "run")
    outcome = rig.run()
    assert not outcome.broken, outcome.report()
    return lambda: invariants.Run(schedule, rig.folder, rig.experiment, [], False)


def drop_a_report(events):
    return events.drop(events.index[events["kind"] == "report"][0])


def repeat_an_end(events):
    return pd.concat([events, events[events["kind"] == "end"].tail(1)])


def drop_a_trial(events):
    return events[events["trial_id"] != 3]


def change(column, value, kind="end"):
    def spoil(events):
        spoilt = events.copy()
        spoilt.loc[spoilt.index[spoilt["kind"] == kind][0], column] = value
        return spoilt

    return spoil


@pytest.mark.parametrize(
    ("spoil", "noticed_by"),
    [
        (drop_a_report, "told_all"),
        (repeat_an_end, "told_once"),
        (drop_a_trial, "numbered"),
        (change("config_x", 0.5), "configured"),
        (change("error", 0.5), "told_truly"),
        (change("error", 0.5, "report"), "told_truly"),
        (change("execution", 1.0, "report"), "told_truly"),
        (change("value", 9.0), "valued"),
        (change("status", "stopped"), "told_truly"),
        (change("status", "lost"), "ran_once"),
        (change("time", 1e6, "start"), "told_once"),
        (change("attempt", 3), "numbered"),
    ],
)
def test_what_is_spoilt_is_noticed(good, spoil, noticed_by):
    run = good()
    assert not invariants.broken(run)
    run.events = spoil(run.events)
    assert noticed_by in {what.partition(":")[0] for what in invariants.broken(run)}


def test_a_trial_that_ran_twice_is_noticed(good):
    run = good()
    run.begun.append((0, 2, 1234))
    assert any(what.startswith("ran_once") for what in invariants.broken(run))
    run.done = [Fault(1.0, Kind.KILL_WORKER)]
    assert not invariants.broken(run)
