"""What the guest sees of memory: RAM, memory-mapped I/O, self-modifying code, DMA into code, mappings that change."""

from __future__ import annotations

import mmap
import random
import struct

import pytest

from avmm.cpu.engine import Exit
from tests.cpu.rig import NX, PD, PDPT, PML4, PRESENT, WRITE, Rig

# -- memory-mapped I/O


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_loads_and_stores_of_each_size(size: int) -> None:
    register = {1: "al", 2: "ax", 4: "eax", 8: "rax"}[size]
    rig = Rig(f"mov rax, 0x1122334455667788\nmov rbx, 0x1f0010\nmov [rbx], {register}\nmov {register}, [rbx + 8]\nSTOP", "long", ram=1 << 20)
    rig.on_load = lambda address, n: 0xA1A2A3A4A5A6A7A8 if address < 0x1F001C else 0xA1A2A3A4
    assert rig.run() is Exit.STOPPED
    mask = (1 << 8 * size) - 1
    if size == 8:  # Unicorn makes two accesses of four bytes of it, low half first
        low, high = 0x55667788, 0x11223344
        assert rig.mmio == [("store", 0x1F0010, 4, low), ("store", 0x1F0014, 4, high), ("load", 0x1F0018, 4, 0), ("load", 0x1F001C, 4, 0)]
    else:
        assert rig.mmio == [("store", 0x1F0010, size, 0x1122334455667788 & mask), ("load", 0x1F0018, size, 0)]
    assert rig.reg("rax") & mask == 0xA1A2A3A4A5A6A7A8 & mask


def test_memory_mapped_io_above_4_gib() -> None:
    """Addresses up to 40 bits reach the callbacks in full."""
    rig = Rig("mov eax, [0x40000000 + 0x124]\nmov dword [0x80000000 - 8], 0x99\nSTOP", "long")
    rig.poke(PDPT + 8, "Q", 0xFEDC000000 & ~0x3FFFFFFF | 0x83)  # a 1 GiB page of the guest's own
    base = 0xFEDC000000 & ~0x3FFFFFFF
    rig.on_load = lambda address, size: 0x77
    assert rig.run() is Exit.STOPPED, rig.traps
    assert rig.mmio == [("load", base + 0x124, 4, 0), ("store", base + 0x3FFFFFF8, 4, 0x99)]
    assert rig.reg("rax") == 0x77


def test_an_unaligned_load_of_memory_mapped_io_reads_the_aligned_neighbours() -> None:
    """Unicorn's TCG makes two aligned loads of it. Real parts would make one; no register of ours is read like that."""
    rig = Rig("mov eax, [0xfec00002]\nSTOP", "pm32")
    rig.on_load = lambda address, size: 0x44332211 if address == 0xFEC00000 else 0x88776655
    rig.run()
    assert [m[:3] for m in rig.mmio] == [("load", 0xFEC00000, 4), ("load", 0xFEC00004, 4)]
    assert rig.reg("eax") == 0x66554433


def test_ram_above_4_gib() -> None:
    rig = Rig("mov rbx, 0x40000000\nmov rax, [rbx + 8]\nmov [rbx + 16], rax\nSTOP", "long")
    high = memoryview(mmap.mmap(-1, 1 << 20))
    rig.cpu.map_ram(0x1_4000_0000, high)
    rig.poke(PDPT + 8, "Q", 0x1_4000_0000 | 0x83)
    struct.pack_into("<Q", high, 8, 0xABCDEF0123456789)
    assert rig.run() is Exit.STOPPED
    assert struct.unpack_from("<Q", high, 16) == (0xABCDEF0123456789,)
    assert rig.mmio == []


def test_an_access_across_the_end_of_ram() -> None:
    rig = Rig("mov eax, 0x44332211\nmov [0xffffe], eax\nmov ebx, [0xffffe]\nSTOP", "pm32", ram=1 << 20)
    rig.on_load = lambda address, size: 0
    assert rig.run() is Exit.STOPPED
    assert bytes(rig.ram[0xFFFFE:0x100000]) == b"\x11\x22"
    assert {address for _, address, _, _ in rig.mmio} >= {0x100000}


