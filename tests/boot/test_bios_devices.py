"""The BIOS on the real device models: keyboard controller, interrupt controllers, clock."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest

from avmm.boot.bios import bda
from avmm.boot.bios.rom import Service
from avmm.clock import MILLISECOND
from avmm.devices.device import Device
from avmm.devices.i8042 import I8042
from avmm.devices.pic import Pic
from avmm.devices.rtc import Rtc
from tests.boot.bios_bench import BiosBench


class DevicePorts:
    """Ports of real devices; all-ones elsewhere."""

    def __init__(self, *devices: Device) -> None:
        self.owners = {port: device for device in devices for area in device.ports for port in range(area.first, area.first + area.count)}

    def read(self, port: int, size: int) -> int:
        value: Any = self.owners[port].read(port, size) if port in self.owners else 0xFF
        return int(value)

    def write(self, port: int, size: int, value: int) -> None:
        if port in self.owners:
            self.owners[port].write(port, size, value)


def machine() -> tuple[BiosBench, I8042, DevicePorts]:
    bench = BiosBench(post=False)
    board: Any = bench.board
    controller = I8042(board)
    ports = DevicePorts(controller, Pic(board), Rtc(board, datetime(2026, 11, 21, 13, 0, 0), 2 << 20))
    bios = bench.bios
    bios.bus = bios.clocks.ports = bios.clocks.cmos.ports = bios.system.ports = bios.serial.ports = bios.pci.ports = ports
    assert bios.mouse is not None
    bios.mouse.ports = ports
    bench.service(Service.POST)
    return bench, controller, ports


@pytest.mark.parametrize("gap", [0, 1, 1000])
def test_mouse(gap: int) -> None:
    """Packets arrive whole whether or not the answers to the BIOS's commands were in time."""
    bench, controller, _ = machine()
    packets = []

    def settle(milliseconds: int) -> None:
        for _ in range(10 * milliseconds):
            bench.board.pass_time(MILLISECOND // 10)
            if bench.board.line(12).level:
                bench.service(Service.MOUSE_IRQ)
                if bench["al"]:
                    packets.append((bench["bx"], bench["cx"], bench["dx"]))

    for ax, bx in ((0xC205, 0x0300), (0xC207, 0x5678), (0xC203, 0x0300), (0xC200, 0x0100)):
        bench.service(Service.SYSTEM, ax=ax, bx=bx, es=0x1234)
        assert not bench.carry
        settle(gap)
    settle(1000)
    assert packets == []
    for _ in range(3):
        controller.mouse(5, 2)
        settle(100)
    assert len(packets) == 3
    assert all(packet[0] & 0x08 and packet[1] == 5 for packet in packets)


def test_keyboard_and_time() -> None:
    bench, controller, ports = machine()
    controller.press("a")
    assert bench.board.line(1).level
    bench.service(Service.KEYBOARD_IRQ, al=ports.read(0x60, 1))
    assert bench.keys() == [0x1E61]
    assert bench.memory.unpack("<I", bda.TICKS)[0] == 13 * 3600 * 1193182 >> 16
    bench.service(Service.CLOCK, ax=0x0400)
    assert (bench["cx"], bench["dx"]) == (0x2026, 0x1121)


def test_wait_takes_machine_time() -> None:
    bench, _, _ = machine()
    bench.service(Service.SYSTEM, ax=0x8600, cx=0, dx=20000)
    began = bench.board.time
    while bench.waiting():
        bench.board.pass_time(MILLISECOND // 10)
        if bench.board.line(8).level:
            flags = bench.flags
            bench.service(Service.RTC_IRQ, flags=flags)
            bench.again(Service.SYSTEM_WAIT)
    assert 19 * MILLISECOND < bench.board.time - began < 23 * MILLISECOND
