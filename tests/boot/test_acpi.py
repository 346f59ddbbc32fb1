"""The ACPI tables, read back by a walker of our own; and the AML encodings against the specification's."""

from __future__ import annotations

import struct

import pytest

from avmm.boot import acpi, aml

AT = 0xE0000


class Walker:
    """Reads the tables as an OS does: from the RSDP, checking every sum."""

    def __init__(self, blob: bytes, rsdp: int, at: int = AT) -> None:
        self.blob, self.at, self.rsdp = blob, at, rsdp
        start = rsdp - at
        assert blob[start : start + 8] == b"RSD PTR "
        assert rsdp % 16 == 0
        assert sum(blob[start : start + 20]) % 256 == 0
        assert sum(blob[start : start + 36]) % 256 == 0
        revision, rsdt, length, xsdt = struct.unpack_from("<BIIQ", blob, start + 15)
        assert (revision, length) == (2, 36)
        by_rsdt = struct.unpack("<2I", self.table(rsdt, b"RSDT")[36:])
        by_xsdt = struct.unpack("<2Q", self.table(xsdt, b"XSDT")[36:])
        assert by_rsdt == by_xsdt
        self.fadt = self.table(by_xsdt[0], b"FACP")
        self.madt = self.table(by_xsdt[1], b"APIC")
        facs, dsdt = struct.unpack_from("<II", self.fadt, 36)
        assert struct.unpack_from("<QQ", self.fadt, 132) == (facs, dsdt)
        self.dsdt = self.table(dsdt, b"DSDT")
        assert facs % 64 == 0
        assert blob[facs - at : facs - at + 8] == b"FACS" + struct.pack("<I", 64)

    def table(self, address: int, signature: bytes) -> bytes:
        start = address - self.at
        (length,) = struct.unpack_from("<I", self.blob, start + 4)
        content = self.blob[start : start + length]
        assert content[:4] == signature
        assert len(content) == length
        assert sum(content) % 256 == 0
        return content

    def madt_entries(self) -> list[bytes]:
        entries, offset = [], 44
        while offset < len(self.madt):
            entries.append(self.madt[offset : offset + self.madt[offset + 1]])
            offset += self.madt[offset + 1]
        assert offset == len(self.madt)
        return entries


def walk(**options: int | bytes) -> Walker:
    return Walker(*acpi.build(64 << 20, AT, **options))  # type: ignore[arg-type]


@pytest.mark.parametrize("vmbus", [False, True])
@pytest.mark.parametrize("at", [0xE0000, 0xF0040, 0x3FF0000])
def test_tables_hang_together_wherever_they_are(at: int, vmbus: bool) -> None:
    blob, rsdp = acpi.build(64 << 20, at, vmbus)
    Walker(blob, rsdp, at)
    assert len(blob) < 0x10000


def test_misaligned_place_is_refused() -> None:
    with pytest.raises(ValueError, match="aligned"):
        acpi.build(64 << 20, 0xE0010)


@pytest.mark.parametrize(
    ("offset", "layout", "expected"),
    [
        (8, "<B", 3),  # revision
        (46, "<H", 9),  # SCI
        (48, "<I", 0xB2),
        (52, "<H", 0xF0F1),  # enable, disable
        (56, "<I", 0xB000),
        (64, "<I", 0xB004),
        (76, "<I", 0xB008),
        (80, "<I", 0xB010),
        (88, "<5B", (4, 2, 0, 4, 4)),
        (108, "<B", 0x32),
        (109, "<H", 3),
        (116, "<BBBBQ", (1, 8, 0, 1, 0xCF9)),
        (128, "<B", 6),
        (148, "<BBBBQ", (1, 32, 0, 2, 0xB000)),
        (172, "<BBBBQ", (1, 16, 0, 2, 0xB004)),
        (208, "<BBBBQ", (1, 32, 0, 3, 0xB008)),
        (220, "<BBBBQ", (1, 32, 0, 1, 0xB010)),
    ],
)
def test_fadt(offset: int, layout: str, expected: int | tuple[int, ...]) -> None:
    fadt = walk().fadt
    assert len(fadt) == 244
    assert struct.unpack_from(layout, fadt, offset) == (expected if isinstance(expected, tuple) else (expected,))


def test_fadt_follows_the_power_management_base() -> None:
    fadt = walk(pm_base=0x600).fadt
    assert struct.unpack_from("<I", fadt, 56) + struct.unpack_from("<I", fadt, 64) == (0x600, 0x604)
    assert struct.unpack_from("<II", fadt, 76) == (0x608, 0x610)
    assert [struct.unpack_from("<Q", fadt, offset + 4)[0] for offset in (148, 172, 208, 220)] == [0x600, 0x604, 0x608, 0x610]


def test_fadt_flags_offer_reset_and_a_fixed_power_button() -> None:
    (flags,) = struct.unpack_from("<I", walk().fadt, 112)
    assert flags & 1 << 10
    assert not flags & 1 << 4  # PWR_BUTTON clear: it is in PM1
    assert not flags & 1 << 8  # TMR_VAL_EXT clear: 24 bits