def test_read_modify_write_of_memory_mapped_io() -> None:
    rig = Rig("lock inc dword [0xfec00000]\nxchg eax, [0xfec00010]\nSTOP", "pm32")
    rig.on_load = lambda address, size: 41
    assert rig.run() is Exit.STOPPED
    assert [m for m in rig.mmio if m[0] == "store"][0] == ("store", 0xFEC00000, 4, 42)  # noqa: RUF015
    assert rig.reg("eax") == 41


def test_none_and_wild_values_from_the_memory_callback() -> None:
    rig = Rig("mov eax, [0xfec00000]\nmovzx ebx, byte [0xfec00000]\nSTOP", "pm32")
    answers = iter((None, 0x1234))
    rig.on_load = lambda address, size: next(answers)
    rig.run()
    assert rig.reg("eax") == 0xFFFFFFFF
    assert rig.reg("ebx") == 0x34


# -- mappings that change


def test_an_aperture_switched_by_a_port_takes_effect_on_the_next_access() -> None:
    """A VGA's aperture: RAM or memory-mapped, decided by an OUT, several times, within one block and in a warm loop."""
    rig = Rig("""
 mov ecx, 50
again:
 out 0x50, al
 mov dword [0xa0000], 0x11
 mov eax, [0xa0004]
 add [0x3000], eax
 out 0x51, al
 mov dword [0xa0000], 0x22
 mov eax, [0xa0004]
 add [0x3004], eax
 dec ecx
 jnz again
 STOP
""", "pm32")  # fmt: skip
    aperture = memoryview(mmap.mmap(-1, 0x10000))
    struct.pack_into("<I", aperture, 4, 7)
    rig.cpu.unmap_ram(0xA0000, 0x20000)
    rig.on_load = lambda address, size: 1000

    def on_out(port: int, size: int, value: int) -> None:
        if port == 0x50:
            rig.cpu.map_ram(0xA0000, aperture)
        else:
            assert struct.unpack_from("<I", aperture) == (0x11,)
            rig.cpu.unmap_ram(0xA0000, 0x10000)

    rig.on_out = on_out
    assert rig.run() is Exit.STOPPED
    assert rig.peek(0x3000) == 50 * 7
    assert rig.peek(0x3004) == 50 * 1000
    assert rig.mmio == [("store", 0xA0000, 4, 0x22), ("load", 0xA0004, 4, 0)] * 50
    assert struct.unpack_from("<I", aperture) == (0x11,)


def test_a_mapping_over_ram_and_back() -> None:
    """Shadowed firmware: part of RAM replaced, the rest on both sides untouched."""
    rig = Rig("mov eax, [0x2ffc]\nmov ebx, [0x3000]\nmov ecx, [0x4000]\nSTOP", "pm32")
    for a, v in ((0x2FFC, 1), (0x3000, 2), (0x4000, 3)):
        rig.poke(a, "I", v)
    page = memoryview(mmap.mmap(-1, 4096))
    struct.pack_into("<I", page, 0, 0x99)
    rig.cpu.map_ram(0x3000, page)
    rig.run()
    assert [rig.reg(n) for n in ("eax", "ebx", "ecx")] == [1, 0x99, 3]
    rig.cpu.reset(rig.state)
    rig.cpu.map_ram(0x3000, rig.ram[0x3000:0x4000])
    rig.run()
    assert [rig.reg(n) for n in ("eax", "ebx", "ecx")] == [1, 2, 3]


def test_code_in_a_mapping_that_goes_away() -> None:
    """A warm block of an unmapped page is not executed any more, and the new mapping's code is."""
    rig = Rig("mov ecx, 6\nagain:\n call 0x30000\n add ebx, eax\n out 0x50, al\n dec ecx\n jnz again\n STOP", "pm32")
    pages = [memoryview(mmap.mmap(-1, 4096)) for _ in range(2)]
    for value, page in zip((1, 100), pages, strict=True):
        page[:6] = b"\xb8" + struct.pack("<I", value) + b"\xc3"
    turn = 0

    def on_out(port: int, size: int, value: int) -> None:
        nonlocal turn
        turn += 1
        rig.cpu.map_ram(0x30000, pages[turn % 2])

    rig.cpu.map_ram(0x30000, pages[0])
    rig.on_out = on_out
    assert rig.run() is Exit.STOPPED
    assert rig.reg("ebx") == 303


