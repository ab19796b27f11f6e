"""What an experiment is, in readable form beside its log: ``experiment.json``."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

#: Version of the log's format. A later version of the package reads every earlier one.
LOG_VERSION = 1


@dataclass(frozen=True, slots=True)
class Definition:
    """What was asked for when the experiment began.

    ``space`` holds expressions such as ``"loguniform(1e-05, 0.1)"`` and plain constants;
    ``config_types`` the type of each configuration column: ``float``, ``int``, ``str`` or ``bool``.
    ``started`` is in UTC.
    """

    name: str
    metric: str
    mode: str
    space: Mapping[str, Any]
    config_types: Mapping[str, str]
    started: datetime
    seed: int
    searcher: str
    scheduler: str
    objective: str
    stop_criterion: Mapping[str, Any]
    n_workers: int | None
    resources: Mapping[str, float]
    isolation: str
    dask_hpo_version: str
    versions: Mapping[str, str] = field(default_factory=dict)
    log_version: int = LOG_VERSION

    def to_json(self) -> str:
        """Return the definition as JSON, indented for people."""
        return json.dumps(
            {**dataclasses.asdict(self), "started": self.started.isoformat()}, indent=2
        )

    @classmethod
    def from_json(cls, text: str) -> Definition:
        """Read what `to_json` wrote; names that a later version added are ignored."""
        known = {f.name for f in dataclasses.fields(cls)}
        values = {name: value for name, value in json.loads(text).items() if name in known}
        return cls(**{**values, "started": datetime.fromisoformat(values["started"])})
