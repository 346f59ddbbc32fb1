from __future__ import annotations

import struct

import pytest

from avmm.devices.ata import AtaDisk, AtapiCdrom, Phase
from tests.devices.ata.host import Host, cd_host, disk_host
from tests.devices.bench import MemoryDisk


def words(data: bytes) -> tuple[int, ...]:
    return struct.unpack("<256H", data)


def text(data: bytes, first: int, count: int) -> str:
    return struct.pack(f">{count}H", *words(data)[first : first + count]).decode()


def identify(host: Host, code: int = 0xEC, device: int = 0) -> bytes:
    host.out(6, 0xA0 | device << 4)
    host.out(7, code)
    return host.pio_in(512)


def test_disk_capacity_geometry_and_text() -> None:
    host, _ = disk_host(16 * 63 * 10 + 5)
    data = identify(host)
    w = words(data)
    assert w[0] & 0x8000 == 0
    assert (w[1], w[3], w[6]) == (10, 16, 63)
    assert w[60] | w[61] << 16 == 16 * 63 * 10 + 5
    assert w[100:104] == (16 * 63 * 10 + 5, 0, 0, 0)
    assert (w[54], w[55], w[56], w[57] | w[58] << 16) == (10, 16, 63, 16 * 63 * 10)
    assert w[47] == 0x8010
    assert w[59] == 0x0110
    assert w[49] & 0x0300 == 0x0300
    assert w[83] & 0xC000 == 0x4000
    assert w[83] & 0x3400 == 0x3400  # LBA48, FLUSH CACHE and FLUSH CACHE EXT
    assert text(data, 10, 10).strip() == "AVMM00001"
    assert text(data, 27, 20).rstrip() == "AVMM HARDDISK"
    assert data[510] == 0xA5
    assert sum(data) & 0xFF == 0
    assert host.ata.phase is Phase.IDLE
    assert host.alternate() == 0x50


def test_identify_tells_of_no_sector_and_leaves_the_address_as_it_was() -> None:
    host, disk = disk_host()
    for offset, value in ((2, 0x11), (3, 0x22), (4, 0x33), (5, 0x44)):
        host.out(offset, value)
    before = host.registers()
    for _ in range(2):
        first = identify(host)
        assert host.registers() == before
    disk.data += bytes(512)  # one that has grown
    assert words(identify(host))[100] == words(first)[100] + 1


def test_large_disk_clips_the_28_bit_capacity() -> None:
    class Large(MemoryDisk):
        @property
        def sectors(self) -> int:
            return 1 << 33

    host = Host([AtaDisk(Large(1))])
    w = words(identify(host))
    assert w[60] | w[61] << 16 == 0x0FFFFFFF
    assert w[100] | w[101] << 16 | w[102] << 32 == 1 << 33
    assert w[1] == 16383
    host.out(6, 0xE0)
    host.out(7, 0x27)  # READ NATIVE MAX ADDRESS EXT
    host.wait()
    low = [host.inp(offset) for offset in (3, 4, 5)]
    host.write(host.ata, host.control, 0x80)
    assert bytes(low + [host.inp(offset) for offset in (3, 4, 5)]) == ((1 << 33) - 1).to_bytes(6, "little")
    host.out(6, 0xE0)
    host.out(7, 0xF8)
    assert host.registers()[1:] == (0xFF, 0xFF, 0xFF, 0xEF)


@pytest.mark.parametrize(
    ("count", "word", "bits"),
    [(0x22, 63, 0x0407), (0x20, 63, 0x0107), (0x45, 88, 0x203F), (0x42, 88, 0x043F), (0x0C, 63, 0x0007)],
)
def test_transfer_mode(count: int, word: int, bits: int) -> None:
    host, _ = disk_host()
    host.out(1, 0x03)
    host.out(2, count)
    host.out(7, 0xEF)
    assert host.inp(7) == 0x50
    assert words(identify(host))[word] == bits


@pytest.mark.parametrize("count", [0x02, 0x0D, 0x10, 0x23, 0x46, 0xFF])
def test_transfer_mode_that_does_not_exist(count: int) -> None:
    host, _ = disk_host()
    host.out(1, 0x03)
    host.out(2, count)
    host.out(7, 0xEF)
    assert host.inp(7) & 1
    assert host.inp(1) == 0x04


def test_features_show_in_words_85() -> None:
    host, medium = disk_host()
    for feature, bits in ((0x82, 0x0040), (0x55, 0x0000), (0x02, 0x0020), (0xAA, 0x0060)):
        host.out(1, feature)
        host.out(7, 0xEF)
        assert host.wait() == 0x50
        assert words(identify(host))[85] & 0x0060 == bits
    assert ("flush", 0, 0) in medium.log  # disabling the write cache writes it out


