"""Random search."""

from __future__ import annotations

from dask_hpo.core.events import Configuration
from dask_hpo.core.randomness import generator
from dask_hpo.searchers.base import SpaceSearcher


class RandomSearcher(SpaceSearcher):
    """Draws every configuration independently of all others.

    Configuration *i* depends on the seed, *i* and the points to evaluate alone (in a finite space
    also on the configurations before it, which it does not repeat, and which depend on the same).

    Parameters and errors are those of `SpaceSearcher`.

    References
    ----------
    Bergstra & Bengio, Random search for hyper-parameter optimization, JMLR 13, 2012.
    """

    def _draw(self, trial_id: int, draw: int) -> Configuration:
        return self.space.sample(generator(self.seed, trial_id, "sample", draw))
