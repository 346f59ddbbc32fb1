"""REP MOVS and REP STOS, which the shim moves in bulk: the same memory, registers, units and faults as element by element."""

from __future__ import annotations

import itertools
import random

import pytest

from avmm.cpu.engine import Exit
from tests.cpu.rig import USER, Rig

MODES = ("real", "pm16", "pm32", "paging", "pae", "long", "compat")
WIDE = ("pm32", "paging", "pae", "long", "compat")
LETTER = {1: "b", 2: "w", 4: "d", 8: "q"}


def model(memory: bytearray, operation: str, size: int, to: int, source: int, count: int, value: int, mask: int) -> None:
    for _ in range(count):
        element = memory[source : source + size] if operation == "movs" else value.to_bytes(8, "little")[:size]
        memory[to : to + size] = element
        to, source = to + size & mask, source + size & mask


@pytest.mark.parametrize("mode", MODES)
def test_against_a_model(mode: str) -> None:
    chance = random.Random(f"strings {mode}")
    wide = mode in WIDE
    registers = ("edi", "esi", "ecx") if wide else ("di", "si", "cx")
    for _ in range(14):
        size = chance.choice((1, 2, 4, 8) if mode == "long" else (1, 2, 4))
        operation = chance.choice(("movs", "stos"))
        low, high = (0x20000, 0x60000) if wide else (0xB000, 0xE000)
        to, source = chance.randrange(low, high), chance.randrange(low, high)
        if chance.random() < 0.4:
            source = to + chance.randrange(-24, 25)  # overlapping: the order of the elements shows
        count = chance.choice((0, 1, 2, 3, 700, 5000)) if wide else chance.choice((0, 1, 2, 3, 700))
        rig = Rig(
            f"cld\nmov eax, 0x9abcdef1\nmov {registers[0]}, {to:#x}\nmov {registers[1]}, {source:#x}\nmov {registers[2]}, {count}\n"
            f"rep {operation}{LETTER[size]}\nSTOP",
            mode,
        )
        for address in range(low - 64, high + 8 * 5000 + 64, 4):
            rig.poke(address, "I", chance.getrandbits(32))
        expected = bytearray(rig.ram)
        mask = 0xFFFFFFFF if wide else 0xFFFF
        model(expected, operation, size, to, source, count, 0x9ABCDEF1, mask)
        assert rig.run(1 << 24) is Exit.STOPPED
        assert rig.ram[low - 64 :] == expected[low - 64 :], (mode, operation, size, hex(to), hex(source), count)
        assert rig.reg(registers[2]) == 0
        assert rig.reg(registers[0]) == to + size * count & mask
        assert rig.reg(registers[1]) == (source + size * count * (operation == "movs")) & mask


def test_direction_down_and_override_are_left_to_the_instruction() -> None:
    rig = Rig("std\nmov edi, 0x30ffc\nmov esi, 0x20ffc\nmov ecx, 1024\nrep movsd\ncld\nmov esi, 0x40000\nmov edi, 0x50000\nmov ecx, 512\nrep es movsd\nSTOP", "pm32")
    for i in range(1024):
        rig.poke(0x20000 + 4 * i, "I", i)
        rig.poke(0x40000 + 4 * i, "I", ~i & 0xFFFFFFFF)
    rig.run()
    assert rig.ram[0x30000:0x31000] == rig.ram[0x20000:0x21000]
    assert rig.ram[0x50000:0x50800] == rig.ram[0x40000:0x40800]


@pytest.mark.parametrize("budget", [1, 100, 3000, 1 << 20])
def test_budgets_cut_it_at_the_same_units(budget: int) -> None:
    source = "cld\nmov edi, 0x30000\nmov esi, 0x20000\nmov ecx, 2500\nrep movsd\nSTOP"
    rig, whole = Rig(source, "pm32"), Rig(source, "pm32")
    assert whole.run(1 << 24) is Exit.STOPPED
    done: list[int] = []
    while not done or rig.run(budget) is not Exit.STOPPED:
        done.append(rig.cpu.units)
        if len(done) > 1:
            assert done[-1] - done[-2] <= budget + 32  # never beyond the block in which the budget ended
        if len(done) > 40_000:
            pytest.fail("it does not end")
    assert rig.cpu.units == whole.cpu.units
    assert rig.cpu.counters()["blocks"] == whole.cpu.counters()["blocks"]