def test_madt() -> None:
    walker = walk()
    assert struct.unpack_from("<II", walker.madt, 36) == (0xFEE00000, 1)
    assert walker.madt_entries() == [
        struct.pack("<BBBBI", 0, 8, 0, 0, 1),
        struct.pack("<BBBBII", 1, 12, 0, 0, 0xFEC00000, 0),
        struct.pack("<BBBBIH", 2, 10, 0, 0, 2, 0),
        struct.pack("<BBBBIH", 2, 10, 0, 9, 9, 0x0D),
        struct.pack("<BBBHB", 4, 6, 0xFF, 0, 1),
    ]
    assert [entry[0] for entry in walk(ioapic_present=False).madt_entries()] == [0, 4]


def term_length(content: bytes, at: int) -> tuple[int, int]:
    """(value of the PkgLength at ``at``, bytes it takes)"""
    extra = content[at] >> 6
    if not extra:
        return content[at] & 0x3F, 1
    return content[at] & 0xF | int.from_bytes(content[at + 1 : at + 1 + extra], "little") << 4, 1 + extra


def test_dsdt_is_one_scope_and_the_s5_package() -> None:
    body = walk(vmbus=True).dsdt[36:]
    assert body[0] == 0x10
    length, _ = term_length(body, 1)
    assert body[1 + length :] == b"\x08\\_S5_\x12\x06\x04\0\0\0\0"


@pytest.mark.parametrize("hid", ["PNP0A03", "PNP0B00", "PNP0303", "PNP0F13", "PNP0501"])
def test_dsdt_names_the_devices(hid: str) -> None:
    assert b"\x08_HID" + aml.eisa_id(hid) in walk().dsdt


def test_dsdt_options() -> None:
    vmbus = b"\x08_HID\x0dVMBus\0"
    assert vmbus not in walk().dsdt
    with_vmbus = walk(vmbus=True).dsdt
    assert vmbus in with_vmbus
    assert struct.pack("<IIIII", 0, 0xF8000000, 0xFBFFFFFF, 0, 0x4000000) in with_vmbus
    assert aml.eisa_id("PNP0A03") not in walk(pci=False).dsdt
    assert aml.eisa_id("PNP0303") in walk(pci=False).dsdt
    extra = aml.device("TST0", aml.name("_HID", aml.string("TEST0001")))
    assert extra in walk(extra_devices=extra).dsdt


@pytest.mark.parametrize(
    ("path", "encoded"),
    [
        ("PCI0", b"PCI0"),
        ("_S5", b"_S5_"),
        ("\\_SB", b"\\_SB_"),
        ("\\_SB.PCI0", b"\\\x2e_SB_PCI0"),
        ("_SB.PCI0.ISA", b"\x2f\x03_SB_PCI0ISA_"),
    ],
)
def test_name_strings(path: str, encoded: bytes) -> None:
    assert aml.name_string(path) == encoded


def test_name_segments_have_four_characters() -> None:
    with pytest.raises(ValueError, match="four"):
        aml.name_string("TOOLONG")


@pytest.mark.parametrize("size", [0, 1, 62, 63, 64, 4092, 4093, 4094, 70000, 1 << 20])
def test_package_length_counts_itself(size: int) -> None:
    encoded = aml.package_length(bytes(size))
    length, taken = term_length(encoded, 0)
    assert length == len(encoded) == size + taken
    assert taken == (1 if size < 63 else 2 if size < 4094 else 3 if size < (1 << 20) - 3 else 4)


def test_package_length_has_a_limit() -> None:
    with pytest.raises(ValueError, match="too many"):
        aml.package_length(bytes(1 << 28))


@pytest.mark.parametrize(
    ("value", "encoded"),
    [
        (0, b"\0"),
        (1, b"\1"),
        (2, b"\x0a\2"),
        (0xFF, b"\x0a\xff"),
        (0x100, b"\x0b\0\1"),
        (0x10000, b"\x0c\0\0\1\0"),
        (1 << 32, b"\x0e\0\0\0\0\1\0\0\0"),
    ],
)
def test_integers(value: int, encoded: bytes) -> None:
    assert aml.integer(value) == encoded


def test_integers_have_64_bits() -> None:
    with pytest.raises(ValueError, match="64-bit"):
        aml.integer(1 << 64)


def test_eisa_id() -> None:
    assert aml.eisa_id("PNP0A03") == b"\x0c\x41\xd0\x0a\x03"


def test_resources() -> None:
    assert aml.io(0x3F8, 8, 8) == bytes.fromhex("4701f803f8030808")
    assert aml.irq(12) == bytes.fromhex("220010")
    assert aml.bus_range(0, 0xFF) == bytes.fromhex("880d00020c000000 0000ff0000000001")
    assert aml.memory_range(0xA0000, 0xBFFFF, cacheable=True) == bytes.fromhex("871700000c0300000000 00000a00 ffff0b00 00000000 00000200")
    assert aml.resources(aml.irq(1)) == b"\x11\x08\x0a\x05\x22\x02\x00\x79\x00"
