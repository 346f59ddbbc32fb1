"""Boot sectors for the console's tests: a few bytes of real-mode code behind a greeting printed through int 10h."""

from __future__ import annotations

from pathlib import Path

from avmm.devices.power import PM1_CONTROL, PM_BASE

ECHO = bytes.fromhex("b400 cd16 b40e bb0700 cd10 ebf3")  # what int 16h reads, int 10h prints
HALT = bytes.fromhex("fa f4")
IDLE = bytes.fromhex("fb f4 ebfd")
POWER_OFF = bytes.fromhex("ba") + (PM_BASE + PM1_CONTROL).to_bytes(2, "little") + bytes.fromhex("b80020 ef ebfe")
TRIPLE_FAULT = bytes.fromhex("31c0 50 50 50 89e5 0f015e00 cc")  # lidt of six zero bytes; int3
FETCH_FROM_NOTHING = bytes.fromhex("ea 0000 00a0")  # the graphics window, closed in text mode, is no memory
SERIAL_ECHO = bytes.fromhex("bafd03 ec a801 74f8 baf803 ec ee ebf1")  # wait for data ready; in; out
SERIAL_GREETING = bytes.fromhex("baf803 b073 ee b065 ee b072 ee b069 ee b061 ee b06c ee b03e ee")  # "serial>"
MODE_13H = bytes.fromhex("b81300 cd10 b800a0 8ec0 31ff b90080 b004 f3aa")  # the upper half red

MOUSE = bytes.fromhex("fa b0a8 e664 b0d4 e664 b0f4 e660 e464 a801 74fa 88c4 e460 f6c420 74f1 b82a0e bb0700 cd10 ebe7")
"""Enable the mouse, and print a star for each byte that comes from it."""
BEEP = bytes.fromhex("b0b6 e643 b0a9 e642 b004 e642 e461 0c03 e661")  # 1193 ticks: 1000 Hz
LINES_50 = bytes.fromhex("b81211 b300 cd10 b402 b700 ba0031 cd10 b8420e bb0700 cd10")  # the 8x8 font; a B in the last of 50 rows


def boot_sector(greeting: str = "", then: bytes = IDLE, size: int = 512) -> bytes:
    """Return a bootable image that prints ``greeting`` and goes on with ``then``."""
    code = bytes.fromhex("31c0 8ed8 be0000 ac 84c0 7409 b40e bb0700 cd10 ebf2") + then
    message = (0x7C00 + len(code)).to_bytes(2, "little")
    sector = code[:5] + message + code[7:] + greeting.encode("ascii") + b"\0"
    assert len(sector) <= 510
    return sector.ljust(510, b"\0") + b"\x55\xaa" + bytes(size - 512)


def write(path: Path, greeting: str = "", then: bytes = IDLE, size: int = 4096) -> str:
    """Write such an image and return its path."""
    path.write_bytes(boot_sector(greeting, then, size))
    return str(path)
