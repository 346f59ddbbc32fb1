"""Two address spaces with pages in common, in both rings and with SMAP: loads, stores and code, blocks over the end of a page too."""

from __future__ import annotations

import random

import pytest

from avmm.cpu.engine import Exit
from tests.cpu.rig import PDPT, PML4, PRESENT, USER, WRITE, Rig

GLOBAL, LARGE, PGE, SMAP = 1 << 8, 1 << 7, 1 << 7, 1 << 21
RIGHTS = PRESENT | WRITE | USER
MIB, GIB = 1 << 20, 1 << 30
OPS, FRAMES, TABLES = 0x40000, 0x100000, 0x20000  # the script; frames of 4 KiB, each of which says which it is; page tables
LOAD, STORE, CALL, CALL_ACROSS, MAP, SPACE, TOGGLE, END, OPEN, CLOSE = range(10)
ID, STORED = 0x800, 0x900

# the script is a list of (operation, address, value); every result goes out to port 0x80
INTERPRETER = """
 mov rsi, 0x40000
 jmp next
align 64
next: lodsq
 mov rcx, rax
 lodsq
 mov rbx, rax
 lodsq
 jmp [rcx*8+table]
load: mov eax, [rbx+0x800]
 out 0x80, eax
 jmp next
store: mov [rbx], rax
 jmp next
call_it: call rbx
 out 0x80, eax
 jmp next
map: mov [rbx], rax
 jmp next
space: int 0x60
 jmp next
toggle: int 0x61
 jmp next
open: stac
 jmp next
close: clac
 jmp next
end: STOP
switch: mov cr3, rax
 iretq
flush: mov rax, cr4
 xor al, 0x80
 mov cr4, rax
 xor al, 0x80
 mov cr4, rax
 iretq
user: mov rsi, 0x40000
 jmp next
align 8
table: dq load, store, call_it, call_it, map, space, toggle, end, open, close
"""


def number(frame: int) -> int:
    return 0x5A000000 + frame * 0x101


