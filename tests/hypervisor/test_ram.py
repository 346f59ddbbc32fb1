"""RAM whose pictures share pages with it: what was there stays there, whoever writes afterwards."""

from __future__ import annotations

import gc
import os
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avmm.hypervisor.ram import Ram, RamImage
from avmm.memory import PAGE

SIZE = 64 * PAGE


def content(image: RamImage) -> bytes:
    held = bytearray(image.size)
    for at, data in image.runs():
        held[at : at + len(data)] = data
    return bytes(held)


def own(ram: Ram) -> int:
    """Bytes that a private mapping has for itself."""
    return sum(length for _, length in ram._copies())


@settings(deadline=None, max_examples=60)
@given(st.lists(st.one_of(
    st.tuples(st.just("write"), st.integers(0, SIZE - 1), st.binary(min_size=1, max_size=3 * PAGE)),
    st.tuples(st.just("freeze"), st.just(0), st.just(b"")),
    st.tuples(st.sampled_from(("adopt", "share")), st.integers(0, 20), st.just(b"")),
), max_size=20))  # fmt: skip
def test_pictures_keep_what_was_there(steps: list[tuple[str, int, bytes]]) -> None:
    """Against a model: the bytes themselves."""
    ram, model = Ram(SIZE), bytearray(SIZE)
    pictures: list[tuple[RamImage, bytes]] = []
    for step, at, data in steps:
        if step == "write":
            data = data[: SIZE - at]
            ram.view[at : at + len(data)] = data
            model[at : at + len(data)] = data
        elif step == "freeze":
            pictures.append((ram.freeze(), bytes(model)))
        elif pictures:
            image, held = pictures[at % len(pictures)]
            ram.adopt(image, sharing=step == "share")
            model[:] = held
        assert ram.view == model
    for image, held in pictures:
        assert content(image) == content(image.merged()) == held


def test_machines_of_one_picture_share_until_they_write() -> None:
    size = 8 << 20
    ram = Ram(size)
    ram.view[:] = random.Random(1).randbytes(size)
    image = ram.freeze()
    clones = [Ram(size) for _ in range(3)]
    for clone in clones:
        clone.adopt(image, sharing=True)
        assert clone.view == ram.view
        assert own(clone) == 0
    clones[0].view[5 * PAGE] ^= 1
    assert [own(clone) for clone in clones] == [PAGE, 0, 0]
    assert clones[1].view == ram.view != clones[0].view


def test_a_picture_of_much_change_becomes_a_file_of_its_own() -> None:
    ram = Ram(SIZE)
    ram.view[:] = b"a" * SIZE
    first = ram.freeze()
    ram.view[:PAGE] = b"b" * PAGE
    second = ram.freeze()
    assert second.file is first.file
    assert [(at, len(data)) for at, data in second.apart] == [(0, PAGE)]
    ram.view[: SIZE // 2] = b"c" * (SIZE // 2)
    third = ram.freeze()
    assert third.file is not first.file
    assert third.apart == ()
    assert content(first) == b"a" * SIZE
    assert content(third)[SIZE // 2 - 1 :][:2] == b"ca"


def test_descriptors_are_given_back() -> None:
    before = len(os.listdir("/proc/self/fd"))
    ram = Ram(SIZE)
    ram.view[0] = 1
    images = [ram.freeze() for _ in range(3)]
    ram.close()
    assert images[0].size == SIZE
    del images, ram
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before


def test_memory_is_given_back_when_it_is_closed_and_not_when_it_is_forgotten() -> None:
    ram = Ram(SIZE)
    ram.view[:] = b"x" * SIZE
    picture = ram.freeze()
    ram.view[:PAGE] = b"y" * PAGE
    assert own(ram) == PAGE
    ram.close()
    assert own(ram) == 0
    assert bytes(ram.view) == bytes(SIZE)  # whoever still looks there
    assert content(picture) == b"x" * SIZE


def test_what_the_host_does_not_give_is_an_os_error() -> None:
    with pytest.raises((OSError, OverflowError)):
        Ram(1 << 62)
