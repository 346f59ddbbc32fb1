"""fw_cfg against QEMU's specification of the device."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avmm.devices.fw_cfg import FwCfg, e820_file, standard_items
from tests.devices.bench import Bench

FILES = {"vgaroms/vgabios-isavga.bin": bytes(range(256)) * 3, "etc/e820": e820_file(64 << 20)}


class Windowless(Bench):
    """A board that serves no windows, as when the device lives outside the hypervisor."""

    def window(self, port: int, buffer: memoryview | None, *, out: bool = False, start: int = 0) -> None:
        pass


@pytest.fixture(params=[Bench, Windowless])
def bench(request: pytest.FixtureRequest) -> Bench:
    made = request.param()
    assert isinstance(made, Bench)
    return made


def fetch(bench: Bench, device: FwCfg, selector: int, length: int) -> bytes:
    bench.write(device, 0x510, selector, 2)
    return bytes(bench.read(device, 0x511) for _ in range(length))


def test_signature_and_interface(bench: Bench) -> None:
    device = FwCfg(bench)
    assert fetch(bench, device, 0, 6) == b"QEMU\0\0"
    assert fetch(bench, device, 1, 4) == b"\1\0\0\0"  # no DMA
    assert fetch(bench, device, 0x7777, 3) == b"\0\0\0"
    assert bench.read(device, 0x510) == 0


def test_directory_leads_to_the_files(bench: Bench) -> None:
    device = FwCfg(bench, {}, FILES)
    assert fetch(bench, device, 0x19, 4) == struct.pack(">I", 2)
    found = {}
    for _ in range(2):
        size, selector, reserved, name = struct.unpack(">IHH56s", bytes(bench.read(device, 0x511) for _ in range(64)))
        assert reserved == 0
        assert selector >= 0x20
        found[name.rstrip(b"\0").decode()] = (size, selector)
    assert {name: fetch(bench, device, selector, size) for name, (size, selector) in found.items()} == FILES


@pytest.mark.parametrize(
    ("selector", "content"),
    [
        (0x03, struct.pack("<Q", 96 << 20)),
        (0x04, b"\0\0"),
        (0x05, b"\1\0"),
        (0x0D, bytes(16)),
        (0x0E, b"\0\0"),
        (0x0F, b"\1\0"),
        (0x8002, b"\1\0\0\0"),
    ],
)
def test_standard_items(bench: Bench, selector: int, content: bytes) -> None:
    assert fetch(bench, FwCfg(bench, standard_items(96 << 20)), selector, len(content)) == content


def test_e820_file_is_one_range_of_ram() -> None:
    assert struct.unpack("<QQI", e820_file(1 << 24)) == (0, 1 << 24, 1)


def test_selection_opens_a_window_and_the_next_one_replaces_it() -> None:
    bench = Bench()
    device = FwCfg(bench, {0x100: b"abcdef", 0x101: b"xyz", 0x102: b""})
    bench.write(device, 0x510, 0x100, 2)
    assert bytes(bench.windows[0x511][0]) == b"abcdef"
    assert bench.read(device, 0x511, 2) == 0x6261
    bench.write(device, 0x510, 0x101, 2)
    assert [bench.read(device, 0x511) for _ in range(4)] == [*b"xyz", 0]
    assert bench.windows == {}
    bench.write(device, 0x510, 0x102, 2)
    assert bench.windows == {}
    bench.write(device, 0x510, 0x100, 2)
    device.reset()
    assert bench.windows == {}
    assert bench.read(device, 0x511) == ord("Q")


def test_wide_and_odd_accesses(bench: Bench) -> None:
    device = FwCfg(bench, {0x0F: b"abcde"})
    bench.write(device, 0x510, 0x0F, 1)  # a byte selects too
    bench.write(device, 0x511, 0xFF)  # data are read-only
    assert bench.read(device, 0x511, 2) == 0x6261
    assert bench.read(device, 0x511, 2) == 0x6463
    assert bench.read(device, 0x511, 2) == 0x0065  # does not fit the window: the device pads
    assert bench.read(device, 0x511, 2) == 0


@pytest.mark.parametrize("name", ["", "x" * 56])
def test_file_names_must_fit(name: str) -> None:
    with pytest.raises(ValueError, match="characters"):
        FwCfg(Bench(), {}, {name: b""})


@pytest.mark.parametrize("selector", [0, 1, 0x19, 0x20])
def test_items_cannot_take_the_devices_own_places(selector: int) -> None:
    with pytest.raises(ValueError, match="own"):
        FwCfg(Bench(), {selector: b""}, {"a": b""})


@settings(derandomize=True, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from([0x100, 0x101, 0x200]), st.lists(st.sampled_from([1, 2]), max_size=8)), max_size=5),
    st.booleans(),
)
def test_reading_is_the_same_with_and_without_windows_and_restores(steps: list[tuple[int, list[int]]], restore: bool) -> None:
    items = {0x100: b"0123456", 0x101: b"a"}
    bench, plain = Bench(), Windowless()
    device, other = FwCfg(bench, items), FwCfg(plain, items)
    for selector, sizes in steps:
        bench.write(device, 0x510, selector, 2)
        plain.write(other, 0x510, selector, 2)
        position = 0
        for size in sizes:
            if restore:
                state = device.save()
                bench = Bench()
                device = FwCfg(bench, items)
                device.restore(state)
            expected = int.from_bytes(items.get(selector, b"")[position : position + size], "little")
            assert bench.read(device, 0x511, size) == plain.read(other, 0x511, size) == expected
            position += size


def test_restore_refuses_what_is_not_its_own() -> None:
    with pytest.raises(ValueError, match="fw_cfg"):
        FwCfg(Bench()).restore(object())  # type: ignore[arg-type]
