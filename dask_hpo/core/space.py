"""The search space: a name and a domain, or a constant, for each hyperparameter.

The public functions that make domains stand here too, for import from one place.
"""

from __future__ import annotations

import difflib
import keyword
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from dask_hpo.core.distributions import from_distribution, is_distribution
from dask_hpo.core.domains import Categorical, Domain, FiniteDomain, check_plain, plain
from dask_hpo.core.events import Configuration
from dask_hpo.core.expression import (
    choice,
    format_constant,
    lograndint,
    loguniform,
    ordinal,
    parse_domain,
    qlograndint,
    qloguniform,
    qrandint,
    quniform,
    randint,
    uniform,
)
from dask_hpo.errors import SpaceError

__all__ = [
    "Categorical",
    "Domain",
    "FiniteDomain",
    "SearchSpace",
    "choice",
    "lograndint",
    "loguniform",
    "ordinal",
    "parse_domain",
    "qlograndint",
    "qloguniform",
    "qrandint",
    "quniform",
    "randint",
    "uniform",
]


class SearchSpace(Mapping[str, Any]):
    """What each hyperparameter may be: a mapping of name to domain, or to a constant.

    The d names that have a domain span the unit cube [0, 1]^d, in the order of the definition;
    constants stand in every configuration and in no dimension.

    Parameters
    ----------
    definition
        Name to domain (`uniform`, `choice`, ..., or a frozen scipy.stats distribution), or to a
        plain value for a constant. A `SearchSpace` gives an equal one.

    Attributes
    ----------
    domains : dict[str, Domain]
        The names that are searched.
    constants : dict[str, None | bool | int | float | str]
        The others.
    size : int | None
        How many configurations there are; None for infinitely many.

    Raises
    ------
    SpaceError
        If there is no name, a name is no Python identifier, or a value is neither a domain nor a
        plain value.
    """

    def __init__(self, definition: Mapping[str, Any]) -> None:
        if not isinstance(definition, Mapping):
            raise SpaceError(
                f"search_space={definition!r}: a search space is a dict of name to domain; "
                "give such as {'learning_rate': loguniform(1e-5, 1e-1)}"
            )
        if not definition:
            raise SpaceError(
                "search_space={}: a search space has at least one name; "
                "give such as {'learning_rate': loguniform(1e-5, 1e-1)}"
            )
        self._entries = {_check_name(name): _entry(name, v) for name, v in definition.items()}
        self.domains: dict[str, Domain] = {
            name: entry for name, entry in self._entries.items() if isinstance(entry, Domain)
        }
        self.constants: dict[str, Any] = {
            name: entry for name, entry in self._entries.items() if not isinstance(entry, Domain)
        }
        self.size = _product([domain.size for domain in self.domains.values()])
        self._axes = list(self.domains.items())

    def __getitem__(self, name: str) -> Any:
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __repr__(self) -> str:
        entries = (
            f"{name!r}: {entry.expression() if isinstance(entry, Domain) else repr(entry)}"
            for name, entry in self._entries.items()
        )
        return f"SearchSpace({{{', '.join(entries)}}})"

    def sample(self, rng: np.random.Generator) -> Configuration:
        """Draw a configuration, each name on its own."""
        return self.from_cube(rng.random(len(self._axes)).tolist())

    def from_unit(self, u: Any) -> Configuration:
        """Map a point of the unit cube, of shape (d,), to a configuration with its constants.

        Coordinates outside of [0, 1] are moved to the nearer end.

        Raises
        ------
        SpaceError
            If the point has another shape or is not finite.
        """
        point = np.asarray(u, dtype=float)
        if point.shape != (len(self._axes),):
            raise SpaceError(
                f"a point of shape {point.shape} does not fit a space with {len(self._axes)} "
                f"domains; give one of shape ({len(self._axes)},), one coordinate for each of "
                f"{', '.join(self.domains)}"
            )
        if not np.isfinite(point).all():
            raise SpaceError(f"the point {point.tolist()} is not finite; give numbers in [0, 1]")
        return self.from_cube(point.tolist())

    def from_cube(self, point: Sequence[float]) -> Configuration:
        """Map a list of d finite floats as `from_unit` does, without its checks."""
        values = {name: domain.from_unit(u) for (name, domain), u in zip(self._axes, point)}  # noqa: B905 - speed, and checked by from_unit
        return self.complete(values)

    def to_unit(self, config: Mapping[str, Any]) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Map a configuration to its point in the unit cube, of shape (d,).

        Raises
        ------
        SpaceError
            If the configuration is not one of this space.
        """
        self.validate(config)
        return np.array([domain.to_unit(config[name]) for name, domain in self._axes], dtype=float)

    def complete(self, values: Mapping[str, Any]) -> Configuration:
        """Return the configuration, in the space's order, of a value for each domain."""
        if not self.constants:
            return {name: values[name] for name in self._entries}
        constants = self.constants
        return {n: constants[n] if n in constants else values[n] for n in self._entries}

    def at(self, index: int) -> Configuration:
        """Return the configuration with this number, from 0, of a finite space.

        The last name changes fastest, as in nested loops.

        Raises
        ------
        SpaceError
            If a domain is infinite.
        """
        values: dict[str, Any] = {}
        for name, domain in reversed(self._axes):
            index, digit = divmod(index, domain.size or 1)
            values[name] = domain.at(digit)
        return self.complete(values)

    def validate(self, config: Mapping[str, Any]) -> None:
        """Check that a configuration has one valid value for every name and for no other.

        Raises
        ------
        SpaceError
            If it has not; the message names the first name in question.
        """
        self._check_names(config)
        for name, entry in self._entries.items():
            if name not in config:
                raise SpaceError(_missing(name, entry))
            self._check_value(name, config[name])

    def canonical(self, config: Mapping[str, Any]) -> Configuration:
        """Return a valid configuration as the space itself would give it.

        Values become plain Python, whole numbers become floats where the domain's are, names take
        the space's order, and constants that are left out are filled in.

        Raises
        ------
        SpaceError
            If the configuration is not one of this space.
        """
        config = {**self.constants, **config}
        self.validate(config)
        return self.complete({name: d.canonical(config[name]) for name, d in self._axes})

    def canonical_part(self, config: Mapping[str, Any]) -> Configuration:
        """Return the values of a partial configuration, as `canonical` does, for its names alone.

        Raises
        ------
        SpaceError
            If a name is unknown or a value is outside of its domain.
        """
        self._check_names(config)
        for name, value in config.items():
            self._check_value(name, value)
        return {n: d.canonical(config[n]) for n, d in self._axes if n in config}

    def column_types(self) -> dict[str, type]:
        """Return the type of each name's column in a table: bool, int, float or str."""
        return {name: _column_type(entry) for name, entry in self._entries.items()}

    def definitions(self) -> dict[str, Any]:
        """Return the space as text that a person reads and JSON holds; constants stay as they are.

        `from_definitions` reads it back. A string constant that would read as something else, such
        as ``16``, is given in quotes.
        """
        return {
            name: entry.expression() if isinstance(entry, Domain) else format_constant(entry)
            for name, entry in self._entries.items()
        }

    @classmethod
    def from_definitions(cls, definitions: Mapping[str, Any]) -> SearchSpace:
        """Return the space that `definitions` was made of.

        Raises
        ------
        SpaceError
            If a definition breaks a rule.
        """
        return cls(
            {
                name: parse_domain(entry) if isinstance(entry, str) else entry
                for name, entry in definitions.items()
            }
        )

    def _check_names(self, config: Mapping[str, Any]) -> None:
        if not isinstance(config, Mapping):
            raise SpaceError(
                f"{config!r} is no configuration, which is a dict of name to value; "
                f"give a value for each of {', '.join(self)}"
            )
        for name in config:
            if name not in self._entries:
                raise SpaceError(_unknown(name, list(self)))

    def _check_value(self, name: str, value: Any) -> None:
        entry = self._entries[name]
        if isinstance(entry, Domain):
            if not entry.contains(value):
                raise SpaceError(
                    f"{name}={value!r} is outside of {entry.expression()}; "
                    f"give a value inside, such as {entry.from_unit(0.5)!r}, or widen the domain"
                )
        elif not _same(value, entry):
            raise SpaceError(
                f"{name}={value!r} is not {entry!r}, the constant of the search space; "
                f"leave {name} out, or give it a domain in the space"
            )


