"""Where firmware images of other projects are found on this host, and how they are laid out in memory."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

from avmm.boot.errors import BootError

SEABIOS, VGABIOS = "bios.bin", "vgabios-isavga.bin"
LARGEST = 16 << 20
_PLACES = ("/usr/share/seabios", "/usr/share/qemu")


def find(name: str) -> Path:
    """Return the path of a file of Debian's seabios package. BootError when it is not installed.

    ``AVMM_FIRMWARE`` names a folder that is looked into first.
    """
    places = [os.environ["AVMM_FIRMWARE"]] if os.environ.get("AVMM_FIRMWARE") else []
    for place in (*places, *_PLACES):
        path = Path(place) / name
        if path.is_file():
            return path
    raise BootError(f"cannot find {name}: install Debian's package seabios, or set AVMM_FIRMWARE to the folder that holds it")


def high_image(image: bytes) -> memoryview:
    """Return a firmware image in page-aligned memory, to be mapped right below 4 GiB. BootError when its size makes no sense."""
    if not image or len(image) % 65536 or len(image) > LARGEST:
        raise BootError(f"a firmware image is 64K to 16M in whole 64K, not {len(image)} bytes")
    room = mmap.mmap(-1, len(image))
    room[:] = image
    return memoryview(room)
