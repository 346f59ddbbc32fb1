"""The frame device as a physical device of a machine."""

from __future__ import annotations

from avmm.control.physical.answer import Answer
from avmm.control.physical.device import PhysicalDevice
from avmm.hypervisor.partition import Partition
from avmm.interpose.frame.driver import EmulatedFrame, FrameDriver
from avmm.interpose.frame.handover import FrameFront, FrameHandover
from avmm.platform.cable import Cable
from avmm.platform.frame import FrameLink, PhysicalFrame


class PhysicalFrameDevice(PhysicalDevice):
    """The frame device as real hardware."""

    def __init__(self, partition: Partition) -> None:
        real, copy = Cable(partition), Cable(partition)
        physical = FrameLink(real, PhysicalFrame(real))
        driver = FrameDriver(physical)
        emulated = FrameLink(copy, EmulatedFrame(copy, driver))
        emulated.irq.connect(None)
        front = FrameFront(partition, physical, emulated, lambda: Answer(partition))
        super().__init__(partition, front, FrameHandover(front, driver))
