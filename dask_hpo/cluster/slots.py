"""How many trials a worker can run at once, and which devices each of them may see."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from fractions import Fraction

from dask_hpo.errors import ClusterError

_THOUSANDTHS = 1_000  # shares of a device are counted in these, so that 0.1 ten times is one
_TOLERANCE = 1e-6  # 0.3 / 0.1 is a little less than 3


class DevicePool:
    """The devices of one worker, lent to trials; safe to use from many threads.

    Parameters
    ----------
    devices
        What ``CUDA_VISIBLE_DEVICES`` calls them: indices, or UUIDs of GPUs or of parts of them.
    """

    def __init__(self, devices: Sequence[str]) -> None:
        self._free = dict.fromkeys(devices, _THOUSANDTHS)
        self._lock = threading.Lock()

    def acquire(self, amount: Fraction | float) -> tuple[str, ...]:
        """Take whole devices for oneself, or a share of one.

        Parameters
        ----------
        amount
            A whole number of devices, or a part of one between 0 and 1, to the thousandth.

        Returns
        -------
        tuple of str
            The devices, to be given back with ``release``. A share comes from the fullest device
            that has room, so that the others stay free for who needs a whole one.

        Raises
        ------
        ClusterError
            If the amount is not of that kind, or not free: Dask's resources and the devices that
            the worker sees do not agree.
        """
        share = _thousandths(amount)
        with self._lock:
            taken = self._choose(share)
            if taken is None:
                raise ClusterError(
                    f"GPU={float(amount):g} was asked for, but of the devices that this worker "
                    f"sees {self._described()}: the Dask resource GPU must not exceed them; start "
                    "the worker with --resources GPU=<number of its devices> and check its "
                    "CUDA_VISIBLE_DEVICES"
                )
            for device in taken:
                self._free[device] -= min(share, _THOUSANDTHS)
        return taken

    def release(self, amount: Fraction | float, devices: Sequence[str]) -> None:
        """Give back what ``acquire(amount)`` returned."""
        share = min(_thousandths(amount), _THOUSANDTHS)
        with self._lock:
            for device in devices:
                self._free[device] = min(self._free[device] + share, _THOUSANDTHS)

    def _choose(self, share: int) -> tuple[str, ...] | None:
        if share >= _THOUSANDTHS:
            count = share // _THOUSANDTHS
            whole = [device for device, free in self._free.items() if free == _THOUSANDTHS]
            return tuple(whole[:count]) if len(whole) >= count else None
        room = [device for device, free in self._free.items() if free >= share]
        return (min(room, key=self._free.__getitem__),) if room else None

    def _described(self) -> str:
        if not self._free:
            return "there are none"
        free = ", ".join(f"{name}: {part / _THOUSANDTHS:g}" for name, part in self._free.items())
        return f"only this is free: {free}"


def _thousandths(amount: Fraction | float) -> int:
    exact = float(amount) * _THOUSANDTHS
    share = round(exact) if math.isfinite(exact) else 0
    whole_or_part = share < _THOUSANDTHS or share % _THOUSANDTHS == 0
    if share <= 0 or not whole_or_part or abs(exact - share) > 0.5:
        raise ClusterError(
            f"GPU={amount!r}: a trial takes whole devices (1, 2, ...) or a share of one (0.5), no "
            "less than a thousandth; give such a number"
        )
    return share


def visible_devices(environ: Mapping[str, str], offered: float) -> list[str]:
    """Return the devices that a worker may lend, as ``CUDA_VISIBLE_DEVICES`` names them.

    Parameters
    ----------
    environ
        The worker's environment. Its ``CUDA_VISIBLE_DEVICES`` (indices, ``GPU-...`` or ``MIG-...``)
        is the list, up to the first ``-1``, as CUDA reads it.
    offered
        How much of the Dask resource GPU the worker offers; without that variable the devices
        are ``"0"`` to ``"offered - 1"``.
    """
    named = environ.get("CUDA_VISIBLE_DEVICES")
    if named is None:
        return [str(index) for index in range(math.ceil(offered - _TOLERANCE))]
    devices: list[str] = []
    for entry in named.split(","):
        device = entry.strip()
        if not device or device.startswith("-"):
            break
        devices.append(device)
    return devices


def slots_of(offered: Mapping[str, float], nthreads: int, needed: Mapping[str, float]) -> int:
    """Return how many trials a worker can run at once.

    Parameters
    ----------
    offered
        Amounts of the Dask resources of the worker, by name.
    nthreads
        Its threads: a trial occupies one, whatever else it needs.
    needed
        Amounts that one trial needs, by name; amounts of 0 or less are no need.
    """
    slots = nthreads
    for name, amount in needed.items():
        if amount > 0:
            slots = min(slots, math.floor(offered.get(name, 0) / amount + _TOLERANCE))
    return max(slots, 0)
