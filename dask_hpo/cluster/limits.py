"""What a trial may use (time, silence, memory), and the guard that holds an attempt to it."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

from dask.utils import format_bytes, parse_bytes

from dask_hpo.cluster.group_memory import used_by_group
from dask_hpo.errors import OptionError

_POLL_S = 0.25  # between two looks at the memory
_REST = 20  # and at least so many times as long as a look took: they cost at most 5 % of a core


@dataclass(frozen=True, slots=True)
class Limits:
    """What a trial may use; None: as much as it likes.

    ``trial_timeout_s``: seconds since the user's code began. ``report_timeout_s``: seconds since
    its last report, or since it began. ``memory_limit_bytes``: of physical memory, all processes of
    its group together.
    """

    trial_timeout_s: float | None = None
    report_timeout_s: float | None = None
    memory_limit_bytes: int | None = None


def parse_limits(
    trial_timeout: float | None,
    report_timeout: float | None,
    memory_limit: int | str | None,
    isolation: str,
) -> Limits:
    """Return what a person wrote as limits; see `dask_hpo.Tuner`.

    Raises
    ------
    OptionError
        If one is not positive, or given for trials that cannot be held to it.
    """
    given = {
        "trial_timeout": trial_timeout,
        "report_timeout": report_timeout,
        "memory_limit": memory_limit,
    }
    for name, value in given.items():
        if value is not None and isolation == "thread":
            raise OptionError(
                f"{name}={value!r} with isolation='thread': a thread cannot be killed; "
                "use isolation='process' or 'spawn', or leave the limit out"
            )
    return Limits(
        _seconds("trial_timeout", trial_timeout),
        _seconds("report_timeout", report_timeout),
        _bytes("memory_limit", memory_limit),
    )


def _seconds(name: str, value: float | None) -> float | None:
    if value is None or (_is_number(value) and 0 < value < math.inf):
        return value
    raise OptionError(f"{name}={value!r}: a positive number of seconds; give one, or None")


def _bytes(name: str, value: int | str | None) -> int | None:
    if value is None:
        return None
    try:
        number = parse_bytes(value) if isinstance(value, str) or _is_number(value) else 0
    except (ValueError, OverflowError):
        number = 0
    if number <= 0:
        raise OptionError(
            f"{name}={value!r}: a positive number of bytes; give one, a text such as '4 GB', "
            "or None"
        )
    return int(number)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


@dataclass(frozen=True, slots=True)
class Breach:
    """A limit that an attempt went beyond. ``urgent``: waiting for it makes things worse."""

    error: str
    urgent: bool = False


class Guard:
    """Tells when an attempt goes beyond its limits. Times are of the monotonic clock."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._group = 0
        self._started = math.inf
        self._heard = math.inf
        self._look = math.inf  #: when to look at the memory next
        self._is_ending = False

    @property
    def due(self) -> float:
        """When to call `check` next."""
        return min(self._end_of_trial, self._end_of_silence, self._look)

    def forked(self, group: int) -> None:
        """Begin to look at the memory of this process group."""
        if self._limits.memory_limit_bytes is not None:
            self._group, self._look = group, time.monotonic()

    def started(self) -> None:
        """Begin to count the seconds: the user's code runs from now on."""
        self._started = self._heard = time.monotonic()

    def reported(self) -> None:
        """Count the silence anew."""
        self._heard = time.monotonic()

    def ending(self) -> None:
        """Let it take its time: it is on its way out. It still must not grow."""
        self._is_ending = True

    def check(self) -> Breach | None:
        """Return the limit that the attempt is beyond, if any."""
        now = time.monotonic()
        limits = self._limits
        if now >= self._end_of_trial:
            return Breach(
                f"TrialTimeout: the trial ran for {now - self._started:.1f} s, longer than "
                f"trial_timeout={limits.trial_timeout_s:g} s; give it more time, or look at what "
                "it waits for: the traceback says where it was"
            )
        if now >= self._end_of_silence:
            return Breach(
                f"ReportTimeout: the trial reported nothing for {now - self._heard:.1f} s, longer "
                f"than report_timeout={limits.report_timeout_s:g} s; let it report more often, or "
                "look at what it waits for: the traceback says where it was"
            )
        return self._check_memory() if now >= self._look else None

    @property
    def _end_of_trial(self) -> float:
        return self._after(self._started, self._limits.trial_timeout_s)

    @property
    def _end_of_silence(self) -> float:
        return self._after(self._heard, self._limits.report_timeout_s)

    def _after(self, since: float, timeout_s: float | None) -> float:
        return math.inf if timeout_s is None or self._is_ending else since + timeout_s

    def _check_memory(self) -> Breach | None:
        limit = self._limits.memory_limit_bytes
        assert limit is not None
        begun = time.monotonic()
        used = used_by_group(self._group, limit)
        ended = time.monotonic()
        self._look = ended + max(_POLL_S, _REST * (ended - begun))
        if used <= limit:
            return None
        return Breach(
            f"MemoryLimitExceeded: the trial's processes used {format_bytes(used)} together, more "
            f"than memory_limit={format_bytes(limit)}; raise the limit, or let the trial use less: "
            "a smaller batch, fewer data-loading workers",
            urgent=True,
        )
