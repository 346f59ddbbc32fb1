"""The BIOS data area at 0040:0000 and the extended one at 9FC0:0000: where things are, and how they look after POST.

IBM PC/AT and PS/2 BIOS Interface Technical Reference, "BIOS data areas". The invariant: the firmware keeps its state here,
in guest memory, where programs expect to find and change it; the VMM holds no second copy.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from avmm.boot.bios.rom import DISKETTE_TABLE, FONT_8X8, ROM_SEGMENT, VECTORS
from avmm.memory import GuestMemory

COM_PORTS = 0x400
EBDA_POINTER = 0x40E
EQUIPMENT = 0x410
MEMORY_KIB = 0x413
KEY_FLAGS = 0x417
KEY_STATES = 0x418
ALT_KEYPAD = 0x419
KEY_HEAD = 0x41A
KEY_TAIL = 0x41C
KEY_BUFFER = 0x41E
KEY_BUFFER_END = 0x43E
DISKETTE_SEEK = 0x43E
DISKETTE_STATUS = 0x441
TICKS = 0x46C
TICKS_MIDNIGHT = 0x470
BREAK = 0x471
RESET_FLAG = 0x472
DISK_STATUS = 0x474
DISK_COUNT = 0x475
LPT_TIMEOUTS = 0x478
COM_TIMEOUTS = 0x47C
KEY_BUFFER_START_POINTER = 0x480
KEY_BUFFER_END_POINTER = 0x482
DISK_INTERRUPT = 0x48E
DISKETTE_STATE = 0x490
KEY_MODE = 0x496
KEY_LEDS = 0x497
WAIT_POINTER = 0x498
WAIT_COUNT = 0x49C
WAIT_ACTIVE = 0x4A0

EBDA_SEGMENT = 0x9FC0
EBDA = EBDA_SEGMENT << 4
BASE_KIB = 639
FIXED_DISK_TABLES = EBDA + 0x3D
"""Two fixed disk parameter tables of 16 bytes, for int 41h and 46h."""


def install(memory: GuestMemory, *, coms: Sequence[int], floppies: int, fixed: int, mouse: bool, font_8x8: bool) -> None:
    """Write the interrupt vectors, the data area and the extended data area as POST leaves them; the tick count is 0."""
    segments = {number: ROM_SEGMENT if offset else 0 for number, offset in VECTORS.items()}
    offsets = dict(VECTORS)
    offsets[0x1D] = offsets[0x1F] = 0
    segments[0x1D] = segments[0x1F] = 0
    offsets[0x1E] = DISKETTE_TABLE
    for number, unit in ((0x41, 0), (0x46, 1)):
        segments[number], offsets[number] = EBDA_SEGMENT, FIXED_DISK_TABLES - EBDA + 16 * unit
    if font_8x8:
        offsets[0x43] = FONT_8X8
    memory.write(0, b"".join(struct.pack("<HH", offsets[number], segments[number]) for number in range(0x100)))

    bda = bytearray(0x100)

    def put(layout: str, address: int, *values: int) -> None:
        struct.pack_into(layout, bda, address - 0x400, *values)

    for index, port in enumerate(coms[:4]):
        put("<H", COM_PORTS + 2 * index, port)
    put("<H", EBDA_POINTER, EBDA_SEGMENT)
    put("<H", EQUIPMENT, equipment_word(floppies, len(coms), mouse))
    put("<H", MEMORY_KIB, BASE_KIB)
    put("<HH", KEY_HEAD, KEY_BUFFER - 0x400, KEY_BUFFER - 0x400)
    put("<HH", KEY_BUFFER_START_POINTER, KEY_BUFFER - 0x400, KEY_BUFFER_END - 0x400)
    put("<BH", 0x449, 3, 80)  # video: mode 3, 80 columns, until int 10h sets the mode itself
    put("<H", 0x44C, 0x1000)
    put("<H", 0x460, 0x0607)
    put("<H", 0x463, 0x3D4)
    put("<BH", 0x484, 24, 16)
    put("<B", DISK_COUNT, fixed)
    put("<4B", LPT_TIMEOUTS, 20, 20, 20, 20)
    put("<4B", COM_TIMEOUTS, 1, 1, 1, 1)
    put("<B", KEY_MODE, 0x10)  # a 101-key keyboard
    for unit in range(min(floppies, 2)):
        put("<B", DISKETTE_STATE + unit, 0x17)  # 1.44M established, 500 kbit/s
    put("<H", RESET_FLAG, *memory.unpack("<H", RESET_FLAG))  # programs that look how the machine was started
    memory.write(0x400, bda)

    ebda = bytearray(0x400)
    ebda[0] = 1  # its size in KiB
    memory.write(EBDA, ebda)


def equipment_word(floppies: int, coms: int, mouse: bool) -> int:
    """Int 11h: diskettes (bits 0, 6-7), coprocessor (1), pointing device (2), 80x25 colour (4-5), serial ports (9-11)."""
    word = 0x0022 | coms << 9 | mouse << 2
    return word | 1 | min(floppies - 1, 3) << 6 if floppies else word
