"""The cluster room: what runs on Dask, from the driver's backend to a trial's own process."""
