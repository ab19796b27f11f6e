"""What an experiment was asked for and what has happened, read from its directory for a resume."""

from __future__ import annotations

import ast
import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dask_hpo.core.events import Reported, TrialFound, TrialStarted
from dask_hpo.core.space import SearchSpace
from dask_hpo.core.stopping import StoppingCriterion
from dask_hpo.core.tuning import Tuning
from dask_hpo.errors import OptionError
from dask_hpo.log.definition import LOG_VERSION, Definition
from dask_hpo.log.directory import (
    check_not_running,
    find,
    read_definition,
    read_end,
    write_definition,
)
from dask_hpo.log.replay import read_rows
from dask_hpo.objective import Objective
from dask_hpo.schedulers import FIFOScheduler, make_scheduler
from dask_hpo.stored_objective import (
    StoredObjective,
    describe_payload,
    read_back,
    replace_stored,
)


@dataclass(frozen=True, slots=True)
class Past:
    """An experiment that was begun.

    ``path`` is its directory; ``new_objective`` takes the place of the one that is kept there.
    """

    path: Path
    definition: Definition
    new_objective: Objective | None = None

    def objective(self) -> StoredObjective:
        """Return what it ran.

        Raises
        ------
        ObjectiveError
            If its directory does not hold it.
        """
        definition = self.definition
        return read_back(self.path, definition.payload, definition.objective)

    def scheduler(self, searcher: Any = None) -> FIFOScheduler:
        """Return a scheduler as it was at the beginning.

        Parameters
        ----------
        searcher
            In place of the one that it had; needed where that was an object.

        Raises
        ------
        OptionError
            If the searcher must be given and is not.
        """
        definition = self.definition
        options = dict(definition.scheduler_options)
        named = options.pop("searcher", None) or _name_in(definition.searcher)
        if searcher is None and named is None:
            raise OptionError(
                f"the searcher of {definition.name!r} was an object, {definition.searcher}, and "
                "objects are not kept in the log; give the same to Tuner.resume(..., searcher=...)"
            )
        if searcher is not None and not isinstance(searcher, str):
            options["points_to_evaluate"] = ()  # an object has its own
        return make_scheduler(
            definition.scheduler.partition("(")[0],  # the first version wrote down its repr
            SearchSpace.from_definitions(definition.space),
            metric=definition.metric,
            mode=definition.mode,
            random_seed=definition.seed,
            searcher=named if searcher is None else searcher,
            **options,
        )

    def stop_criterion(self) -> StoppingCriterion:
        """Return when it was to end."""
        return StoppingCriterion(**self.definition.stop_criterion)

    def replay(self, tuning: Tuning) -> None:
        """Tell a new state machine what the log says, so that it comes to where the other was.

        Raises
        ------
        LogError
            If the log cannot be read.
        OptionError
            If the searcher cannot have given what the log says.
        """
        for row in read_rows(self.path):
            event = row.event
            if not isinstance(event, Reported):  # some trials ended before they started
                tuning.replay(TrialFound(event.now, event.trial_id, row.config))
            if isinstance(event, TrialStarted) and not event.run:  # the first version had no names
                event = dataclasses.replace(event, run=f"{event.worker}/unknown/0")
            tuning.replay(event)

    def changed(self, criterion: StoppingCriterion | None, objective: Objective | None) -> Past:
        """Return the same experiment with another end, or another objective, from now on."""
        definition = self.definition
        if criterion is not None:
            limits = dataclasses.asdict(criterion)
            definition = dataclasses.replace(definition, stop_criterion=limits)
        if objective is not None:
            definition = dataclasses.replace(
                definition,
                objective=objective.describe(),
                payload=describe_payload(objective),
            )
        return Past(self.path, definition, objective)

    def is_over(self) -> bool:
        """Whether it has finished, and nothing was changed since."""
        end = read_end(self.path)
        finished = end is not None and end["status"] == "finished"
        return finished and self.definition == read_definition(self.path)

    def write(self) -> None:
        """Write down what was changed.

        Raises
        ------
        LogError
            If it cannot be written.
        """
        definition = dataclasses.replace(self.definition, log_version=LOG_VERSION)
        if self.new_objective is not None:
            replace_stored(self.new_objective, self.path)
        if definition != read_definition(self.path):
            write_definition(self.path, definition)


def read_past(name_or_path: str | Path, root: str | Path | None) -> Past:
    """Return what was begun under this name, or at this path.

    Raises
    ------
    ExperimentNotFoundError
        If there is none.
    LogError
        If another driver writes it at this moment, or its definition cannot be read.
    """
    path = find(name_or_path, root)
    check_not_running(path)
    return Past(path, read_definition(path))


def _name_in(text: str) -> str | None:
    """Return the name in ``"'random'"``, as the first version wrote it; None for an object."""
    try:
        name = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return None
    return name if isinstance(name, str) else None