class Machine:
    """Two address spaces that share the first 2 MiB, which hold code, tables and script, and have pages of their own from 1 GiB on."""

    PAGES, COUNT = 24, 64
    SPACES = (PML4, TABLES)

    def __init__(self, *, user: bool = False, cr4: int = PGE, entry: str = "") -> None:
        source = (" ring3_64 user\n" if user else "") + entry + INTERPRETER
        self.rig = rig = Rig(source.replace("0x2\n", "0x3002\n") if user else source, "long", ram=8 * MIB, cr4=cr4)
        rig.gate(0x60, offset=rig.label("switch"), dpl=3)
        rig.gate(0x61, offset=rig.label("flush"), dpl=3)
        rights = RIGHTS if user else PRESENT | WRITE
        self.rights = rights
        for page in range(512):
            rig.page(page << 12, page << 12 | rights | GLOBAL)
        rig.poke(TABLES, "Q", TABLES + 0x1000 | RIGHTS)
        rig.poke(TABLES + 0x1000, "Q", rig.peek(PDPT, "Q"))
        for space, top in enumerate((PDPT, TABLES + 0x1000)):  # small pages from 1 GiB on, pages of 2 MiB from 2 GiB on
            below = TABLES + 0x2000 + 0x3000 * space
            rig.poke(top + 8, "QQ", below | RIGHTS, below + 0x2000 | RIGHTS)
            rig.poke(below, "Q", below + 0x1000 | RIGHTS)
        for frame in range(8 * MIB - FRAMES >> 12):
            at = FRAMES + (frame << 12)
            rig.poke(at, "IB", number(frame), 0xC3)  # the end of `mov eax, imm32; ret` from the page before
            rig.poke(at + 0x10, "BIB", 0xB8, number(frame), 0xC3)
            rig.poke(at + ID, "I", number(frame))
            rig.poke(at + 0xFFF, "B", 0xB8)
        self.space = 0
        self.small: list[dict[int, int]] = [{}, {}]
        self.large: list[dict[int, int]] = [{}, {}]
        self.script: list[tuple[int, int, int]] = []
        self.expected: list[int] = []
        self.stored: dict[int, int] = {}
        user_rights = rights
        for space in range(2):
            for page in range(self.PAGES):
                self.map(space, page, page + 3 * space, user_rights, now=True)
            for page in range(2):
                self.map_large(space, page, 1 + page + space, user_rights, now=True)

    def _put(self, at: int, entry: int, now: bool) -> None:
        if now:
            self.rig.poke(at, "Q", entry)
        else:
            self.script.append((MAP, at, entry))

    def map(self, space: int, page: int, frame: int, rights: int, *, now: bool = False) -> None:
        self.small[space][page] = frame
        self._put(TABLES + 0x3000 + 0x3000 * space + 8 * page, FRAMES + (frame << 12) | rights, now)

    def map_large(self, space: int, page: int, frame: int, rights: int, *, now: bool = False) -> None:
        self.large[space][page] = frame
        self._put(TABLES + 0x4000 + 0x3000 * space + 8 * page, frame * 2 * MIB | rights | LARGE, now)

    def go_to(self, space: int) -> None:
        self.space = space
        self.script.append((SPACE, 0, self.SPACES[space]))

    def touch(self, chance: random.Random) -> None:
        """One access, and what it has to find."""
        kind = chance.choice((LOAD, LOAD, STORE, CALL, CALL_ACROSS))
        if chance.random() < 0.25:
            page, part = chance.randrange(2), chance.randrange(1, 500)
            linear = 2 * GIB + 2 * MIB * page + (part << 12)
            physical = self.large[self.space][page] * 2 * MIB + (part << 12)
            following = physical + 0x1000
        else:
            page = chance.randrange(self.PAGES - 1)
            linear, physical = GIB + (page << 12), FRAMES + (self.small[self.space][page] << 12)
            following = FRAMES + (self.small[self.space][page + 1] << 12)
        if kind == STORE:
            value = chance.getrandbits(64)
            offset = STORED + 8 * chance.randrange(8)
            self.stored[physical + offset] = value
            self.script.append((STORE, linear + offset, value))
            return
        self.script.append((kind, linear + {LOAD: 0, CALL: 0x10, CALL_ACROSS: 0xFFF}[kind], 0))
        self.expected.append(number((following if kind == CALL_ACROSS else physical) - FRAMES >> 12))

    def run(self) -> None:
        for i, operation in enumerate((*self.script, (END, 0, 0))):
            self.rig.poke(OPS + 24 * i, "QQQ", *operation)
        assert OPS + 24 * (len(self.script) + 1) <= FRAMES
        assert self.rig.run(1 << 24) is Exit.STOPPED, (self.rig.traps, hex(self.rig.reg("rip")))
        assert self.rig.traps == []


def play(machine: Machine, chance: random.Random, *, ac: bool = False) -> None:
    rights = machine.rights
    for _ in range(120):
        for _ in range(chance.randrange(4)):
            space, entry = chance.randrange(2), rights | chance.choice((0, GLOBAL)) * (machine.rig.state.cr4 & PGE == 0)
            if chance.random() < 0.8:
                machine.map(space, chance.randrange(machine.PAGES), chance.randrange(machine.COUNT), entry)
            else:
                machine.map_large(space, chance.randrange(2), chance.randrange(1, 4), entry)
        if ac:
            machine.script.append((chance.choice((OPEN, CLOSE)), 0, 0))
        machine.go_to(chance.randrange(2))
        for _ in range(chance.randrange(1, 25)):
            machine.touch(chance)
    machine.run()
    assert [value for _, _, value in machine.rig.log] == machine.expected
    for at, value in machine.stored.items():
        assert machine.rig.peek(at, "Q") == value


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", ["kernel", "user", "smap", "not paged globally"])
def test_two_address_spaces(kind: str, seed: int) -> None:
    """Every access finds what its own address space maps at the time; without CR4.PGE the G bit means nothing."""
    chance = random.Random(f"address space {kind} {seed}")
    cr4 = {"smap": PGE | SMAP, "not paged globally": 0}.get(kind, PGE)
    machine = Machine(user=kind == "user", cr4=cr4)
    play(machine, chance, ac=kind == "smap")
