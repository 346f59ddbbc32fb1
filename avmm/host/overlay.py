"""The changed sectors of a disk whose base image must not change.

An overlay file, all numbers little-endian::

    0      8  magic "AVMMOVL\\x01"
    8      8  number of 512-byte sectors of the disk
    16     8  offset of the bitmap (4096)
    24     8  offset of the data, a multiple of 4096
    4096      bitmap: bit n of byte n // 8 (bit n % 8) says that sector n is in this file
    data      sector n at data + 512 * n; the file is sparse

The invariant: a bit reaches the file only after the sector it stands for is on stable storage, so an overlay cut off by
a crash reads as the disk was at some moment after its last flush, sector by sector.
"""

from __future__ import annotations

import os
import re
import struct
import threading
from collections.abc import Iterable, Iterator

SECTOR = 512
PAGE = 4096
MAGIC = b"AVMMOVL\x01"
HEADER = struct.Struct("<8sQQQ")


class OverlayError(ValueError):
    """The file is not an overlay of this disk."""


class Overlay:
    """Bitmap and place of the changed sectors, in the file ``fd``. ``permanent`` overlays are written so they can be reopened."""

    def __init__(self, fd: int, sectors: int, *, permanent: bool) -> None:
        self.fd = fd
        self.sectors = sectors
        self.permanent = permanent
        pages = -(-sectors // (8 * PAGE))
        self.data_offset = PAGE + pages * PAGE
        self.bitmap = bytearray(pages * PAGE)
        self._unsaved: set[int] = set()
        self._lock = threading.Lock()

    @classmethod
    def load(cls, fd: int, sectors: int) -> Overlay:
        """Return the overlay in the open file ``fd``, a new one if the file is empty. Blocks."""
        overlay = cls(fd, sectors, permanent=True)
        header = HEADER.pack(MAGIC, sectors, PAGE, overlay.data_offset)
        found = os.pread(overlay.fd, HEADER.size, 0)
        if not found:
            os.ftruncate(overlay.fd, overlay.data_offset + sectors * SECTOR)
            os.pwrite(overlay.fd, header, 0)
            os.fsync(overlay.fd)
        elif found[:8] != MAGIC:
            raise OverlayError("is not an overlay of avmm")
        elif found != header:
            raise OverlayError("belongs to a disk of another size")
        else:
            saved = os.pread(overlay.fd, len(overlay.bitmap), PAGE)
            if len(saved) != len(overlay.bitmap):
                raise OverlayError("has been cut short")
            overlay.bitmap[:] = saved
        return overlay

    def runs(self, first: int, count: int) -> list[tuple[bool, int, int]]:
        """Return the sectors as (whether in the overlay, first, count) runs, in order."""
        chunk = int.from_bytes(self.bitmap[first >> 3 : (first + count + 7) >> 3], "little") >> (first & 7)
        chunk &= (1 << count) - 1
        found = []
        while count:
            inside = bool(chunk & 1)
            # The run ends at the lowest bit that differs: look for a one after flipping those of our kind to zero.
            other = ~chunk if inside else chunk
            length = min((other & -other).bit_length() - 1, count) if other else count
            found.append((inside, first, length))
            first, count, chunk = first + length, count - length, chunk >> length
        return found

    def changed(self) -> Iterator[tuple[int, int]]:
        """Yield what is in the overlay as (first sector, count), in order."""
        for found in re.finditer(rb"[^\0]{1,512}", self.bitmap):
            first, count = found.start() * 8, (found.end() - found.start()) * 8
            yield from ((start, length) for inside, start, length in self.runs(first, count) if inside)

    def contents(self) -> tuple[tuple[int, bytes], ...]:
        """Return what is in the overlay as (first sector, data). Blocks."""
        return tuple((first, os.pread(self.fd, count * SECTOR, self.data_offset + first * SECTOR)) for first, count in self.changed())

    def replace(self, contents: Iterable[tuple[int, bytes]]) -> None:
        """Hold exactly ``contents``. Blocks; a permanent overlay that is cut off meanwhile holds neither the old nor the new."""
        with self._lock:
            self._unsaved.update(page for page in range(len(self.bitmap) // PAGE) if any(self.bitmap[page * PAGE : (page + 1) * PAGE]))
            self.bitmap[:] = bytes(len(self.bitmap))
        for first, data in contents:
            view, at = memoryview(data), self.data_offset + first * SECTOR
            while view:
                written = os.pwrite(self.fd, view, at)
                view, at = view[written:], at + written
            self.mark(first, len(data) // SECTOR)

    def mark(self, first: int, count: int) -> None:
        """Note that the data of these sectors have been written to the file."""
        low, high = first >> 3, (first + count + 7) >> 3
        bits = ((1 << count) - 1) << (first & 7)
        with self._lock:
            old = int.from_bytes(self.bitmap[low:high], "little")
            if old | bits != old:
                self.bitmap[low:high] = (old | bits).to_bytes(high - low, "little")
                self._unsaved.update(range(low // PAGE, (high - 1) // PAGE + 1))

    def sync(self) -> None:
        """Put data, then bitmap on stable storage. Blocks; one caller at a time. Nothing to do for one that is not permanent."""
        if not self.permanent:
            return
        # The bitmap is copied before the data are synchronized: bits set meanwhile stand for data that are not yet safe.
        with self._lock:
            pages = {page: bytes(self.bitmap[page * PAGE : (page + 1) * PAGE]) for page in sorted(self._unsaved)}
            self._unsaved.clear()
        os.fdatasync(self.fd)
        for page, content in pages.items():
            os.pwrite(self.fd, content, PAGE + page * PAGE)
        if pages:
            os.fdatasync(self.fd)
