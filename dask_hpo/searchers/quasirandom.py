"""Quasi-random search: a scrambled Sobol sequence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dask_hpo.core.events import Configuration
from dask_hpo.core.randomness import generator
from dask_hpo.core.space import SearchSpace
from dask_hpo.errors import OptionError
from dask_hpo.searchers.base import SpaceSearcher

_BLOCK = 256  #: points made at once: a power of two, which keeps the sequence balanced
_LARGEST = 2**30  #: how many points scipy's sequence has


class QuasiRandomSearcher(SpaceSearcher):
    """Takes the points of a scrambled Sobol sequence, which fill the unit cube more evenly.

    Point *i* of the sequence depends on the seed and *i* alone. The first 2^k points have one point
    in each 2^-k slice of every axis. In a finite space the points whose configuration was given
    before are passed over.

    Parameters and errors are those of `SpaceSearcher`.

    References
    ----------
    Sobol, On the distribution of points in a cube and the approximate evaluation of integrals,
    USSR Computational Mathematics and Mathematical Physics 7, 1967.
    Owen, Scrambling Sobol and Niederreiter-Xing points, Journal of Complexity 14, 1998; scipy
    scrambles with a random linear matrix and a digital shift, as Matousek, On the L2-discrepancy
    for anchored boxes, Journal of Complexity 14, 1998, does.
    """

    def __init__(
        self,
        space: SearchSpace | Mapping[str, Any],
        *,
        seed: int = 0,
        points_to_evaluate: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        super().__init__(space, seed=seed, points_to_evaluate=points_to_evaluate)
        self._passed_over = 0
        self._block_number = -1
        self._block: list[list[float]] = []

    def _draw(self, trial_id: int, draw: int) -> Configuration:
        self._passed_over += draw > 0
        return self.space.from_cube(self._point(trial_id - len(self._points) + self._passed_over))

    def _point(self, index: int) -> list[float]:
        """Return point ``index`` of the sequence, of shape (d,)."""
        if not self._names:
            return []  # the one point of a space of constants
        number, offset = divmod(index, _BLOCK)
        if number != self._block_number:
            self._block = _sobol(len(self._names), self.seed, number * _BLOCK)
            self._block_number = number
        return self._block[offset]


def _sobol(d: int, seed: int, start: int) -> list[list[float]]:
    """Return the points ``start`` to ``start + _BLOCK - 1``, of shape (_BLOCK, d)."""
    from scipy.stats import qmc  # noqa: PLC0415 - a second, which other searchers need not wait for

    if d > qmc.Sobol.MAXDIM or start + _BLOCK > _LARGEST:
        raise OptionError(
            f"searcher='quasirandom': the sequence has up to {qmc.Sobol.MAXDIM} dimensions and "
            f"{_LARGEST} points, and point {start} in {d} dimensions was asked for; "
            "use searcher='random'"
        )
    random = generator(seed, 0, "sobol")
    try:
        engine = qmc.Sobol(d, scramble=True, rng=random)
    except TypeError:  # scipy before 1.15 calls it seed
        engine = qmc.Sobol(d, scramble=True, seed=random)
    if start:
        engine.fast_forward(start)
    points: list[list[float]] = engine.random(_BLOCK).tolist()
    return points
