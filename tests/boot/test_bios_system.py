"""POST, int 8, 11h, 12h, 14h, 15h, 17h, 1Ah, 70h, 74h and the rest of the hardware vectors."""

from __future__ import annotations

import struct

import pytest

from avmm.boot.bios import bda
from avmm.boot.bios.drives import BiosDrive
from avmm.boot.bios.rom import DISKETTE_TABLE, PRIVATE_PORT, ROM_IMAGE, VECTORS, Service
from avmm.boot.bios.system import SMAP
from avmm.clock import SECOND
from tests.boot.bios_bench import BiosBench
from tests.devices.bench import MemoryDisk

# -- POST


def test_post_leaves_vectors_and_data_area() -> None:
    bench = BiosBench([BiosDrive(0, MemoryDisk(2880)), BiosDrive(0x80, MemoryDisk(2016))], serial=(0x3F8, 0x2F8))
    memory = bench.memory
    assert memory.read(0xF0000, 0x10000) == ROM_IMAGE
    assert memory.unpack("<HH", 4 * 0x13) == (VECTORS[0x13], 0xF000)
    assert memory.unpack("<HH", 4 * 0x1E) == (DISKETTE_TABLE, 0xF000)
    assert memory.unpack("<HH", 4 * 0x60) == (0, 0)
    assert memory.unpack("<4H", 0x400) == (0x3F8, 0x2F8, 0, 0)
    assert memory.unpack("<H", 0x410) == (0x0001 | 0x0002 | 0x0004 | 0x0020 | 2 << 9,)
    assert memory.unpack("<H", 0x413) == (639,)
    assert memory.unpack("<HH", 0x41A) == (0x1E, 0x1E)
    assert memory.unpack("<HH", 0x480) == (0x1E, 0x3E)
    assert memory.read(0x475, 1) == b"\x01"
    assert memory.unpack("<H", 0x40E) == (0x9FC0,)
    assert memory.read(0x9FC00, 1) == b"\x01"
    assert bench.screen.modes == [3]


def test_post_programs_the_chips() -> None:
    bench = BiosBench(post=False)
    bench.service(Service.POST)
    assert bench["al"] == 0
    assert bench.ports.written(0x21) == [0x08, 0x04, 0x01, 0xB8]
    assert bench.ports.written(0xA1) == [0x70, 0x02, 0x01, 0x9F]
    assert (bench.ports.written(0x43)[0], bench.ports.written(0x40)) == (0x36, [0, 0])
    assert bench.ports.written(0x60) == [0x65]
    assert (bench.ports.cmos[0x0A], bench.ports.cmos[0x0B] & 0x76) == (0x26, 0x02)


def test_post_takes_the_time_of_day() -> None:
    bench = BiosBench(post=False)
    bench.ports.cmos[0x00], bench.ports.cmos[0x02], bench.ports.cmos[0x04] = 0x30, 0x59, 0x13
    bench.service(Service.POST)
    assert bench.memory.unpack("<I", bda.TICKS)[0] == int((13 * 3600 + 59 * 60 + 30) * 1193182 / 65536)


@pytest.mark.parametrize(("code", "resumes"), [(0x00, False), (0x05, True), (0x0A, True), (0x77, False)])
def test_shutdown_byte(code: int, resumes: bool) -> None:
    bench = BiosBench()
    bench.ports.cmos[0x0F] = code
    bench.memory.write(0x400, b"\xee")
    bench.service(Service.POST, al=0x55)
    assert bench["al"] == int(resumes)
    assert bench.ports.cmos[0x0F] == 0
    assert (bench.memory.read(0x400, 1) == b"\xee") is resumes


def test_start_state_and_stray_access() -> None:
    bench = BiosBench()
    state = bench.bios.start_state()
    assert (state.cs.selector, state.cs.base, state.rip) == (0xF000, 0xF0000, 0xFFF0)
    bench.cpu.values.update(cs=0x1000, rip=0xE110)
    assert bench.bios.write(PRIVATE_PORT, 1, 0x42) is None
    assert bench.board.events[-1][0] == "bios.stray"
    assert bench.bios.read(PRIVATE_PORT, 1) == 0xFF


