"""Which workers run trials and how many at once: checked as they come, watched as they stay."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import platform
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from distributed import Client

from dask_hpo.cluster.slots import slots_of
from dask_hpo.cluster.worker import Settings, TrialHost, is_ready, plugin_name
from dask_hpo.errors import ClusterError, VersionMismatchError

logger = logging.getLogger("dask_hpo")

#: Workers are looked at so often. A worker that dies is not waited for: Dask says so at once.
POLL_S = 1.0
#: A Dask scheduler that takes longer to answer is said to be away.
ANSWER_S = 10.0

WorkerInfo = Mapping[str, Any]  #: what the Dask scheduler's identity says of one worker


def host_of(address: str) -> str:
    """Return the host in a Dask address such as ``tcp://10.0.0.3:41234``."""
    return address.rpartition("://")[2].rpartition(":")[0]


def describe_offers(workers: Mapping[str, WorkerInfo]) -> str:
    """Say in words what workers offer, for messages to people."""
    if not workers:
        return "no worker is connected"
    offers: Counter[str] = Counter()
    for info in workers.values():
        resources = ", ".join(f"{k}={v:g}" for k, v in sorted(info["resources"].items()))
        offers[f"{resources or 'no resources'} ({info['nthreads']} threads)"] += 1
    return "; ".join(f"{number} worker(s) offer {offer}" for offer, number in offers.items())


