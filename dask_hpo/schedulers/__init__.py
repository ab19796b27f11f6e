"""Schedulers: they decide how long each trial runs. Pure, one method a file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dask_hpo.errors import OptionError
from dask_hpo.schedulers.fifo import FIFOScheduler

__all__ = ["FIFOScheduler", "make_scheduler"]

_BY_NAME = {"FIFOScheduler": FIFOScheduler}


def make_scheduler(name: str, search_space: Mapping[str, Any], **options: Any) -> FIFOScheduler:
    """Return the scheduler of this class, as a definition names it, with these arguments.

    Raises
    ------
    OptionError
        If there is none of this name.
    """
    if name not in _BY_NAME:
        raise OptionError(
            f"scheduler={name!r}: the schedulers that can be resumed are {', '.join(_BY_NAME)}"
        )
    return _BY_NAME[name](search_space, **options)
