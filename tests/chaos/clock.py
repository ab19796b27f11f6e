"""The clock that the processes of a run see; see `clock/sitecustomize.py` for how far it goes."""

from __future__ import annotations

import os
import struct
from pathlib import Path


class WrongClock:
    """The processes' clock, at first right."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._offset_s = 0.0
        file.write_bytes(struct.pack("d", 0.0))

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to see it."""
        path = [str(Path(__file__).parent / "clock"), os.environ.get("PYTHONPATH", "")]
        return {
            "PYTHONPATH": os.pathsep.join(filter(None, path)),
            "DASK_HPO_CHAOS_CLOCK": str(self._file),
        }

    def step(self, seconds: float) -> None:
        """Set the clock forward, in place: processes have the file mapped."""
        self._offset_s += seconds
        with self._file.open("r+b") as file:
            file.write(struct.pack("d", self._offset_s))
