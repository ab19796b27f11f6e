"""What an experiment is, in readable form beside its log: ``experiment.json``."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from dask_hpo.errors import LogError

#: Version of the log's format. A later version of the package reads every earlier one.
LOG_VERSION = 2


@dataclass(frozen=True, slots=True)
class Definition:
    """What was asked for when the experiment began; all that a resume needs besides the events.

    ``uid`` tells experiments of one name apart on a cluster. ``space`` holds expressions such as
    ``"loguniform(1e-05, 0.1)"`` and plain constants; ``config_types`` the type of each
    configuration column: ``float``, ``int``, ``str`` or ``bool``. ``started`` is in UTC.
    ``scheduler_options`` and ``options`` are the arguments of the scheduler and of the tuner;
    ``searcher`` and ``objective`` say in words what they are, and ``payload`` what of the
    objective stands in the folder ``objective``.
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
    options: Mapping[str, Any]
    dask_hpo_version: str
    scheduler_options: Mapping[str, Any] = field(default_factory=dict)
    payload: Mapping[str, Any] = field(default_factory=dict)
    uid: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    log_version: int = LOG_VERSION

    def to_json(self) -> str:
        """Return the definition as JSON, indented for people."""
        return json.dumps(
            {**dataclasses.asdict(self), "started": self.started.isoformat()}, indent=2
        )

    @classmethod
    def from_json(cls, text: str) -> Definition:
        """Read what `to_json` wrote; names that this version does not know are ignored.

        Raises
        ------
        LogError
            If a later version of the log's format was written.
        """
        known = {f.name for f in dataclasses.fields(cls)}
        written = json.loads(text)
        if written["log_version"] > LOG_VERSION:
            raise LogError(
                f"log_version={written['log_version']}: the log was written by a newer dask_hpo "
                f"({written.get('dask_hpo_version')}), and this one reads versions up to "
                f"{LOG_VERSION}; install at least that version, or read the events with any "
                "Parquet reader"
            )
        if written["log_version"] == 1:  # it had no other options
            names = ("n_workers", "resources", "isolation")
            written["options"] = {name: written[name] for name in names}
        values = {name: value for name, value in written.items() if name in known}
        return cls(**{**values, "started": datetime.fromisoformat(values["started"])})
