"""The ACPI tables of the machine, built for a place in guest memory.

After the ACPI specification 3.0, "ACPI Software Programming Model": RSDP, RSDT, XSDT, FADT, FACS, MADT, and a DSDT made with
:mod:`avmm.boot.aml`. They describe the ports of :mod:`avmm.devices.power`, one local APIC and, if wanted, the I/O APIC.

The invariant: every table's bytes sum to zero, and every address in them points into the blob.
"""

from __future__ import annotations

import struct

from avmm.boot import aml
from avmm.devices import ioapic, lapic_registers, power

OEM_ID = b"AVMM  "
OEM_TABLE_ID = b"AVMM    "
RESET_PORT = 0xCF9
RESET_VALUE = 6

PCI_MEMORY = (0xE0000000, 0xF7FFFFFF)
VMBUS_MEMORY = (0xF8000000, 0xFBFFFFFF)

_IRQ0_GSI = 2  # as on every PC with an I/O APIC
_ACTIVE_HIGH_LEVEL = 0x000D
_LINT1 = 1

# FADT fixed feature flags and boot architecture flags
_WBINVD, _PROC_C1, _SLP_BUTTON, _FIX_RTC, _RESET_REG_SUP = 1 << 0, 1 << 2, 1 << 5, 1 << 6, 1 << 10
_LEGACY_DEVICES, _HAS_8042 = 1 << 0, 1 << 1
_CMOS_CENTURY = 0x32


def build(
    ram_size: int,
    at: int,
    vmbus: bool = False,
    *,
    ioapic_present: bool = True,
    pci: bool = True,
    pm_base: int = power.PM_BASE,
    extra_devices: bytes = b"",
) -> tuple[bytes, int]:
    """Return (blob, RSDP address): the tables, to be placed at guest-physical address ``at``.

    ``at`` is a multiple of 64 and, for guests that search for the RSDP, in E0000h-FFFFFh. ``vmbus`` adds the device by
    which Hyper-V guests find VMBus; ``extra_devices`` is AML put into ``\\_SB``. ``ioapic_present`` and ``pci`` say what the
    machine has, ``pm_base`` where its :class:`~avmm.devices.power.AcpiPower` is. ValueError when ``at`` is misaligned.
    """
    if at % 64:
        raise ValueError(f"ACPI tables at {at:#x} would not be aligned to 64 bytes")
    blob = bytearray(64)  # the RSDP comes last, when it is known where the others are

    def append(content: bytes) -> int:
        blob.extend(bytes(-len(blob) % 64))
        blob.extend(content)
        return at + len(blob) - len(content)

    facs = append(_facs())
    dsdt = append(table(b"DSDT", 2, dsdt_body(ram_size, vmbus=vmbus, pci=pci, extra_devices=extra_devices)))
    tables = [append(_fadt(facs, dsdt, pm_base)), append(_madt(ioapic_present))]
    rsdt = append(table(b"RSDT", 1, struct.pack(f"<{len(tables)}I", *tables)))
    xsdt = append(table(b"XSDT", 1, struct.pack(f"<{len(tables)}Q", *tables)))
    blob[0:36] = _rsdp(rsdt, xsdt)
    return bytes(blob), at


def checksum(data: bytes | bytearray) -> int:
    """Return the byte that makes the sum of ``data`` with it zero."""
    return -sum(data) & 0xFF


def table(signature: bytes, revision: int, body: bytes) -> bytes:
    """Return a system description table: header, body, right checksum."""
    layout = "<4sIBB6s8sI4sI"
    length = struct.calcsize(layout) + len(body)
    fields = (signature, length, revision, 0, OEM_ID, OEM_TABLE_ID, 1, b"AVMM", 1)
    content = bytearray(struct.pack(layout, *fields) + body)
    content[9] = checksum(content)
    return bytes(content)


def _rsdp(rsdt: int, xsdt: int) -> bytes:
    content = bytearray(struct.pack("<8sB6sBIIQB3x", b"RSD PTR ", 0, OEM_ID, 2, rsdt, 36, xsdt, 0))
    content[8] = checksum(content[:20])
    content[32] = checksum(content)
    return bytes(content)


def _facs() -> bytes:
    return struct.pack("<4sIIIIQB31x", b"FACS", 64, 0, 0, 0, 0, 1)


