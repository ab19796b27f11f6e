"""The short form of the chaos rig: a few seeds that have all kinds of faults between them."""

from __future__ import annotations

import sys

import pytest
from rig import Rig
from schedule import ALL, draw

linux_only = pytest.mark.skipif(
    sys.platform != "linux", reason="the rig stops, mounts and looks for processes as Linux has it"
)

SEEDS = (152, 210, 329, 353)


def test_a_seed_always_gives_the_same_run():
    assert [draw(seed) for seed in range(50)] == [draw(seed) for seed in range(50)]


def test_the_seeds_have_every_kind_and_every_isolation():
    schedules = [draw(seed) for seed in SEEDS]
    assert frozenset().union(*(schedule.kinds for schedule in schedules)) == ALL
    assert {schedule.isolation for schedule in schedules} == {"process", "spawn", "thread"}
    assert {schedule.resume_by for schedule in schedules} == {"python", "cli"}


@linux_only
@pytest.mark.parametrize("seed", SEEDS)
def test_no_invariant_breaks(seed, tmp_path):
    outcome = Rig(draw(seed), tmp_path / "run").run()
    print(outcome.line())
    assert not outcome.broken, outcome.report()
