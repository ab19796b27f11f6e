"""Pictures of more attempts than anybody draws by hand."""

from __future__ import annotations

import math

import matplotlib as mpl
from matplotlib.collections import PolyCollection
from test_log import append, writer

from dask_hpo import load_experiment
from dask_hpo.core.events import Outcome, TrialEnded, TrialStarted

mpl.use("agg")


def test_many_attempts_are_one_collection_for_each_state(tmp_path):
    log = writer(tmp_path)
    for number in range(2_000):
        append(log, TrialStarted(number / 2, number, 1, "tcp://w:1"))
        outcome = Outcome.STOPPED if number % 10 else Outcome.COMPLETED
        append(log, TrialEnded(number / 2 + 1, number, 1, outcome), math.nan)
    log.close()
    ax = load_experiment(tmp_path / "e").plot_slots()
    ax.figure.canvas.draw()
    bars = [c for c in ax.collections if isinstance(c, PolyCollection)]
    assert sorted(len(c.get_paths()) for c in bars if c.get_paths()) == [200, 1_800]
    assert not ax.patches
    mpl.pyplot.close(ax.figure)
