"""IN, OUT, INS and OUTS: permissions, string forms, and the data windows that serve a port from a buffer."""

from __future__ import annotations

import pytest

from avmm.cpu.engine import Exit
from tests.cpu.rig import PRESENT, TSS, TSS64, USER, WRITE, Rig

MODES = ("real", "pm16", "pm32", "paging", "pae", "long", "compat")
DATA = bytes((i * 7 + i // 256) & 0xFF for i in range(8192))


@pytest.mark.parametrize("mode", MODES)
def test_in_and_out_of_each_size(mode: str) -> None:
    rig = Rig("mov dx, 0x1234\nmov eax, 0x11223344\nout dx, al\nout dx, ax\nout dx, eax\nmov eax, 0x55667788\nin al, dx\nmov ebx, eax\nin ax, dx\nmov ecx, eax\nin eax, dx\nmov esi, eax\nin al, 0x71\nSTOP", mode)
    assert rig.run() is Exit.STOPPED
    assert rig.log == [(0x1234, 1, 0x44), (0x1234, 2, 0x3344), (0x1234, 4, 0x11223344)]
    assert rig.reads == [(0x1234, 1), (0x1234, 2), (0x1234, 4), (0x71, 1)]
    assert [rig.reg(n) for n in ("ebx", "ecx", "esi")] == [0x556677A5, 0x5566A5A5, 0xA5A5A5A5]


def test_in_eax_clears_the_upper_half() -> None:
    rig = Rig("mov rax, -1\nin eax, 0x60\nmov rbx, rax\nmov rax, -1\nin ax, 0x60\nSTOP", "long")
    rig.run()
    assert rig.reg("rbx") == 0xA5A5A5A5
    assert rig.reg("rax") == 0xFFFFFFFFFFFFA5A5


def test_none_reads_all_ones() -> None:
    rig = Rig("in al, 0x60\nSTOP")
    rig.on_in = lambda port, size: None
    rig.run()
    assert rig.reg("al") == 0xFF


# -- permissions (Intel SDM vol. 1, 19.5)


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("mode", ["pm32", "long"])
@pytest.mark.parametrize("direction", ["in", "out", "ins", "outs"])
def test_the_io_bitmap_covers_every_byte_of_an_access(mode: str, size: int, direction: str) -> None:
    register = {1: "al", 2: "ax", 4: "eax"}[size]
    letter = {1: "b", 2: "w", 4: "d"}[size]
    code = {"in": f"in {register}, dx", "out": f"out dx, {register}", "ins": f"ins{letter}", "outs": f"outs{letter}"}[direction]
    where = "edi" if direction == "ins" else "esi"
    ring = "ring3_64" if mode == "long" else "ring3_32"
    for denied in range(-1, size + 1):
        rig = Rig(f"{ring} user\nuser:\n mov ax, USER_DATA\n mov ds, ax\n mov es, ax\n cld\n mov {where}, 0x3000\n mov dx, 0x3f7\nhere:\n {code}\n STOP", mode, stop_on_trap=True)
        at = (TSS64 if mode == "long" else TSS) + 0x68 + (0x3F7 + denied) // 8
        rig.ram[at] |= 1 << (0x3F7 + denied) % 8
        rig.run()
        if 0 <= denied < size:
            assert [(t.vector, t.error, t.ip) for t in rig.traps] == [(13, 0, rig.label("here"))]
            assert rig.log == rig.reads == []  # type: ignore[comparison-overlap]
        else:
            assert rig.traps == []


@pytest.mark.parametrize("iopl", [0, 1, 2, 3])
def test_iopl(iopl: int) -> None:
    rig = Rig(f"push dword USER_DATA\npush dword USER_STACK\npush dword {2 | iopl << 12}\npush dword USER32\npush dword user\niretd\nuser:\n mov dx, 0x3f8\nhere:\n out dx, al\n STOP", "pm32", stop_on_trap=True)
    for i in range(0x1F00):
        rig.ram[TSS + 0x68 + i] = 0xFF
    rig.run()
    assert [(t.vector, t.ip) for t in rig.traps] == ([] if iopl == 3 else [(13, rig.label("here"))])


@pytest.mark.parametrize(("offset", "good"), [(0x68, True), (0x2068 - 0x1F, False), (0xFFFF, False), (0x2068 - 0x80, True), (0x2068 - 0x7F, False)])
def test_a_bitmap_beyond_the_tss_denies(offset: int, good: bool) -> None:
    rig = Rig("ring3_32 user\nuser:\n mov dx, 0x3f8\nhere:\n out dx, al\n jmp $", "pm32", stop_on_trap=True)
    rig.poke(TSS + 0x66, "H", offset)
    for i in range(0x2069 - 0x68):
        rig.ram[TSS + 0x68 + i] = 0
    rig.run(1000)
    assert [t.vector for t in rig.traps] == ([] if good else [13])


def test_v86_always_looks_at_the_bitmap() -> None:
    """In virtual-8086 mode IOPL does not matter for IN and OUT."""
    source = "push dword 0\npush dword 0\npush dword 0\npush dword 0\npush dword 0\npush dword 0x8800\npush dword 0x23002\npush dword 0\npush dword user\niretd\nbits 16\nuser:\n mov dx, {port}\nhere:\n out dx, al\n STOP"
    for port, good in ((0x3F8, True), (0x3F9, False)):
        rig = Rig(source.format(port=port), "pm32", stop_on_trap=True)
        rig.ram[TSS + 0x68 + 0x3F9 // 8] |= 1 << 0x3F9 % 8
        rig.run()
        assert bool(rig.log) is good
        assert [(t.vector, t.ip) for t in rig.traps] == ([] if good else [(13, rig.label("here"))])


def test_real_mode_ignores_iopl() -> None:
    rig = Rig("out 0x60, al\nSTOP")
    assert rig.run() is Exit.STOPPED
    assert len(rig.log) == 1


# -- string instructions

STRINGS = [
    # (mode, prefix for the address size, index and count registers)
    ("real", "", "di", "si", "cx"), ("real", "a32", "edi", "esi", "ecx"), ("pm16", "", "di", "si", "cx"), ("pm32", "", "edi", "esi", "ecx"),
    ("pm32", "a16", "di", "si", "cx"), ("paging", "", "edi", "esi", "ecx"), ("pae", "", "edi", "esi", "ecx"), ("long", "", "rdi", "rsi", "rcx"),
    ("long", "a32", "edi", "esi", "ecx"), ("compat", "", "edi", "esi", "ecx"), ("compat", "a16", "di", "si", "cx"),
]  # fmt: skip


@pytest.mark.parametrize("window", [False, True])
@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize(("mode", "prefix", "di", "si", "cx"), STRINGS)
def test_rep_ins_and_outs(mode: str, prefix: str, di: str, si: str, cx: str, size: int, window: bool) -> None:
    """512 bytes in, across a page, and out again; through callbacks, and through a data window with no callback at all."""
    letter, count = {1: "b", 2: "w", 4: "d"}[size], 512 // size
    at = 0x3F00 + 2
    rig = Rig(f"cld\nmov {di}, {at}\nmov {cx}, {count}\nmov dx, 0x1f0\n{prefix} rep ins{letter}\nmov {si}, {at}\nmov {cx}, {count}\nmov dx, 0x1f1\n{prefix} rep outs{letter}\nSTOP", mode)
    position = 0

    def on_in(port: int, size: int) -> int:
        nonlocal position
        position += size
        return int.from_bytes(DATA[position - size : position], "little")

    rig.on_in = on_in
    sink = bytearray(512)
    if window:
        rig.cpu.window(0x1F0, memoryview(DATA)[:512])
        rig.cpu.window(0x1F1, memoryview(sink), out=True)
    assert rig.run() is Exit.STOPPED
    assert rig.traps == []
    assert rig.ram[at : at + 512] == DATA[:512]
    assert rig.reg(di) == rig.reg(si) == at + 512
    assert rig.reg(cx) == 0
    if window:
        assert (rig.reads, rig.log, rig.done) == ([], [], [0x1F0, 0x1F1])
        assert sink == DATA[:512]
        assert rig.cpu.counters()["window"] == 2 * count
        assert (rig.cpu.window_position(0x1F0), rig.cpu.window_position(0x1F1)) == (512, 512)
    else:
        assert b"".join(value.to_bytes(n, "little") for _, n, value in rig.log) == DATA[:512]
        assert {n for _, n in rig.reads} == {size}


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("window", [False, True])
def test_direction_flag_down(size: int, window: bool) -> None:
    letter, count = {1: "b", 2: "w", 4: "d"}[size], 64 // size
    rig = Rig(f"std\nmov edi, {0x4020 - size}\nmov ecx, {count}\nmov dx, 0x1f0\nrep ins{letter}\nmov esi, {0x4020 - size}\nmov ecx, {count}\nmov dx, 0x1f1\nrep outs{letter}\ncld\nSTOP", "pm32")
    sink = bytearray(64)
    data = iter(DATA[i : i + size] for i in range(0, 64, size))
    rig.on_in = lambda port, n: int.from_bytes(next(data), "little")
    if window:
        rig.cpu.window(0x1F0, memoryview(DATA)[:64])
        rig.cpu.window(0x1F1, memoryview(sink), out=True)
    rig.run()
    elements = [DATA[i : i + size] for i in range(0, 64, size)]
    assert bytes(rig.ram[0x3FE0:0x4020]) == b"".join(reversed(elements))
    out = bytes(sink) if window else b"".join(v.to_bytes(size, "little") for _, _, v in rig.log)
    assert out == DATA[:64]
    assert rig.reg("edi") == 0x3FE0 - size


@pytest.mark.parametrize("length", [1, 2, 3, 5, 6, 510, 511])
def test_a_window_of_odd_length_hands_the_rest_to_the_device(length: int) -> None:
    """What does not fit the window's rest goes to the callback; the window stays open for smaller accesses."""
    rig = Rig("cld\nmov edi, 0x3000\nmov ecx, 300\nmov dx, 0x1f0\nrep insw\nSTOP", "pm32")
    rig.cpu.window(0x1F0, memoryview(DATA)[:length])
    rig.run()
    whole = length & ~1
    assert bytes(rig.ram[0x3000 : 0x3000 + whole]) == DATA[:whole]
    assert len(rig.reads) == 300 - whole // 2
    assert rig.done == ([] if length & 1 else [0x1F0])
    assert rig.cpu.window_position(0x1F0) == whole


def test_a_window_opens_the_next_from_window_done() -> None:
    rig = Rig("cld\nmov edi, 0x3000\nmov ecx, 1024\nmov dx, 0x1f0\nrep insw\nSTOP", "pm32")
    sectors = iter(range(512, 2048, 512))
    rig.cpu.window(0x1F0, memoryview(DATA)[:512])

    def done(port: int) -> None:
        rig.done.append(port)
        begin = next(sectors, None)
        if begin is not None:
            rig.cpu.window(port, memoryview(DATA)[begin : begin + 512])

    rig.cpu.callbacks.window_done = done
    rig.cpu.reset(rig.state)  # callbacks are taken over at reset
    assert rig.run() is Exit.STOPPED
    assert bytes(rig.ram[0x3000:0x3800]) == DATA[:2048]
    assert rig.done == [0x1F0] * 4
    assert rig.reads == []


def test_windows_are_checked() -> None:
    rig = Rig("STOP")
    rig.cpu.window(0x1F0, memoryview(DATA)[:512], start=100)
    assert rig.cpu.window_position(0x1F0) == 100
    rig.cpu.window(0x1F0, None)
    assert rig.cpu.window_position(0x1F0) == 0
    rig.cpu.window(0x1F0, None)
    with pytest.raises(BufferError):
        rig.cpu.window(0x1F0, memoryview(DATA), out=True)
    for port in range(15):
        rig.cpu.window(port, memoryview(DATA))
    with pytest.raises(ValueError, match="too many ports"):
        rig.cpu.window(100, memoryview(DATA))
    rig.cpu.window(3, None)
    rig.cpu.window(100, memoryview(DATA))
    assert rig.cpu.window_position(5) == 0


def test_a_closed_window_lets_go_of_its_buffer() -> None:
    buffer = bytearray(512)
    rig = Rig("cld\nmov di, 0x3000\nmov cx, 256\nmov dx, 0x1f0\nrep insw\nSTOP")
    rig.cpu.window(0x1F0, memoryview(buffer))
    with pytest.raises(BufferError):
        buffer.append(0)
    rig.run()
    rig.cpu.window(0x1F0, None)
    buffer.append(0)


def test_a_window_survives_reset_and_keeps_its_place() -> None:
    rig = Rig("cld\nmov di, 0x3000\nmov cx, 10\nmov dx, 0x1f0\nrep insw\nSTOP")
    rig.cpu.window(0x1F0, memoryview(DATA)[:512])
    rig.run()
    assert rig.cpu.window_position(0x1F0) == 20
    rig.cpu.reset(rig.state)
    assert rig.cpu.window_position(0x1F0) == 20
    rig.run()
    assert bytes(rig.ram[0x3000:0x3014]) == DATA[20:40]


@pytest.mark.parametrize("window", [False, True])
@pytest.mark.parametrize("mode", ["paging", "pae", "long"])
@pytest.mark.parametrize("entry", [0, 0x31000 | PRESENT | USER], ids=["absent", "read-only"])
def test_ins_into_a_bad_page_faults_and_goes_on_where_it_was(mode: str, entry: int, window: bool) -> None:
    """512 bytes into two pages of which the second cannot be written: #PF with registers in the middle, no byte lost or twice."""
    size = "64" if mode == "long" else "32"
    rig = Rig(f"ring3_{size} user\nuser:\n mov ax, USER_DATA\n mov ds, ax\n mov es, ax\n cld\n mov edi, 0x30f00\n mov ecx, 256\n mov dx, 0x1f0\nhere:\n rep insw\n STOP", mode)
    rig.page(0x31000, entry)
    position = 0

    def on_in(port: int, n: int) -> int:
        nonlocal position
        position += n
        return int.from_bytes(DATA[position - n : position], "little")

    rig.on_in = on_in
    if window:
        rig.cpu.window(0x1F0, memoryview(DATA)[:512])
    seen: list[tuple[int, int, int]] = []
    trap = rig._trap

    def on_trap(vector: int) -> None:
        trap(vector)
        seen.append((rig.reg("edi"), rig.reg("ecx"), rig.reg("cr2")))
        rig.page(0x31000, 0x31000 | PRESENT | WRITE | USER)

    rig._trap = on_trap  # type: ignore[method-assign]
    assert rig.run() is Exit.STOPPED
    assert [(t.vector, t.error, t.ip) for t in rig.traps] == [(14, 6 | (entry & 1), rig.label("here"))]
    assert seen == [(0x31000, 128, 0x31000)]
    assert bytes(rig.ram[0x30F00:0x31100]) == DATA[:512]


@pytest.mark.parametrize("window", [False, True])
def test_outs_from_an_absent_page_faults_and_goes_on(window: bool) -> None:
    rig = Rig("cld\n mov esi, 0x30f00\n mov ecx, 256\n mov dx, 0x1f0\nhere:\n rep outsw\n STOP", "paging")
    rig.ram[0x30F00:0x31100] = DATA[:512]
    rig.page(0x31000, 0)
    sink = bytearray(512)
    if window:
        rig.cpu.window(0x1F0, memoryview(sink), out=True)
    trap = rig._trap
    rig._trap = lambda vector: (trap(vector), rig.page(0x31000, 0x31000 | 7))[0]  # type: ignore[method-assign,func-returns-value]
    assert rig.run() is Exit.STOPPED
    assert [(t.vector, t.error, t.ip) for t in rig.traps] == [(14, 0, rig.label("here"))]
    out = bytes(sink) if window else b"".join(v.to_bytes(2, "little") for _, _, v in rig.log)
    assert out == DATA[:512]


def test_rep_with_count_0_does_nothing() -> None:
    rig = Rig("xor ecx, ecx\nmov edi, 0x3000\nmov dx, 0x1f0\nrep insw\nrep outsw\nSTOP", "pm32")
    rig.cpu.window(0x1F0, memoryview(DATA)[:512])
    rig.run()
    assert rig.cpu.window_position(0x1F0) == 0
    assert rig.log == rig.reads == []  # type: ignore[comparison-overlap]


def test_ins_wraps_in_a_16_bit_segment() -> None:
    rig = Rig("mov ax, 0x4000\nmov es, ax\ncld\nmov di, 0xfffc\nmov cx, 8\nmov dx, 0x1f0\nrep insw\nSTOP")
    rig.cpu.window(0x1F0, memoryview(DATA)[:512])
    assert rig.run() is Exit.STOPPED
    assert bytes(rig.ram[0x4FFFC:0x50000]) == DATA[:4]
    assert bytes(rig.ram[0x40000:0x4000C]) == DATA[4:16]
    assert rig.reg("di") == 12


@pytest.mark.parametrize("override", ["cs", "ss", "es", "fs", "gs"])
def test_outs_with_a_segment_override(override: str) -> None:
    rig = Rig("mov ax, 0x2000\nmov es, ax\nmov fs, ax\nmov gs, ax\ncld\nmov si, 0x3000\nmov cx, 256\nmov dx, 0x1f0\n" + override + " rep outsw\nSTOP")
    rig.ram[0x3000:0x3200] = DATA[:512]
    rig.ram[0x23000:0x23200] = DATA[512:1024]
    sink = bytearray(512)
    rig.cpu.window(0x1F0, memoryview(sink), out=True)
    rig.run()
    assert sink == (DATA[:512] if override in ("cs", "ss") else DATA[512:1024])


def test_ins_over_its_own_code_is_noticed() -> None:
    """A window's bulk copy into a page with translated code must invalidate it."""
    rig = Rig("again: call sub\ncmp bl, 2\nje done\ncld\nmov edi, sub\nmov ecx, 3\nmov dx, 0x1f0\nrep insw\njmp again\ndone: STOP\nalign 64\nsub: mov bl, 1\nret\ntimes 16 nop", "pm32")
    rig.cpu.window(0x1F0, memoryview(b"\xb3\x02\xc3\x90\x90\x90"))
    assert rig.run() is Exit.STOPPED
    assert rig.reg("bl") == 2


def test_ins_to_memory_mapped_io() -> None:
    rig = Rig("cld\nmov edi, 0xfec00000\nmov ecx, 4\nmov dx, 0x1f0\nrep insw\nSTOP", "pm32")
    rig.cpu.window(0x1F0, memoryview(DATA)[:512])
    assert rig.run() is Exit.STOPPED
    # Unicorn's TCG stores 0 first, to find out whether it may: memory-mapped I/O sees two stores an element
    assert [(kind, a, n) for kind, a, n, _ in rig.mmio] == [("store", 0xFEC00000 + i, 2) for i in (0, 0, 2, 2, 4, 4, 6, 6)]
    assert b"".join(v.to_bytes(2, "little") for *_, v in rig.mmio[1::2]) == DATA[:8]
    assert [v for *_, v in rig.mmio[::2]] == [0] * 4
