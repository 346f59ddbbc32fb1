"""ACPI tables as SeaBIOS takes them: files of fw_cfg, and a script that says where to put them and what to mend then.

After QEMU's linker/loader (hw/acpi/bios-linker-loader.c, "etc/table-loader"): the firmware allocates memory for each file, adds the
address that one got to the pointers into it, and computes the checksums.

The invariant: executed in order, the script makes of the files what :func:`avmm.boot.acpi.build` would have built at those addresses.
"""

from __future__ import annotations

import struct

from avmm.boot import acpi

RSDP_FILE, TABLES_FILE, SCRIPT_FILE = "etc/acpi/rsdp", "etc/acpi/tables", "etc/table-loader"
PM_BASE = 0x600
"""Where SeaBIOS expects the power management block of a machine that has the script."""
_ALLOCATE, _ADD_POINTER, _ADD_CHECKSUM = 1, 2, 3
_HIGH, _SEGMENT_F = 1, 2
_ENTRY = 128
_HEADER, _SUM = 36, 9
"""A table's header, and where its checksum is."""
_RSDP_POINTERS = ((16, 4), (24, 8))
_FADT_POINTERS = ((36, 4), (40, 4), (132, 8), (140, 8))


def files(ram_size: int, *, vmbus: bool) -> dict[str, bytes]:
    """Return the files for a machine with so much memory."""
    tables, rsdp_at = acpi.build(ram_size, 0, vmbus, pm_base=PM_BASE)  # an address in them is an offset
    rsdp = tables[rsdp_at : rsdp_at + _HEADER]
    script = [_allocate(RSDP_FILE, 16, _SEGMENT_F), _allocate(TABLES_FILE, 64, _HIGH)]
    script += [_pointer(RSDP_FILE, offset, size) for offset, size in _RSDP_POINTERS]
    script += [_checksum(RSDP_FILE, 8, 0, 20), _checksum(RSDP_FILE, 32, 0, _HEADER)]
    for at in _roots(rsdp):
        size = 4 if tables[at : at + 4] == b"RSDT" else 8
        length = _length(tables, at)
        script += [_pointer(TABLES_FILE, at + offset, size) for offset in range(_HEADER, length, size)]
        script.append(_checksum(TABLES_FILE, at + _SUM, at, length))
    for at in _listed(tables, _roots(rsdp)[0]):
        if tables[at : at + 4] == b"FACP":
            script += [_pointer(TABLES_FILE, at + offset, size) for offset, size in _FADT_POINTERS]
            script.append(_checksum(TABLES_FILE, at + _SUM, at, _length(tables, at)))
    return {RSDP_FILE: rsdp, TABLES_FILE: tables, SCRIPT_FILE: b"".join(script)}


def _roots(rsdp: bytes) -> tuple[int, int]:
    """Return where RSDT and XSDT are."""
    return struct.unpack_from("<I", rsdp, 16)[0], struct.unpack_from("<Q", rsdp, 24)[0]


def _length(tables: bytes, at: int) -> int:
    return int.from_bytes(tables[at + 4 : at + 8], "little")


def _listed(tables: bytes, rsdt: int) -> list[int]:
    """Return where the tables are that the RSDT lists."""
    return [entry for (entry,) in struct.iter_unpack("<I", tables[rsdt + _HEADER : rsdt + _length(tables, rsdt)])]


def _name(file: str) -> bytes:
    return file.encode().ljust(56, b"\0")


def _command(number: int, *arguments: bytes) -> bytes:
    return (struct.pack("<I", number) + b"".join(arguments)).ljust(_ENTRY, b"\0")


def _allocate(file: str, alignment: int, zone: int) -> bytes:
    return _command(_ALLOCATE, _name(file), struct.pack("<IB", alignment, zone))


def _pointer(file: str, offset: int, size: int) -> bytes:
    """A pointer into the tables is in ``file``."""
    return _command(_ADD_POINTER, _name(file), _name(TABLES_FILE), struct.pack("<IB", offset, size))


def _checksum(file: str, at: int, first: int, length: int) -> bytes:
    return _command(_ADD_CHECKSUM, _name(file), struct.pack("<III", at, first, length))