class WorkerWatch:
    """Watches the workers of a cluster for one experiment.

    Parameters
    ----------
    max_slots
        Use at most so many slots; None: all.
    on_change
        Called with the number of slots, and the addresses of workers that are gone, whenever either
        changes; in no particular thread.
    """

    def __init__(
        self,
        client: Client,
        settings: Settings,
        max_slots: int | None,
        on_change: Callable[[int, frozenset[str]], None],
    ) -> None:
        self._client = client
        self._settings = settings
        self._max_slots = max_slots
        self._on_change = on_change
        self._accepted: dict[str, WorkerInfo] = {}
        self._refused: set[str] = set()
        self._slots = -1
        self._away = False
        self._registered = False  #: the plugin is with the Dask scheduler, even if a worker fails
        self._task: asyncio.Future[None] | None = None

    @property
    def accepted(self) -> frozenset[str]:
        """The workers that trials may run on: those that were checked."""
        return frozenset(self._accepted)

    def start(self) -> None:
        """Check the workers, make them ready, and begin to watch.

        Raises
        ------
        VersionMismatchError
            If a worker runs another Python, or another version of this package, or lacks it.
        ClusterError
            If a worker cannot be made ready for another reason.
        """
        workers = self._client.sync(self._workers)
        self._check_python(self._client.run(platform.python_version))
        self._register(workers)
        self._accepted = workers
        self._announce(frozenset(), first=True)
        self._client.loop.add_callback(self._start_polling)

    def close(self) -> None:
        """Stop watching and take the plugin off the workers: what still runs there ends."""
        if self._client.status != "running":
            return
        self._client.sync(self._stop_polling)
        if self._registered:
            self._client.unregister_worker_plugin(plugin_name(self._settings.experiment))

    async def _stop_polling(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _workers(self) -> dict[str, WorkerInfo]:
        identity = await asyncio.wait_for(self._client.scheduler.identity(), ANSWER_S)
        return {
            address: info
            for address, info in identity["workers"].items()
            if not info["status"].startswith("clos")
        }

    def _check_python(self, versions: Mapping[str, str]) -> None:
        ours = platform.python_version()
        for worker, theirs in versions.items():
            if not _same_minor(ours, theirs):
                raise VersionMismatchError(
                    f"the worker {worker} runs Python {theirs}, the driver {ours}: functions "
                    "travel between them, so both must run the same minor version; start the "
                    "worker with the driver's"
                )

    def _register(self, workers: Mapping[str, WorkerInfo]) -> None:
        slots: Counter[str] = Counter()
        for address, info in workers.items():
            slots[host_of(address)] += self._slots_on(info)
        self._settings = dataclasses.replace(self._settings, slots_by_host=dict(slots))
        self._registered = True
        try:
            self._client.register_plugin(
                TrialHost(self._settings), name=plugin_name(self._settings.experiment)
            )
        except VersionMismatchError:
            raise
        except Exception as error:
            raise ClusterError(
                f"a worker could not be made ready for trials ({type(error).__name__}: {error}); "
                f"every worker needs dask_hpo {self._settings.version} and the driver's version "
                "of distributed; install them there"
            ) from error

    def _slots_on(self, info: WorkerInfo) -> int:
        return slots_of(info["resources"], info["nthreads"], self._settings.resources)

    def _start_polling(self) -> None:
        self._task = asyncio.ensure_future(self._poll())

    async def _poll(self) -> None:
        while True:
            await asyncio.sleep(POLL_S)
            try:
                await self._refresh()
                self._away = False
            except (OSError, asyncio.TimeoutError) as error:
                self._say_away(error)

    def _say_away(self, error: Exception) -> None:
        """Say once that the Dask scheduler does not answer."""
        if not self._away:
            logger.warning(
                "the Dask scheduler at %s does not answer (%s): what was heard is in the log, and "
                "no trial starts before it is back; Ctrl-C ends the experiment",
                self._client.scheduler.address,
                type(error).__name__,
            )
        self._away = True

    async def _refresh(self) -> None:
        workers = await self._workers()
        new = workers.keys() - self._accepted.keys() - self._refused
        if new:
            await self._check_newcomers(sorted(new))
        self._refused &= workers.keys()
        gone = frozenset(self._accepted.keys() - workers.keys())
        self._accepted = {a: info for a, info in workers.items() if a not in self._refused}
        self._announce(gone)

    async def _check_newcomers(self, addresses: list[str]) -> None:
        """Refuse those that cannot run trials, and say so; the run goes on without them."""
        versions = await self._client.run(
            platform.python_version, workers=addresses, on_error="return"
        )
        same = [a for a in addresses if _same_minor(platform.python_version(), versions.get(a))]
        ready = (
            await self._client.run(
                is_ready, self._settings.experiment, workers=same, on_error="return"
            )
            if same
            else {}
        )
        for address in addresses:
            if ready.get(address) is not True:
                self._refused.add(address)
                logger.warning(
                    "the worker %s has joined but gets no trials: it must run Python %s (it runs "
                    "%s) and dask_hpo %s (its log says what is wrong); give it those versions",
                    address,
                    platform.python_version(),
                    versions.get(address),
                    self._settings.version,
                )

    def _announce(self, gone: frozenset[str], *, first: bool = False) -> None:
        offered = sum(self._slots_on(info) for info in self._accepted.values())
        slots = offered if self._max_slots is None else min(offered, self._max_slots)
        if slots == self._slots and not gone:
            return
        if slots == 0 != self._slots:
            logger.warning("%s", self._nothing_fits())
        elif first and self._max_slots is not None and offered < self._max_slots:
            logger.warning(
                "n_workers=%d, but the cluster offers %d slots now (%s): %d trials run at a time, "
                "and more as soon as workers join",
                self._max_slots,
                offered,
                describe_offers(self._accepted),
                offered,
            )
        self._slots = slots
        self._on_change(slots, gone)

    def _nothing_fits(self) -> str:
        needs = ", ".join(f"{k}={v:g}" for k, v in self._settings.resources.items()) or "a thread"
        flag = " ".join(f"{k}={v:g}" for k, v in self._settings.resources.items())
        how = f" --resources '{flag}'" if flag else ""
        return (
            f"no worker offers what a trial asks for ({needs}): {describe_offers(self._accepted)}. "
            f"Trials wait until one joins, for example by "
            f"`dask worker {self._client.scheduler.address}{how}`"
        )


def _same_minor(ours: str, theirs: object) -> bool:
    return isinstance(theirs, str) and ours.split(".")[:2] == theirs.split(".")[:2]
