"""The Multiboot loader against the specification, version 0.6.96."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avmm.boot.errors import BootError
from avmm.boot.multiboot import find_header, load
from avmm.cpu.engine import CpuState
from avmm.memory import GuestMemory
from tests.boot.images import MIB, elf, multiboot_header

RAM = 4 * MIB
CODE = b"\xf4kernel code"


def elf_kernel(flags: int = 3, physical: int = MIB) -> bytes:
    return elf([(physical, 0xC0000000 + physical, CODE, 100)], physical, before=multiboot_header(flags))


def kludge(*, load_at: int = MIB, load_end: int = 0, bss_end: int = 0, entry: int = MIB + 32, before: bytes = b"") -> bytes:
    return before + multiboot_header(0x10000, load_at + len(before), load_at, load_end, bss_end, entry) + CODE


@pytest.fixture
def memory() -> GuestMemory:
    return GuestMemory(memoryview(bytearray(b"\xcc") * RAM))


def information(memory: GuestMemory, state: CpuState, layout: str, offset: int) -> tuple[int, ...]:
    return memory.unpack(layout, state.gprs["rbx"] + offset)


def text(memory: GuestMemory, address: int) -> bytes:
    return memory.read(address, 200).split(b"\0")[0]


def test_machine_state(memory: GuestMemory) -> None:
    state = load(memory, RAM, elf_kernel())
    assert state.rip == MIB
    assert state.gprs["rax"] == 0x2BADB002
    assert (state.cr0, state.cr4, state.efer, state.rflags) == (0x11, 0, 0, 2)
    for segment in (state.ds, state.es, state.fs, state.gs, state.ss):
        assert (segment.base, segment.limit, segment.attributes) == (0, 0xFFFFFFFF, 0xC93)
    assert (state.cs.base, state.cs.limit, state.cs.attributes) == (0, 0xFFFFFFFF, 0xC9B)
    assert memory.unpack("<QQ", state.gdtr[0] + state.cs.selector) == (0x00CF9B000000FFFF, 0x00CF93000000FFFF)


def test_elf_is_loaded_with_its_zeros(memory: GuestMemory) -> None:
    load(memory, RAM, elf_kernel())
    assert memory.read(MIB, 101) == CODE.ljust(100, b"\0") + b"\xcc"


def test_information(memory: GuestMemory) -> None:
    state = load(memory, RAM, elf_kernel(), "kernel --option")
    flags, lower, upper = information(memory, state, "<III", 0)
    assert flags == 1 | 1 << 2 | 1 << 3 | 1 << 6 | 1 << 9
    assert (lower, upper) == (639, 3072)
    assert text(memory, information(memory, state, "<I", 16)[0]) == b"kernel --option"
    assert text(memory, information(memory, state, "<I", 64)[0]) == b"avmm"
    assert information(memory, state, "<I", 20) == (0,)
    length, address = information(memory, state, "<II", 44)
    entries = [memory.unpack("<IQQI", address + at) for at in range(0, length, 24)]
    assert entries == [(20, 0, 0x9FC00, 1), (20, 0x9FC00, 0x400, 2), (20, 0xE0000, 0x20000, 2), (20, MIB, 3 * MIB, 1)]


def test_video_request_is_answered_with_the_text_screen(memory: GuestMemory) -> None:
    state = load(memory, RAM, elf_kernel(flags=7))
    assert information(memory, state, "<I", 0)[0] & 1 << 12
    assert information(memory, state, "<QIIIBB", 88) == (0xB8000, 160, 80, 25, 16, 2)


def test_modules_lie_on_pages_behind_the_kernel(memory: GuestMemory) -> None:
    state = load(memory, RAM, elf_kernel(), "", [(b"first" * 1000, "one arg"), (b"second", "two")])
    count, table = information(memory, state, "<II", 20)
    assert count == 2
    found = [memory.unpack("<IIII", table + 16 * index) for index in range(count)]
    assert [(start, end) for start, end, _, _ in found] == [(MIB + 0x1000, MIB + 0x1000 + 5000), (MIB + 0x3000, MIB + 0x3006)]
    assert [memory.read(start, end - start) for start, end, _, _ in found] == [b"first" * 1000, b"second"]
    assert [text(memory, string) for _, _, string, _ in found] == [b"one arg", b"two"]
    assert [reserved for _, _, _, reserved in found] == [0, 0]


@pytest.mark.parametrize(
    ("image", "at", "expected"),
    [
        (kludge(), MIB + 32, CODE + b"\xcc"),
        (kludge(bss_end=MIB + 64), MIB + 32, CODE.ljust(32, b"\0") + b"\xcc"),
        (kludge(load_end=MIB + 34, bss_end=MIB + 36), MIB + 32, CODE[:2] + b"\0\0\xcc"),
        (kludge(before=b"abcd", entry=MIB + 36), MIB, b"abcd"),
    ],
)
def test_address_fields(memory: GuestMemory, image: bytes, at: int, expected: bytes) -> None:
    state = load(memory, RAM, image)
    assert memory.read(at, len(expected)) == expected
    assert state.rip in (MIB + 32, MIB + 36)


def test_file_before_the_load_address_is_skipped(memory: GuestMemory) -> None:
    image = bytes(64) + multiboot_header(0x10000, MIB, MIB, 0, 0, MIB + 32) + CODE
    load(memory, RAM, image)
    assert memory.read(MIB + 32, len(CODE)) == CODE


def test_address_fields_win_over_elf(memory: GuestMemory) -> None:
    image = elf([(2 * MIB, 2 * MIB, CODE, 100)], 2 * MIB, before=multiboot_header(0x10000, MIB + 84, MIB, 0, 0, MIB + 120))
    assert load(memory, RAM, image).rip == MIB + 120


def test_information_keeps_clear_of_a_low_kernel(memory: GuestMemory) -> None:
    state = load(memory, RAM, elf_kernel(physical=0x1000), "line")
    assert state.gprs["rbx"] >= 0x1000 + 100
    assert memory.read(0x1000, len(CODE)) == CODE
    assert text(memory, information(memory, state, "<I", 16)[0]) == b"line"


@pytest.mark.parametrize("offset", [0, 4, 8192 - 12])
def test_header_is_found_on_four_byte_steps(offset: int) -> None:
    assert find_header(bytes(offset) + multiboot_header(3) + bytes(32)).offset == offset


@pytest.mark.parametrize(
    ("image", "why"),
    [
        (b"", "not a Multiboot kernel"),
        (multiboot_header(0)[:11], "not a Multiboot kernel"),
        (b"ab" + multiboot_header(0), "not a Multiboot kernel"),
        (bytes(8192 - 8) + multiboot_header(0), "not a Multiboot kernel"),
        (multiboot_header(0)[:8] + bytes(4), "not a Multiboot kernel"),
        (multiboot_header(8), "0x0008"),
        (multiboot_header(0x10000, MIB), "cut off"),
        (multiboot_header(0) + bytes(100), "not an ELF"),
        (elf([(MIB, MIB, CODE, 100)], MIB, bits=64, before=multiboot_header(0)), "64-bit"),
        (kludge(load_at=MIB, load_end=MIB + 4096), "do not fit"),
        (kludge(load_end=MIB + 40, bss_end=MIB + 20), "order"),
        (kludge(entry=0), "entry point"),
        (kludge(bss_end=1 << 31), "needs 2048 MiB"),
        (elf_kernel(physical=0xA0000), "not free memory"),
        (elf_kernel(physical=0), "not free memory"),
        (elf_kernel(physical=RAM), "needs 5 MiB"),
    ],
)
def test_images_that_cannot_be_started(memory: GuestMemory, image: bytes, why: str) -> None:
    before = bytes(memory.view)
    with pytest.raises(BootError, match=why):
        load(memory, RAM, image)
    assert bytes(memory.view) == before


def test_modules_and_information_that_do_not_fit(memory: GuestMemory) -> None:
    with pytest.raises(BootError, match="modules do not fit"):
        load(memory, RAM, elf_kernel(), "", [(bytes(3 * MIB), "")])
    with pytest.raises(BootError, match="no room"):
        load(memory, RAM, elf_kernel(), "x" * 700_000)


@settings(derandomize=True, deadline=None, max_examples=300)
@given(
    st.sampled_from([elf_kernel(), kludge(bss_end=MIB + 64)]),
    st.lists(st.tuples(st.integers(0, 140), st.integers(0, 255)), max_size=6),
    st.integers(0, 400),
    st.integers(0, 1 << 17),
)
def test_mutated_images_raise_nothing_but_boot_error(image: bytes, mutations: list[tuple[int, int]], length: int, flags: int) -> None:
    mutated = bytearray(image)
    for offset, value in mutations:
        if offset < len(mutated):
            mutated[offset] = value
    at = mutated.find(b"\x02\xb0\xad\x1b")
    if at >= 0 and length % 2:  # keep the checksum right, or nothing else is ever reached
        mutated[at : at + 12] = multiboot_header(flags if length % 4 == 1 else int.from_bytes(mutated[at + 4 : at + 8], "little"))
    if length % 3 == 0:
        del mutated[length:]
    memory = GuestMemory(memoryview(bytearray(2 * MIB)))
    try:
        state = load(memory, 2 * MIB, bytes(mutated), "line", [(b"module", "")])
    except BootError:
        return
    assert 0x1000 <= state.rip < 2 * MIB
