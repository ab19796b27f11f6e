"""Frozen scipy.stats distributions as domains. scipy is not imported: its objects come to us.

``uniform``, ``loguniform`` and ``randint`` become the domains of the same meaning, which are a
hundred times faster and need no scipy to be read back. Others are wrapped: the distribution
function maps a value to [0, 1] and its inverse maps back.
"""

from __future__ import annotations

import bisect
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dask_hpo.core.domains import Domain, FiniteDomain, is_number, plain
from dask_hpo.core.numeric import Float, Integer
from dask_hpo.errors import SpaceError

#: Nearer to 0 or 1 the end of the support is meant: scipy's inverses fail on such numbers, and
#: those of an infinite support are infinite, so that there the unit interval is cut off.
_EDGE = 2.0**-53
#: A discrete distribution with a finite support of up to so many values becomes a table.
_LARGEST_TABLE = 2**16
#: Values less likely than this are left out of a table: [0, 1] has hardly a number for them.
_SMALLEST_PROBABILITY = 2.0**-40


def is_distribution(value: Any) -> bool:
    """Say whether it looks like a scipy.stats distribution, frozen or not."""
    return all(callable(getattr(value, name, None)) for name in ("rvs", "ppf", "cdf"))


def from_distribution(rv: Any) -> Domain:
    """Return the domain of a frozen scipy.stats distribution.

    Raises
    ------
    SpaceError
        If it is not frozen, its parameters are no plain numbers, or its support is empty.
    """
    name = _check_frozen(rv)
    args = tuple(_number(name, value) for value in rv.args)
    kwargs = tuple(sorted((key, _number(name, value)) for key, value in rv.kwds.items()))
    lower, upper = (float(end) for end in rv.support())
    if math.isnan(lower) or math.isnan(upper):
        raise SpaceError(
            f"{_written(name, args, kwargs)}: its parameters make no distribution (the support is "
            "empty); give valid ones, as scipy's documentation of it says"
        )
    if hasattr(rv, "pmf") and any(math.isfinite(x) and not x.is_integer() for x in (lower, upper)):
        raise SpaceError(
            f"{_written(name, args, kwargs)}: the values of a discrete distribution are whole "
            f"numbers, and its support starts at {lower!r}; give a whole number as loc"
        )
    domain = _native(name, lower, upper, scaled=bool(kwargs) or len(args) > 2)
    if domain is not None:
        return domain
    if not hasattr(rv, "pmf"):
        return Distribution(name, args, kwargs, rv, lower, upper)
    if upper - lower < _LARGEST_TABLE:
        return _table(name, args, kwargs, rv, range(int(lower), int(upper) + 1))
    return Distribution(name, args, kwargs, rv, lower, upper, discrete=True)


@dataclass(frozen=True, slots=True)
class Distribution(Domain):
    """A distribution with infinitely many values: the floats, or whole numbers, of its support."""

    name: str
    args: tuple[float, ...]
    kwargs: tuple[tuple[str, float], ...]
    rv: Any = field(repr=False, compare=False)
    lower: float = field(repr=False, compare=False)
    upper: float = field(repr=False, compare=False)
    discrete: bool = field(default=False, repr=False, compare=False)

    @property
    def value_type(self) -> type:
        """``int`` for a discrete distribution, else ``float``."""
        return int if self.discrete else float

    def contains(self, value: Any) -> bool:
        """Say whether it is a number of the support."""
        value = plain(value)
        if not is_number(value) or not self.lower <= value <= self.upper:
            return False
        return isinstance(value, int) if self.discrete else math.isfinite(value)

    def canonical(self, value: Any) -> Any:
        """Return it as an int or a float."""
        return self.value_type(value)

    def to_unit(self, value: Any) -> float:
        """Map a value to [0, 1] by the distribution function: whole numbers to a cell's middle."""
        if not self.contains(value):
            raise self._outside(value)
        u = float(self.rv.cdf(value))
        if self.discrete:
            u = (u + float(self.rv.cdf(value - 1))) / 2
        return min(max(u, 0.0), 1.0)

    def from_unit(self, u: float) -> Any:
        """Map a number of [0, 1] to a value by the inverse of the distribution function."""
        if u < _EDGE and math.isfinite(self.lower):
            return self.value_type(self.lower)
        if u > 1.0 - _EDGE and math.isfinite(self.upper):
            return self.value_type(self.upper)
        value = float(self.rv.ppf(min(max(float(u), _EDGE), 1.0 - _EDGE)))
        return self.value_type(min(max(value, self.lower), self.upper))

    def expression(self) -> str:
        """Return such as ``scipy.stats.norm(0, 1)``."""
        return _written(self.name, self.args, self.kwargs)


