"""What searchers over a space share: points first, and no configuration twice in a finite space."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from dask_hpo.core.events import Configuration
from dask_hpo.core.interfaces import Observation
from dask_hpo.core.randomness import generator
from dask_hpo.core.space import SearchSpace
from dask_hpo.errors import OptionError

#: So many draws in a row that were given before show a space nearly exhausted: it is then scanned.
MAX_DRAWS = 64
Key = tuple[Any, ...]


class SpaceSearcher(ABC):
    """Proposes the points to evaluate, and then what a subclass draws.

    In a finite space a configuration is proposed once, and when all were proposed there is none.
    Nothing of an infinite space is remembered.

    Parameters
    ----------
    space
        The search space, or the dict that defines one.
    seed
        A whole number from 0 up, the source of all randomness.
    points_to_evaluate
        Configurations that go first, in their order. Names that one leaves out are sampled, anew if
        the result equals an earlier one; a point that cannot but equal an earlier one is dropped.

    Raises
    ------
    SpaceError
        If the space breaks a rule, or a point is not of the space.
    OptionError
        If the seed or the sequence of points is no such thing.
    """

    def __init__(
        self,
        space: SearchSpace | Mapping[str, Any],
        *,
        seed: int = 0,
        points_to_evaluate: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        self.space = space if isinstance(space, SearchSpace) else SearchSpace(space)
        self.seed = _check_seed(seed)
        self._names = list(self.space.domains)
        self._given: set[Key] = set()  # the points, and in a finite space all that was proposed
        self._points: list[Configuration] = []
        for point in _check_points(points_to_evaluate):
            self._add_point(point)
        self._scan: Scan | None = None

    def suggest(self, trial_id: int) -> Configuration | None:
        """Return the configuration of this trial, or None when the space is exhausted."""
        if trial_id < len(self._points):
            return dict(self._points[trial_id])
        return self._propose(trial_id)

    def restore(self, trial_id: int, config: Configuration) -> None:
        """Come to the state in which this configuration has been given."""
        if self.space.size is not None:
            self.suggest(trial_id)
            self._given.add(self._key(config))

    def observe(self, observation: Observation) -> None:  # noqa: B027 - those that learn override it
        """Learn nothing: what is proposed does not depend on what was observed."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.space!r}, seed={self.seed})"

    @abstractmethod
    def _draw(self, trial_id: int, draw: int) -> Configuration:
        """Return a configuration for this trial; ``draw`` counts those refused for it, from 0."""

    def _propose(self, trial_id: int) -> Configuration | None:
        size = self.space.size
        if size is None:
            return self._draw(trial_id, 0)
        if len(self._given) >= size:
            return None
        if self._scan is None:
            for draw in range(MAX_DRAWS):
                config = self._draw(trial_id, draw)
                if self._is_new(config):
                    return config
            self._scan = Scan(size, self.seed)
        # One of the rest is sure to be met: the scan meets every configuration once.
        return next(config for index in self._scan if self._is_new(config := self.space.at(index)))

    def _is_new(self, config: Configuration) -> bool:
        """Say whether a configuration was never given, and remember it."""
        before = len(self._given)
        self._given.add(self._key(config))
        return len(self._given) > before

    def _key(self, config: Configuration) -> Key:
        return tuple([config[name] for name in self._names])

    def _add_point(self, point: Mapping[str, Any]) -> None:
        part = self.space.canonical_part(point)
        trial_id = len(self._points)
        for draw in range(MAX_DRAWS if len(part) < len(self._names) else 1):
            rest = self.space.sample(generator(self.seed, trial_id, "point", draw))
            config = self.space.complete({**rest, **part})
            if self._is_new(config):
                self._points.append(config)
                return


class Scan:
    """The numbers 0 to ``size - 1``, each once, in a seeded order that takes no memory.

    A Feistel network permutes the numbers of 2k bits, whatever its round function; those from
    ``size`` up are mapped again until they fall below it ("cycle walking": Black & Rogaway, Ciphers
    with arbitrary finite domains, CT-RSA 2002), fewer than four times on average.
    """

    ROUNDS = 4

    def __init__(self, size: int, seed: int) -> None:
        self.size = size
        self._half = max(1, math.ceil((size - 1).bit_length() / 2))
        keys = generator(seed, 0, "scan").integers(2**63, size=self.ROUNDS)
        self._keys = [int(key) for key in keys]
        self._next = 0

    def __iter__(self) -> Scan:
        return self

    def __next__(self) -> int:
        if self._next >= self.size:
            raise StopIteration
        self._next += 1
        return self.at(self._next - 1)

    def at(self, position: int) -> int:
        """Return the number at this position of the order."""
        number = self._permute(position)
        while number >= self.size:
            number = self._permute(number)
        return number

    def _permute(self, number: int) -> int:
        mask = (1 << self._half) - 1
        left, right = number >> self._half, number & mask
        for key in self._keys:
            left, right = right, left ^ (_mixed(right + key) & mask)
        return (left << self._half) | right


def _mixed(x: int) -> int:
    """Return 128 bits that all depend on all bits of x, from two odd constants of 128 bits."""
    for odd in (0x9E3779B97F4A7C15F39CC0605CEDC835, 0xD1342543DE82EF95A0761D6478BD642F):
        x = (x ^ (x >> 61)) * odd & (1 << 128) - 1
    return x ^ (x >> 67)


def _check_seed(seed: Any) -> int:
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise OptionError(f"seed={seed!r}: a seed is a whole number from 0 up; give one such as 0")
    return seed


def _check_points(points: Any) -> Sequence[Mapping[str, Any]]:
    if not isinstance(points, Sequence) or isinstance(points, (str, bytes)):
        raise OptionError(
            f"points_to_evaluate={points!r}: the points stand in a list of configurations; "
            "give such as [{'learning_rate': 0.1}]"
        )
    return points
