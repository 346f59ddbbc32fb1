"""Guest memory in pieces: what a guest's list names and nothing else, and moved between it and a file as by os.preadv and os.pwritev."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avmm import _pieces
from avmm.memory import PAGE, GuestMemory

PAGES = 8


def memory() -> GuestMemory:
    return GuestMemory(memoryview(bytearray(bytes(range(PAGES)) * PAGE)))


def listed(*numbers: int) -> bytes:
    return struct.pack(f"<{len(numbers)}Q", *numbers)


def test_pages_that_follow_one_another_are_one_piece() -> None:
    pieces = memory().pages(listed(3, 4, 5, 1, 2, 7), 0, 100, 5 * PAGE)
    assert pieces is not None
    assert pieces.segments() == [(3 * PAGE + 100, 3 * PAGE - 100), (PAGE, 2 * PAGE), (7 * PAGE, 100)]
    assert [len(piece) for piece in pieces] == [3 * PAGE - 100, 2 * PAGE, 100]
    with pytest.raises(IndexError):
        pieces[3]
    again = memory().pieces([(0, 10), (10, 5), (20, 1)])
    assert again is not None
    assert again.segments() == [(0, 15), (20, 1)]


@pytest.mark.parametrize("number", [PAGES, 1 << 31, 1 << 51, 1 << 52, 1 << 63, (1 << 64) - 1])
def test_a_page_that_is_not_there_is_refused(number: int) -> None:
    assert memory().pages(listed(1, number), 0, 0, 2 * PAGE) is None
    assert memory().pages(listed(1, number), 0, 0, PAGE) is not None, "nobody asked for it"


@pytest.mark.parametrize(
    "segment",
    [(-1, 2), (0, -1), (0, PAGES * PAGE + 1), (PAGES * PAGE, 1), (1 << 62, 1), (1, (1 << 63) - 1), (1 << 64, 1), (-(1 << 64), 1), (0, 1 << 70)],
)
def test_a_segment_that_is_not_all_there_is_refused(segment: tuple[int, int]) -> None:
    assert memory().pieces([(0, 1), segment]) is None


@pytest.mark.parametrize(
    ("at", "offset", "length"),
    [(-8, 0, 1), (24, 0, 1), (1 << 62, 0, 1), (0, -1, 1), (0, PAGE, 1), (0, 0, 0), (0, 0, -1), (0, 1, 2 * PAGE), (8, 0, PAGE + 1),
     (9, 0, 1), (0, 0, (1 << 63) - 1), (0, PAGE - 1, (1 << 63) - 1)],
)  # fmt: skip
def test_nothing_is_read_beyond_the_list(at: int, offset: int, length: int) -> None:
    with pytest.raises(ValueError, match="no page numbers"):
        memory().pages(listed(1, 2), at, offset, length)


def test_a_memory_is_needed_that_can_be_written() -> None:
    with pytest.raises(BufferError):
        GuestMemory(memoryview(bytes(PAGE))).pages(listed(0), 0, 0, 1)


@settings(derandomize=True, max_examples=200, deadline=None)
@given(st.lists(st.integers(0, PAGES + 1), min_size=1, max_size=12), st.integers(0, PAGE - 1), st.integers(1, 12 * PAGE))
def test_pieces_are_the_bytes_that_the_list_names_in_order(numbers: list[int], offset: int, length: int) -> None:
    ram = memory()
    length = min(length, len(numbers) * PAGE - offset)
    pieces = ram.pages(b"12345678" + listed(*numbers), 8, offset, length)
    if max(numbers[: (offset + length + PAGE - 1) // PAGE]) >= PAGES:
        assert pieces is None
        return
    assert pieces is not None
    expected = b"".join(ram.read(number * PAGE, PAGE) for number in numbers)[offset : offset + length]
    assert b"".join(pieces) == expected
    assert b"".join(ram.read(*segment) for segment in pieces.segments()) == expected


@pytest.mark.parametrize(("at", "length"), [(-1, 1), (0, -1), (0, 9), (8, 1), (9, 0), (1 << 62, 1), (1, (1 << 63) - 1)])
def test_what_is_not_there_is_not_copied(at: int, length: int) -> None:
    memory = memoryview(b"12345678")
    with pytest.raises(ValueError, match="are not in 8 bytes"):
        _pieces.copy(memory, at, length)
    assert _pieces.copy(memory, 2, 3) == b"345"
    assert _pieces.copy(memory, 8, 0) == b""


def test_bytes_go_to_a_file_and_come_back(tmp_path: Path) -> None:
    path, ram = tmp_path / "file", memory()
    path.write_bytes(b"head")
    pieces = ram.pages(listed(6, 2), 0, PAGE - 2, PAGE)
    assert pieces is not None
    file = os.open(path, os.O_RDWR)
    try:
        assert pieces.pwritev(file, 4) == PAGE
        content = b"head" + b"".join(pieces)
        assert path.read_bytes() == content
        for piece in pieces:
            piece[:] = bytes(len(piece))
        assert pieces.preadv(file, 4) == PAGE
        assert b"".join(pieces) == content[4:]
        assert pieces.preadv(file, 4 + 100) == PAGE - 100, "short at the end of the file"
        for move in (pieces.preadv, pieces.pwritev):  # not where the file stands, as the calls beneath would have it
            with pytest.raises(OSError, match="Invalid argument"):
                move(file, -1)
    finally:
        os.close(file)
    with pytest.raises(OSError, match="Bad file descriptor"):
        pieces.pwritev(file, 0)
    with pytest.raises(OSError, match="Bad file descriptor"):
        pieces.preadv(file, 0, os.RWF_NOWAIT)


def test_memory_stays_as_long_as_there_are_pieces_of_it() -> None:
    buffer = bytearray(PAGE)
    view = memoryview(buffer)
    pieces = GuestMemory(view).pieces([(0, 8)])
    assert pieces is not None
    with pytest.raises(BufferError):
        view.release()
    with pytest.raises(BufferError):
        buffer.clear()
    piece = pieces[0]
    del pieces
    piece[:4] = b"abcd"
    piece.release()
    view.release()
    assert buffer[:4] == b"abcd"
