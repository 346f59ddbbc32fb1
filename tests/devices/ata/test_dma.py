from __future__ import annotations

import pytest

from avmm.devices.ata import AtaDisk, Phase
from tests.devices.ata.host import BMIDE, BUFFER, SECOND, TABLE, Host, disk_host, pattern
from tests.devices.bench import MemoryDisk

ACTIVE, ERROR, INTERRUPT = 1, 2, 4


@pytest.mark.parametrize(("code", "ext"), [(0xC8, False), (0xC9, False), (0x25, True)])
@pytest.mark.parametrize("early", [False, True], ids=["start after command", "start before command"])
def test_read_scattered(code: int, ext: bool, early: bool) -> None:
    host, medium = disk_host()
    host.prd((BUFFER, 512), (0x40000, 1024), (0x30000, 512))
    if early:
        host.start_dma(to_memory=True)
    (host.lba48 if ext else host.lba28)(code, 9, 4)
    if not early:
        host.start_dma(to_memory=True)
    assert host.dma_status() == ACTIVE
    assert host.alternate() == 0x80
    assert host.wait() == 0x50
    assert host.dma_status() == INTERRUPT  # interrupt and not active: done, and the table was as long as the data
    assert host.irq.level
    got = host.memory.read(BUFFER, 512) + host.memory.read(0x40000, 1024) + host.memory.read(0x30000, 512)
    assert got == medium.data[9 * 512 : 13 * 512]
    assert host.inp(7) == 0x50
    host.write(host.dma, BMIDE + 2, 0x64)
    assert host.dma_status() == 0x60
    host.stop_dma()
    assert host.read(host.dma, BMIDE) == 0


@pytest.mark.parametrize("early", [False, True])
def test_write_gathered_in_chunks(early: bool) -> None:
    host, medium = disk_host()
    data = pattern(400, 5)
    host.memory.write(BUFFER, data)
    regions = [(BUFFER, 0x10000), (BUFFER + 0x10000, 0x10000), (BUFFER + 0x20000, 0x10000), (BUFFER + 0x30000, 400 * 512 - 0x30000)]
    host.prd(*regions)
    if early:
        host.start_dma(to_memory=False)
    host.lba48(0x35, 100, 400)
    if not early:
        host.start_dma(to_memory=False)
    assert host.wait() == 0x50
    assert host.dma_status() == INTERRUPT
    assert medium.data[100 * 512 : 500 * 512] == data
    assert medium.log == [("write", 100, 256), ("write", 356, 144)]
    assert host.irq.edges == 1


@pytest.mark.parametrize("to_memory", [True, False])
def test_table_shorter_than_the_request(to_memory: bool) -> None:
    host, medium = disk_host()
    host.prd((BUFFER, 512))
    host.lba28(0xC8 if to_memory else 0xCA, 0, 2)
    host.start_dma(to_memory)
    assert host.wait() == 0x58  # the drive still asks
    assert host.dma_status() == 0  # not active, no interrupt
    assert not host.irq.edges
    if to_memory:
        assert host.memory.read(BUFFER, 1024) == medium.data[:512] + bytes(512)
    host.stop_dma()
    host.prd((BUFFER + 512, 512))
    host.start_dma(to_memory)  # the engine started again goes on where the drive is
    assert host.wait() == 0x50
    assert host.dma_status() == INTERRUPT
    if to_memory:
        assert host.memory.read(BUFFER, 1024) == medium.data[:1024]
    else:
        assert medium.data[:1024] == bytes(1024)


def test_table_longer_than_the_request() -> None:
    host, medium = disk_host()
    host.prd((BUFFER, 4096))
    host.lba28(0xC8, 0, 2)
    host.start_dma(to_memory=True)
    host.wait()
    assert host.dma_status() == INTERRUPT | ACTIVE
    assert host.memory.read(BUFFER, 4096) == medium.data[:1024] + bytes(3072)
    host.stop_dma()
    assert host.dma_status() == INTERRUPT


