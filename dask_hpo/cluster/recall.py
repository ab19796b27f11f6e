"""What a cluster still knows of an experiment's attempts, for a driver that comes later.

Workers remember every message of what ran on them (``memory.py``). Of a worker that is gone, the
Dask scheduler has the last batches of each topic; the one for ends holds what has ended.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping

from distributed import Client

from dask_hpo.cluster.ask import ask
from dask_hpo.cluster.memory import Recalled
from dask_hpo.cluster.messages import Message, config_of
from dask_hpo.cluster.worker import Settings, recall


class Recollection:
    """Executions of attempts, each under the name of its run.

    Dask runs a task again whose worker died while no driver was there; so there may be several
    executions of one attempt.
    """

    def __init__(self, recalled: Iterable[Recalled] = ()) -> None:
        self._by_attempt: defaultdict[tuple[int, int], list[Recalled]] = defaultdict(list)
        for execution in recalled:
            self._by_attempt[execution.trial_id, execution.attempt].append(execution)

    def of(self, trial_id: int, attempt: int, run: str) -> Recalled | None:
        """Return the execution of this name; if that is empty one that ended, or one that runs."""
        executions = self._by_attempt.get((trial_id, attempt), [])
        if run:
            return next((e for e in executions if e.run == run), None)
        return max(executions, key=lambda e: (has_ended(e), e.remembered), default=None)

    def beyond(self, known: int) -> list[Recalled]:
        """Return one execution of each trial from this number up: of its last attempt."""
        last: dict[int, int] = {}
        for trial_id, attempt in self._by_attempt:
            if trial_id >= known:
                last[trial_id] = max(attempt, last.get(trial_id, 0))
        found = [self.of(trial_id, attempt, "") for trial_id, attempt in sorted(last.items())]
        return [execution for execution in found if execution is not None]

    def strays(self, taken_up: Collection[str], current: Mapping[int, int]) -> list[Recalled]:
        """Return what runs although nobody waits for it any more.

        Parameters
        ----------
        taken_up
            The names of the runs that are waited for.
        current
            The attempt of each active trial, by number: a later one may yet be taken up.
        """
        return [
            execution
            for executions in self._by_attempt.values()
            for execution in executions
            if execution.remembered
            and execution.run not in taken_up
            and execution.attempt <= current.get(execution.trial_id, execution.attempt)
            and not has_ended(execution)
        ]


def has_ended(execution: Recalled) -> bool:
    """Whether the end of an execution is known."""
    return bool(execution.messages) and execution.messages[-1]["kind"] == "ended"


def recollect(client: Client, settings: Settings, workers: Collection[str]) -> Recollection:
    """Ask these workers, and the Dask scheduler for those that are gone."""
    answers = client.sync(ask, client, workers, recall, settings.plugin)
    remembered = [e for answer in answers.values() if isinstance(answer, list) for e in answer]
    runs = {execution.run for execution in remembered}
    gone = [e for e in _from_history(client, settings) if e.run not in runs]
    return Recollection([*remembered, *gone])


def _from_history(client: Client, settings: Settings) -> list[Recalled]:
    """Return the executions whose end the Dask scheduler has kept, and what it has of the rest."""
    runs: dict[str, dict[tuple[str, float], Message]] = {}
    for topic in (settings.topic, settings.ends_topic):
        for _, batch in client.get_events(topic) or ():
            for message in batch["messages"]:
                said = message["kind"], message.get("elapsed", 0.0)
                runs.setdefault(message["run"], {})[said] = message
    return [_execution(list(said.values())) for said in runs.values()]


_ORDER = {"started": 0, "reported": 1, "ended": 2}


def _execution(messages: list[Message]) -> Recalled:
    messages.sort(key=lambda message: (_ORDER[message["kind"]], message.get("elapsed", 0.0)))
    last = messages[-1]
    return Recalled(
        last["trial_id"],
        last["attempt"],
        config_of(last) if last["kind"] == "ended" else None,
        last["run"],
        "",
        messages,
        remembered=False,
    )
