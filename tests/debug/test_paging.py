"""The debugger's own walk through page tables agrees with the processor's in each mode, and leaves no trace."""

from __future__ import annotations

import pytest

from avmm.debug.paging import pieces, translate
from tests.cpu.rig import PD, PDPT, PML4, PRESENT, PT, USER, WRITE, Rig

MODES = ("real", "pm32", "paging", "pae", "long", "compat")


def walk(rig: Rig, linear: int) -> int | None:
    def read(address: int, size: int) -> int | None:
        return int.from_bytes(rig.ram[address : address + size], "little") if address + size <= len(rig.ram) else None

    return translate(rig.cpu, read, linear)


@pytest.mark.parametrize("mode", MODES)
def test_it_agrees_with_the_processor(mode: str) -> None:
    rig = Rig("nop\n STOP", mode)
    paged = mode not in ("real", "pm32")
    if paged:
        rig.page(0x3000, 0x7000 | PRESENT | WRITE)
        rig.page(0x4000, 0)
    rig.run()
    before = bytes(rig.ram)
    for linear in (0x1234, 0x3ABC, 0x4000, 0x1FFFFF, 0x200000, 0x40000000):
        found = walk(rig, linear)
        if paged:
            assert found == (None if linear in (0x4000, 0x200000, 0x40000000) else 0x7ABC if linear == 0x3ABC else linear)
    assert bytes(rig.ram) == before
    for linear in (0x1234, 0x3ABC, 0x4000, 0x1FFFFF):
        assert walk(rig, linear) == rig.cpu.translate(linear)


def test_large_pages() -> None:
    rights = PRESENT | WRITE | USER
    rig = Rig("nop\n STOP", "long")
    rig.run()
    rig.poke(PD + 8, "Q", 0x600000 | 1 << 7 | rights)  # 2 MiB at 2 MiB
    rig.poke(PDPT + 8, "Q", 0x80000000 | 1 << 7 | rights)  # 1 GiB at 1 GiB
    assert walk(rig, 0x2ABCDE) == 0x6ABCDE
    assert walk(rig, 0x40123456) == 0x80123456
    assert walk(rig, 0xFFFF_8000_0000_0000 - 0x1000) is None  # not canonical
    rig.poke(PML4, "Q", 1 << 40 | rights)  # a table beyond RAM
    assert walk(rig, 0x1000) is None

    rig = Rig("nop\n STOP", "paging", cr4=0x10)
    rig.run()
    rig.poke(PML4 + 4, "I", 0x00800000 | 1 << 13 | 1 << 7 | rights)  # 4 MiB, bit 32 of its address in bit 13
    assert walk(rig, 0x412345) == 0x1_00812345
    rig = Rig("nop\n STOP", "paging")
    rig.run()
    rig.poke(PML4 + 4, "I", PT | 1 << 7 | rights)  # without CR4.PSE the bit means nothing
    assert walk(rig, 0x401234) == 0x1234


def test_ranges_are_cut_at_pages() -> None:
    assert list(pieces(0xFF0, 0x1020)) == [(0xFF0, 0x10), (0x1000, 0x1000), (0x2000, 0x10)]
    assert list(pieces(0x1000, 0)) == []
