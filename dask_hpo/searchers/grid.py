"""Grid search."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dask_hpo.core.domains import Domain
from dask_hpo.core.events import Configuration
from dask_hpo.core.space import SearchSpace
from dask_hpo.errors import OptionError
from dask_hpo.searchers.base import Scan, SpaceSearcher

Axis = tuple[
    str, int, Callable[[int], Any]
]  #: a name, how many values it has, and the i-th of them


class GridSearcher(SpaceSearcher):
    """Goes through all combinations of some values of each domain, and then has no more.

    The last name changes fastest, as in nested loops. No combination is made before its turn, so a
    grid may be as large as it likes.

    Parameters
    ----------
    space, seed, points_to_evaluate
        As in `SpaceSearcher`. A point that lies on the grid is not proposed again. The seed
        completes points, and shuffles.
    num_per_domain
        How many values an infinite domain has, evenly spaced on its own scale; a finite domain has
        all of its own. A dict of name to number sets it for single names, for finite domains too.
    shuffle
        Whether the combinations come in a seeded random order, so that a grid which is cut short
        covers the space.

    Raises
    ------
    SpaceError, OptionError
        As `SpaceSearcher`, and if ``num_per_domain`` is no number from 1 up.
    """

    def __init__(
        self,
        space: SearchSpace | Mapping[str, Any],
        *,
        seed: int = 0,
        points_to_evaluate: Sequence[Mapping[str, Any]] = (),
        num_per_domain: int | Mapping[str, int] = 5,
        shuffle: bool = False,
    ) -> None:
        super().__init__(space, seed=seed, points_to_evaluate=points_to_evaluate)
        numbers = _check_numbers(num_per_domain, self.space)
        self._axes = [_axis(name, d, numbers.get(name)) for name, d in self.space.domains.items()]
        self.size = math.prod(length for _, length, _ in self._axes)  #: how many combinations
        self._order = Scan(self.size, self.seed) if shuffle else None
        self._next = 0

    def restore(self, trial_id: int, config: Configuration) -> None:
        """Come to the state in which this configuration has been given."""
        self.suggest(trial_id)
        self._given.add(self._key(config))

    def _propose(self, trial_id: int) -> Configuration | None:
        while self._next < self.size:
            config = self._draw(trial_id, 0)
            self._next += 1
            if self._key(config) not in self._given:  # which holds the points
                return config
        return None

    def _draw(self, trial_id: int, draw: int) -> Configuration:  # noqa: ARG002 - the grid has its own order
        index = self._next if self._order is None else self._order.at(self._next)
        values: dict[str, Any] = {}
        for name, length, value in reversed(self._axes):  # digits of a mixed radix
            index, digit = divmod(index, length)
            values[name] = value(digit)
        return self.space.complete(values)


def _axis(name: str, domain: Domain, number: int | None) -> Axis:
    if number is None and domain.size is not None:
        return name, domain.size, domain.at
    values = domain.grid(number or 1)
    return name, len(values), values.__getitem__


def _check_numbers(numbers: Any, space: SearchSpace) -> dict[str, int]:
    """Return how many values each domain has that does not simply have all of its own."""
    infinite = [name for name, domain in space.domains.items() if domain.size is None]
    if not isinstance(numbers, Mapping):
        return {name: _check_number(numbers) for name in infinite or [""]}
    unknown = [name for name in numbers if name not in space.domains]
    if unknown:
        raise OptionError(
            f"num_per_domain: {unknown[0]!r} is no domain of the space; "
            f"give numbers for {', '.join(space.domains)}"
        )
    missing = [name for name in infinite if name not in numbers]
    if missing:
        raise OptionError(
            f"num_per_domain={dict(numbers)!r}: {missing[0]!r} has infinitely many values, so it "
            f"needs a number; add {missing[0]!r}: 5"
        )
    return {name: _check_number(number) for name, number in numbers.items()}


def _check_number(number: Any) -> int:
    if isinstance(number, bool) or not isinstance(number, int) or number < 1:
        raise OptionError(
            f"num_per_domain={number!r}: a domain has a whole number of values, 1 or more; "
            "give one such as 5"
        )
    return number
