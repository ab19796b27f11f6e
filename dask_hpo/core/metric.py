"""The metric optimised and its mode: how a reported value ranks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from dask_hpo.errors import OptionError

Mode = Literal["min", "max"]
Scalar = float | int | bool | str | None  #: what a metric may hold once a report was coerced


@dataclass(frozen=True, slots=True)
class Metric:
    """Which reported value is optimised, and in which direction.

    Inside the package values are compared as *losses*: lower is better, and whatever is no finite
    number (NaN, infinity, a string, None, nothing at all) is ``inf``, so it ranks worst.
    """

    name: str
    mode: Mode = "min"

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise OptionError(
                f"metric={self.name!r}: the metric is the name of a reported value; "
                "give the name that the training code reports, such as metric='validation_error'"
            )
        if self.mode not in ("min", "max"):
            raise OptionError(
                f"mode={self.mode!r}: a metric is minimised or maximised; "
                "give mode='min' or mode='max'"
            )

    def value(self, metrics: Mapping[str, Scalar]) -> float:
        """Return the reported value as a float; NaN where there is none or it is no number."""
        raw = metrics.get(self.name)
        return float(raw) if isinstance(raw, (int, float)) else math.nan

    def loss(self, value: float) -> float:
        """Return what is minimised: the value, or its negative, or ``inf`` if it is not finite."""
        if not math.isfinite(value):
            return math.inf
        return value if self.mode == "min" else -value
