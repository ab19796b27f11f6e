"""The pure core: no clock, no file, no socket, no Dask; randomness from (seed, trial, purpose)."""
