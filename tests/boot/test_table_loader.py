"""The script that puts ACPI tables where a firmware wants them: carried out here, as SeaBIOS does."""

from __future__ import annotations

import struct

import pytest

from avmm.boot import acpi, table_loader

MEMORY = 64 << 20


def carry_out(files: dict[str, bytes], places: dict[int, int]) -> dict[str, tuple[int, bytearray]]:
    """Return, for each file, where it was put, zone by zone, and what it has become."""
    script, put = files[table_loader.SCRIPT_FILE], {}
    assert len(script) % 128 == 0
    for at in range(0, len(script), 128):
        (command,) = struct.unpack_from("<I", script, at)
        file = script[at + 4 : at + 60].rstrip(b"\0").decode()
        if command == 1:
            alignment, zone = struct.unpack_from("<IB", script, at + 60)
            assert places[zone] % alignment == 0
            put[file] = places[zone], bytearray(files[file])
        elif command == 2:
            target = script[at + 60 : at + 116].rstrip(b"\0").decode()
            offset, size = struct.unpack_from("<IB", script, at + 116)
            content = put[file][1]
            value = int.from_bytes(content[offset : offset + size], "little")
            assert value < len(put[target][1])
            content[offset : offset + size] = (value + put[target][0]).to_bytes(size, "little")
        else:
            assert command == 3
            offset, first, length = struct.unpack_from("<III", script, at + 60)
            content = put[file][1]
            content[offset] = 0
            content[offset] = -sum(content[first : first + length]) & 0xFF
    return put


@pytest.mark.parametrize("vmbus", [False, True])
def test_the_script_makes_what_would_have_been_built_there(vmbus: bool) -> None:
    high, segment_f = 0x3FF_FE00, 0xF67C0
    put = carry_out(table_loader.files(MEMORY, vmbus=vmbus), {1: high, 2: segment_f})
    wanted, at = acpi.build(MEMORY, high, vmbus, pm_base=table_loader.PM_BASE)
    assert at == high
    assert put[table_loader.RSDP_FILE] == (segment_f, wanted[:36])
    assert put[table_loader.TABLES_FILE][1][64:] == wanted[64:]
