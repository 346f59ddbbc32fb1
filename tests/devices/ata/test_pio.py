from __future__ import annotations

from dataclasses import fields, is_dataclass

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from avmm.devices.ata import AtaDisk, AtapiCdrom, Phase
from tests.devices.ata.host import BMIDE, BUFFER, SECOND, Host, disk_host, pattern
from tests.devices.bench import MemoryDisk


@pytest.mark.parametrize(("code", "block"), [(0x20, 512), (0x21, 512), (0xC4, 16 * 512)])
@pytest.mark.parametrize("width", [1, 2, 4])
def test_read_lba28(code: int, block: int, width: int) -> None:
    host, medium = disk_host()
    host.lba28(code, 100, 20)
    assert host.alternate() == 0x80  # BSY until the medium answers
    assert host.pio_in(20 * 512, block, width) == medium.data[100 * 512 : 120 * 512]
    assert host.alternate() == 0x50
    assert not host.interrupted()  # no interrupt after the last block
    assert host.irq.edges == -(-20 * 512 // block)
    assert medium.log == [("read", 100, 20)]  # one request for the whole command
    assert host.registers() == (0, 119, 0, 0, 0xE0)


def test_read_256_and_more_sectors_in_chunks() -> None:
    host, medium = disk_host()
    host.lba28(0x20, 0, 0)
    assert host.pio_in(256 * 512) == medium.data[: 256 * 512]
    host.lba48(0x29, 3, 700)
    assert host.pio_in(700 * 512, 16 * 512) == medium.data[3 * 512 : 703 * 512]
    assert medium.log == [("read", 0, 256), ("read", 3, 256), ("read", 259, 256), ("read", 515, 188)]
    host.write(host.ata, host.control, 0x80)
    assert host.registers()[:2] == (0, 0)
    host.write(host.ata, host.control, 0x00)
    assert host.registers()[:3] == (0, 702 & 0xFF, 702 >> 8)


def test_chs() -> None:
    host, medium = disk_host()
    for offset, value in ((6, 0xA5), (2, 1), (3, 7), (4, 1), (5, 0), (7, 0x20)):
        host.out(offset, value)
    lba = (1 * 16 + 5) * 63 + 6
    assert host.pio_in(512) == medium.data[lba * 512 : (lba + 1) * 512]
    for offset, value in ((2, 17), (6, 0xA3), (7, 0x91), (6, 0xA2), (2, 2), (3, 17), (4, 3), (7, 0x20)):
        host.out(offset, value)
        host.inp(7)
    lba = (3 * 4 + 2) * 17 + 16
    host.pass_time(SECOND)
    assert host.read_block(512) == medium.data[lba * 512 : (lba + 1) * 512]
    host.pass_time(SECOND)
    assert host.read_block(512) == medium.data[(lba + 1) * 512 : (lba + 2) * 512]
    assert host.registers()[1:] == (1, 3, 0, 0xA3)  # the last sector's address: next head, sector 1


@pytest.mark.parametrize(("code", "block"), [(0x30, 512), (0xC5, 16 * 512)])
@pytest.mark.parametrize("width", [1, 2, 4])
def test_write_lba28(code: int, block: int, width: int) -> None:
    host, medium = disk_host()
    data = pattern(20, 9)
    host.lba28(code, 100, 20)
    host.pio_out(data, block, width)
    assert medium.data[100 * 512 : 120 * 512] == data
    assert medium.data[120 * 512 : 121 * 512] == pattern(121)[120 * 512 :]
    assert medium.log == [("write", 100, 20)]
    assert host.inp(7) == 0x50
    assert host.irq.edges == -(-20 * 512 // block)


def test_write_is_busy_until_the_medium_has_it() -> None:
    host, _ = disk_host()
    host.lba48(0x34, 5, 1)
    host.write_block(pattern(1, 1))
    assert host.alternate() == 0x80
    assert not host.interrupted()
    host.pass_time(20_000)
    assert host.alternate() == 0x80
    host.pass_time(1_000)  # 20 us and 1 us per sector
    assert host.alternate() == 0x50
    assert host.interrupted()


def test_chunked_write() -> None:
    host, medium = disk_host()
    host.lba48(0x39, 8, 300)
    host.pio_out(pattern(300, 3), 16 * 512)
    assert medium.data[8 * 512 : 308 * 512] == pattern(300, 3)
    assert medium.log == [("write", 8, 256), ("write", 264, 44)]


def test_accesses_that_straddle_blocks() -> None:
    host, medium = disk_host()
    host.lba28(0x20, 0, 2)
    host.wait()
    first = host.read_block(2)
    rest = host.read_block(1020, 4)
    tail = host.read(host.ata, host.base, 4)
    assert first + rest + tail.to_bytes(4, "little")[:2] == medium.data[:1024]
    assert host.read(host.ata, host.base, 2) == 0xFFFF  # no more data
    host.lba28(0x30, 0, 1)
    host.write_block(b"ab")
    host.write_block(b"c" * 512, 4)
    host.wait()
    assert medium.data[:512] == b"ab" + b"c" * 510


def test_nien_holds_the_line_back() -> None:
    host, _ = disk_host()
    host.write(host.ata, host.control, 0x02)
    host.lba28(0x20, 0, 1)
    host.wait()
    assert not host.irq.edges
    host.write(host.ata, host.control, 0x00)
    assert host.interrupted()
    host.alternate()
    assert host.interrupted()  # only the status register acknowledges
    host.inp(7)
    assert not host.interrupted()


def test_interrupt_belongs_to_the_selected_drive() -> None:
    host = Host([AtaDisk(MemoryDisk()), AtaDisk(MemoryDisk())])
    host.out(7, 0xE7)
    host.pass_time(SECOND)
    assert host.interrupted()
    host.out(6, 0xB0)
    assert not host.interrupted()
    host.inp(7)
    host.out(6, 0xA0)
    assert host.interrupted()


def test_reset_drops_what_is_under_way() -> None:
    host, _ = disk_host()
    host.lba28(0x20, 0, 1)
    host.write(host.ata, host.control, 0x04)
    host.write(host.ata, host.control, 0x00)
    host.pass_time(SECOND)
    assert host.alternate() == 0x50
    assert host.ata.phase is Phase.IDLE
    assert not host.irq.edges
    host.lba28(0x20, 0, 1)
    host.wait()
    host.read_block(100)
    host.ata.reset()
    assert not host.windows
    assert not host.interrupted()
    assert host.registers() == (1, 1, 0, 0, 0xA0)


def test_two_drives_do_not_mix() -> None:
    media = [MemoryDisk(64), MemoryDisk(64)]
    host = Host([AtaDisk(medium) for medium in media])
    for device in (0, 1):
        host.lba28(0x30, 1, 1, device)
        host.pio_out(pattern(1, device + 1))
    assert [bytes(medium.data[512:1024]) for medium in media] == [pattern(1, 1), pattern(1, 2)]


def test_verify_seek_and_flush() -> None:
    host, medium = disk_host()
    for code in (0x40, 0x42, 0x70, 0x10, 0xE7, 0xEA):
        edges = host.irq.edges
        (host.lba48 if code == 0x42 else host.lba28)(code, 3, 2)
        assert host.wait() == 0x50
        assert host.irq.edges == edges + 1
        host.inp(7)
    assert [entry[0] for entry in medium.log] == ["read", "read", "flush", "flush"]


# -- against a plain model

PATHS = {
    "single": (0x20, 0x30, False, 512),
    "multiple": (0xC4, 0xC5, False, 16 * 512),
    "single ext": (0x24, 0x34, True, 512),
    "multiple ext": (0x29, 0x39, True, 16 * 512),
    "dma": (0xC8, 0xCA, False, 0),
    "dma ext": (0x25, 0x35, True, 0),
}
COMMANDS = st.lists(
    st.tuples(st.sampled_from(sorted(PATHS)), st.booleans(), st.integers(0, 599), st.integers(1, 300), st.sampled_from([2, 4])),
    max_size=5,
)


@settings(derandomize=True, max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(COMMANDS)
def test_like_a_bytearray(sequence: list[tuple[str, bool, int, int, int]]) -> None:
    host, medium = disk_host(600)
    model = bytearray(medium.data)
    for serial, (path, writing, lba, count, width) in enumerate(sequence):
        read, write, ext, block = PATHS[path]
        count = min(count, 600 - lba, 1000 if ext else 256)
        place = slice(lba * 512, (lba + count) * 512)
        issue = host.lba48 if ext else host.lba28
        if writing:
            data = pattern(count, serial + 50)
            model[place] = data
        if not block:
            if writing:
                host.memory.write(BUFFER, data)
            whole, part = divmod(count * 512, 0x10000)
            regions = [(BUFFER + 0x10000 * index, 0x10000) for index in range(whole)]
            host.prd(*regions, *([(BUFFER + 0x10000 * whole, part)] if part else []))
            issue(write if writing else read, lba, count)
            host.start_dma(not writing)
            assert host.wait() == 0x50
            host.stop_dma()
            if not writing:
                assert host.memory.read(BUFFER, count * 512) == model[place]
            host.inp(7)
        else:
            issue(write if writing else read, lba, count)
            if writing:
                host.pio_out(data, block, width)
            else:
                assert host.pio_in(count * 512, block, width) == model[place]
    assert medium.data == model


PORTS = [*range(0x1F0, 0x1F8), 0x3F6, *range(BMIDE, BMIDE + 16)]
VALUES = [0x20, 0xC4, 0x30, 0xCA, 0xC8, 0xA0, 0xEC, 0xA1, 0x08, 0x25, 0x90, 0xB0, 0xE0, 1, 9]
TRAFFIC = st.lists(
    st.tuples(
        st.sampled_from(PORTS),
        st.booleans(),
        st.one_of(st.sampled_from(VALUES), st.integers(0, 0xFFFFFFFF)),
        st.sampled_from([1, 2, 4]),
        st.sampled_from([0, 0, 0, 10_000, 1_000_000]),
        st.integers(1, 300),
    ),
    max_size=60,
)


@settings(derandomize=True, max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(TRAFFIC)
def test_any_traffic(traffic: list[tuple[int, bool, int, int, int, int]]) -> None:
    host = Host([AtaDisk(MemoryDisk(300)), AtapiCdrom(MemoryDisk(300))], ram=1 << 16)
    for port, writing, value, size, time, repeat in traffic:
        device = host.dma if port >= BMIDE else host.ata
        size = size if port == 0x1F0 or port >= BMIDE else 1
        for _ in range(repeat if port == 0x1F0 else 1):
            if writing:
                host.write(device, port, value & (1 << 8 * size) - 1, size)
            else:
                host.read(device, port, size)
        host.pass_time(time)
        check(host)
    host.write(host.ata, 0x3F6, 4)  # whatever happened, a reset brings it back
    host.write(host.ata, 0x3F6, 0)
    host.pass_time(SECOND)
    host.lba28(0x20, 0, 1)
    assert len(host.pio_in(512)) == 512


def check(host: Host) -> None:
    """The invariants of the sequencer."""
    sequencer = host.ata.sequencer
    phase = sequencer.phase
    assert (sequencer.pending is not None) == (phase is Phase.BUSY)
    assert bool(host.windows) == (phase in (Phase.DATA_IN, Phase.DATA_OUT, Phase.PACKET))
    statuses = [drive.task.status for drive in host.ata.present]
    if phase is Phase.IDLE:
        assert not any(status & 0x88 for status in statuses)
    elif phase is Phase.RESET:
        assert statuses == [0x80, 0x80]
    else:
        assert statuses[sequencer.active] & 0x88 == (0x80 if phase is Phase.BUSY else 0x08)


# -- saved state


def frozen(value: object) -> bool:
    if is_dataclass(value):
        return all(frozen(getattr(value, field.name)) for field in fields(value))
    return not isinstance(value, (bytearray, list, dict, memoryview))


@settings(derandomize=True, max_examples=40, deadline=None)
@given(st.sampled_from([0x20, 0xC4, 0x30, 0xC5]), st.integers(0, 10_000), st.integers(0, 60_000))
def test_restore_in_the_middle(code: int, moved: int, time: int) -> None:
    """A machine saved after any number of bytes goes on like one that was not."""
    writing, block = code in (0x30, 0xC5), 16 * 512 if code >= 0xC4 else 512
    host, medium = disk_host()
    data = pattern(20, 8)
    host.lba28(code, 40, 20)
    host.pass_time(time)
    at = 0
    while at < moved // 2 * 2 and host.alternate() & 0x08:
        if writing:
            host.write_block(data[at : at + 2])
        else:
            assert host.read_block(2) == medium.data[40 * 512 + at : 40 * 512 + at + 2]
        at += 2
        if at % block == 0:
            host.inp(7)
            if time & 1:
                break
    state = host.ata.save()
    assert frozen(state)
    other = Host([AtaDisk(medium)])
    other.time = host.time
    other.ata.restore(state)
    assert other.ata.save() == state
    assert (other.alternate(), other.irq.level) == (host.alternate(), host.irq.level)
    while at < 20 * 512:
        other.pass_time(SECOND if other.alternate() & 0x80 else 0)
        step = data[at : at + 2] if writing else medium.data[40 * 512 + at : 40 * 512 + at + 2]
        if writing:
            other.write_block(step)
        else:
            assert other.read_block(2) == step
        at += 2
    other.pass_time(SECOND)
    assert other.alternate() == 0x50
    assert medium.data[40 * 512 : 60 * 512] == (data if writing else pattern(2048)[40 * 512 : 60 * 512])


def test_restored_request_is_due_when_it_was() -> None:
    host, medium = disk_host()
    host.lba28(0x20, 0, 10)
    host.pass_time(12_345)
    state = host.ata.save()
    other = Host([AtaDisk(medium)])
    other.time = host.time
    other.ata.restore(state)
    other.pass_time(30_000 - 12_345 - 1)
    assert other.alternate() == 0x80
    other.pass_time(1)
    assert other.alternate() == 0x58


def test_restore_checks_what_it_gets() -> None:
    host, medium = disk_host()
    with pytest.raises(ValueError, match="other drives"):
        Host([]).ata.restore(host.ata.save())
    with pytest.raises(ValueError, match="not a AtapiCdrom"):
        Host([AtapiCdrom(medium)]).ata.restore(host.ata.save())


def test_stale_completion_is_not_taken_for_the_next_command() -> None:
    host, medium = disk_host()
    host.lba28(0x20, 7, 200)
    host.pass_time(10_000)
    host.write(host.ata, host.control, 0x04)
    host.write(host.ata, host.control, 0x00)
    host.pass_time(209_000)
    host.lba28(0x20, 9, 1)  # due at 240 us; the old one at 220 us
    host.pass_time(5_000)
    assert host.alternate() == 0x80
    host.pass_time(SECOND)
    assert host.read_block(512) == medium.data[9 * 512 : 10 * 512]
    assert host.alternate() == 0x50


def test_device_reset_leaves_the_other_drives_transfer_alone() -> None:
    medium = MemoryDisk(64)
    medium.data[:] = pattern(64)
    host = Host([AtaDisk(medium), AtapiCdrom(MemoryDisk())])
    host.lba28(0x20, 3, 2)
    host.wait()
    host.out(6, 0xB0)
    host.out(7, 0x08)
    host.out(6, 0xA0)
    assert host.read_block(1024) == medium.data[3 * 512 : 5 * 512]


def test_a_command_takes_hob_back() -> None:
    host, _ = disk_host()
    host.out(2, 0x11)
    host.out(2, 0x22)
    host.write(host.ata, host.control, 0x80)
    assert host.inp(2) == 0x11
    host.out(7, 0x10)
    assert host.inp(2) == 0x22
