"""Holes in sparse files: room given back to the host's file system, by fallocate(2).

Python's os module has only posix_fallocate. The invariant: a file keeps its size, and bytes outside the hole keep their values.
"""

from __future__ import annotations

import ctypes
import errno
import os

KEEP_SIZE = 1
PUNCH_HOLE = 2
UNSUPPORTED = (errno.EOPNOTSUPP, errno.ENOSYS, errno.ENODEV)

_fallocate = ctypes.CDLL(None, use_errno=True).fallocate
_fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


def punch(fd: int, offset: int, length: int) -> None:
    """Make a hole, which reads as zeros; nothing happens where the file system has none. Raises OSError. Blocks."""
    while length and _fallocate(fd, PUNCH_HOLE | KEEP_SIZE, offset, length):
        code = ctypes.get_errno()
        if code in UNSUPPORTED:
            return
        if code != errno.EINTR:
            raise OSError(code, os.strerror(code))
