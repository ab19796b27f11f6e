"""The cluster a tuner starts for itself when it is given none: one machine, worker processes."""

from __future__ import annotations

import logging
import os
import signal
import warnings
from pathlib import Path
from typing import Any

from dask.system import CPU_COUNT
from distributed import Nanny, Scheduler, SpecCluster, Worker

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


def dask_setup(worker: Worker) -> None:  # noqa: ARG001 - what Dask calls when it preloads this
    """Leave Ctrl-C to the driver: a terminal sends it to every process that it started."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _start(workers: list[dict[str, Any]]) -> SpecCluster:
    shared = {
        "host": "127.0.0.1",
        "dashboard": False,
        "memory_limit": 0,
        "silence_logs": logging.ERROR,
        "preload": [__name__],
    }
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
                index: {"cls": Nanny, "options": {**shared, **options}}
                for index, options in enumerate(workers)
            },
            name="dask-hpo",
            silence_logs=logging.ERROR,
        )