def test_count_zero_is_64_kib() -> None:
    host, medium = disk_host()
    host.prd((BUFFER, 0))
    host.lba28(0xC8, 0, 128)
    host.start_dma(to_memory=True)
    host.wait()
    assert host.dma_status() == INTERRUPT
    assert host.memory.read(BUFFER, 0x10000) == medium.data[:0x10000]


@pytest.mark.parametrize("regions", [[(0x200000, 1024)], [(0xFFE00, 1024)], [(BUFFER, 512), (0xFFFFFFFE, 512)]])
def test_region_outside_memory(regions: list[tuple[int, int]]) -> None:
    host, _ = disk_host()
    host.prd(*regions)
    host.lba28(0xC8, 0, 2)
    host.start_dma(to_memory=True)
    assert host.wait() == 0x58
    assert host.dma_status() == ERROR
    assert not host.irq.edges
    host.write(host.dma, BMIDE + 2, ERROR)
    assert host.dma_status() == 0


def test_table_outside_memory() -> None:
    host, _ = disk_host()
    host.write(host.dma, BMIDE + 4, 0xFFFFFFFF, 4)
    assert host.read(host.dma, BMIDE + 4, 4) == 0xFFFFFFFC
    host.lba28(0xCA, 0, 2)
    host.start_dma(to_memory=False)
    assert host.dma_status() == ERROR
    assert host.wait() == 0x58


def test_wrong_direction_moves_nothing() -> None:
    host, medium = disk_host()
    host.prd((BUFFER, 512))
    host.lba28(0xC8, 0, 1)
    host.start_dma(to_memory=False)
    assert host.wait() == 0x58
    assert host.memory.read(BUFFER, 512) == bytes(512)
    assert medium.data == pattern(2048)


def test_abort_by_clearing_start() -> None:
    host, _ = disk_host()
    host.prd((BUFFER, 512))
    host.lba28(0xC8, 0, 1)
    host.start_dma(to_memory=True)
    host.stop_dma()
    assert host.dma_status() == 0
    assert host.wait() == 0x58
    assert host.memory.read(BUFFER, 512) == bytes(512)
    assert host.ata.phase is Phase.DMA_IN
    host.write(host.ata, host.control, 4)
    host.write(host.ata, host.control, 0)
    assert host.alternate() == 0x50


def test_device_writes_tell_the_processor() -> None:
    host, _ = disk_host()
    written: list[tuple[int, int]] = []
    host.memory.on_write = lambda address, length: written.append((address, length))
    host.prd((BUFFER, 512))
    written.clear()
    host.lba28(0xC8, 0, 1)
    host.start_dma(to_memory=True)
    host.wait()
    assert written == [(BUFFER, 512)]


def test_registers_by_byte_and_the_second_channel() -> None:
    host, _ = disk_host()
    for index, value in enumerate((0x12, 0x34, 0x56, 0x78)):
        host.write(host.dma, BMIDE + 4 + index, value)
    assert host.read(host.dma, BMIDE + 4, 4) == 0x78563410
    assert host.read(host.dma, BMIDE + 5, 2) == 0x5634
    host.write(host.dma, BMIDE + 8, 0xFFFFFFFF, 4)  # no such channel on this bus master
    assert host.read(host.dma, BMIDE + 8, 4) == 0
    host.dma.reset()
    assert host.read(host.dma, BMIDE + 4, 4) == 0
    host.dma.move(None)
    assert host.dma.ports == ()


def test_interrupts_of_pio_commands_are_latched_too() -> None:
    host, _ = disk_host()
    host.out(7, 0xEC)
    assert host.dma_status() == INTERRUPT
    host.write(host.dma, BMIDE + 2, INTERRUPT)
    host.write(host.ata, host.control, 2)
    host.out(7, 0xEC)
    assert host.dma_status() == 0