def test_unreadable_disk_does_not_stop_post() -> None:
    disk = MemoryDisk(2016)
    disk.bad.add(0)
    bench = BiosBench([BiosDrive(0x80, disk)])
    assert bench.memory.read(0x475, 1) == b"\x01"
    assert bench.board.events[0][0] == "bios.unreadable"


# -- hardware interrupts


def test_tick_and_midnight() -> None:
    bench = BiosBench()
    bench.memory.pack("<IB", bda.TICKS, 0x1800AE, 0)
    bench.service(Service.TIMER)
    assert bench.memory.unpack("<IB", bda.TICKS) == (0x1800AF, 0)
    bench.service(Service.TIMER)
    assert bench.memory.unpack("<IB", bda.TICKS) == (0, 1)
    bench.service(Service.TIMER_EOI)
    assert bench.ports.log == [(0x20, 0x20)]
    bench.service(Service.CLOCK, ax=0x0000)
    assert (bench["al"], bench["cx"], bench["dx"]) == (1, 0, 0)
    bench.service(Service.CLOCK, ax=0x0000)
    assert bench["al"] == 0


@pytest.mark.parametrize(
    ("master", "slave", "ends"),
    [(0, 0, []), (0x20, 0, [(0x20, 0x20)]), (0x04, 0x08, [(0xA0, 0x20), (0x20, 0x20)]), (0x04, 0, [(0x20, 0x20)])],
)
def test_unexpected_interrupt(master: int, slave: int, ends: list[tuple[int, int]]) -> None:
    bench = BiosBench()
    bench.ports.reads.update({0x20: master, 0xA0: slave})
    bench.service(Service.HARDWARE)
    assert [entry for entry in bench.ports.log if entry[1] == 0x20] == ends


def test_diskette_disk_and_coprocessor_interrupts() -> None:
    bench = BiosBench()
    bench.service(Service.DISKETTE_IRQ)
    assert bench.memory.read(0x43E, 1) == b"\x80"
    bench.service(Service.FIXED_DISK_IRQ)
    assert bench.memory.read(0x48E, 1) == b"\xff"
    bench.service(Service.FPU_IRQ)
    assert bench.ports.log == [(0x20, 0x20), (0xA0, 0x20), (0x20, 0x20), (0xF0, 0), (0xA0, 0x20), (0x20, 0x20)]


# -- int 11h, 12h, 15h


def test_equipment_and_memory() -> None:
    bench = BiosBench(serial=(), mouse=False)
    bench.service(Service.EQUIPMENT)
    assert bench["ax"] == 0x22
    bench.service(Service.MEMORY_SIZE)
    assert bench["ax"] == 639


@pytest.mark.parametrize(
    ("mib", "kib_88", "low", "high"),
    [(1, 0, 0, 0), (2, 1024, 1024, 0), (16, 15360, 15360, 0), (64, 63 * 1024, 15360, 768), (512, 63 * 1024, 15360, 496 * 16)],
)
def test_memory_sizes(mib: int, kib_88: int, low: int, high: int) -> None:
    bench = BiosBench(memory_size=mib << 20)
    bench.service(Service.SYSTEM, ax=0x8800)
    assert (bench["ax"], bench.carry) == (kib_88, False)
    bench.service(Service.SYSTEM, ax=0xE801)
    assert [bench[name] for name in ("ax", "bx", "cx", "dx")] == [low, high, low, high]
    bench.service(Service.SYSTEM, eax=0xE881)
    assert [bench[name] for name in ("eax", "ebx", "ecx", "edx")] == [low, high, low, high]


def entries(bench: BiosBench) -> list[tuple[int, ...]]:
    found: list[tuple[int, ...]] = []
    index = 0
    while True:
        bench.service(Service.SYSTEM, flags=1, eax=0xE820, edx=SMAP, ebx=index, ecx=24, es=0x3000, di=8)
        assert (bench["eax"], bench["ecx"], bench.carry) == (SMAP, 20, False)
        found.append(bench.memory.unpack("<QQI", 0x30008))
        index = bench["ebx"]
        if not index:
            return found


