"""A frame device behind a front, and how it goes from one side to the other.

All of its state can be read and written, but for DONE and BAD: those are had by a command that ends so. A command in progress goes on in
the physical device whoever waits for it, so the switch in the middle of one only changes who does.

The invariant: what the guest sees of a command, BUSY and then DONE, comes from one device only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from avmm.devices.device import Board
from avmm.interpose.frame.driver import EmulatedFrame, FrameDriver
from avmm.interpose.frame.sequence import FrameSequence, Stage
from avmm.interpose.front import Front
from avmm.interpose.handover import Later, Place
from avmm.platform.frame import BAD, BUSY, COMMAND, CONTROL, DONE, FILL, INTERRUPT, MODE, SIZE, STATUS, WRITABLE, FrameLink, State

NOTHING = 0
"""No command: it is refused."""


class FrameFront(Front[FrameLink]):
    """What the guest finds at a frame device's addresses."""

    mirror: FrameSequence

    def __init__(self, board: Board, physical: FrameLink, emulated: FrameLink, later: Callable[[], Later]) -> None:
        super().__init__(board, physical.device.name, physical, emulated, later)
        self.memory = physical.device.memory

    def begin_sequence(self) -> None:
        """Make a new state machine."""
        self.mirror = FrameSequence()

    def look(self) -> None:
        """Read STATUS."""
        self.mirror.look(self.target.read(self.target.base + STATUS))

    def seen_read(self, address: int, size: int, value: int) -> None:
        """Reads change nothing."""

    def seen_write(self, address: int, size: int, value: int) -> None:
        """Show the state machine a write."""
        self.mirror.write(address - self.target.base)

    def busy(self, address: int) -> int | None:
        """BUSY, to one that polls STATUS of a device which may well be busy."""
        return BUSY if address == self.target.base + STATUS and self.mirror.stage in (Stage.IDLE, Stage.ISSUED) else None


@dataclass(frozen=True, slots=True)
class FrameModes:
    """What was carried from one device to the other."""

    row: int
    rows: int
    interrupts: bool


class FrameHandover:
    """One frame device's two sides."""

    def __init__(self, front: FrameFront, driver: FrameDriver) -> None:
        self.front = front
        self.driver = driver
        self._carried: FrameModes | None = None

    @property
    def device(self) -> EmulatedFrame:
        """The emulated one."""
        device = self.front.emulated.device
        assert isinstance(device, EmulatedFrame)
        return device

    def may_take(self, *, middle: bool) -> bool:
        """Whether virtualizing may be begun now."""
        return middle or self.front.mirror.over

    def may_give(self, *, middle: bool) -> bool:
        """Whether devirtualizing may."""
        return not self.driver.broken and (middle or self.front.mirror.over)

    def place(self, *, virtualized: bool) -> Place:
        """Where the guest is."""
        return Place(self.front.mirror.stage.value)

    async def take(self, commit: Callable[[], None]) -> State:
        """Read all there is; a command in progress goes on, and its end will be ours to hear."""
        commit()
        driver = self.driver
        registers = tuple(driver.get(register) for register in WRITABLE)
        control, status = driver.get(CONTROL), driver.get(STATUS)
        driver.put(STATUS, DONE)
        driver.put(CONTROL, INTERRUPT)
        return State(registers, control, status, 0, None, b"")

    def taken(self, found: State) -> None:
        """Let the emulated device continue."""
        self.device.restore(found)
        if found.status & BUSY:
            self.device.follow()
        self._carried = self._modes()

    async def give(self) -> None:
        """Write all there is; DONE and BAD are what a command left that the guest has not acknowledged."""
        driver, device = self.driver, self.device
        if not device.status & BUSY:
            driver.put(CONTROL, 0)
            if device.status & (DONE | BAD):
                driver.put(SIZE, 0)
                driver.put(COMMAND, NOTHING if device.status & BAD else FILL)
                if not device.status & DONE:
                    driver.put(STATUS, DONE)
            driver.program(device.registers)
        self._carried = self._modes()

    def given(self) -> None:
        """The guest waits for its command itself."""
        self.device.forget()
        self.driver.put(CONTROL, self.device.control)

    async def reclaim(self) -> None:
        """Take the interrupt again; a command of the guest's is still ours."""
        if not self.device.status & BUSY:
            self.driver.put(STATUS, DONE)
        self.driver.put(CONTROL, INTERRUPT)

    def modes(self) -> FrameModes:
        """What was carried over."""
        assert self._carried is not None
        return self._carried

    def _modes(self) -> FrameModes:
        device = self.device
        mode = device.registers[MODE]
        return FrameModes(mode & 0xFFFF, mode >> 16, bool(device.control & INTERRUPT))