def test_medium_error_moves_what_was_good() -> None:
    host, medium = disk_host()
    medium.bad = {3}
    host.prd((BUFFER, 4096))
    host.lba28(0xC8, 0, 8)
    host.start_dma(to_memory=True)
    assert host.wait() == 0x51
    assert host.inp(1) == 0x40
    assert host.registers()[:2] == (5, 3)
    assert host.memory.read(BUFFER, 2048) == medium.data[:1536] + bytes(512)
    assert host.dma_status() & INTERRUPT


@pytest.mark.parametrize("to_memory", [True, False])
def test_restore_between_regions_and_chunks(to_memory: bool) -> None:
    host, medium = disk_host()
    data = pattern(300, 2)
    host.memory.write(BUFFER, data if not to_memory else b"")
    host.prd((BUFFER, 0x10000), (BUFFER + 0x10000, 0x10000), (BUFFER + 0x20000, 300 * 512 - 0x20000))
    host.lba48(0x25 if to_memory else 0x35, 0, 300)
    host.start_dma(to_memory)
    host.pass_time(20_000 + 256_000 + 10)  # the first chunk is done, the second is with the medium
    assert host.ata.sequencer.pending is not None
    saved = host.ata.save(), host.dma.save()
    other = Host([AtaDisk(medium)])
    other.time = host.time
    other.memory.write(0, host.memory.view)
    other.dma.restore(saved[1])
    other.ata.restore(saved[0])
    assert (other.ata.save(), other.dma.save()) == saved
    assert other.wait() == 0x50
    assert other.dma_status() == INTERRUPT
    if to_memory:
        assert other.memory.read(BUFFER, 300 * 512) == medium.data[: 300 * 512]
    else:
        assert medium.data[: 300 * 512] == data


def test_restore_before_start() -> None:
    host, medium = disk_host()
    host.prd((BUFFER, 512))
    host.lba28(0xC8, 4, 1)
    host.pass_time(SECOND)
    other = Host([AtaDisk(MemoryDisk())])  # the data are in the saved buffer, the medium is not asked again
    other.ata.restore(host.ata.save())
    other.dma.restore(host.dma.save())
    other.memory.write(TABLE, host.memory.read(TABLE, 8))
    other.start_dma(to_memory=True)
    assert other.alternate() == 0x50
    assert other.memory.read(BUFFER, 512) == medium.data[4 * 512 : 5 * 512]


def test_interrupt_bit_is_set_by_the_edge_only() -> None:
    host, _ = disk_host()
    host.lba28(0x20, 0, 2)
    host.wait()
    assert host.dma_status() == INTERRUPT
    host.write(host.dma, BMIDE + 2, INTERRUPT)
    host.read_block(512)  # the next block's interrupt finds the line still up
    assert host.alternate() == 0x58
    assert host.dma_status() == 0


def test_bit_0_of_a_region_address_is_not_there() -> None:
    host, medium = disk_host()
    host.prd((BUFFER | 1, 512))
    host.lba28(0xC8, 6, 1)
    host.start_dma(to_memory=True)
    host.wait()
    assert host.memory.read(BUFFER, 513) == medium.data[6 * 512 : 7 * 512] + b"\0"


def test_start_forgets_what_was_left_of_a_region() -> None:
    host, medium = disk_host()
    host.prd((BUFFER, 4096))
    for address in (BUFFER, 0x40000):
        host.prd((address, 4096))
        host.lba28(0xC8, 5, 1)
        host.start_dma(to_memory=True)
        assert host.wait() == 0x50
        host.stop_dma()
        assert host.memory.read(address, 1024) == medium.data[5 * 512 : 6 * 512] + bytes(512)


def test_direction_is_locked_while_active() -> None:
    host, _ = disk_host()
    host.prd((BUFFER, 512))
    host.start_dma(to_memory=True)
    host.write(host.dma, BMIDE, 0x01)
    assert host.read(host.dma, BMIDE) == 0x09
    host.write(host.dma, BMIDE, 0x00)
    assert host.read(host.dma, BMIDE) == 0x00