def _fadt(facs: int, dsdt: int, pm_base: int) -> bytes:
    body = bytearray(244 - 36)

    def put(offset: int, layout: str, *values: int) -> None:
        struct.pack_into("<" + layout, body, offset - 36, *values)

    def put_address(offset: int, port: int, size: int, access: int) -> None:
        put(offset, "BBBBQ", 1, 8 * size, 0, access, port)  # generic address structure in system I/O space

    put(36, "II", facs, dsdt)
    put(45, "B", 1)  # preferred profile: desktop
    put(46, "HI", power.SCI_IRQ, power.SMI_COMMAND)
    put(52, "BB", power.ACPI_ENABLE, power.ACPI_DISABLE)
    put(56, "I", pm_base + power.PM1_EVENT)
    put(64, "I", pm_base + power.PM1_CONTROL)
    put(76, "II", pm_base + power.PM_TIMER, pm_base + power.GPE0)
    put(88, "BBBBB", 4, 2, 0, 4, 4)  # lengths of PM1 event, PM1 control, PM2, timer and GPE0
    put(96, "HH", 0xFFFF, 0xFFFF)  # no C2, no C3
    put(108, "B", _CMOS_CENTURY)
    put(109, "H", _LEGACY_DEVICES | _HAS_8042)
    put(112, "I", _WBINVD | _PROC_C1 | _SLP_BUTTON | _FIX_RTC | _RESET_REG_SUP)
    put_address(116, RESET_PORT, 1, 1)
    put(128, "B", RESET_VALUE)
    put(132, "QQ", facs, dsdt)
    put_address(148, pm_base + power.PM1_EVENT, 4, 2)
    put_address(172, pm_base + power.PM1_CONTROL, 2, 2)
    put_address(208, pm_base + power.PM_TIMER, 4, 3)
    put_address(220, pm_base + power.GPE0, 4, 1)
    return table(b"FACP", 3, bytes(body))


def _madt(with_ioapic: bool) -> bytes:
    body = struct.pack("<II", lapic_registers.BASE, 1)  # PCAT_COMPAT: there are 8259s too
    body += struct.pack("<BBBBI", 0, 8, 0, 0, 1)  # processor 0, APIC id 0, enabled
    if with_ioapic:
        body += struct.pack("<BBBBII", 1, 12, 0, 0, ioapic.BASE, 0)
        body += struct.pack("<BBBBIH", 2, 10, 0, 0, _IRQ0_GSI, 0)
        body += struct.pack("<BBBBIH", 2, 10, 0, power.SCI_IRQ, power.SCI_IRQ, _ACTIVE_HIGH_LEVEL)
    body += struct.pack("<BBBHB", 4, 6, 0xFF, 0, _LINT1)  # NMI of every processor
    return table(b"APIC", 3, body)


def dsdt_body(ram_size: int, *, vmbus: bool, pci: bool, extra_devices: bytes) -> bytes:
    """Return the AML: the S5 sleep type, the PCI root bridge (if any) and the ISA devices."""
    system_bus = b"".join(_isa_devices())
    if pci:
        bridge = aml.device("ISA", aml.name("_ADR", aml.integer(0x00010000)), system_bus)
        system_bus = aml.device("PCI0", *_pci_root(ram_size), bridge)
    if vmbus:
        system_bus += aml.device(
            "VMB0",
            aml.name("_HID", aml.string("VMBus")),
            aml.name("_UID", aml.integer(0)),
            aml.name("_CRS", aml.resources(aml.memory_range(*VMBUS_MEMORY))),
        )
    soft_off = aml.integer(power.SLP_TYP_SOFT_OFF)
    sleep = aml.name("\\_S5", aml.package(soft_off, soft_off, aml.integer(0), aml.integer(0)))
    return aml.scope("\\_SB", system_bus, extra_devices) + sleep


def _pci_root(ram_size: int) -> tuple[bytes, ...]:
    first, last = PCI_MEMORY
    crs = aml.resources(
        aml.bus_range(0, 0xFF),
        aml.io(0xCF8, 8),
        aml.io_range(0x0000, 0x0CF7),
        aml.io_range(0x0D00, 0xFFFF),
        aml.memory_range(0xA0000, 0xBFFFF, cacheable=True),
        aml.memory_range(max(first, -(-ram_size >> 20) << 20), last),
    )
    return (
        aml.name("_HID", aml.eisa_id("PNP0A03")),
        aml.name("_UID", aml.integer(0)),
        aml.name("_BBN", aml.integer(0)),
        aml.name("_CRS", crs),
    )


def _isa_devices() -> tuple[bytes, ...]:
    def isa(path: str, hid: str, *descriptors: bytes) -> bytes:
        return aml.device(path, aml.name("_HID", aml.eisa_id(hid)), aml.name("_CRS", aml.resources(*descriptors)))

    return (
        isa("RTC", "PNP0B00", aml.io(0x70, 2), aml.irq(8)),
        isa("PS2K", "PNP0303", aml.io(0x60, 1), aml.io(0x64, 1), aml.irq(1)),
        isa("PS2M", "PNP0F13", aml.irq(12)),
        aml.device(
            "COM1",
            aml.name("_HID", aml.eisa_id("PNP0501")),
            aml.name("_UID", aml.integer(1)),
            aml.name("_CRS", aml.resources(aml.io(0x3F8, 8, 8), aml.irq(4))),
        ),
    )
