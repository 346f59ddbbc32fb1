"""Where code jumps to: more blocks than any table holds, while code is written anew, mapped elsewhere and forgotten."""

from __future__ import annotations

import random
import struct

import pytest

from avmm.cpu.engine import Exit, Watch
from tests.cpu.rig import CODE, PRESENT, PT, USER, WRITE, Rig

FIRST, PAGES, EACH = 0x140000, 24, 16  # pages of functions of 16 bytes: six thousand, where near entries have room for 128 a page
TABLE = 0x160000
PAGE = 4096 // EACH
FUNCTIONS = PAGES * PAGE
OFTEN = 1500
ROUNDS = 16
SOURCE = f"""
again: in eax, 0x40
 mov ecx, eax
 test eax, eax
 jz done
 mov rax, cr3
 mov cr3, rax
 xor edi, edi
 mov rsi, {TABLE:#x}
next: call [rsi]
 add edi, eax
 add rsi, 8
 dec ecx
 jnz next
 mov eax, edi
 out 0x80, eax
 jmp again
done: STOP
"""


@pytest.mark.parametrize("cache", [1 << 20, 8 << 20], ids=["emptied again and again", "large enough"])
@pytest.mark.parametrize("page_global", [False, True])
def test_jumps_find_the_code_that_is_there(cache: int, page_global: bool) -> None:
    """Before each round a thousand functions are written anew, as by DMA, and a page is mapped to another's code.

    Some functions are called more often than others, so that what was forgotten with a full code cache is asked for again while it
    still lies there.
    """
    chance = random.Random(cache)
    rig = Rig(SOURCE, "long", code_cache=cache, cr4=0x80 if page_global else 0)
    values = [chance.getrandbits(20) for _ in range(FUNCTIONS)]  # by place in memory
    frames = list(range(PAGES))  # which of the pages of memory each page of addresses has

    def write(number: int) -> None:
        at = FIRST + number * EACH
        rig.ram[at : at + 6] = b"\xb8" + struct.pack("<I", values[number]) + b"\xc3"  # mov eax, value; ret
        rig.cpu.invalidate(at, 6)

    def change() -> None:
        for number in chance.sample(range(FUNCTIONS), 1000):
            values[number] = chance.getrandbits(20)
            write(number)
        one, other = chance.sample(range(PAGES), 2)
        frames[one] = frames[other]  # two pages of addresses have the same code now
        rig.poke(PT + 8 * ((FIRST >> 12) + one), "Q", FIRST + (frames[one] << 12) | PRESENT | WRITE | USER)

    for number in range(FUNCTIONS):
        write(number)
    expected: list[int] = []

    def begin(_port: int, _size: int) -> int:
        if len(expected) == ROUNDS:
            return 0
        change()
        often, rest = range(OFTEN), range(OFTEN, FUNCTIONS)
        calls = [*chance.sample(often, OFTEN), *chance.sample(often, OFTEN), *chance.sample(rest, chance.randrange(1, 3000))]
        rig.ram[TABLE : TABLE + 8 * len(calls)] = struct.pack(f"<{len(calls)}Q", *[FIRST + number * EACH for number in calls])
        expected.append(sum(values[frames[number // PAGE] * PAGE + number % PAGE] for number in calls) & 0xFFFFFFFF)
        return len(calls)

    rig.on_in = begin
    assert rig.run(1 << 28) is Exit.STOPPED, rig.traps
    assert [value for _, _, value in rig.log] == expected


def test_a_watchpoint_that_comes_and_goes_forgets_blocks() -> None:
    """Translated code is thrown away for it: none of it is found again, though it still lies in the code cache."""
    rig = Rig(SOURCE, "long", code_cache=8 << 20)
    chance = random.Random(1)
    left: list[int] = []
    rig.on_in = lambda _port, _size: left.pop(0)
    for round_ in range(1, 5):
        for number in range(FUNCTIONS):
            rig.ram[FIRST + number * EACH : FIRST + number * EACH + 6] = b"\xb8" + struct.pack("<I", round_) + b"\xc3"
        rig.cpu.invalidate(FIRST, PAGES * 4096)
        calls = [FIRST + number * EACH for number in chance.sample(range(FUNCTIONS), FUNCTIONS)]
        rig.ram[TABLE : TABLE + 16 * FUNCTIONS] = struct.pack(f"<{2 * FUNCTIONS}Q", *calls * 2)
        left += [2 * FUNCTIONS, 2 * FUNCTIONS, 0]
        assert rig.run(1 << 28) is Exit.STOPPED, (rig.traps, rig.cpu.failure)
        rig.cpu.set_register("rip", CODE)
        assert [value for _, _, value in rig.log] == [2 * FUNCTIONS * round_] * 2
        rig.log.clear()
        for watches in ([Watch(0x1000000, 8)], []):
            rig.cpu.debug.set_watchpoints(watches)


@pytest.mark.parametrize("page_global", [False, True])
def test_a_jump_is_searched_for_once(page_global: bool) -> None:
    """Translated code finds what it has found before, in the first table: of a few functions in each page, some that collide."""
    rig = Rig(SOURCE, "long", code_cache=8 << 20, cr4=0x80 if page_global else 0)
    for number in range(FUNCTIONS):
        rig.ram[FIRST + number * EACH : FIRST + number * EACH + 6] = b"\xb8" + struct.pack("<I", number) + b"\xc3"
    few = [FIRST + number * EACH for number in range(0, FUNCTIONS, 13)]
    rig.ram[TABLE : TABLE + 8 * 10 * len(few)] = struct.pack(f"<{10 * len(few)}Q", *few * 10)
    left = [10 * len(few), 0]
    rig.on_in = lambda _port, _size: left.pop(0)
    assert rig.run(1 << 28) is Exit.STOPPED, rig.traps
    assert [value for _, _, value in rig.log] == [10 * sum(range(0, FUNCTIONS, 13))]
    assert 2 * len(few) <= rig.cpu.native_vcpu.searches < 2.2 * len(few)  # before it was translated, and after


def test_what_65536_cr3_ago_was_true() -> None:
    """The number that tells how old an entry is comes round again: nothing of its last round is left then."""
    rig = Rig(
        """
again: in eax, 0x40
 mov ecx, eax
 test eax, eax
 jz done
 mov rax, cr3
next: mov cr3, rax
 dec ecx
 jnz next
 mov rsi, 0x140000
 call rsi
 out 0x80, eax
 jmp again
done: STOP
""",
        "long",
        cr4=0x80,
    )
    for page in range(2):
        rig.ram[FIRST + page * 4096 : FIRST + page * 4096 + 6] = b"\xb8" + struct.pack("<I", page) + b"\xc3"
    times = [1, 65536, 0]

    def begin(_port: int, _size: int) -> int:
        if len(times) == 2:
            rig.poke(PT + 8 * (FIRST >> 12), "Q", FIRST + 4096 | PRESENT | WRITE | USER)
        return times.pop(0)

    rig.on_in = begin
    assert rig.run(1 << 28) is Exit.STOPPED, rig.traps
    assert [value for _, _, value in rig.log] == [0, 1]


@pytest.mark.parametrize("opcode", ["488bfdff15", "488bfde8"])
def test_a_constant_that_looks_like_a_call(opcode: str) -> None:
    """Translated code holds the guest's constants. What looks like the call for a next block is left as it is."""
    constants = [int.from_bytes(bytes.fromhex(opcode).ljust(8, bytes([fill])), "little") for fill in (0, 0x7F, 0x80, 0xFF)]
    compare = " cmp edi, -32\n"  # 83 FF E0: with the last byte of the constant before, what follows such a call
    rig = Rig(
        "".join(
            f" mov rax, {value:#x}\n{compare} mov rdx, rax\n out 0x80, eax\n shr rdx, 32\n mov eax, edx\n out 0x80, eax\n"
            for value in constants
        )
        + " STOP",
        "long",
    )
    assert rig.run(1 << 20) is Exit.STOPPED, rig.traps
    assert [value for _, _, value in rig.log] == [half for value in constants for half in (value & 0xFFFFFFFF, value >> 32)]
