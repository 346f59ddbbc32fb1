"""A machine's RAM, and pictures of it that cost little: copy-on-write, by the host's own paging.

RAM begins as a file in memory (memfd_create(2)) that the machine writes to. The first picture *is* that file: the machine goes
on with a private mapping of it, where the kernel copies a page when it is written. A later picture holds the pages
that were written since, which the kernel tells (/proc/self/pagemap, Documentation/admin-guide/mm/pagemap.rst: a page of a private
mapping that is not "file-page" is a copy); when these are many it becomes a file of its own. Any number of machines map
one file, so that clones share what neither of them has changed.

The invariants: nobody writes to the file of a picture; the RAM of a machine stays at one address of this process for ever, as
the processor knows it by that.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import re
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain

from avmm.memory import PAGE

APART = 4
"""A picture holds up to one ``APART``-th of RAM apart from its file: copying so much is still quicker than a file of its own."""
SHARED_APART = 1 << 20
"""The same for a picture that machines are cloned from: each has these pages for itself."""
PIECE = 1 << 20
_ENTRY = 8  # bytes of a page in pagemap
_PRESENT, _SWAPPED, _FILE = 0x80, 0x40, 0x20  # in the topmost byte
_COPIES = bytes(int(bool(flags & (_PRESENT | _SWAPPED)) and not flags & _FILE) for flags in range(256))
_MAP_FIXED = 0x10
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_libc.mmap.restype = ctypes.c_void_p

Run = tuple[int, bytes]
"""Bytes at an offset, both whole pages."""


class MemoryFile:
    """A file in memory, closed when nobody holds it any more."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.fd = os.memfd_create("avmm-ram", os.MFD_CLOEXEC)
        self.close = weakref.finalize(self, os.close, self.fd)
        os.ftruncate(self.fd, size)

    def data(self) -> Iterator[tuple[int, int]]:
        """Yield the (offset, length) of what was ever written; all else is zero."""
        at = 0
        while at < self.size:
            try:
                at = os.lseek(self.fd, at, os.SEEK_DATA)
            except OSError as error:
                if error.errno == errno.ENXIO:  # a hole up to the end
                    return
                raise
            end = os.lseek(self.fd, at, os.SEEK_HOLE)
            yield at, end - at
            at = end

    def write(self, offset: int, data: memoryview | bytes) -> None:
        """Write all of ``data``. OSError where the host has no memory left."""
        view = memoryview(data)
        while view:
            written = os.pwrite(self.fd, view, offset)
            view, offset = view[written:], offset + written


@dataclass(slots=True)
class RamImage:
    """RAM as it was at one moment: a file, and the pages that differ from it."""

    file: MemoryFile
    apart: tuple[Run, ...] = ()
    _merged: MemoryFile | None = field(default=None, repr=False)

    @property
    def size(self) -> int:
        """Bytes of RAM."""
        return self.file.size

    def runs(self) -> Iterator[Run]:
        """Return everything that is not zero, in pieces; where two are of one place the later one counts."""
        return chain(_read(self.file), self.apart)

    def merged(self) -> RamImage:
        """Return the same RAM with nothing apart from the file: what many machines can share."""
        if not self.apart:
            return self
        if self._merged is None:
            self._merged = MemoryFile(self.size)
            for offset, data in chain(_read(self.file), self.apart):
                self._merged.write(offset, data)
        return RamImage(self._merged)


def _read(file: MemoryFile) -> Iterator[Run]:
    for at, length in file.data():
        for offset in range(at, at + length, PIECE):
            yield offset, os.pread(file.fd, min(PIECE, at + length - offset), offset)


class Ram:
    """RAM of one machine. ``view`` is all of it; devices and loaders go through ``GuestMemory``."""

    def __init__(self, size: int) -> None:
        """OSError when the host does not give as much."""
        self.size = size
        self._space = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # where it is; what is there changes
        self.view = memoryview(self._space)
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(self._space))
        self._file: MemoryFile | None = MemoryFile(size)
        self._private = False
        self._map(self._file, mmap.MAP_SHARED)

    def _map(self, file: MemoryFile, kind: int) -> None:
        found = _libc.mmap(self._address, self.size, mmap.PROT_READ | mmap.PROT_WRITE, kind | _MAP_FIXED, file.fd, 0)
        if found != self._address:
            raise OSError(ctypes.get_errno(), f"mapping {self.size >> 20}M of RAM: {os.strerror(ctypes.get_errno())}")

    def freeze(self) -> RamImage:
        """Return a picture of what is there now. The machine must stand still meanwhile, and goes on with a copy-on-write of it."""
        file = self._open()
        if not self._private:
            self._map(file, mmap.MAP_PRIVATE)
            self._private = True
            return RamImage(file)
        copies = self._copies()
        if sum(length for _, length in copies) <= self.size // APART:
            return RamImage(file, tuple((at, bytes(self.view[at : at + length])) for at, length in copies))
        image = MemoryFile(self.size)
        for at, length in [*file.data(), *copies]:
            image.write(at, self.view[at : at + length])
        self._become(image)
        return RamImage(image)

    def adopt(self, image: RamImage, *, sharing: bool = False) -> None:
        """Hold what is in a picture. With ``sharing`` next to nothing of it in memory of its own. The machine must stand still."""
        if sharing and sum(len(data) for _, data in image.apart) > SHARED_APART:
            image = image.merged()
        self._become(image.file)
        for at, data in image.apart:
            self.view[at : at + len(data)] = data

    def _become(self, file: MemoryFile) -> None:
        self._map(file, mmap.MAP_PRIVATE)
        self._file, self._private = file, True

    def _open(self) -> MemoryFile:
        if self._file is None:
            raise RuntimeError("this RAM was given back")
        return self._file

    def _copies(self) -> list[tuple[int, int]]:
        """Return the (offset, length) of the pages that were written since the file was mapped."""
        with open("/proc/self/pagemap", "rb", buffering=0) as pagemap:
            pagemap.seek(self._address // PAGE * _ENTRY)
            entries = pagemap.read(self.size // PAGE * _ENTRY)
        copies = entries[7::_ENTRY].translate(_COPIES)
        return [(run.start() * PAGE, (run.end() - run.start()) * PAGE) for run in re.finditer(rb"\x01+", copies)]

    def close(self) -> None:
        """Give all of it back but the addresses, which go with this object: who still looks there finds zeros.

        The object itself may be a part of a cycle, and Python in no hurry to look for those.
        """
        self._file = None
        kind = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_FIXED
        _libc.mmap(self._address, self.size, mmap.PROT_READ | mmap.PROT_WRITE, kind, -1, 0)
