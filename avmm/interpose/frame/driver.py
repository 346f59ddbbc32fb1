"""The VMM's own driver of a frame device, and the emulated one that it works for.

The emulated device has the registers; commands and pixels are the physical one's. The guest's loads and stores to the frame memory
trap while it is virtualized, through memory management, and are made by the driver.

The invariant: one command at a time; the emulated device is BUSY exactly while the physical one is, for it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from avmm.clock import SECOND
from avmm.interpose.front import nothing
from avmm.interpose.handover import DeviceHangs
from avmm.interpose.strand import Resume, Strand, Suspend
from avmm.platform.cable import Cable
from avmm.platform.frame import (
    BAD,
    BUSY,
    COMMAND,
    CONTROL,
    DONE,
    INTERRUPT,
    REGISTERS,
    STATUS,
    WRITABLE,
    FrameDevice,
    FrameLink,
)

PATIENCE = SECOND // 2
"""How long a command may take before the device counts as hung; the largest takes half a millisecond."""


class FrameDriver:
    """Drives ``link``. Between :meth:`attach` and :meth:`detach` its interrupt is ours."""

    def __init__(self, link: FrameLink) -> None:
        self.link = link
        self.spurious = 0
        """Interrupts that came while nothing was waited for."""
        self.broken = ""
        """Why the device cannot be used any more; empty while it can."""
        self.driving = False
        """Whether the device is ours."""
        self.on_idle: Callable[[], None] = nothing
        self._timer = link.cable.clock.timer(self._look)
        self._wake: Resume | None = None
        self._expected = False
        """Whether a command is under way: its interrupt is not spurious."""

    def attach(self) -> None:
        """Take the interrupt line."""
        self.driving = True
        self._expected = True  # it may be up already, for the guest
        self.link.irq.connect(self._interrupt)
        self._expected = False

    def detach(self) -> None:
        """Give up whatever waits, and the line."""
        self.driving = False
        self._timer.cancel()
        self._wake = None
        self._expected = False
        self.link.irq.connect(None)

    def _interrupt(self, level: bool) -> None:
        if level and self._wake is not None:
            self._look()
        elif level and not self._expected:
            self.spurious += 1
            self.put(STATUS, DONE)

    def _look(self) -> None:
        wake, self._wake = self._wake, None
        if wake is not None:
            self._timer.cancel()
            wake(None)

    def get(self, register: int) -> int:
        """Read a register."""
        return self.link.read(self.link.base + register)

    def put(self, register: int, value: int) -> None:
        """Write a register."""
        self.link.write(self.link.base + register, value)

    def program(self, registers: dict[int, int]) -> None:
        """Write those that can be read back."""
        for register in WRITABLE:
            self.put(register, registers[register])

    def reset(self) -> None:
        """RESET#: whatever was in progress has ended."""
        self._expected = False
        self.broken = ""
        self.link.reset()
        self.put(CONTROL, INTERRUPT)

    async def finished(self) -> int:
        """Wait for the end of a command and return STATUS, with DONE cleared in the device. Raises DeviceHangs."""

        clock = self.link.cable.clock
        limit = clock.now() + PATIENCE
        self._expected = True

        def begin(resume: Resume) -> None:
            self._wake = resume
            self._timer.arm(limit)

        while (status := self.get(STATUS)) & BUSY:
            if clock.now() >= limit:
                self.broken = f"{self.link.device.name} was busy for {PATIENCE / 1e6:g} ms"
                raise DeviceHangs(self.broken)
            await Suspend(begin)
        self._expected = False
        self.put(STATUS, DONE)
        return status

    async def command(self, code: int) -> int:
        """Issue a command with the registers as they are, and return STATUS at its end."""
        self._expected = True
        self.put(COMMAND, code)
        return await self.finished()


class EmulatedFrame(FrameDevice):
    """The VMM's device model. A device that hangs leaves the guest with BAD."""

    def __init__(self, cable: Cable, driver: FrameDriver) -> None:
        self.driver = driver
        self.work: Strand | None = None
        """What is under way for the guest."""
        super().__init__(cable, pixels=0)  # those of the physical device are the guest's

    def execute(self) -> None:
        """Let the physical device do it."""
        self.driver.program(self.registers)
        self.work = Strand(self.driver.command(self.command), self._over)

    def follow(self) -> None:
        """A command of the guest's is in progress in the physical device: it is ours now."""
        self.work = Strand(self.driver.finished(), self._over)

    def forget(self) -> None:
        """It is not ours any more."""
        if self.work is not None:
            self.work.cancel()
            self.work = None

    def _over(self, result: Any) -> None:
        self.work = None
        if isinstance(result, BaseException) and not isinstance(result, DeviceHangs):
            raise result
        if isinstance(result, DeviceHangs) or result & BAD:
            self.status |= BAD
        self.complete()
        self.driver.on_idle()

    def reset(self) -> None:
        """Reset the physical device too, if we drive it."""
        self.forget()
        super().reset()
        if self.driver.driving:
            self.driver.reset()

    def load(self, at: int, size: int) -> bytes:
        """Read the physical frame memory."""
        link = self.driver.link
        return link.read(link.base + REGISTERS + at, size).to_bytes(size, "little")

    def store(self, at: int, data: bytes) -> None:
        """Write the physical frame memory."""
        link = self.driver.link
        link.write(link.base + REGISTERS + at, int.from_bytes(data, "little"), len(data))

    def save(self) -> Any:
        """Return the state; one with a command under way cannot be saved."""
        if self.work is not None:
            raise ValueError(f"{self.name} has a command under way: save it afterwards")
        return super().save()