def test_map_ram_refuses_what_cannot_be() -> None:
    rig = Rig("STOP")
    with pytest.raises(Exception, match="cannot map"):
        rig.cpu.map_ram(0x123, memoryview(mmap.mmap(-1, 4096)))
    with pytest.raises(TypeError):
        rig.cpu.map_ram(0x400000, memoryview(bytes(4096)))


# -- self-modifying code


def test_a_store_into_the_next_instruction_of_the_same_block() -> None:
    rig = Rig("mov byte [patch + 1], 0x77\npatch: mov al, 0x11\nSTOP", "pm32")
    rig.run()
    assert rig.reg("al") == 0x77


def test_a_store_into_the_next_block() -> None:
    rig = Rig("mov ecx, 2\nagain:\n mov bl, al\n call patch\n mov byte [patch + 1], 0x77\n dec ecx\n jnz again\n STOP\npatch: mov al, 0x11\n ret", "pm32")
    rig.run()
    assert (rig.reg("bl"), rig.reg("al")) == (0x11, 0x77)


def test_rep_stos_over_the_code_behind_it() -> None:
    rig = Rig("cld\nmov edi, tail\nmov ecx, 3\nmov al, 0x90\nrep stosb\ntail: db 0x0f, 0x0b, 0xf4\nSTOP", "pm32")
    assert rig.run() is Exit.STOPPED
    assert rig.traps == []


@pytest.mark.parametrize(("address", "length"), [(0x30001, 1), (0x2E800, 0x1802), (0x30001, 0x4000), (0x2F000, 0x3000)])
def test_dma_into_code_pages(address: int, length: int) -> None:
    """Written through the host's view of RAM: unnoticed until ``invalidate``, of a range that begins or ends with data too."""
    rig = Rig("mov ecx, 3\nagain:\n call 0x30000\n add ebx, eax\n out 0x50, al\n dec ecx\n jnz again\n STOP", "pm32")
    rig.ram[0x30000:0x30006] = b"\xb8\x01\0\0\0\xc3"

    def on_out(port: int, size: int, value: int) -> None:
        rig.cpu.invalidate(0x2F000, 0x1000)
        rig.cpu.invalidate(0x31000, 0x1000)
        rig.ram[0x30001] = 0x40
        rig.cpu.invalidate(address, length)

    rig.on_out = on_out
    assert rig.run() is Exit.STOPPED
    assert rig.reg("ebx") == 0x81


def test_invalidate_takes_any_range() -> None:
    rig = Rig("mov ecx, 10\nagain: dec ecx\n out 0x50, al\n jnz again\nSTOP", "pm32")
    rig.on_out = lambda *_: [rig.cpu.invalidate(a, n) for a, n in ((0, 0), (0, 1 << 40), (0x1FFFFF, 100), (1 << 39, 1), (0, len(rig.ram)))]  # type: ignore[func-returns-value]
    assert rig.run() is Exit.STOPPED


ALIASES = (0, 1 << 30, 2 << 30)  # executable, executable, writable but NX
SLOTS = [page + offset for page in range(0x140000, 0x146000, 0x1000) for offset in (0, 64, 0x800, 0xFF0)] + [0x140FFD, 0x142FFC]


