"""Searchers: they propose configurations and learn from observations. Pure, one method a file."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from dask_hpo.core.interfaces import Searcher
from dask_hpo.core.space import SearchSpace
from dask_hpo.errors import OptionError
from dask_hpo.searchers.adapter import D2LSearcher, is_d2l_searcher
from dask_hpo.searchers.base import SpaceSearcher
from dask_hpo.searchers.grid import GridSearcher
from dask_hpo.searchers.quasirandom import QuasiRandomSearcher
from dask_hpo.searchers.random import RandomSearcher

__all__ = [
    "D2LSearcher",
    "GridSearcher",
    "QuasiRandomSearcher",
    "RandomSearcher",
    "SpaceSearcher",
    "as_searcher",
]

_BY_NAME: dict[str, type[SpaceSearcher]] = {
    "random": RandomSearcher,
    "quasirandom": QuasiRandomSearcher,
    "sobol": QuasiRandomSearcher,
    "grid": GridSearcher,
}
_ACCEPTED = (
    "give one of 'random', 'quasirandom' (or 'sobol') and 'grid', an object with suggest(trial_id) "
    "and observe(observation), or one with d2l's sample_configuration() and update(config, error)"
)


def as_searcher(
    searcher: Any,
    space: SearchSpace | Mapping[str, Any],
    seed: int = 0,
    points_to_evaluate: Sequence[Mapping[str, Any]] = (),
) -> Searcher:
    """Return the searcher that a name or an object stands for.

    Parameters
    ----------
    searcher
        ``"random"``, ``"quasirandom"`` (or ``"sobol"``), ``"grid"``, a `Searcher`, or an object
        with d2l's methods.
    space, seed, points_to_evaluate
        What a searcher that is given by its name is made with.

    Raises
    ------
    OptionError
        If it is nothing of these, or points are given along with an object.
    SpaceError
        If the space breaks a rule, or a point is not of the space.
    """
    if isinstance(searcher, str):
        if searcher not in _BY_NAME:
            raise OptionError(_misspelt(searcher))
        return _BY_NAME[searcher](space, seed=seed, points_to_evaluate=points_to_evaluate)
    if isinstance(searcher, type):
        raise OptionError(
            f"searcher={searcher.__name__} is a class; give an instance, such as "
            f"{searcher.__name__}(search_space)"
        )
    ours = _is_searcher(searcher)
    if not ours and not is_d2l_searcher(searcher):
        raise OptionError(f"searcher={searcher!r} is no searcher; {_ACCEPTED}")
    if points_to_evaluate:
        raise OptionError(
            f"points_to_evaluate={list(points_to_evaluate)!r}: a {type(searcher).__name__} is made "
            "already, and cannot take points; pass them to the searcher itself"
        )
    return searcher if ours else D2LSearcher(searcher, space)


def _is_searcher(searcher: Any) -> bool:
    return all(callable(getattr(searcher, name, None)) for name in ("suggest", "observe"))


def _misspelt(name: str) -> str:
    near = difflib.get_close_matches(name.lower(), _BY_NAME, n=1, cutoff=0.4)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    return f"searcher={name!r} is no searcher{hint}; {_ACCEPTED}"
