"""Exchange two directories in one step, which no reader and no `kill -9` can come between."""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from pathlib import Path

#: What an operating system or a file system without the call answers (EINVAL: ZFS, NFS, 9p).
_UNSUPPORTED = {errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP}
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2  # Linux; RENAME_SWAP of macOS has the same number


def exchange(first: Path, second: Path) -> bool:
    """Give each directory the other's name, atomically; False (and nothing done) if it cannot be.

    Raises
    ------
    OSError
        If the system knows how, and it failed.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    names = os.fsencode(first), os.fsencode(second)
    try:
        if sys.platform == "darwin":
            failed = libc.renamex_np(*names, ctypes.c_uint(_RENAME_EXCHANGE))
        else:
            at = ctypes.c_int(_AT_FDCWD)
            failed = libc.renameat2(at, names[0], at, names[1], ctypes.c_uint(_RENAME_EXCHANGE))
    except AttributeError:  # a C library without the call
        return False
    number = ctypes.get_errno()
    if failed and number not in _UNSUPPORTED:
        raise OSError(number, os.strerror(number), str(second))
    return not failed


def sync_directory(path: Path) -> None:
    """Bring the names in a directory to the disk: a renamed file is not there without it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
