from __future__ import annotations

import pytest

from avmm.devices.ata import AtaDisk, Phase
from avmm.devices.block import BlockError, BlockFault
from tests.devices.ata.host import Host, disk_host, pattern
from tests.devices.bench import MemoryDisk


@pytest.mark.parametrize("code", [0x00, 0xB0, 0xA0, 0xA1, 0x08, 0x92, 0xF5, 0xF9, 0x22, 0x50, 0xFF])
def test_unknown_commands_are_aborted(code: int) -> None:
    host, _ = disk_host()
    host.out(7, code)
    assert host.irq.level
    assert host.inp(7) == 0x51
    assert host.inp(1) == 0x04
    host.out(7, 0xE5)
    assert host.inp(7) == 0x50  # the next command clears ERR
    assert host.inp(1) == 0


@pytest.mark.parametrize(
    ("code", "lba", "count", "bad", "left"),
    [
        (0x20, 2048, 1, 2048, 1),
        (0x20, 2040, 16, 2048, 8),
        (0xC4, 0x0FFFFFFF, 0, 0x0FFFFFFF, 0),
        (0x30, 2047, 2, 2048, 1),
        (0xC8, 3000, 4, 3000, 4),
        (0xCA, 2047, 3, 2048, 2),
        (0x40, 2048, 1, 2048, 1),
    ],
)
def test_beyond_the_end(code: int, lba: int, count: int, bad: int, left: int) -> None:
    host, medium = disk_host()
    host.lba28(code, lba, count)
    assert host.wait() == 0x51
    assert host.inp(1) == 0x10
    assert host.registers() == (left, bad & 0xFF, bad >> 8 & 0xFF, bad >> 16 & 0xFF, 0xE0 | bad >> 24)
    assert medium.log == []


def test_beyond_the_end_lba48() -> None:
    host, _ = disk_host()
    host.lba48(0x24, 0x123456789ABC, 1)
    assert host.wait() == 0x51
    assert host.inp(1) == 0x10
    low = [host.inp(offset) for offset in (3, 4, 5)]
    host.write(host.ata, host.control, 0x80)
    high = [host.inp(offset) for offset in (3, 4, 5)]
    assert int.from_bytes(bytes(low + high), "little") == 0x123456789ABC
    host.out(3, 1)  # any write to the command block takes HOB back
    assert host.inp(3) == 1


@pytest.mark.parametrize(("sector", "head"), [(0, 0), (64, 0)])
def test_chs_address_that_does_not_exist(sector: int, head: int) -> None:
    host, _ = disk_host()
    for offset, value in ((6, 0xA0 | head), (2, 1), (3, sector), (4, 0), (5, 0), (7, 0x20)):
        host.out(offset, value)
    assert host.wait() == 0x51
    assert host.inp(1) == 0x10


@pytest.mark.parametrize(("code", "block", "good"), [(0x20, 512, 19), (0xC4, 16 * 512, 16)])
def test_bad_sector_when_read(code: int, block: int, good: int) -> None:
    """The sectors before the bad one arrive (whole DRQ blocks), then UNC with its address."""
    host, medium = disk_host()
    medium.bad = {119}
    host.lba28(code, 100, 40)
    assert host.pio_in(good * 512, block) == medium.data[100 * 512 : (100 + good) * 512]
    edges = host.irq.edges
    assert host.wait() == 0x51
    assert host.irq.edges == edges + 1
    assert host.inp(1) == 0x40
    assert host.registers() == (21, 119, 0, 0, 0xE0)
    assert host.ata.phase is Phase.IDLE


def test_bad_sector_when_written() -> None:
    host, medium = disk_host()
    medium.bad = {12}
    host.lba28(0x30, 10, 4)
    host.pio_out(pattern(4, 6))
    assert host.wait() == 0x51
    assert host.inp(1) == 0x40
    assert host.registers() == (2, 12, 0, 0, 0xE0)
    assert medium.data[10 * 512 : 12 * 512] == pattern(2, 6)
    assert medium.data[12 * 512 : 14 * 512] == pattern(14)[12 * 512 :]


def test_bad_sector_when_verified() -> None:
    host, medium = disk_host()
    medium.bad = {500}
    host.lba48(0x42, 0, 2000)
    assert host.wait() == 0x51
    assert host.registers()[1:3] == (500 & 0xFF, 500 >> 8)


@pytest.mark.parametrize("code", [0x30, 0xC5, 0xCA, 0x34, 0x35, 0x39])
def test_read_only_disk(code: int) -> None:
    host = Host([AtaDisk(MemoryDisk(read_only=True))])
    host.lba48(code, 0, 1)
    assert host.wait() == 0x51
    assert host.inp(1) == 0x44
    assert host.ata.phase is Phase.IDLE


def test_multiple_not_enabled() -> None:
    host, _ = disk_host()
    for count, status in ((0, 0x50), (3, 0x51), (32, 0x51), (8, 0x50), (0, 0x50)):
        host.out(2, count)
        host.out(7, 0xC6)
        assert host.inp(7) == status
    for code in (0xC4, 0xC5, 0x29, 0x39):
        host.lba48(code, 0, 1)
        assert host.inp(7) == 0x51
        assert host.inp(1) == 0x04


def test_larger_multiple() -> None:
    medium = MemoryDisk()
    medium.data[:] = pattern(2048)
    host = Host([AtaDisk(medium, multiple_max=128)])
    host.lba28(0xC4, 0, 200)
    assert host.pio_in(200 * 512, 128 * 512) == medium.data[: 200 * 512]
    assert host.irq.edges == 2


def test_flush_that_fails() -> None:
    class Broken(MemoryDisk):
        async def flush(self) -> None:
            raise BlockError(BlockFault.MEDIUM, 0)

    host = Host([AtaDisk(Broken())])
    host.out(7, 0xE7)
    assert host.wait() == 0x71  # DF and ERR
    assert host.irq.level


def test_command_while_busy_is_ignored() -> None:
    host, medium = disk_host()
    host.lba28(0x20, 7, 1)
    host.out(3, 99)
    host.out(6, 0xF0)
    host.out(7, 0x30)
    assert host.pio_in(512) == medium.data[7 * 512 : 8 * 512]
    assert [name for name, _ in host.events] == ["ata command ignored"]


def test_a_bug_in_the_medium_is_not_the_guests() -> None:
    class Buggy(MemoryDisk):
        async def read(self, lba: int, count: int) -> bytearray:
            raise RuntimeError("bug")

    host = Host([AtaDisk(Buggy())])
    host.lba28(0x20, 0, 1)
    with pytest.raises(RuntimeError, match="bug"):
        host.wait()


def test_count_zero_of_48_bits_is_65536() -> None:
    host, _ = disk_host()
    host.lba48(0x42, 0, 0)
    assert host.wait() == 0x51
    left = host.inp(2)
    host.write(host.ata, host.control, 0x80)
    assert host.inp(2) << 8 | left == 65536 - 2048
