"""The cluster a tuner starts for itself when it is given none: one machine, worker processes."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dask.system import CPU_COUNT
from distributed import Scheduler, SpecCluster
from distributed.deploy.spec import ProcessInterface

from dask_hpo.errors import OptionError

_NVIDIA = Path("/proc/driver/nvidia/gpus")  #: the driver lists one directory for each GPU here


def local_gpus() -> list[str]:
    """Return the devices of this machine, as ``CUDA_VISIBLE_DEVICES`` would name them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name.strip() for name in visible.split(",") if name.strip() not in ("", "-1")]
    return [str(i) for i in range(len(list(_NVIDIA.iterdir())))] if _NVIDIA.is_dir() else []


def embedded_cluster(n_workers: int | None, isolation: str, *, use_gpus: bool) -> SpecCluster:
    """Start a Dask cluster on this machine, bound to the loopback address.

    With GPUs it has one worker process for each, pinned to it and offering ``GPU=1``. Without, it
    offers ``n_workers`` slots (one for each CPU by default): in one worker process if trials have
    processes of their own, which then share one warm template, else in a worker process each.

    Raises
    ------
    OptionError
        If ``n_workers`` is not positive.
    """
    if n_workers is not None and n_workers < 1:
        raise OptionError(
            f"n_workers={n_workers!r}: at least one trial runs at a time; give 1 or more"
        )
    gpus = local_gpus() if use_gpus else []
    if gpus:
        workers = [
            {"nthreads": 1, "resources": {"GPU": 1}, "env": {"CUDA_VISIBLE_DEVICES": gpu}}
            for gpu in gpus[:n_workers]
        ]
    elif isolation == "thread":
        workers = [{"nthreads": 1}] * (n_workers or CPU_COUNT)
    else:
        workers = [{"nthreads": n_workers or CPU_COUNT}]
    return _start(workers)


class WorkerProcess(ProcessInterface):  # type: ignore[misc]  # distributed is not typed for us
    """A worker of an embedded cluster, as `SpecCluster` wants it; see ``local_worker.py``."""

    def __init__(
        self,
        scheduler: str,
        name: str | int | None = None,
        *,
        options: Mapping[str, Any],
        env: Mapping[str, str],
    ) -> None:
        super().__init__()
        self._arguments = scheduler, json.dumps({**options, "name": name}), json.dumps(sys.path)
        self._env = env

    async def start(self) -> None:
        """Start the process, in a session of its own: Ctrl-C in a terminal is for the driver."""
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "dask_hpo.cluster.local_worker", *self._arguments),
            stdin=asyncio.subprocess.PIPE,
            env={**os.environ, "DASK_LOGGING__DISTRIBUTED": "error", **self._env},
            start_new_session=True,
        )
        await super().start()

    async def close(self) -> None:
        """Let the process end, and wait for that."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        await self._process.wait()
        await super().close()


def _start(workers: list[dict[str, Any]]) -> SpecCluster:
    with warnings.catch_warnings():
        # If the usual port is taken, Dask chooses another and warns; the address is shown anyway.
        warnings.filterwarnings("ignore", message="Port 8787 is already in use")
        return SpecCluster(
            scheduler={
                "cls": Scheduler,
                "options": {
                    "host": "127.0.0.1",
                    "port": 0,
                    "dashboard": True,
                    "dashboard_address": "127.0.0.1:8787",
                },
            },
            workers={
                index: {"cls": WorkerProcess, "options": _options(worker)}
                for index, worker in enumerate(workers)
            },
            name="dask-hpo",
            silence_logs=logging.ERROR,
        )


def _options(worker: Mapping[str, Any]) -> dict[str, Any]:
    nanny = {"host": "127.0.0.1", "dashboard": False, "memory_limit": 0, **worker}
    return {"env": nanny.pop("env", {}), "options": nanny}


def offered_resources(cluster: SpecCluster) -> set[str]:
    """Return the names of the resources that the workers of an embedded cluster offer."""
    specs = cluster.worker_spec.values()
    return {name for spec in specs for name in spec["options"]["options"].get("resources", {})}