def test_address_map() -> None:
    bench = BiosBench(memory_size=16 << 20)
    assert entries(bench) == [(0, 0x9FC00, 1), (0x9FC00, 0x400, 2), (0xF0000, 0x10000, 2), (1 << 20, 15 << 20, 1)]
    given = [(0, 0x9F000, 1), (1 << 32, 1 << 30, 1)]
    assert entries(BiosBench(memory_map=given)) == given
    for wrong in ({"ebx": 9}, {"ecx": 19}, {"edx": 0}):
        bench.service(Service.SYSTEM, **{"eax": 0xE820, "edx": SMAP, "ebx": 0, "ecx": 20, **wrong})
        assert (bench["ah"], bench.carry) == (0x86, True)


def test_block_move_above_one_mib() -> None:
    bench = BiosBench()
    bench.memory.write(0x20000, bytes(range(200)))
    table = bytearray(48)
    table[0x10:0x18] = bytes((0xFF, 0xFF, 0x00, 0x00, 0x02, 0x93, 0, 0))
    table[0x18:0x20] = bytes((0xFF, 0xFF, 0x34, 0x02, 0x12, 0x93, 0, 0))
    bench.memory.write(0x5000, table)
    bench.service(Service.SYSTEM, flags=1, ax=0x8700, cx=100, es=0x500, si=0)
    assert (bench["ah"], bench.carry) == (0, False)
    assert bench.memory.read(0x120234, 200) == bytes(range(200))


def test_a20() -> None:
    bench = BiosBench()
    bench.ports.reads[0x92] = 0x01
    bench.service(Service.SYSTEM, ax=0x2401)
    bench.service(Service.SYSTEM, ax=0x2400)
    assert bench.ports.written(0x92) == [0x02, 0x00]
    bench.ports.reads[0x92] = 0x02
    bench.service(Service.SYSTEM, ax=0x2402)
    assert (bench["ax"], bench.carry) == (1, False)
    bench.service(Service.SYSTEM, ax=0x2403)
    assert bench["bx"] == 3


def test_configuration_and_ebda() -> None:
    bench = BiosBench()
    bench.service(Service.SYSTEM, flags=1, ax=0xC000)
    assert bench.memory.unpack("<HB", (bench["es"] << 4) + bench["bx"]) == (8, 0xFC)
    assert (bench["ah"], bench.carry) == (0, False)
    bench.service(Service.SYSTEM, ax=0xC100)
    assert bench["es"] == 0x9FC0


@pytest.mark.parametrize("flags", [0, 1])
def test_keyboard_intercept_passes_carry_through(flags: int) -> None:
    bench = BiosBench()
    bench.service(Service.SYSTEM, flags=flags, ax=0x4F1E)
    assert (bench["ax"], bench.carry) == (0x4F1E, bool(flags))


@pytest.mark.parametrize("ax", [0x5300, 0x8900, 0xD800, 0xE800, 0x0000])
def test_unsupported(ax: int) -> None:
    bench = BiosBench()
    bench.service(Service.SYSTEM, ax=ax)
    assert (bench["ah"], bench.carry) == (0x86, True)


# -- waits and the real-time clock


def rtc_interrupt(bench: BiosBench, cause: int = 0x40) -> None:
    bench.ports.cmos[0x0C] = cause
    bench.service(Service.RTC_IRQ)


def test_wait_counts_the_periodic_interrupt() -> None:
    bench = BiosBench()
    bench.ports.reads.update({0xA1: 0x9F, 0x21: 0xB8})
    bench.service(Service.SYSTEM, ax=0x8600, cx=0, dx=2000)
    assert bench.waiting()
    assert bench.ports.cmos[0x0B] & 0x40
    assert (bench.ports.written(0xA1), bench.ports.written(0x21)) == ([0x9E], [0xB8])
    for expected in (True, True, False):
        rtc_interrupt(bench)
        assert bench["al"] == 0
        bench.again(Service.SYSTEM_WAIT)
        assert bench.waiting() is expected
    assert (bench["ah"], bench.carry) == (0, False)
    assert not bench.ports.cmos[0x0B] & 0x40
    assert bench.memory.read(bda.WAIT_ACTIVE, 1) == b"\0"


