"""The real-mode form of the Linux boot protocol: what is accepted, what lies where, and the code that enters the kernel."""

from __future__ import annotations

import struct

import pytest

from avmm.boot.errors import BootError
from avmm.boot.linux_real_mode import HEAP_END, SETUP_SEGMENT, is_real_mode_only, prepare
from avmm.memory import GuestMemory

MIB = 1 << 20
BASE = SETUP_SEGMENT << 4


def image(*, code32: int = 0, setup_sectors: int = 2, rest: bytes = b"the rest", loadflags: int = 1, syssize: int = 0) -> bytes:
    setup = bytearray(512 * (setup_sectors + 1))
    setup[0x1F1] = setup_sectors
    struct.pack_into("<I", setup, 0x1F4, syssize)
    setup[0x1FE:0x206] = b"\x55\xaa\xeb\x66HdrS"
    struct.pack_into("<H", setup, 0x206, 0x0207)
    setup[0x211] = loadflags
    struct.pack_into("<I", setup, 0x214, code32)
    return bytes(setup) + rest


@pytest.mark.parametrize(
    ("kernel", "expected"), [(image(), True), (image(code32=MIB), False), (b"", False), (image()[:0x210], False), (bytes(2048), False)]
)
def test_which_kernels(kernel: bytes, expected: bool) -> None:
    assert is_real_mode_only(kernel) is expected


def test_placement() -> None:
    memory = GuestMemory(memoryview(bytearray(4 * MIB)), lambda address, length: None)
    entry = prepare(4 * MIB, image(), b"disk", "first second").place(memory)
    assert memory.read(MIB, 8) == b"the rest"
    assert memory.read(4 * MIB - 4096, 4) == b"disk"
    assert memory.unpack("<BB", BASE + 0x210) == (0xFF, 0x81)
    assert memory.unpack("<II", BASE + 0x218) == (4 * MIB - 4096, 4)
    assert memory.unpack("<H", BASE + 0x224) == (HEAP_END - 0x200,)
    (line,) = memory.unpack("<I", BASE + 0x228)
    assert memory.read(line, 13) == b"first second\0"
    assert entry[0] == 0xFA, "interrupts off"
    assert entry[-5:] == struct.pack("<BHH", 0xEA, 0, SETUP_SEGMENT + 0x20)[-5:]


@pytest.mark.parametrize(
    ("kernel", "initrd", "line", "problem"),
    [
        (image(rest=b""), None, "", "cut off"),
        (image(syssize=2), None, "", "cut off: 1544 bytes, and its header says 1568"),
        (image(loadflags=0), None, "", "below 1 MiB"),
        (image(setup_sectors=64), None, "", "cut off"),
        (image(), None, "x" * 4096, "takes 4095"),
        (image(rest=bytes(MIB + 1)), None, "", "do not fit into 2 MiB"),
        (image(), bytes(MIB), "", "do not fit into 2 MiB"),
    ],
)
def test_what_does_not_fit(kernel: bytes, initrd: bytes | None, line: str, problem: str) -> None:
    with pytest.raises(BootError, match=problem):
        prepare(2 * MIB, kernel, initrd, line)