@pytest.mark.parametrize("seed", range(20))
def test_self_modifying_code_through_aliases(seed: int) -> None:
    """Random stores, calls, invalidations and plain stores over six pages through three virtual aliases, against a model."""
    random_ = random.Random(seed)
    body: list[bytes] = []
    expected: list[int] = []
    values: dict[int, int] = {}

    def emit(form: str, *args: int) -> None:
        """Encode the few instructions this test is made of, so that no assembler has to run for each seed."""
        name = form
        if name == "mov rbx":
            body.append(b"\x48\xbb" + struct.pack("<Q", *args))
        elif name == "mov rcx":
            body.append(b"\x48\xb9" + struct.pack("<Q", *args))
        elif name == "patch":
            body.append(b"\xc6\x03\xb8" + b"\xc7\x43\x01" + struct.pack("<I", *args) + b"\xc6\x43\x05\xc3")
        elif name == "store rcx":
            body.append(b"\x48\x89\x0b")
        elif name == "call":
            body.append(b"\xff\xd3" + b"\x89\x45\x00" + b"\x48\x83\xc5\x04")
        elif name == "invlpg":
            body.append(b"\x0f\x01\x3b")
        elif name == "cr3":
            body.append(b"\x0f\x20\xd8\x0f\x22\xd8")
        elif name == "xchg":
            body.append(b"\xb8" + struct.pack("<I", *args) + b"\xf0\x87\x43\x01\xc6\x03\xb8\xc6\x43\x05\xc3")
        elif name == "push":
            body.append(b"\x48\x89\xe0" + b"\x48\x8d\x63\x08" + b"\x51" + b"\x48\x89\xc4")

    def put(slot: int) -> None:
        value, kind = random_.getrandbits(31), random_.randrange(4)
        emit("mov rbx", random_.choice(ALIASES) + slot)
        if kind == 0:
            emit("patch", value)
        elif kind == 1:
            emit("xchg", value)
        else:
            emit("mov rcx", 0x9090C300000000B8 | value << 8)
            emit("store rcx" if kind == 2 else "push")
        for other in list(values):
            if other != slot and slot - 6 < other < slot + (8 if kind >= 2 else 6):
                del values[other]
        values[slot] = value

    hot = random_.sample(SLOTS, 4)
    for _ in range(120):
        chance = random_.random()
        if chance < 0.45:
            put(random_.choice(hot if random_.random() < 0.6 else SLOTS))
        elif chance < 0.9 and values:
            slot = random_.choice([s for s in values if s in hot] or list(values))
            emit("mov rbx", random_.choice(ALIASES[:2]) + slot)
            emit("call")
            expected.append(values[slot])
        elif chance < 0.95:
            emit("cr3")
        else:
            emit("mov rbx", random_.choice(ALIASES) + random_.choice(SLOTS))
            emit("invlpg")
    rig = Rig("mov rsp, 0x138000\nmov rbp, 0x160000\nmov r8, 0x100000\ncall r8\nSTOP", "long", efer=0x800)
    code = b"".join(body) + b"\xc3"
    rig.ram[0x100000 : 0x100000 + len(code)] = code
    nx_tables = (0x1C000, 0x1D000)
    rig.poke(PDPT + 8, "Q", PD | 3)
    rig.poke(PDPT + 16, "Q", nx_tables[0] | 3)
    rig.poke(nx_tables[0], "Q", nx_tables[1] | 3)
    for page in range(512):
        rig.poke(nx_tables[1] + 8 * page, "Q", page << 12 | PRESENT | WRITE | NX)
    assert PML4
    assert rig.run(1 << 24) is Exit.STOPPED, rig.traps
    assert list(struct.unpack_from(f"<{len(expected)}I", rig.ram, 0x160000)) == expected


def test_code_in_two_pieces_of_ram_is_told_apart() -> None:
    """Unicorn gives two pieces of RAM the same addresses inside unless told otherwise, and then runs the code of one page for the other's."""
    rig = Rig(
        "mov ebx, 0x60000\ncall ebx\nout 0x80, al\nmov dword [PT + 4 * 0x60], 0x140003\ninvlpg [ebx]\ncall ebx\nout 0x80, al\nSTOP", "paging"
    )
    rig.page(0x60000, 0x40003)
    for address, value in ((0x40000, 1), (0x140000, 2)):
        rig.ram[address : address + 3] = bytes((0xB0, value, 0xC3))  # mov al, value; ret
    rig.cpu.unmap_ram(0xF0000, 0x10000)
    rig.cpu.reset(rig.state)
    assert rig.run() is Exit.STOPPED
    assert rig.log == [(0x80, 1, 1), (0x80, 1, 2)]