def test_event_wait_and_one_at_a_time() -> None:
    bench = BiosBench()
    bench.service(Service.SYSTEM, ax=0x8300, cx=0, dx=976, es=0x600, bx=4)
    assert (bench.carry, bench.waiting()) == (False, False)
    bench.service(Service.SYSTEM, ax=0x8600, cx=0, dx=1)
    assert (bench["ah"], bench.carry, bench.waiting()) == (0x83, True, False)
    rtc_interrupt(bench)
    assert bench.memory.read(0x6004, 1) == b"\x80"
    bench.service(Service.SYSTEM, ax=0x8300, cx=1, dx=0, es=0x600, bx=4)
    bench.service(Service.SYSTEM, ax=0x8301)
    assert not bench.carry
    assert not bench.ports.cmos[0x0B] & 0x40


def test_ticks() -> None:
    bench = BiosBench()
    bench.service(Service.CLOCK, ax=0x0100, cx=0x12, dx=0x3456)
    assert bench.memory.unpack("<I", bda.TICKS) == (0x123456,)
    bench.service(Service.CLOCK, flags=1, ax=0x0000)
    assert (bench["cx"], bench["dx"], bench.carry) == (0x12, 0x3456, False)


def test_time_and_date() -> None:
    bench = BiosBench()
    bench.service(Service.CLOCK, ax=0x0300, cx=0x2359, dx=0x5801)
    bench.service(Service.CLOCK, ax=0x0500, cx=0x2026, dx=0x1121)
    cmos = bench.ports.cmos
    assert [cmos[index] for index in (4, 2, 0, 0x32, 9, 8, 7)] == [0x23, 0x59, 0x58, 0x20, 0x26, 0x11, 0x21]
    assert cmos[0x0B] & 0x83 == 0x03
    bench.service(Service.CLOCK, flags=1, ax=0x0200)
    assert (bench["cx"], bench["dx"], bench.carry) == (0x2359, 0x5801, False)
    bench.service(Service.CLOCK, ax=0x0400)
    assert (bench["cx"], bench["dx"]) == (0x2026, 0x1121)


def test_alarm() -> None:
    bench = BiosBench()
    bench.service(Service.CLOCK, ax=0x0600, cx=0x0102, dx=0x0300)
    assert (bench.carry, bytes(bench.ports.cmos[1:6:2])) == (False, b"\x03\x02\x01")
    bench.service(Service.CLOCK, ax=0x0600)
    assert bench.carry
    rtc_interrupt(bench, 0x20)
    assert bench["al"] == 1
    bench.service(Service.CLOCK, ax=0x0700)
    rtc_interrupt(bench, 0x20)
    assert bench["al"] == 0
    bench.service(Service.CLOCK, ax=0x0F00)
    assert bench.carry


# -- serial port, printer


def test_serial_initialize_and_status() -> None:
    bench = BiosBench()
    bench.ports.reads.update({0x3FD: 0x60, 0x3FE: 0xB0})
    bench.service(Service.SERIAL, ax=0x00E3, dx=0)
    assert bench.ports.log[:5] == [(0x3FB, 0x80), (0x3F8, 12), (0x3F9, 0), (0x3FB, 0x03), (0x3F9, 0)]
    assert bench["ax"] == 0x60B0
    bench.service(Service.SERIAL, ax=0x0300, dx=1)
    assert bench["ah"] == 0x80


def test_serial_send_polls_until_ready() -> None:
    bench = BiosBench()
    bench.ports.reads.update({0x3FD: [0x00, 0x00, 0x60], 0x3FC: 0})
    bench.service(Service.SERIAL, ax=0x0141, dx=0)
    assert bench.waiting()
    bench.again(Service.SERIAL_WAIT)
    assert bench.waiting()
    bench.again(Service.SERIAL_WAIT)
    assert not bench.waiting()
    assert (bench["ax"], bench.ports.written(0x3F8)) == (0x6041, [0x41])
    assert bench.bios.save().deadlines == ()


