"""Global pages: what MOV to CR3 keeps, and what everything else drops (Intel SDM volume 3, 4.10)."""

from __future__ import annotations

import random

import pytest

from avmm.cpu.engine import Exit
from tests.cpu.rig import PD, PRESENT, PT, WRITE, Rig

PGE, G, LARGE = 0x80, 0x100, 0x80
PAGES = [0x60000 + 0x1000 * n for n in range(8)]
FRAMES = [0x140000 + 0x1000 * n for n in range(6)]
ADDRESS, COMMAND, RESULT = 0x40, 0x44, 0x80
READ, CALL, INVLPG, CR3, TOGGLE_PGE, STOP = range(6)
SOURCE = """
again: in eax, 0x40
 mov ebx, eax
 in eax, 0x44
 cmp al, 1
 jb read
 je enter
 cmp al, 3
 jb one
 je all
 cmp al, 4
 je toggle
 STOP
read: mov eax, [XBX + 1]
 out 0x80, eax
 jmp again
enter: call XBX
 out 0x80, eax
 jmp again
one: invlpg [XBX]
 jmp again
all: mov XAX, cr3
 mov cr3, XAX
 jmp again
toggle: mov XAX, cr4
 xor al, 0x80
 mov cr4, XAX
 jmp again
"""


class Tables:
    """A guest that does what it is told, whose page tables the test writes; a frame's code returns the frame's address."""

    def __init__(self, mode: str, *, cr4: int = PGE, ram: int = 2 << 20) -> None:
        self.rig = Rig(SOURCE.replace("XBX", "rbx" if mode == "long" else "ebx"), mode, cr4=cr4, ram=ram)
        for frame in FRAMES:
            self.fill(frame, frame)

    def fill(self, frame: int, value: int) -> None:
        self.rig.ram[frame : frame + 6] = b"\xb8" + value.to_bytes(4, "little") + b"\xc3"  # mov eax, value; ret

    def map(self, page: int, frame: int, flags: int) -> None:
        self.rig.page(page, frame | flags | PRESENT | WRITE)

    def do(self, *commands: tuple[int, int]) -> list[int]:
        """Have the guest execute (command, address) one after the other; return what it read."""
        left = [*commands, (STOP, 0)]
        self.rig.on_in = lambda port, _size: left[0][1] if port == ADDRESS else left.pop(0)[0]
        assert self.rig.run(1 << 24) is Exit.STOPPED, self.rig.traps
        answers = [value for _, _, value in self.rig.log]
        self.rig.log.clear()
        self.rig.cpu.set_register("rip", self.rig.label("again"))
        return answers


@pytest.mark.parametrize("mode", ["paging", "pae", "long"])
@pytest.mark.parametrize("use", [READ, CALL])
def test_what_cr3_keeps_and_drops(mode: str, use: int) -> None:
    """The entry of a global page outlives CR3, that of another does not; INVLPG and a change of CR4.PGE drop both."""
    tables = Tables(mode)
    shared, own = PAGES[0], PAGES[1]
    look = (use, shared), (use, own)
    tables.map(shared, FRAMES[0], G)
    tables.map(own, FRAMES[0], 0)
    assert tables.do(*look) == [FRAMES[0], FRAMES[0]]
    tables.map(shared, FRAMES[2], G)
    tables.map(own, FRAMES[2], 0)
    assert tables.do((CR3, 0), *look) == [FRAMES[0], FRAMES[2]]
    assert tables.do((INVLPG, shared), *look) == [FRAMES[2], FRAMES[2]]
    tables.map(shared, FRAMES[3], G)
    assert tables.do((CR3, 0), (use, shared), (TOGGLE_PGE, 0), (use, shared)) == [FRAMES[2], FRAMES[3]]
    tables.map(shared, FRAMES[4], G)
    assert tables.do((CR3, 0), (use, shared)) == [FRAMES[4]], "without CR4.PGE there are no global pages"


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("mode", ["paging", "pae", "long"])
def test_no_translation_outlives_its_invalidation(mode: str, seed: int) -> None:
    """Random page tables, reads, calls and invalidations: whatever is found is in the tables, or was and has not been invalidated."""
    chance = random.Random(seed)
    pge = seed % 3 > 0
    tables = Tables(mode, cr4=PGE if pge else 0)
    now: dict[int, tuple[int, int]] = {}
    cached: dict[int, set[tuple[int, int]]] = {page: set() for page in PAGES}
    kept = 0
    for page in PAGES:
        now[page] = chance.choice(FRAMES), chance.choice((0, G))
        tables.map(page, *now[page])
    for _ in range(400):
        page, step = chance.choice(PAGES), chance.random()
        if step < 0.3:
            now[page] = chance.choice(FRAMES), chance.choice((0, G))
            tables.map(page, *now[page])
        elif step < 0.8:
            (found,) = tables.do((chance.choice((READ, CALL)), page))
            assert found in {frame for frame, _ in cached[page]} | {now[page][0]}
            kept += found != now[page][0]
            cached[page].add(now[page])
        elif step < 0.9:
            tables.do((CR3, 0))
            cached = {one: {entry for entry in entries if pge and entry[1]} for one, entries in cached.items()}
        elif step < 0.96:
            tables.do((INVLPG, page))
            cached[page] = set()
        else:
            tables.do((TOGGLE_PGE, 0))
            pge = not pge
            cached = {one: set() for one in PAGES}
    assert kept, "a TLB that forgets everything proves nothing"


@pytest.mark.parametrize("use", [READ, CALL])
def test_a_large_page_goes_as_a_whole(use: int) -> None:
    """INVLPG of any address in a large page drops all of it, global or not, blocks of code too (4.10.4.1)."""
    tables = Tables("long", ram=4 << 20)
    for base in (0, 2 << 20):
        for offset in (0x140000, 0x141000):
            tables.fill(base + offset, base + offset)
    large = 4 << 20
    for flags in (G, 0):
        look = (use, large + 0x140000), (use, large + 0x141000)
        tables.rig.poke(PD + 16, "Q", LARGE | flags | PRESENT | WRITE)
        assert tables.do((INVLPG, large), *look) == [0x140000, 0x141000]
        tables.rig.poke(PD + 16, "Q", 2 << 20 | LARGE | flags | PRESENT | WRITE)
        assert tables.do((CR3, 0), (INVLPG, large + 0x190000), *look) == [0x340000, 0x341000]
        tables.rig.poke(PD + 16, "Q", LARGE | flags | PRESENT | WRITE)
        assert tables.do((CR3, 0), *look) == ([0x340000, 0x341000] if flags else [0x140000, 0x141000])


def test_more_pages_than_are_listed() -> None:
    """A process that touches more pages than the list holds before the next one runs: nothing of it stays."""
    tables = Tables("long")
    for entry in range(1, 8):
        tables.rig.poke(PD + 8 * entry, "Q", PT | PRESENT | WRITE)
    pages = [(entry << 21) + 0x1000 * n for entry in range(1, 8) for n in range(0x60, 0x160)]
    assert len(pages) > 1024
    for frame in FRAMES[:3]:
        tables.map(pages[-1] & 0x1FFFFF, frame, 0)
        assert tables.do((CR3, 0), *[(READ, page) for page in pages])[-1] == frame