@pytest.mark.parametrize("budget", [2, 64, 1000, 1001])
def test_a_slice_ends_where_it_would_element_by_element(budget: int) -> None:
    rig = Rig("cld\nmov edi, 0x30000\nmov esi, 0x20000\nmov ecx, 2500\nhere:\nrep movsd\nSTOP", "pm32")
    length = 2  # bytes of REP MOVSD: a slice is over with the first element that uses its budget up
    ends: list[int] = []
    while rig.run(budget) is not Exit.STOPPED:
        if rig.reg("rip") == rig.label("here") and rig.reg("ecx"):
            ends.append(rig.cpu.units)
    assert len(ends) > 4
    assert {later - earlier for earlier, later in itertools.pairwise(ends)} == {-(-budget // length) * length}


@pytest.mark.parametrize("mode", ["paging", "pae", "long"])
def test_a_fault_in_the_middle_has_the_right_counts(mode: str) -> None:
    register = "r" if mode == "long" else "e"
    rig = Rig(f"cld\nmov {register}di, 0x30000\nmov {register}cx, 3000\nhere:\nrep stosd\nSTOP", mode, stop_on_trap=True)
    rig.page(0x32000, 0)
    rig.run(1 << 22)
    assert [(t.vector, t.error, t.ip) for t in rig.traps] == [(14, 2, rig.label("here"))]
    assert rig.reg("ecx") == 3000 - 0x2000 // 4
    assert rig.reg("edi") == 0x32000


@pytest.mark.parametrize("mode", ["paging", "long"])
def test_ring_3_cannot_write_supervisor_pages_that_ring_0_has_written(mode: str) -> None:
    ring = "ring3_64" if mode == "long" else "ring3_32"
    rig = Rig(
        f"cld\nmov edi, 0x40000\nmov ecx, 2048\nrep stosd\n{ring} user\nuser:\nmov ax, USER_DATA\nmov ds, ax\nmov es, ax\n"
        "mov edi, 0x30000\nmov ecx, 2048\nrep stosd\nmov edi, 0x3f000\nmov ecx, 2048\nrep stosd\nSTOP",
        mode, stop_on_trap=True,
    )  # fmt: skip
    for page in (0x40000, 0x41000):
        rig.page(page, page | 3)
    rig.run(1 << 22)
    assert [(t.vector, t.error) for t in rig.traps] == [(14, USER | 2 | 1)]
    assert rig.reg("edi") == 0x40000


@pytest.mark.parametrize("flags", ["stac", "clac"])
def test_copies_to_user_pages_between_stac_and_clac(flags: str) -> None:
    # the first copy translates the code, so that the second one, in another mode of the TLB, does not fetch it
    rig = Rig(
        f"cld\nmov edx, 2\nmov r8d, 0x20000\nagain:\nmov esi, 0x40000\nmov edi, r8d\nmov ecx, 1500\nhere:\nrep movsq\n{flags}\n"
        "mov r8d, 0x30000\ndec edx\njnz again\nSTOP",
        "long", stop_on_trap=True, cr4=1 << 21,
    )  # fmt: skip
    for page in range(0, 0x200000, 4096):
        rig.page(page, page | (7 if 0x30000 <= page < 0x38000 else 3))
    data = random.Random(4).randbytes(12000)
    rig.ram[0x40000 : 0x40000 + len(data)] = data
    rig.run(1 << 22)
    assert rig.ram[0x20000 : 0x20000 + len(data)] == data
    if flags == "stac":
        assert not rig.traps
        assert rig.ram[0x30000 : 0x30000 + len(data)] == data
    else:
        assert [(t.vector, t.error, t.ip) for t in rig.traps] == [(14, 3, rig.label("here"))]
        assert not any(rig.ram[0x30000:0x38000])


def test_it_writes_over_code() -> None:
    rig = Rig(
        "cld\nmov ebp, 2\nmov al, 0x40\nagain:\nmov edi, 0x20000\nmov ecx, 4000\nrep stosb\nmov byte [0x20000 + 4000], 0xc3\nxor eax, eax\n"
        "call 0x20000\nout 0x80, eax\nmov al, 0x48\ndec ebp\njnz again\nSTOP",
        "pm32",
    )
    rig.run(1 << 24)
    assert rig.log == [(0x80, 4, 4000), (0x80, 4, 0x100000000 - 4000)]  # 4000 INC EAX, then over them 4000 DEC EAX
