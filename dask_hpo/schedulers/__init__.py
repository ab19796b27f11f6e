"""Schedulers: they decide how long each trial runs. Pure, one method a file."""

from dask_hpo.schedulers.fifo import FIFOScheduler

__all__ = ["FIFOScheduler"]
