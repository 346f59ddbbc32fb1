"""The first serial port as a physical device of a machine."""

from __future__ import annotations

from avmm.control.physical.answer import Answer
from avmm.control.physical.device import PhysicalDevice
from avmm.devices.uart import Uart
from avmm.hypervisor.partition import Partition
from avmm.interpose.serial.driver import SerialDriver
from avmm.interpose.serial.handover import SerialFront, SerialHandover
from avmm.interpose.serial.port import EmulatedUart
from avmm.platform.cable import Cable
from avmm.platform.serial import SerialLink


class PhysicalSerial(PhysicalDevice):
    """COM1 as real hardware. What is on its wire is the same whoever drives it."""

    def __init__(self, partition: Partition) -> None:
        wire = Cable(partition)
        self.uart = Uart(wire, paced=True)
        """The physical port."""
        physical = SerialLink(wire, self.uart)
        driver = SerialDriver(physical)
        cable = Cable(partition)
        emulated = SerialLink(cable, EmulatedUart(cable, self.uart.base, self.uart.line.number, self.uart.name, driver))
        emulated.irq.connect(None)
        front = SerialFront(partition, physical, emulated, lambda: Answer(partition))
        super().__init__(partition, front, SerialHandover(front, driver))
