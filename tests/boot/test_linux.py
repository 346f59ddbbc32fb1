"""The Linux loader against boot.rst and zero-page.rst."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avmm.boot import linux
from avmm.boot.errors import BootError
from avmm.boot.linux import load
from avmm.memory import GuestMemory
from tests.boot.images import MIB, bzimage, elf

RAM = 8 * MIB


@pytest.fixture
def memory() -> GuestMemory:
    return GuestMemory(memoryview(bytearray(b"\xcc") * RAM))


def boot_params(memory: GuestMemory, layout: str, offset: int) -> tuple[int, ...]:
    return memory.unpack(layout, linux.BOOT_PARAMS + offset)


def test_64_bit_entry(memory: GuestMemory) -> None:
    image = bzimage(preferred=2 * MIB)
    state = load(memory, RAM, image, None, "console=ttyS0", 0xE0000)
    assert memory.read(2 * MIB, 1024) == image[5 * 512 :]
    assert (state.rip, state.gprs["rsi"]) == (2 * MIB + 0x200, linux.BOOT_PARAMS)
    assert (state.cr0, state.cr4, state.efer) == (0x80000011, 0x20, 0x500)
    assert (state.cs.selector, state.cs.attributes) == (0x10, 0xA9B)
    assert (state.ds.selector, state.ds.attributes, state.ds.limit) == (0x18, 0xC93, 0xFFFFFFFF)
    assert state.rflags == 2  # interrupts off


@pytest.mark.parametrize("linear", [0, 0x12345, MIB, 0x3FFFFFFF, 0x40000000, 0xFEE00123, 0xFFFFFFFF])
def test_page_tables_map_the_first_4_gib_to_themselves(memory: GuestMemory, linear: int) -> None:
    table = load(memory, RAM, bzimage()).cr3
    for shift in (39, 30):
        (entry,) = memory.unpack("<Q", table + 8 * (linear >> shift & 511))
        assert entry & 0x83 == 3
        table = entry & ~0xFFF
    (entry,) = memory.unpack("<Q", table + 8 * (linear >> 21 & 511))
    assert entry & 0xFFF == 0x83
    assert (entry & ~0x1FFFFF) + (linear & 0x1FFFFF) == linear


@pytest.mark.parametrize("long_mode", [True, False])
def test_descriptor_table_has_the_segments(memory: GuestMemory, long_mode: bool) -> None:
    base, limit = load(memory, RAM, bzimage(xloadflags=int(long_mode))).gdtr
    code, data = memory.unpack("<QQ", base + 0x10)
    assert limit == 47
    assert code == (0x00AF9B000000FFFF if long_mode else 0x00CF9B000000FFFF)
    assert data == 0x00CF93000000FFFF


def test_32_bit_entry(memory: GuestMemory) -> None:
    state = load(memory, RAM, bzimage(xloadflags=0, relocatable=0, code32_start=MIB, preferred=4 * MIB))
    assert (state.rip, state.gprs) == (MIB, {"rsi": linux.BOOT_PARAMS})
    assert (state.cr0, state.cr4, state.efer, state.cs.attributes) == (0x11, 0, 0, 0xC9B)


def test_old_protocol_without_preferred_address(memory: GuestMemory) -> None:
    assert load(memory, RAM, bzimage(version=0x0206, preferred=4 * MIB)).rip == MIB


def test_boot_params(memory: GuestMemory) -> None:
    image = bzimage()
    load(memory, RAM, image, b"initrd" * 1000, "root=/dev/sda quiet", 0xE0000)
    assert boot_params(memory, "<Q", 0x70) == (0xE0000,)
    assert memory.read(linux.BOOT_PARAMS + 0x1F1, 0x1F) == image[0x1F1:0x210]
    assert boot_params(memory, "<BB", 0x210) == (0xFF, 0x81)
    address, size = boot_params(memory, "<II", 0x218)
    assert memory.read(address, size) == b"initrd" * 1000
    assert address % 4096 == 0
    assert address + size <= RAM
    (line,) = boot_params(memory, "<I", 0x228)
    assert memory.read(line, 20) == b"root=/dev/sda quiet\0"
    assert boot_params(memory, "<BB", 0x06) == (3, 80)
    assert boot_params(memory, "<BBH", 0x0E) == (25, 1, 16)
    assert boot_params(memory, "<H", 0x02) == (7 * 1024,)
    assert boot_params(memory, "<I", 0x1E0) == (7 * 1024,)
    assert boot_params(memory, "<Q", 0x258) == (MIB,)


def test_memory_map(memory: GuestMemory) -> None:
    load(memory, RAM, bzimage())
    (count,) = boot_params(memory, "<B", 0x1E8)
    entries = [boot_params(memory, "<QQI", 0x2D0 + 20 * index) for index in range(count)]
    assert entries == [(0, 0x9FC00, 1), (0x9FC00, 0x400, 2), (0xE0000, 0x20000, 2), (MIB, 7 * MIB, 1)]
    assert boot_params(memory, "<QQI", 0x2D0 + 20 * count) == (0, 0, 0)


def test_no_initrd_and_no_rsdp(memory: GuestMemory) -> None:
    load(memory, RAM, bzimage())
    assert boot_params(memory, "<II", 0x218) == (0, 0)
    assert boot_params(memory, "<Q", 0x70) == (0,)


def test_initrd_stays_below_the_kernels_limit(memory: GuestMemory) -> None:
    load(memory, RAM, bzimage(initrd_max=4 * MIB - 1), bytes(5000))
    address, size = boot_params(memory, "<II", 0x218)
    assert address == 4 * MIB - 8192
    assert size == 5000


def test_vmlinux(memory: GuestMemory) -> None:
    high = 0xFFFFFFFF80000000
    image = elf([(MIB, high + MIB, b"text", 4), (2 * MIB, high + 2 * MIB, b"data", 100)], MIB, bits=64)
    state = load(memory, RAM, image, b"rd", "quiet", 0xE0000)
    assert (state.rip, state.efer, state.cr3) == (MIB, 0x500, linux.PAGE_TABLES)
    assert memory.read(MIB, 5) == b"text\xcc"
    assert memory.read(2 * MIB, 101) == b"data" + bytes(96) + b"\xcc"
    assert memory.read(linux.BOOT_PARAMS + 0x202, 4) == b"HdrS"
    assert boot_params(memory, "<H", 0x206) == (0x020C,)
    assert boot_params(memory, "<H", 0x1FE) == (0xAA55,)
    assert boot_params(memory, "<I", 0x21C) == (2,)


@pytest.mark.parametrize("bits", [32, 64])
def test_vmlinux_with_a_virtual_entry(memory: GuestMemory, bits: int) -> None:
    state = load(memory, RAM, elf([(MIB, 0xC0100000, b"text", 4)], 0xC0100002, bits=bits))
    assert state.rip == MIB + 2
    assert state.cs.attributes == (0xA9B if bits == 64 else 0xC9B)


GOOD = bzimage()
GOOD_ELF = elf([(MIB, MIB, b"text", 64)], MIB, bits=64)


@pytest.mark.parametrize(
    ("image", "why"),
    [
        (b"", "not a Linux kernel"),
        (b"MZ" + bytes(5000), "not a Linux kernel"),
        (GOOD[:0x240], "not a Linux kernel"),
        (GOOD[: 5 * 512], "cut off"),
        (bzimage(syssize=65), "cut off: 3584 bytes, and its header says 3600"),
        (bzimage(syssize=0x10040), "cut off"),
        (bzimage(version=0x0204), "protocol 2.04"),
        (bzimage(loadflags=0), "bzImage"),
        (bzimage(init_size=64 * MIB), "needs 65 MiB"),
        (bzimage(preferred=1 << 40), "MiB of RAM"),
        (bzimage(preferred=0x10000), "below 1 MiB"),
        (GOOD_ELF[:100], "program headers"),
        (GOOD_ELF[:-1], "inside"),
        (elf([(MIB, MIB, b"text", 64)], 0, bits=64), "entry point"),
        (elf([(MIB, MIB, b"text", 2)], MIB, bits=64), "inside"),
        (elf([], MIB, bits=64), "nothing to load"),
        (elf([(0x10000, 0x10000, b"text", 64)], 0x10000, bits=64), "below 1 MiB"),
        (b"\x7fELF" + bytes(100), "neither"),
        (GOOD_ELF[:18] + b"\xb7\0" + GOOD_ELF[20:], "not an x86 executable"),
    ],
)
def test_images_that_cannot_be_started(memory: GuestMemory, image: bytes, why: str) -> None:
    before = bytes(memory.view)
    with pytest.raises(BootError, match=why):
        load(memory, RAM, image)
    assert bytes(memory.view) == before


@pytest.mark.parametrize(
    ("ram", "initrd", "line", "why"),
    [
        (RAM, bytes(7 * MIB), "", "initial RAM disk"),
        (RAM, None, "x" * 2048, "command line has 2048 bytes"),
        (16 * MIB, None, "", "has 8 MiB of RAM, not 16"),
        (MIB, None, "", "too few"),
    ],
)
def test_what_does_not_fit(memory: GuestMemory, ram: int, initrd: bytes | None, line: str, why: str) -> None:
    before = bytes(memory.view)
    with pytest.raises(BootError, match=why):
        load(memory, ram, GOOD, initrd, line)
    assert bytes(memory.view) == before


MUTATION = st.tuples(st.one_of(st.integers(0, 0x2FF), st.integers(0x1F1, 0x268)), st.integers(0, 255))


@settings(derandomize=True, deadline=None, max_examples=300)
@given(st.sampled_from([GOOD, GOOD_ELF]), st.lists(MUTATION, max_size=12), st.integers(0, len(GOOD)))
def test_mutated_images_raise_nothing_but_boot_error(image: bytes, mutations: list[tuple[int, int]], length: int) -> None:
    mutated = bytearray(image)
    for offset, value in mutations:
        if offset < len(mutated):
            mutated[offset] = value
    if length % 3 == 0:
        del mutated[length:]
    memory = GuestMemory(memoryview(bytearray(3 * MIB)))
    try:
        state = load(memory, 3 * MIB, bytes(mutated), b"initrd", "quiet")
    except BootError:
        return
    assert MIB <= state.rip < 3 * MIB


def test_mutated_setup_size_uses_the_default(memory: GuestMemory) -> None:
    image = bytearray(GOOD)
    image[0x1F1] = 0  # means 4
    load(memory, RAM, bytes(image))
    assert memory.read(MIB, 16) == GOOD[5 * 512 :][:16]


def test_load_address_just_fits() -> None:
    memory = GuestMemory(memoryview(bytearray(4 * MIB)))
    load(memory, 4 * MIB, bzimage(init_size=3 * MIB))
    with pytest.raises(BootError, match="needs 5 MiB"):
        load(memory, 4 * MIB, bzimage(init_size=3 * MIB + 1))


@pytest.mark.parametrize(("version", "syssize", "length"), [(0x020F, 64, 1024), (0x020F, 64, 1009), (0x020F, 63, 1024), (0x0203, 0x10040, 1024)])
def test_an_image_may_end_in_its_last_paragraph_and_go_on_behind_it(version: int, syssize: int, length: int) -> None:
    linux.check_length(bzimage(bytes(length), version=version, syssize=syssize), 5 * 512)


def test_header_fields_survive_beyond_the_known_ones(memory: GuestMemory) -> None:
    image = bytearray(GOOD)
    struct.pack_into("<I", image, 0x264, 0x12345678)  # handover_offset
    load(memory, RAM, bytes(image))
    assert boot_params(memory, "<I", 0x264) == (0x12345678,)
