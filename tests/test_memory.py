"""Guest RAM as devices see it: bounded everywhere."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avmm.memory import GuestMemory


def make() -> tuple[GuestMemory, list[tuple[int, int]]]:
    writes: list[tuple[int, int]] = []
    memory = GuestMemory(memoryview(bytearray(range(256))), lambda address, length: writes.append((address, length)))
    return memory, writes


@pytest.mark.parametrize(
    ("address", "length", "expected"),
    [(0, 4, b"\0\1\2\3"), (252, 4, b"\xfc\xfd\xfe\xff"), (254, 4, b"\xfe\xff\xff\xff"), (256, 2, b"\xff\xff"), (1 << 60, 3, b"\xff" * 3),
     (5, 0, b""), (300, 0, b""), (-1, 2, b"\xff\xff"), (-300, 2, b"\xff\xff")],
)  # fmt: skip
def test_read(address: int, length: int, expected: bytes) -> None:
    assert make()[0].read(address, length) == expected


def test_write_is_bounded_and_told() -> None:
    memory, writes = make()
    memory.write(254, b"abcd")
    assert bytes(memory.view[252:]) == b"\xfc\xfdab"
    memory.write(256, b"x")
    memory.write(-1, b"x")
    memory.write(3, b"")
    memory.write(0, memoryview(b"zz"))
    assert writes == [(254, 2), (0, 2)]
    assert memory.size == 256


def test_write_without_a_processor() -> None:
    memory = GuestMemory(memoryview(bytearray(16)))
    memory.write(4, b"abc")
    assert memory.read(4, 3) == b"abc"


def test_pack_and_unpack() -> None:
    memory, writes = make()
    memory.pack("<HIB", 8, 0x1234, 0x89ABCDEF, 7)
    assert memory.unpack("<HIB", 8) == (0x1234, 0x89ABCDEF, 7)
    assert writes == [(8, 7)]
    assert memory.unpack("<I", 254) == (0xFFFFFFFE,)


@settings(derandomize=True, max_examples=100)
@given(st.integers(-20, 300), st.binary(max_size=40))
def test_write_then_read(address: int, data: bytes) -> None:
    memory, _ = make()
    before = bytes(memory.view)
    memory.write(address, data)
    after = bytes(memory.view)
    assert len(after) == 256
    for i in range(256):
        written = address >= 0 and address <= i < address + len(data)
        assert after[i] == (data[i - address] if written else before[i])
