"""How the values of a configuration stand in their columns, and how they are read back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dask_hpo.core.domains import Categorical
from dask_hpo.core.space import SearchSpace
from dask_hpo.log.definition import Definition


@dataclass(frozen=True, slots=True)
class ConfigColumn:
    """The column of one hyperparameter.

    A choice of one type has a column of that type, one of ints and floats a column of floats, and
    any other mixture a column of text, in which everything but a string is JSON, and so is a string
    that reads as JSON (``16`` is the number, ``"16"`` the string). None is null everywhere.

    Parameters
    ----------
    name, kind
        The hyperparameter, and the column's type: ``float``, ``int``, ``str`` or ``bool``.
    options
        The values of a choice, which give back their type; empty for all else.
    """

    name: str
    kind: str
    options: tuple[Any, ...] = ()
    _mixed: bool = field(init=False)
    _values: Mapping[Any, Any] = field(init=False)  #: what stands in the column -> the value

    def __post_init__(self) -> None:
        strings_only = all(isinstance(option, str | None) for option in self.options)
        object.__setattr__(self, "_mixed", self.kind == "str" and not strings_only)
        strings = {option: option for option in self.options if isinstance(option, str)}
        values = {self.encode(option): option for option in self.options}
        object.__setattr__(self, "_values", strings | values)  # version 1 never quoted a string

    def encode(self, value: Any) -> Any:
        """Return what stands in the column for a value."""
        if value is None:
            return None
        if self.kind == "float":
            return float(value)
        if self._mixed and (not isinstance(value, str) or _reads_as_json(value)):
            return json.dumps(value)
        return value

    def decode(self, stored: Any) -> Any:
        """Return the value that stands in the column, in the type that the objective got."""
        if stored in self._values:
            return self._values[stored]
        return json.loads(stored) if self._mixed and _reads_as_json(stored) else stored


def config_columns(definition: Definition) -> list[ConfigColumn]:
    """Return the columns of a definition's configurations, in their order."""
    space = SearchSpace.from_definitions(definition.space)
    return [
        ConfigColumn(name, kind, _options(space[name]))
        for name, kind in definition.config_types.items()
    ]


def _options(entry: Any) -> tuple[Any, ...]:
    return entry.options if isinstance(entry, Categorical) else ()


def _reads_as_json(text: Any) -> bool:
    try:
        json.loads(text)
    except (TypeError, ValueError):
        return False
    return True
