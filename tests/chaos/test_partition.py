"""A network that is cut, which is no death: both sides live on, and neither is told."""

from __future__ import annotations

import dataclasses

import network
import pytest
from rig import Rig
from schedule import TCP_TIMEOUT_S, Fault, Kind, draw

pytestmark = pytest.mark.skipif(bool(network.why_not()), reason=network.why_not())

BRIEF_S, LONG_S = 3.0, TCP_TIMEOUT_S + 4


def hold_to_the_rules(folder, *faults):
    """Run with these faults; the judge allows a second attempt only after a worker's long cut."""
    schedule = dataclasses.replace(draw(0), trials=24, isolation="process", faults=faults)
    with network.network() as hosts:
        outcome = Rig(schedule, folder, hosts).run()
    assert outcome.done == list(faults), "the experiment was over before the cut"
    assert not outcome.broken, outcome.report()


def test_a_brief_cut_loses_nothing(tmp_path):
    worker = Fault(at_s=4.0, kind=Kind.CUT_WORKER, duration_s=BRIEF_S)
    driver = Fault(at_s=5.0, kind=Kind.CUT_DRIVER, duration_s=BRIEF_S)
    hold_to_the_rules(tmp_path / "run", worker, driver)


@pytest.mark.parametrize("kind", [Kind.CUT_WORKER, Kind.CUT_DRIVER])
def test_a_cut_that_ends_connections_is_survived(kind, tmp_path):
    hold_to_the_rules(tmp_path / "run", Fault(at_s=4.0, kind=kind, duration_s=LONG_S))