def test_set_multiple_and_translation_show() -> None:
    host, _ = disk_host()
    host.out(2, 4)
    host.out(7, 0xC6)
    host.out(2, 17)
    host.out(6, 0xA3)
    host.out(7, 0x91)
    w = words(identify(host))
    assert w[59] == 0x0104
    assert (w[54], w[55], w[56]) == (2048 // (4 * 17), 4, 17)
    host.write(host.ata, host.control, 4)
    host.write(host.ata, host.control, 0)
    assert words(identify(host))[55] == 4  # a software reset keeps it
    host.ata.reset()
    assert words(identify(host))[55] == 16
    host.out(2, 4)
    host.out(7, 0xC6)
    host.out(1, 0xCC)  # from now on a software reset reverts to power-on defaults
    host.out(7, 0xEF)
    host.write(host.ata, host.control, 4)
    host.write(host.ata, host.control, 0)
    assert words(identify(host))[59] == 0x0110


def test_packet_device() -> None:
    host, _ = cd_host()
    assert (host.inp(7), host.inp(1), host.registers()) == (0x00, 0x01, (1, 1, 0x14, 0xEB, 0xA0))
    host.out(4, 0)
    host.out(5, 0)
    host.out(7, 0xEC)
    assert host.inp(7) & 0x01
    assert host.inp(1) == 0x04
    assert host.registers()[2:4] == (0x14, 0xEB)
    data = identify(host, 0xA1)
    assert words(data)[0] == 0x85C0
    assert sum(data) & 0xFF == 0
    assert text(data, 27, 20).rstrip() == "AVMM CD-ROM"


def test_nobody_on_the_cable() -> None:
    host = Host([])
    host.out(2, 0x55)
    host.out(7, 0xEC)
    assert {host.inp(offset) for offset in range(1, 8)} == {0x7F}
    assert host.alternate() == 0x7F
    assert not host.irq.edges


def test_device_0_answers_for_absent_device_1() -> None:
    host, _ = disk_host()
    host.out(6, 0xB0)
    host.out(2, 0x55)
    host.out(3, 0xAA)
    assert host.registers()[:2] == (0x55, 0xAA)
    assert (host.inp(7), host.alternate()) == (0x00, 0x00)
    host.out(7, 0xEC)
    host.wait()
    assert (host.inp(7), host.irq.edges) == (0x00, 0)
    packet, _ = cd_host()
    packet.out(6, 0xB0)
    packet.out(2, 0x55)
    assert [packet.inp(offset) for offset in range(1, 8)] == [0] * 7


def test_device_1_alone() -> None:
    host = Host([None, AtaDisk(MemoryDisk())])
    assert host.inp(7) == 0x7F
    host.out(6, 0xB0)
    assert host.inp(7) == 0x50
    assert words(identify(host, device=1))[93] & 0x0100


def test_reset_and_diagnostic_signatures() -> None:
    host = Host([AtaDisk(MemoryDisk()), AtapiCdrom(MemoryDisk())], number=1)
    host.lba28(0x40, 5, 1)
    host.write(host.ata, host.control, 0x04)
    assert host.inp(7) == 0x80
    host.out(3, 0x77)  # not taken during reset
    host.write(host.ata, host.control, 0x00)
    assert (host.inp(7), host.inp(1), host.registers()) == (0x50, 1, (1, 1, 0, 0, 0xA0))
    host.out(6, 0xB0)
    assert (host.inp(7), host.inp(1), host.registers()) == (0x00, 1, (1, 1, 0x14, 0xEB, 0xB0))
    host.out(7, 0x90)  # EXECUTE DEVICE DIAGNOSTIC is for both and selects device 0
    assert host.irq.level
    assert (host.inp(7), host.registers()) == (0x50, (1, 1, 0, 0, 0xA0))
    assert not host.irq.level


def test_power_modes_and_sleep() -> None:
    host, _ = disk_host()

    def mode() -> int:
        host.out(7, 0xE5)
        assert host.inp(7) == 0x50
        return host.inp(2)

    assert mode() == 0xFF
    host.out(7, 0xE1)
    assert mode() == 0x80
    host.out(7, 0xE0)
    assert mode() == 0x00
    host.lba28(0x20, 0, 1)
    host.pio_in(512)
    assert mode() == 0xFF
    host.out(7, 0xE6)
    assert host.inp(7) == 0x50
    edges = host.irq.edges
    host.out(7, 0xEC)
    host.wait()
    assert host.irq.edges == edges  # only a reset wakes it
    host.write(host.ata, host.control, 0x04)
    host.write(host.ata, host.control, 0x00)
    assert identify(host)
