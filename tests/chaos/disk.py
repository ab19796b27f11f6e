"""A small file system of a run's own, to be filled up: an ext4 in a file, which root may mount.

Not a tmpfs: where that is full, whoever maps a file with holes into memory (Polars does, and a part
of the log has holes) dies of SIGBUS as it reads a hole. File systems on disks read zeros there.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

_SIZE = 16 * 1024 * 1024
_BLOCK = bytes(4096)


@functools.cache
def why_not() -> str:
    """Return why there can be no such file system here; empty if there can."""
    if sys.platform != "linux":
        return "a small file system is mounted from a file, on Linux"
    if os.geteuid() != 0:
        return "only root may mount a small file system"
    if shutil.which("mkfs.ext4") is None:
        return "mkfs.ext4 is not installed"
    with tempfile.TemporaryDirectory() as folder:
        try:
            SmallDisk(Path(folder, "disk")).unmount()
        except subprocess.CalledProcessError as error:
            return f"this system mounts no file: {error.stderr.decode().strip()}"
    return ""


class SmallDisk:
    """A mounted file system; its place is made."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self._filler = place / "filler"
        image = place.with_name(f"{place.name}.ext4")
        with image.open("wb") as file:
            file.truncate(_SIZE)
        place.mkdir()
        _run("mkfs.ext4", "-q", "-m", "0", image)
        _run("mount", "-o", "loop", image, place)

    def fill(self) -> None:
        """Leave no room."""
        with self._filler.open("ab", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(_BLOCK)

    def free(self) -> None:
        """Make room again."""
        self._filler.unlink(missing_ok=True)

    def unmount(self) -> None:
        """Take the file system away; its image stays, beside its place."""
        _run("umount", "--lazy", self.place)


def _run(*command: str | Path) -> None:
    subprocess.run(command, check=True, capture_output=True)
