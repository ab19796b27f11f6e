"""How much memory the processes of a group use together."""

from __future__ import annotations

import os
from contextlib import suppress

import psutil


def used_by_group(group: int, limit: int) -> int:
    """Return the bytes of physical memory that a process group uses, exactly only above a limit.

    Resident memory is quick to ask for, but what processes share since a fork (a warm template's
    imports, a data set that workers load from) counts there once for each: its sum is an upper
    bound. Only where that exceeds ``limit`` is it worth the walk through the page tables that
    counts a shared page in proportion.
    """
    pids = [pid for pid in psutil.pids() if _group_of(pid) == group]
    resident = sum(map(_resident, pids))
    return resident if resident <= limit else sum(map(_proportional, pids))


def _group_of(pid: int) -> int:
    with suppress(OSError):  # it ended meanwhile, or is another user's
        return os.getpgid(pid)
    return -1


def _resident(pid: int) -> int:
    with suppress(psutil.Error):
        resident: int = psutil.Process(pid).memory_info().rss
        return resident
    return 0


def _proportional(pid: int) -> int:
    """Return its own pages, and its share of the others; on macOS, where none is forked, all."""
    with suppress(OSError), open(f"/proc/{pid}/smaps_rollup", "rb") as lines:  # noqa: PTH123 - quick
        for line in lines:
            if line.startswith(b"Pss:"):
                return int(line.split()[1]) * 1024
    return _resident(pid)
