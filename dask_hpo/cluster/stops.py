"""Tells workers to stop attempts, without waiting for their answers."""

from __future__ import annotations

import logging
from collections import defaultdict, deque

from distributed import Client

from dask_hpo.cluster.worker import stop_trials

logger = logging.getLogger("dask_hpo")


class Stops:
    """Stops on their way to the workers; those for one worker travel together."""

    def __init__(self, client: Client, plugin: str) -> None:
        self._client = client
        self._plugin = plugin
        self._waiting: defaultdict[str, deque[tuple[int, int]]] = defaultdict(deque)  #: by worker

    def send(self, worker: str, trial_id: int, attempt: int) -> None:
        """Tell a worker to stop an attempt; from the driver's thread."""
        self._waiting[worker].append((trial_id, attempt))
        self._client.loop.add_callback(self._send_to, worker)

    async def _send_to(self, worker: str) -> None:
        waiting = self._waiting[worker]
        attempts = [waiting.popleft() for _ in range(len(waiting))]
        if not attempts:
            return  # an earlier call took them along
        try:
            await self._client.run(stop_trials, self._plugin, attempts, workers=[worker])
        except Exception as error:  # noqa: BLE001 - a worker that is gone has nothing to stop
            logger.debug("stop of %s on %s not delivered: %s", attempts, worker, error)