def test_serial_receive_times_out_in_machine_time() -> None:
    bench = BiosBench()
    bench.ports.reads.update({0x3FD: 0x60, 0x3FC: 0, 0x3F8: 0x55})
    bench.service(Service.SERIAL, ax=0x0200, dx=0)
    bench.board.pass_time(SECOND - 1)
    bench.again(Service.SERIAL_WAIT)
    assert bench.waiting()
    bench.board.pass_time(1)
    bench.again(Service.SERIAL_WAIT)
    assert (bench.waiting(), bench["ah"]) == (False, 0xE0)
    bench.ports.reads[0x3FD] = 0x61
    bench.service(Service.SERIAL, ax=0x0200, dx=0)
    assert (bench.waiting(), bench["ax"]) == (False, 0x0055)


def test_printer_is_absent() -> None:
    bench = BiosBench()
    bench.service(Service.PRINTER, ax=0x0041, dx=0)
    assert bench["ah"] == 0x01


# -- pointing device


def mouse_byte(bench: BiosBench, value: int) -> bool:
    bench.ports.reads.update({0x64: 0x21, 0x60: value})
    bench.service(Service.MOUSE_IRQ)
    bench.ports.reads[0x64] = 0
    return bool(bench["al"])


def test_mouse_packets_reach_the_handler() -> None:
    bench = BiosBench()
    bench.service(Service.SYSTEM, ax=0xC200, bx=0x0100)
    assert (bench["ah"], bench.carry) == (5, True)  # no handler yet
    bench.service(Service.SYSTEM, ax=0xC205, bx=0x0300)
    bench.service(Service.SYSTEM, ax=0xC207, es=0x1234, bx=0x5678)
    bench.service(Service.SYSTEM, ax=0xC200, bx=0x0100)
    assert (bench["ah"], bench.carry) == (0, False)
    assert bench.memory.unpack("<HH", 0x9FC22) == (0x5678, 0x1234)
    assert bench.ports.written(0x60)[-1] == 0xF4
    for answer in (0xFA, 0xAA, 0x00, 0xFA):  # to FFh and F4h, late
        assert not mouse_byte(bench, answer)
    assert not mouse_byte(bench, 0x00)  # out of step
    assert [mouse_byte(bench, value) for value in (0x09, 0x05, 0xFB)] == [False, False, True]
    assert (bench["bx"], bench["cx"], bench["dx"], bench["ds"]) == (0x09, 0x05, 0xFB, 0x9FC0)
    bench.service(Service.MOUSE_IRQ)  # nothing there: spurious
    assert bench["al"] == 0


@pytest.mark.parametrize(
    ("ax", "bx", "status", "sent"),
    [
        (0xC202, 0x0500, 0, [0xF3, 100]),
        (0xC202, 0x0700, 2, []),
        (0xC203, 0x0300, 0, [0xE8, 3]),
        (0xC203, 0x0400, 2, []),
        (0xC206, 0x0200, 0, [0xE7]),
        (0xC204, 0x0000, 0, []),
        (0xC208, 0x0000, 1, []),
    ],
)
def test_mouse_settings(ax: int, bx: int, status: int, sent: list[int]) -> None:
    bench = BiosBench()
    bench.service(Service.SYSTEM, ax=ax, bx=bx)
    assert (bench["ah"], bench.carry) == (status, status != 0)
    assert bench.ports.written(0x60) == sent
    assert bench.ports.written(0x64) == [0xD4] * len(sent)


def test_mouse_status_and_absence() -> None:
    bench = BiosBench()
    bench.service(Service.SYSTEM, ax=0xC202, bx=0x0600)
    bench.service(Service.SYSTEM, ax=0xC206, bx=0x0000)
    assert (bench["bl"], bench["cl"], bench["dl"]) == (0, 2, 200)
    bench = BiosBench(mouse=False)
    bench.service(Service.SYSTEM, ax=0xC200, bx=0x0000)
    assert (bench["ah"], bench.carry) == (0x86, True)


# -- PCI