def _check_name(name: Any) -> str:
    if not isinstance(name, str):
        raise SpaceError(
            f"the name {name!r} is a {type(name).__name__}, but names of hyperparameters are "
            "strings; give one such as 'learning_rate'"
        )
    if not name.isidentifier() or keyword.iskeyword(name):
        identifier = "".join(c if c.isidentifier() or c.isdigit() else "_" for c in name) or "x"
        if not identifier.isidentifier() or keyword.iskeyword(identifier):
            identifier = f"{identifier}_" if keyword.iskeyword(identifier) else f"x_{identifier}"
        raise SpaceError(
            f"the name {name!r} is no Python identifier, but it becomes a keyword argument and a "
            f"command-line option; write it such as {identifier!r}"
        )
    return name


def _entry(name: str, value: Any) -> Any:
    """Return a domain, or a constant as plain Python."""
    if isinstance(value, Domain):
        return value
    if is_distribution(value):
        return from_distribution(value)
    if isinstance(value, (list, tuple, set, frozenset, range, np.ndarray)):
        raise SpaceError(
            f"{name}={value!r} is a {type(value).__name__}, which is neither a domain nor a plain "
            f"value; write choice([...]) to choose from its values, or a string for a constant"
        )
    return check_plain(value, f"{name}={value!r}")


def _product(sizes: Sequence[int | None]) -> int | None:
    finite = [size for size in sizes if size is not None]
    return math.prod(finite) if len(finite) == len(sizes) else None


def _column_type(entry: Any) -> type:
    if isinstance(entry, Domain):
        return entry.value_type
    return str if entry is None else type(entry)


def _same(value: Any, constant: Any) -> bool:
    value = plain(value)
    if isinstance(value, bool) != isinstance(constant, bool):
        return False
    return isinstance(value, (bool, int, float, str, type(None))) and value == constant


def _missing(name: str, entry: Any) -> str:
    given = f"one inside {entry.expression()}" if isinstance(entry, Domain) else repr(entry)
    return (
        f"the configuration has no value for {name!r}, but it needs one for every name of the "
        f"search space; add {name} with {given}"
    )


def _unknown(name: Any, names: list[str]) -> str:
    near = difflib.get_close_matches(str(name), names, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    return (
        f"the name {name!r} is not in the search space{hint}; "
        f"give values for {', '.join(names)} only, or add {name} to the space"
    )