@dataclass(frozen=True, slots=True)
class Table(FiniteDomain):
    """A discrete distribution with a finite support: its values, and the ends of their cells."""

    name: str
    args: tuple[float, ...]
    kwargs: tuple[tuple[str, float], ...]
    options: tuple[int, ...] = field(repr=False, compare=False)
    ends: tuple[float, ...] = field(repr=False, compare=False)  # rising; the last is 1

    @property
    def size(self) -> int:
        """How many values there are."""
        return len(self.options)

    @property
    def value_type(self) -> type:
        """``int``."""
        return int

    def at(self, index: int) -> int:
        """Return the value with this number."""
        return self.options[index]

    def index(self, value: Any) -> int | None:
        """Return the number of a value, or None; a float, also a whole one, is no value."""
        value = plain(value)
        if isinstance(value, bool) or not isinstance(value, int):
            return None
        index = bisect.bisect_left(self.options, value)
        return index if index < self.size and self.options[index] == value else None

    def expression(self) -> str:
        """Return such as ``scipy.stats.binom(10, 0.5)``."""
        return _written(self.name, self.args, self.kwargs)

    def _cell(self, u: float) -> int:
        return bisect.bisect_right(self.ends, u)

    def _point(self, index: int) -> float:
        return ((self.ends[index - 1] if index else 0.0) + self.ends[index]) / 2


def _check_frozen(rv: Any) -> str:
    """Return the distribution's name in scipy.stats."""
    if hasattr(rv, "freeze"):
        name = getattr(rv, "name", type(rv).__name__)
        raise SpaceError(
            f"{name}: a distribution of the search space is frozen, which means that its "
            f"parameters are given; call it with them, such as scipy.stats.{name}(...)"
        )
    name = getattr(getattr(rv, "dist", None), "name", None)
    if not isinstance(name, str) or not hasattr(rv, "support"):
        raise SpaceError(
            f"{rv!r}: a distribution of the search space is a frozen one of scipy.stats; give such "
            "a one, or uniform(...), loguniform(...), randint(...) or choice([...])"
        )
    return name


def _number(name: str, value: Any) -> float:
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value.item()
    value = plain(value)
    if not is_number(value):
        raise SpaceError(
            f"scipy.stats.{name}: the parameter {value!r} is no number, but a domain is "
            "one-dimensional with plain numbers as parameters; give an int or a float"
        )
    assert isinstance(value, (int, float))
    return value


def _native(name: str, lower: float, upper: float, *, scaled: bool) -> Domain | None:
    """Return our own domain of the same distribution, if there is one."""
    if not lower < upper:
        return None  # a single value, which our own have not
    if name == "uniform":
        return Float(lower, upper)
    if name == "randint":
        return Integer(int(lower), int(upper))
    if name in ("loguniform", "reciprocal") and not scaled:
        return Float(lower, upper, log=True)
    return None


def _table(
    name: str, args: tuple[float, ...], kwargs: tuple[Any, ...], rv: Any, support: range
) -> Table:
    probabilities = np.asarray(rv.pmf(np.arange(support.start, support.stop)), dtype=float)
    kept = np.flatnonzero(probabilities >= _SMALLEST_PROBABILITY)
    ends = np.cumsum(probabilities[kept])
    ends /= ends[-1]
    return Table(name, args, kwargs, tuple(support[i] for i in kept.tolist()), tuple(ends.tolist()))


def _written(name: str, args: tuple[float, ...], kwargs: tuple[tuple[str, float], ...]) -> str:
    arguments = [repr(value) for value in args] + [f"{key}={value!r}" for key, value in kwargs]
    return f"scipy.stats.{name}({', '.join(arguments)})"
