"""A complete checkpoint in the books: its name, and which of several may go.

A checkpoint is a folder ``step-000005`` with a marker in it, and it is complete once it has that
name (on a file system, by a rename) or that marker (in an object store, written last). What the
marker says helps to rank it and is never needed to find it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dask_hpo.core.metric import Metric

MARKER = ".checkpoint.json"
#: An attempt after the first leaves a file of this name: earlier ones may run on for a moment.
ATTEMPT = ".attempt-{}"
_NAME = re.compile(r"step-(\d{6,})(?:-(\d+))?")


@dataclass(frozen=True, slots=True)
class Record:
    """A complete checkpoint of a trial.

    ``version`` counts up where a step is saved anew: nothing is ever written over. ``value`` is
    what was reported of the metric at that step, NaN if nothing was.
    """

    step: int
    version: int = 1
    value: float = math.nan

    @property
    def name(self) -> str:
        """The name of its folder."""
        suffix = "" if self.version == 1 else f"-{self.version}"
        return f"step-{self.step:06d}{suffix}"

    def to_json(self) -> bytes:
        """Return what its marker says."""
        value = self.value if math.isfinite(self.value) else None
        return json.dumps({"step": self.step, "value": value}).encode()


def is_name(name: str) -> bool:
    """Tell whether a folder's name is one of a checkpoint."""
    return _NAME.fullmatch(name) is not None


def from_marker(name: str, content: bytes) -> Record:
    """Return the record of a checkpoint, given the name of its folder and its marker."""
    match = _NAME.fullmatch(name)
    assert match is not None
    step, version = match.groups(default="1")
    return Record(int(step), int(version), _value(content))


def _value(content: bytes) -> float:
    try:
        return float(json.loads(content)["value"])
    except (ValueError, TypeError, KeyError):  # null, or cut short by a crash: not known
        return math.nan


def is_newest(attempt: int, names: Iterable[str]) -> bool:
    """Tell whether no later attempt left its file, given the names in a trial's directory."""
    start = ATTEMPT.format("")
    others = (name.removeprefix(start) for name in names if name.startswith(start))
    return all(int(other) <= attempt for other in others if other.isdecimal())


def latest(records: Iterable[Record]) -> Record | None:
    """Return the record of the highest step, and of that the last version."""
    return max(records, key=_order, default=None)


@dataclass(frozen=True, slots=True)
class Policy:
    """Which complete checkpoints of a trial stay: the last ones, and the best by a metric."""

    metric: Metric
    keep_last: int
    keep_best: int

    def superfluous(self, records: Sequence[Record]) -> list[Record]:
        """Return those that may go.

        Of one step the last version counts; of equally good ones the later step stays.
        """
        in_order = list({record.step: record for record in sorted(records, key=_order)}.values())
        loss = {record.step: self.metric.loss(record.value) for record in in_order}
        ranked = sorted(in_order, key=lambda record: (loss[record.step], -record.step))
        best = [record for record in ranked if loss[record.step] < math.inf][: self.keep_best]
        stay = {record.name for record in (*in_order[-self.keep_last :], *best)}
        return [record for record in records if record.name not in stay]


def _order(record: Record) -> tuple[int, int]:
    return record.step, record.version
