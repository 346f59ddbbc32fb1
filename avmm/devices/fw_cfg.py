"""The firmware configuration device (fw_cfg) by which SeaBIOS learns about the machine and gets its files.

After QEMU's specification "QEMU Firmware Configuration (fw_cfg) Device" (docs/specs/fw_cfg), I/O port form: selector at
510h, data at 511h, no DMA. A selected item is also offered to the bus as a data window, so ``rep insb`` is quick.

The invariant: byte n read after a selection is byte n of the item, and zero beyond its end, window or not.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass

from avmm.devices.device import Board, Device, PortRange

SELECTOR = 0x510
DATA = 0x511

SIGNATURE = 0x00
ID = 0x01
RAM_SIZE = 0x03
NOGRAPHIC = 0x04
SMP = 0x05
NUMA = 0x0D
BOOT_MENU = 0x0E
MAX_CPUS = 0x0F
FILE_DIRECTORY = 0x19
FILE_FIRST = 0x20
IRQ0_OVERRIDE = 0x8002

_NAME_SIZE = 56  # with the terminating NUL


class FwCfg(Device):
    """``items`` by selector and ``files`` by name (such as ``vgaroms/vgabios-isavga.bin``), read-only to the guest."""

    name = "fw_cfg"
    ports = (PortRange(SELECTOR, 2, 2),)

    @dataclass(frozen=True)
    class State:
        """What is selected, and how far it has been read. The items are configuration, not state."""

        selector: int
        position: int
        version: int = 1

    def __init__(self, board: Board, items: Mapping[int, bytes] | None = None, files: Mapping[str, bytes] | None = None) -> None:
        """ValueError when a file's name does not fit the directory, or an item takes the place of one of its own."""
        super().__init__(board)
        contents = {SIGNATURE: b"QEMU", ID: struct.pack("<I", 1)}  # bit 0: this interface; bit 1, DMA, is clear
        named = sorted((files or {}).items())
        reserved = {SIGNATURE, ID, FILE_DIRECTORY, *range(FILE_FIRST, FILE_FIRST + len(named))}
        if clash := reserved.intersection(items or {}):
            raise ValueError(f"fw_cfg item {min(clash):#x} is the device's own")
        contents.update(items or {})
        directory = [struct.pack(">I", len(named))]
        for selector, (name, content) in enumerate(named, FILE_FIRST):
            encoded = name.encode("ascii", "replace")
            if not 0 < len(encoded) < _NAME_SIZE:
                raise ValueError(f"fw_cfg file name {name!r} is not of 1 to {_NAME_SIZE - 1} characters")
            directory.append(struct.pack(f">IHH{_NAME_SIZE}s", len(content), selector, 0, encoded))
            contents[selector] = content
        contents[FILE_DIRECTORY] = b"".join(directory)
        # Not bytes: whoever serves the window may need a buffer that could be written.
        self._items = {selector: bytearray(content) for selector, content in contents.items()}
        self._selector = SIGNATURE
        self._data = self._items[SIGNATURE]
        self._position = 0
        self._window = False

    def reset(self) -> None:
        """Back to the signature, unread."""
        self._close()
        self._open(SIGNATURE, 0, window=False)

    def _open(self, selector: int, position: int, *, window: bool = True) -> None:
        self._selector = selector
        self._data = self._items.get(selector, bytearray())
        self._position = position
        self._window = window and position < len(self._data)
        if self._window:
            self.board.window(DATA, memoryview(self._data), start=position)

    def _close(self) -> None:
        """Close the window, if one is open, and note how far it got."""
        if self._window:
            self._position = self._reached()
            self._window = False
            self.board.window(DATA, None)

    def _reached(self) -> int:
        """How much of the item has been read. A board that serves no windows may always say 0 of them."""
        return max(self._position, self.board.window_position(DATA)) if self._window else self._position

    def write(self, port: int, size: int, value: int) -> None:
        """Select an item; the data port swallows writes."""
        if port == SELECTOR:
            self._close()
            self._open(value & 0xFFFF, 0)

    def read(self, port: int, size: int) -> int:
        """Return the next bytes of the item, low first; the selector reads as 0."""
        if port != DATA:
            return 0
        self._close()  # a read that does not fit what is left in the window comes here
        start = self._position
        self._position = min(start + size, len(self._data))
        value = int.from_bytes(self._data[start : start + size], "little")
        if self._position < len(self._data):
            self._open(self._selector, self._position)
        return value

    def window_done(self, port: int) -> None:
        """The item has been read to its end."""
        self._window = False
        self._position = len(self._data)

    def save(self) -> State:
        return self.State(self._selector, self._reached())

    def restore(self, state: State) -> None:
        if not isinstance(state, self.State) or state.version != 1:
            raise ValueError("this is not a saved fw_cfg of version 1")
        self._close()
        self._open(state.selector, min(state.position, len(self._items.get(state.selector, bytearray()))))


def standard_items(ram_size: int) -> dict[int, bytes]:
    """Return the items SeaBIOS asks every machine for: one processor, no NUMA, no boot menu."""
    return {
        RAM_SIZE: struct.pack("<Q", ram_size),
        NOGRAPHIC: struct.pack("<H", 0),
        SMP: struct.pack("<H", 1),
        NUMA: struct.pack("<QQ", 0, 0),
        BOOT_MENU: struct.pack("<H", 0),
        MAX_CPUS: struct.pack("<H", 1),
        IRQ0_OVERRIDE: struct.pack("<I", 1),
    }


def e820_file(ram_size: int) -> bytes:
    """Return the content of the file ``etc/e820``: one range of RAM from 0."""
    return struct.pack("<QQI", 0, ram_size, 1)
