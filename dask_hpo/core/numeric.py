"""Domains of numbers: floats, whole numbers, and the multiples of a step."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from dask_hpo.core.domains import Domain, FiniteDomain, is_number, plain, set_fields
from dask_hpo.errors import SpaceError

#: A float has 53 bits: further from 0, [0, 1] could not tell neighbouring whole numbers apart.
LARGEST_LINEAR = 2**49
LARGEST_LOG = 2**40


@dataclass(frozen=True, slots=True)
class Float(Domain):
    """All floats from ``lower`` to ``upper``, both included, on a linear or logarithmic scale."""

    lower: float
    upper: float
    log: bool = False
    _low: float = field(init=False, repr=False, compare=False)
    _high: float = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        name = _name("uniform", log=self.log)
        lower, upper = _check_bounds(name, self.lower, self.upper, _as_float, log=self.log)
        set_fields(self, lower=lower, upper=upper)
        set_fields(self, _low=self._scaled(lower), _high=self._scaled(upper))

    def _scaled(self, value: float) -> float:
        return math.log(value) if self.log else value

    @property
    def value_type(self) -> type:
        """``float``."""
        return float

    def contains(self, value: Any) -> bool:
        """Say whether it is a number, int or float, within the bounds."""
        value = plain(value)
        return is_number(value) and self.lower <= value <= self.upper

    def canonical(self, value: Any) -> float:
        """Return it as a float."""
        return float(value)

    def to_unit(self, value: Any) -> float:
        """Map a value to [0, 1]: ``lower`` to 0, ``upper`` to 1."""
        if not self.contains(value):
            raise self._outside(value)
        # Halves, because upper - lower of the largest floats overflows.
        low, high, x = self._low / 2, self._high / 2, self._scaled(float(value)) / 2
        width = high - low  # 0 where the bounds are neighbours among the floats
        return min(max((x - low) / width, 0.0), 1.0) if width else 0.5

    def from_unit(self, u: float) -> float:
        """Map a number of [0, 1] to a value."""
        u = min(max(float(u), 0.0), 1.0)
        x = self._low * (1.0 - u) + self._high * u
        return min(max(math.exp(x) if self.log else x, self.lower), self.upper)

    def grid(self, n: int) -> list[float]:
        """Return n evenly spaced values with both ends among them; the middle for n = 1."""
        if n == 1:
            return [self.from_unit(0.5)]
        return list(dict.fromkeys(self.from_unit(i / (n - 1)) for i in range(n)))

    def expression(self) -> str:
        """Return such as ``loguniform(1e-05, 0.1)``."""
        return f"{_name('uniform', log=self.log)}({self.lower!r}, {self.upper!r})"


class _Multiples(FiniteDomain):
    """The multiples k q of a step q, k from ``first`` to ``last``, each with its cell."""

    __slots__ = ()

    log: bool
    first: int
    last: int
    _low: float
    _high: float

    def _check_multiples(self, text: str, first: int, last: int) -> None:
        if first > last:
            raise SpaceError(
                f"{text}: the values are the multiples of q within the bounds, and there is none; "
                "give a smaller q or wider bounds"
            )
        largest = LARGEST_LOG if self.log else LARGEST_LINEAR
        if max(-first, last) > largest:
            raise SpaceError(
                f"{text}: the bounds may be up to {largest} steps from 0, so that [0, 1] still "
                "tells neighbours apart; give narrower bounds, a larger q, or a domain of floats"
            )
        set_fields(self, first=first, last=last)
        if self.log:
            set_fields(self, _low=math.log(first - 0.5), _high=math.log(last + 0.5))

    @property
    def size(self) -> int:
        """How many multiples there are."""
        return self.last - self.first + 1

    def _cell(self, u: float) -> int:
        if not self.log:
            return int(u * self.size)
        u = min(max(float(u), 0.0), 1.0)
        return math.floor(math.exp(self._low * (1.0 - u) + self._high * u) + 0.5) - self.first

    def _point(self, index: int) -> float:
        if not self.log:
            return (index + 0.5) / self.size
        return (math.log(self.first + index) - self._low) / (self._high - self._low)

    def _number(self, k: int) -> int | None:
        return k - self.first if self.first <= k <= self.last else None


@dataclass(frozen=True, slots=True)
class Integer(_Multiples):
    """The whole numbers from ``lower`` to ``upper``, both included, that are multiples of ``q``."""

    lower: int
    upper: int
    log: bool = False
    q: int = 1
    first: int = field(init=False, repr=False, compare=False)
    last: int = field(init=False, repr=False, compare=False)
    _low: float = field(init=False, repr=False, compare=False, default=0.0)
    _high: float = field(init=False, repr=False, compare=False, default=0.0)

    def __post_init__(self) -> None:
        name = _name("randint", log=self.log, q=self.q != 1)
        lower, upper = _check_bounds(name, self.lower, self.upper, _as_int, log=self.log)
        q = _check_step(name, lower, upper, _as_int(name, "q", self.q))
        set_fields(self, lower=lower, upper=upper, q=q)
        self._check_multiples(self.expression(), -(-lower // q), upper // q)

    @property
    def value_type(self) -> type:
        """``int``."""
        return int

    def at(self, index: int) -> int:
        """Return the value with this number."""
        return (self.first + index) * self.q

    def index(self, value: Any) -> int | None:
        """Return the number of a value, or None; a float, also a whole one, is no value."""
        value = plain(value)
        if isinstance(value, bool) or not isinstance(value, int) or value % self.q:
            return None
        return self._number(value // self.q)

    def expression(self) -> str:
        """Return such as ``qrandint(8, 128, 8)``."""
        step = "" if self.q == 1 else f", {self.q!r}"
        name = _name("randint", log=self.log, q=self.q != 1)
        return f"{name}({self.lower!r}, {self.upper!r}{step})"


@dataclass(frozen=True, slots=True)
class QuantisedFloat(_Multiples):
    """The floats from ``lower`` to ``upper``, both included, that are multiples of ``q``.

    Bounds and step are taken as the decimal numbers that they are written as, so that
    ``quniform(0, 0.3, 0.1)`` is 0, 0.1, 0.2 and 0.3 and not 0.30000000000000004.
    """

    lower: float
    upper: float
    q: float
    log: bool = False
    first: int = field(init=False, repr=False, compare=False)
    last: int = field(init=False, repr=False, compare=False)
    _low: float = field(init=False, repr=False, compare=False, default=0.0)
    _high: float = field(init=False, repr=False, compare=False, default=0.0)
    _step: Fraction = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        name = _name("uniform", log=self.log, q=True)
        lower, upper = _check_bounds(name, self.lower, self.upper, _as_float, log=self.log)
        q = _check_step(name, lower, upper, _as_float(name, "q", self.q))
        step = Fraction(repr(q))
        set_fields(self, lower=lower, upper=upper, q=q, _step=step)
        first, last = math.ceil(Fraction(repr(lower)) / step), Fraction(repr(upper)) // step
        self._check_multiples(self.expression(), first, last)

    @property
    def value_type(self) -> type:
        """``float``."""
        return float

    def at(self, index: int) -> float:
        """Return the value with this number: the float nearest to that multiple of ``q``."""
        return (self.first + index) * self._step.numerator / self._step.denominator

    def index(self, value: Any) -> int | None:
        """Return the number of a value, or None; rounding errors of arithmetic are forgiven."""
        value = plain(value)
        if not is_number(value) or (isinstance(value, float) and not math.isfinite(value)):
            return None
        exact = Fraction(value)
        k = round(exact / self._step)
        tolerance = self._step / 10**9 + abs(exact) / 2**50
        return self._number(k) if abs(exact - k * self._step) <= tolerance else None

    def expression(self) -> str:
        """Return such as ``quniform(0.0, 1.0, 0.1)``."""
        name = _name("uniform", log=self.log, q=True)
        return f"{name}({self.lower!r}, {self.upper!r}, {self.q!r})"


def _name(base: str, *, log: bool, q: bool = False) -> str:
    return f"{'q' if q else ''}{'log' if log else ''}{base}"


def _as_float(name: str, what: str, value: Any) -> float:
    value = plain(value)
    if not is_number(value):
        raise SpaceError(f"{name}: {what} {value!r} is no number; give an int or a float")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise SpaceError(f"{name}: {what} {value!r} must be finite; give a finite number")
    return number


def _as_int(name: str, what: str, value: Any) -> int:
    value = plain(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise SpaceError(
            f"{name}: {what} {value!r} is no whole number (an int); give one such as 16, or use "
            f"{name.replace('randint', 'uniform')} for floats"
        )
    return value


def _check_bounds(name: str, lower: Any, upper: Any, convert: Any, *, log: bool) -> tuple[Any, Any]:
    low, high = convert(name, "the bound", lower), convert(name, "the bound", upper)
    if low == high:
        raise SpaceError(
            f"{name}({lower!r}, {upper!r}): the lower bound must be below the upper one; "
            f"give the plain value {lower!r} for a constant, or wider bounds"
        )
    if low > high:
        raise SpaceError(
            f"{name}({lower!r}, {upper!r}): the lower bound must be below the upper one; "
            f"write {name}({upper!r}, {lower!r}) with the bounds in order"
        )
    if log and low <= 0:
        raise SpaceError(
            f"{name}({lower!r}, {upper!r}): the lower bound of a logarithmic scale must be above "
            f"0; give a positive one such as {1 if 'int' in name else 1e-6!r}, or use "
            f"{name.replace('log', '')}"
        )
    return low, high


def _check_step(name: str, lower: Any, upper: Any, q: Any) -> Any:
    if q <= 0:
        raise SpaceError(
            f"{name}({lower!r}, {upper!r}, {q!r}): the step q must be above 0; "
            "give a positive q such as 1"
        )
    return q
