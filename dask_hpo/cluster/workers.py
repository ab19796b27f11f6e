"""Which workers run trials and how many at once: checked as they come, watched as they stay."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import platform
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from typing import Any

from distributed import Client
from distributed.comm import CommClosedError

from dask_hpo.cluster.ask import ANSWER_S, ask
from dask_hpo.cluster.slots import slots_of
from dask_hpo.cluster.worker import Settings, TrialHost, ready_for
from dask_hpo.core.events import SetAside
from dask_hpo.errors import ClusterError, VersionMismatchError

logger = logging.getLogger("dask_hpo")

#: Workers are looked at so often. A worker that dies is not waited for: Dask says so at once.
POLL_S = 1.0

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


class _BrokenError(Exception):
    """The Dask scheduler is not the one that it was."""


class WorkerWatch:
    """Watches the workers of a cluster for one experiment.

    Parameters
    ----------
    max_slots
        Use at most so many slots; None: all.
    patience_s
        A Dask scheduler that does not answer for so many seconds is given up.
    on_change
        Called with the number of slots whenever it changes or a worker is gone; in no particular
        thread.
    on_break
        Called with the reason when the connection to the Dask scheduler is broken, or another one
        has come in its place.
    """

    def __init__(
        self,
        client: Client,
        settings: Settings,
        max_slots: int | None,
        *,
        patience_s: float,
        on_change: Callable[[int], None],
        on_break: Callable[[str], None],
    ) -> None:
        self._client = client
        self._settings = settings
        self._max_slots = max_slots
        self._patience_s = patience_s
        self._on_change = on_change
        self._on_break = on_break
        self._scheduler_id = ""
        self._present: frozenset[str] = frozenset()
        self._accepted: dict[str, WorkerInfo] = {}
        self._refused: set[str] = set()
        self._slots = -1
        self._silent: frozenset[str] = frozenset()  #: they did not answer; they are asked again
        self._answered_at = time.monotonic()
        self._away = False
        self._fingerprint = settings.fingerprint
        self._registered = False  #: the plugin is with the Dask scheduler, even if a worker fails
        self._task: asyncio.Future[None] | None = None

    @property
    def accepted(self) -> frozenset[str]:
        """The workers that trials may run on: those that were checked."""
        return frozenset(self._accepted)

    @property
    def slots(self) -> int:
        """How many trials can run at once on the accepted workers."""
        return max(0, self._slots)

    @property
    def answering(self) -> frozenset[str]:
        """The workers that are there and answer."""
        return self._present - self._silent

    @property
    def present(self) -> frozenset[str]:
        """The workers that are there, whether or not they get trials."""
        return self._present

    def start(self) -> None:
        """Check the workers, make them ready, and begin to watch.

        Workers that are ready for this very experiment stay as they are: its trials run on.

        Raises
        ------
        VersionMismatchError
            If a worker runs another Python, or another version of this package, or lacks it.
        ClusterError
            If a worker cannot be made ready for another reason.
        """
        workers = self._client.sync(self._workers)
        ready = self._client.sync(ask, self._client, workers, ready_for, self._settings.plugin)
        self._present = frozenset(workers)
        self._count_slots(workers)
        if self._fingerprint in ready.values():
            # The Dask scheduler has the plugin, and gives it to those that join.
            self._registered = True
            self._client.sync(self._check_newcomers, workers)
        else:
            self._check_python(workers)
            self._register()
        self._accepted = {a: i for a, i in workers.items() if self._is_accepted(a)}
        self._announce(gone=False, first=True)
        self._client.loop.add_callback(self._start_polling)

    def set_aside(self, command: SetAside) -> None:
        """Let a worker have no more trials, and say so; those that run on it run on."""
        if command.worker in self._refused or command.worker not in self._present:
            return
        logger.warning(
            "the worker %s gets no more trials: the last %d on it failed (%s), while others run "
            "trials without failing; look at that machine, and restart the worker",
            command.worker,
            command.failures,
            command.last,
        )
        self._refused.add(command.worker)
        self._accepted = {a: info for a, info in self._accepted.items() if a != command.worker}
        self._announce(gone=False)

    def close(self) -> None:
        """Stop watching and take the plugin off the workers: what still runs there ends."""
        self.leave()
        if self._client.status == "running" and self._registered:
            self._client.sync(self._unregister)

    async def _unregister(self) -> None:
        """Take the plugin away; a worker that is frozen does not hold this up."""
        gone = self._client.unregister_worker_plugin(self._settings.plugin)
        await asyncio.wait_for(gone, ANSWER_S)

    def leave(self) -> None:
        """Stop watching, and leave the workers as they are."""
        if self._client.status in {"running", "connecting"}:
            self._client.sync(self._stop_polling)

    async def _stop_polling(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _workers(self) -> dict[str, WorkerInfo]:
        identity = await asyncio.wait_for(self._client.scheduler.identity(), ANSWER_S)
        if self._scheduler_id not in {"", identity["id"]}:
            raise _BrokenError("another one answers at its address")
        self._scheduler_id = identity["id"]
        return {
            address: info
            for address, info in identity["workers"].items()
            if not info["status"].startswith("clos")
        }

    def _check_python(self, workers: Mapping[str, WorkerInfo]) -> None:
        ours = platform.python_version()
        versions = self._client.sync(ask, self._client, workers, platform.python_version)
        for worker, theirs in versions.items():
            if not _same_minor(ours, theirs):
                raise VersionMismatchError(
                    f"the worker {worker} runs Python {theirs}, the driver {ours}: functions "
                    "travel between them, so both must run the same minor version; start the "
                    "worker with the driver's"
                )

    def _count_slots(self, workers: Mapping[str, WorkerInfo]) -> None:
        slots: Counter[str] = Counter()
        for address, info in workers.items():
            slots[host_of(address)] += self._slots_on(info)
        self._settings = dataclasses.replace(self._settings, slots_by_host=dict(slots))

    def _register(self) -> None:
        """Give the plugin to all workers, in the place of one with other options, if any."""
        self._registered = True
        settings = self._settings
        try:
            self._client.register_plugin(TrialHost(settings), name=settings.plugin)
        except (VersionMismatchError, CommClosedError, asyncio.TimeoutError):
            raise
        except Exception as error:
            raise ClusterError(
                f"a worker could not be made ready for trials ({type(error).__name__}: {error}); "
                f"every worker needs dask_hpo {settings.version} and the driver's version "
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
                self._answered_at = time.monotonic()
                self._away = False
            except _BrokenError as error:
                self._on_break(str(error))
                return
            except Exception as error:  # noqa: BLE001 - whatever Dask raises: the watch must go on
                if self._client.status != "running":
                    self._on_break(f"the connection to it broke ({type(error).__name__})")
                    return
                silent_s = time.monotonic() - self._answered_at
                if silent_s > self._patience_s:
                    self._on_break(f"it has not answered for {silent_s:.0f} s")
                    return
                self._say_away(error)

    def _say_away(self, error: Exception) -> None:
        """Say once that the Dask scheduler does not answer."""
        if not self._away:
            logger.warning(
                "the Dask scheduler at %s does not answer (%s): what was heard is in the log, and "
                "no trial starts before it is back; Ctrl-C, twice, ends the experiment",
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
        gone = not self._present <= workers.keys()
        self._present = frozenset(workers)
        self._silent &= self._present
        self._accepted = {a: info for a, info in workers.items() if self._is_accepted(a)}
        self._announce(gone=gone)

    def _is_accepted(self, address: str) -> bool:
        return address not in self._refused and address not in self._silent

    async def _check_newcomers(self, addresses: Collection[str]) -> None:
        """Refuse those that cannot run trials, and say so; the run goes on without them."""
        client, plugin = self._client, self._settings.plugin
        versions = await ask(client, addresses, platform.python_version)
        same = [a for a in addresses if _same_minor(platform.python_version(), versions.get(a))]
        ready = await ask(client, same, ready_for, plugin)
        silent = (frozenset(addresses) - versions.keys()) | (set(same) - ready.keys())
        self._say_silent(silent - self._silent)
        self._silent = (self._silent - frozenset(addresses)) | silent
        for address in addresses:
            if address not in silent and ready.get(address) != self._fingerprint:
                self._refused.add(address)
                logger.warning(
                    "the worker %s gets no trials: it must run Python %s (it runs %s) and "
                    "dask_hpo %s (its log says what is wrong); give it those versions",
                    address,
                    platform.python_version(),
                    versions.get(address),
                    self._settings.version,
                )

    @staticmethod
    def _say_silent(addresses: Collection[str]) -> None:
        for address in addresses:
            logger.warning(
                "the worker %s does not answer within %g s: it gets no trials before it does",
                address,
                ANSWER_S,
            )

    def _announce(self, *, gone: bool, first: bool = False) -> None:
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
        self._on_change(slots)

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
