"""Domains: the set of values that one hyperparameter may take, and its map to the unit interval.

Domain
├── Float                uniform, loguniform                           (numeric.py)
├── Distribution         frozen scipy.stats distributions              (distributions.py)
└── FiniteDomain
    ├── Integer          randint, qrandint, lograndint, qlograndint    (numeric.py)
    ├── QuantisedFloat   quniform, qloguniform                         (numeric.py)
    ├── Table            discrete scipy.stats distributions            (distributions.py)
    └── Categorical      choice, ordinal

Every domain maps [0, 1] onto itself such that a uniform number becomes a sample. A finite domain
cuts [0, 1] into one cell for each value; ``to_unit`` gives a point well inside the cell, so that
the way there and back is exact. On a logarithmic scale the cell of the whole number k is
[k - 1/2, k + 1/2), so that both ends carry their full weight.

Values are plain Python: int, float, str, bool or None, never numpy scalars.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dask_hpo.errors import SpaceError

_INT64 = 2**63


def plain(value: Any) -> Any:
    """Return a numpy scalar, or a subclass of int, float or str, as the plain value it is."""
    if isinstance(value, np.generic):
        value = value.item()
    if type(value) in (bool, int, float, str):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value)
    return str.__str__(value) if isinstance(value, str) else value


def check_plain(value: Any, where: str) -> Any:
    """Return a constant or a choice as plain Python.

    Raises
    ------
    SpaceError
        If it is none of None, bool, int, float and str, or a number that the log cannot hold.
    """
    value = plain(value)
    if value is not None and not isinstance(value, (bool, int, float, str)):
        raise SpaceError(
            f"{where} is a {type(value).__name__}, but a value is None, a bool, an int, a float or "
            "a string; give one of these, such as a name that the training code looks up"
        )
    if isinstance(value, str) and value != value.encode("utf-8", "replace").decode("utf-8"):
        raise SpaceError(
            f"{where} holds a lone surrogate, which no UTF-8 file can hold, the log neither; "
            "give a string that can be encoded"
        )
    if isinstance(value, float) and not math.isfinite(value):
        raise SpaceError(
            f"{where} is not finite, but a number in a search space is; give a finite number, or a "
            f"string such as '{value}' that the training code converts"
        )
    if isinstance(value, int) and not -_INT64 <= value < _INT64:
        raise SpaceError(
            f"{where} does not fit in 64 bits, which is what the log holds; give a smaller number "
            "or a string"
        )
    return value


class Domain(ABC):
    """The values that a hyperparameter may take, and their map to [0, 1]."""

    __slots__ = ()

    @property
    def size(self) -> int | None:
        """How many values there are; None for infinitely many."""
        return None

    @property
    @abstractmethod
    def value_type(self) -> type:
        """The type of a column that holds the values: bool, int, float or str."""

    @abstractmethod
    def contains(self, value: Any) -> bool:
        """Say whether the value belongs to the domain."""

    @abstractmethod
    def canonical(self, value: Any) -> Any:
        """Return a contained value as the domain would give it: ``1`` in floats is ``1.0``."""

    @abstractmethod
    def to_unit(self, value: Any) -> float:
        """Map a value to [0, 1].

        Raises
        ------
        SpaceError
            If the value is outside of the domain.
        """

    @abstractmethod
    def from_unit(self, u: float) -> Any:
        """Map a number of [0, 1] to a value; one outside is moved to the nearer end."""

    @abstractmethod
    def expression(self) -> str:
        """Return the text that `parse_domain` reads back to an equal domain."""

    def sample(self, rng: np.random.Generator) -> Any:
        """Draw one value."""
        return self.from_unit(rng.random())

    def at(self, index: int) -> Any:  # noqa: ARG002 - finite domains use it
        """Return the value with this number, from 0, of a finite domain.

        Raises
        ------
        SpaceError
            If the domain is infinite.
        """
        raise self._infinite()

    def values(self) -> list[Any]:
        """Return all values of a finite domain in order.

        Raises
        ------
        SpaceError
            If the domain is infinite.
        """
        raise self._infinite()

    def grid(self, n: int) -> list[Any]:
        """Return up to n values that represent the domain, in order, without repetition.

        They are evenly spaced on the domain's own scale.
        """
        return list(dict.fromkeys(self.from_unit((i + 0.5) / n) for i in range(n)))

    def _infinite(self) -> SpaceError:
        return SpaceError(
            f"{self.expression()} has infinitely many values, which cannot be listed; "
            "take grid(n) for n values that represent them"
        )

    def _outside(self, value: Any) -> SpaceError:
        return SpaceError(f"{value!r} is outside of {self.expression()}; give a value inside")


class FiniteDomain(Domain):
    """A domain whose values are numbered from 0 to ``size - 1``."""

    __slots__ = ()

    @property
    @abstractmethod
    def size(self) -> int:
        """How many values there are."""

    @abstractmethod
    def at(self, index: int) -> Any:
        """Return the value with this number."""

    @abstractmethod
    def index(self, value: Any) -> int | None:
        """Return the number of a value, or None for what is no value of the domain."""

    def values(self) -> list[Any]:
        """Return all values in order."""
        return [self.at(index) for index in range(self.size)]

    def contains(self, value: Any) -> bool:
        """Say whether the value belongs to the domain."""
        return self.index(value) is not None

    def canonical(self, value: Any) -> Any:
        """Return a contained value as the domain itself would give it."""
        index = self.index(value)
        if index is None:
            raise self._outside(value)
        return self.at(index)

    def to_unit(self, value: Any) -> float:
        """Map a value to a point inside its cell of [0, 1]."""
        index = self.index(value)
        if index is None:
            raise self._outside(value)
        return self._point(index)

    def from_unit(self, u: float) -> Any:
        """Return the value in whose cell u lies."""
        return self.at(min(max(self._cell(u), 0), self.size - 1))

    def _cell(self, u: float) -> int:
        return int(u * self.size)

    def _point(self, index: int) -> float:
        return (index + 0.5) / self.size


@dataclass(frozen=True, slots=True)
class Categorical(FiniteDomain):
    """Some values, with an order (``ordered``) or without. All are equally likely."""

    options: tuple[Any, ...]
    ordered: bool = False
    _numbers: dict[Any, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        name = "ordinal" if self.ordered else "choice"
        options = tuple(check_plain(value, f"{name}: {value!r}") for value in self.options)
        if not options:
            raise SpaceError(
                f"{name}([]): a choice has at least one value; give some, such as "
                f"{name}(['a', 'b'])"
            )
        set_fields(self, options=options, _numbers={value: i for i, value in enumerate(options)})
        if len(self._numbers) < len(options):
            twice = next(v for i, v in enumerate(options) if v in options[:i])
            raise SpaceError(
                f"{name}({list(options)!r}): the values differ from each other, and {twice!r} "
                "equals an earlier one; leave it out"
            )

    @property
    def size(self) -> int:
        """How many values there are."""
        return len(self.options)

    @property
    def value_type(self) -> type:
        """The type of the values; float for ints with floats, str for other mixtures."""
        types = {type(value) for value in self.options if value is not None}
        if len(types) == 1:
            return types.pop()
        return float if types == {int, float} else str

    def at(self, index: int) -> Any:
        """Return the value with this number."""
        return self.options[index]

    def index(self, value: Any) -> int | None:
        """Return the number of a value, or None; True is not 1 here."""
        value = plain(value)
        try:
            index = self._numbers.get(value)
        except TypeError:  # it cannot be hashed, so it is none of ours
            return None
        if index is None or isinstance(value, bool) != isinstance(self.options[index], bool):
            return None
        return index

    def expression(self) -> str:
        """Return such as ``choice(['adam', 'sgd'])``."""
        return f"{'ordinal' if self.ordered else 'choice'}({list(self.options)!r})"


def is_number(value: Any) -> bool:
    """Say whether it is an int or a float; a bool is no number here."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def set_fields(domain: Any, **values: Any) -> None:
    """Set fields of a frozen dataclass, which only its own __post_init__ does."""
    for name, value in values.items():
        object.__setattr__(domain, name, value)
