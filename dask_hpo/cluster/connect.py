"""From what a person gives as the client (nothing, an address, a cluster, a client) to a client."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from distributed import Client
from distributed.comm import connect
from distributed.deploy.cluster import Cluster

from dask_hpo.cluster.embedded import embedded_cluster, offered_resources
from dask_hpo.cluster.worker import GPU
from dask_hpo.errors import ClusterError, OptionError

#: Seconds to wait for a Dask scheduler at an address before saying that there is none.
CONNECT_TIMEOUT_S = 10
#: Seconds that one attempt waits for a Dask scheduler that is gone, and between two of them.
RECONNECT_ATTEMPT_S = 2
RECONNECT_PAUSE_S = 0.2
#: Seconds for the worker processes of an embedded cluster to start, on a busy machine.
START_TIMEOUT_S = 120


@contextlib.contextmanager
def connected(
    client: Any,
    *,
    n_workers: int | None,
    isolation: str,
    resources: Mapping[str, float] | None,
) -> Iterator[Client]:
    """Yield a connected client, and close afterwards only what was opened for it.

    Parameters
    ----------
    client
        None for an embedded cluster, an address, a Dask cluster object, or a synchronous client.

    Raises
    ------
    ClusterError
        If nothing answers at the address, or an embedded cluster cannot offer the resources.
    OptionError
        If it is none of these.
    """
    match client:
        case None:
            with (
                _embedded(n_workers, isolation, resources) as cluster,
                Client(cluster, set_as_default=False) as own,
            ):
                _wait_for_workers(own, len(cluster.worker_spec))
                yield own
        case Client():
            yield _usable(client)
        case Cluster():
            with Client(client, set_as_default=False) as own:
                yield own
        case str():
            with _connect(client) as own:
                yield own
        case _:
            raise OptionError(
                f"client={client!r}: trials run on a Dask cluster; give a distributed.Client, an "
                "address such as 'tcp://host:8786', a cluster object, or nothing for a local one"
            )


def _wait_for_workers(client: Client, number: int) -> None:
    try:
        client.wait_for_workers(number, timeout=START_TIMEOUT_S)
    except TimeoutError as error:
        raise ClusterError(
            f"the local cluster's {number} worker process(es) did not start within "
            f"{START_TIMEOUT_S} s; what they wrote to stderr says why"
        ) from error


def _connect(address: str) -> Client:
    try:
        return Client(address, timeout=CONNECT_TIMEOUT_S, set_as_default=False)
    except (OSError, ValueError) as error:
        raise ClusterError(
            f"client={address!r}: no Dask scheduler answered within {CONNECT_TIMEOUT_S} s "
            f"({error}); check the address, and that `dask scheduler` runs there"
        ) from error


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a Dask scheduler is reached, and by which credentials."""

    address: str
    security: Any

    @classmethod
    def of(cls, client: Client) -> Endpoint:
        """Return that of a connected client."""
        return cls(client.scheduler.address, client.security)

    def reconnect(self, timeout_s: float, given_up: Callable[[], bool]) -> Client | None:
        """Return a new client, as soon as the Dask scheduler answers.

        A new one, since a client that lost its connection closes itself for good after a while.
        None if there is no answer within ``timeout_s`` seconds, or ``given_up()`` says that nobody
        waits for it any more.
        """
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline and not given_up():
            if not self._answers():
                time.sleep(RECONNECT_PAUSE_S)
                continue
            try:
                return Client(
                    self.address,
                    security=self.security,
                    timeout=RECONNECT_ATTEMPT_S,
                    set_as_default=False,
                )
            except (OSError, asyncio.TimeoutError):
                pass  # it went away again
        return None

    def _answers(self) -> bool:
        """Whether a Dask scheduler shakes hands: a client that waits for one cannot be hurried."""
        with ThreadPoolExecutor(1) as thread:  # of its own: a notebook's has a running loop
            return thread.submit(asyncio.run, self._shakes_hands()).result()

    async def _shakes_hands(self) -> bool:
        try:
            arguments = self.security.get_connection_args("client")
            shaken = connect(self.address, timeout=RECONNECT_ATTEMPT_S, **arguments)
            comm = await asyncio.wait_for(shaken, RECONNECT_ATTEMPT_S)
        except (OSError, asyncio.TimeoutError):
            return False
        comm.abort()
        return True


def _usable(client: Client) -> Client:
    if client.asynchronous:
        raise OptionError(
            "client: an asynchronous client was given, and the tuner's loop is synchronous; "
            "give a Client(address) without asynchronous=True"
        )
    if client.status != "running":
        raise ClusterError(
            f"client: its status is {client.status!r}, so it is not connected; make a new Client"
        )
    return client


def _embedded(
    n_workers: int | None, isolation: str, resources: Mapping[str, float] | None
) -> Cluster:
    cluster = embedded_cluster(n_workers, isolation, use_gpus=resources is None or GPU in resources)
    offered = offered_resources(cluster)
    missing = sorted(set(resources or {}) - offered)
    if missing:
        cluster.close()
        raise ClusterError(
            f"resources={dict(resources or {})!r}: the local cluster of this machine offers "
            f"{sorted(offered) or 'no resources'}, not {missing}; leave resources out, or attach "
            "with client=ADDRESS to a cluster whose workers were started with --resources"
        )
    return cluster


def default_resources(client: Client) -> dict[str, float]:
    """Return what a trial takes if nobody said: one GPU where workers offer GPUs, else a thread."""
    workers = client.sync(client.scheduler.identity)["workers"]
    return {GPU: 1.0} if any(GPU in info["resources"] for info in workers.values()) else {}