class PciPorts:
    """Mechanism 1 with a host bridge at 0:0.0 and a multi-function device 0:1, functions 0 and 1."""

    def __init__(self, bench: BiosBench) -> None:
        self.spaces = {where: bytearray(256) for where in (0x00, 0x08, 0x09)}
        for where, device, kind in ((0x00, 0x1237, 0x060000), (0x08, 0x7000, 0x060100), (0x09, 0x7010, 0x010180)):
            struct.pack_into("<HH", self.spaces[where], 0, 0x8086, device)
            struct.pack_into("<I", self.spaces[where], 8, kind << 8)
        self.spaces[0x08][0x0E] = 0x80
        self.address = 0
        self.inner = bench.ports

    def read(self, port: int, size: int) -> int:
        if port == 0xCF8:
            return self.address
        if 0xCFC <= port < 0xD00:
            space = self.spaces.get(self.address >> 8 & 0xFFFF, b"\xff" * 256)
            at = (self.address & 0xFC) + port - 0xCFC
            return int.from_bytes(space[at : at + size], "little")
        return self.inner.read(port, size)

    def write(self, port: int, size: int, value: int) -> None:
        if port == 0xCF8:
            self.address = value
        elif 0xCFC <= port < 0xD00:
            at = (self.address & 0xFC) + port - 0xCFC
            self.spaces[self.address >> 8 & 0xFFFF][at : at + size] = value.to_bytes(size, "little")
        else:
            self.inner.write(port, size, value)


def pci() -> tuple[BiosBench, PciPorts]:
    bench = BiosBench()
    ports = PciPorts(bench)
    bench.bios.pci.ports = ports
    return bench, ports


def test_pci_bios() -> None:
    bench, ports = pci()
    bench.service(Service.CLOCK, flags=1, ax=0xB101)
    assert (bench["ah"], bench["al"], bench["bx"], bench["edx"], bench["cl"], bench.carry) == (0, 1, 0x0210, 0x20494350, 0, False)
    bench.service(Service.CLOCK, ax=0xB102, cx=0x7010, dx=0x8086, si=0)
    assert (bench["bx"], bench.carry) == (0x09, False)
    bench.service(Service.CLOCK, ax=0xB103, ecx=0x060100, si=0)
    assert bench["bx"] == 0x08
    bench.service(Service.CLOCK, ax=0xB103, ecx=0x060100, si=1)
    assert (bench["ah"], bench.carry) == (0x86, True)
    bench.service(Service.CLOCK, ax=0xB102, cx=0x7010, dx=0xFFFF, si=0)
    assert bench["ah"] == 0x83
    bench.service(Service.CLOCK, ax=0xB10D, bx=9, di=0x20, ecx=0xA1B2C3D4)
    bench.service(Service.CLOCK, ax=0xB10B, bx=9, di=0x21, ecx=0x55)
    assert bytes(ports.spaces[9][0x20:0x24]) == bytes((0xD4, 0x55, 0xB2, 0xA1))
    for function, value in ((0x08, 0xB2), (0x09, 0xA1B2), (0x0A, 0xA1B255D4)):
        bench.service(Service.CLOCK, ax=0xB100 | function, bx=9, di=0x20 if function == 0x0A else 0x22, ecx=0)
        assert bench["ecx"] == value
    bench.service(Service.CLOCK, ax=0xB10A, bx=9, di=0x22)
    assert (bench["ah"], bench.carry) == (0x87, True)


def test_no_pci_host_no_pci_bios() -> None:
    bench = BiosBench()
    bench.service(Service.CLOCK, ax=0xB101)
    assert (bench["ah"], bench.carry) == (0x81, True)


# -- lifecycle


def test_save_and_restore_in_mid_call() -> None:
    bench = BiosBench()
    bench.ports.reads.update({0x3FD: 0x00, 0x3FC: 0})
    bench.service(Service.SERIAL, ax=0x0200, dx=0)
    state = bench.bios.save()
    assert state.deadlines == ((0, SECOND),)
    other = BiosBench()
    other.bios.restore(state)
    assert other.bios.save() == state
    other.bios.reset()
    assert other.bios.save().deadlines == ()
