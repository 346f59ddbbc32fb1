"""A serial port behind a front, and how it goes from one side to the other (PC16550D, sections 8.1 to 8.7).

What has left the guest for the transmitter goes on in the physical port whoever drives it. What waits in the receiver is taken out on the
way to the emulated port, and put back in loopback, characters and modem changes, on the way to the physical one.

The invariant: a byte that has come is read by the guest once; a byte that it wrote goes out once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from avmm.devices.device import Board
from avmm.devices.uart import DR, FIFO, OE, RI, TEMT, THRE, Uart
from avmm.interpose.front import Front
from avmm.interpose.handover import Later, Place
from avmm.interpose.serial.driver import CLEAR_RECEIVER, CLEAR_TRANSMITTER, EIGHT_BITS, ERRORS, FIFO_ON, SerialDriver
from avmm.interpose.serial.port import EmulatedUart
from avmm.interpose.serial.sequence import (
    DATA,
    DLAB,
    IER,
    IIR_FCR,
    LCR,
    LOOP,
    LSR,
    MCR,
    MSR,
    SCR,
    TRANSMITTER,
    SerialSequence,
    Stage,
)
from avmm.platform.serial import SerialLink

SENT = 0x02
"""Interrupt enable: transmitter empty."""
TIMED_OUT = 0x0C
NOT_READY = 0x00
"""An LSR that has nothing for the guest, and takes nothing from it."""
RING_ENDED = 0x04


class SerialFront(Front[SerialLink]):
    """What the guest finds at a serial port's addresses."""

    mirror: SerialSequence

    def __init__(self, board: Board, physical: SerialLink, emulated: SerialLink, later: Callable[[], Later]) -> None:
        super().__init__(board, physical.uart.name, physical, emulated, later)
        self.ports = physical.uart.ports
        self.base = physical.uart.base

    def begin_sequence(self) -> None:
        """Make a new state machine."""
        self.mirror = SerialSequence()

    def look(self) -> None:
        """Read LCR, and the line."""
        self.mirror.look(self.target.read(self.target.uart.base + LCR), self.target.irq.level)

    def seen_read(self, address: int, size: int, value: int) -> None:
        """Show the state machine a read."""
        self.mirror.read(address - self.base, value)

    def seen_write(self, address: int, size: int, value: int) -> None:
        """Show it a write."""
        self.mirror.write(address - self.base, value)

    def busy(self, address: int) -> int | None:
        """Neither data nor room for any, to one that polls LSR."""
        quiet = self.mirror.stage in (Stage.IDLE, Stage.SENDING) and not self.line.level
        return NOT_READY if quiet and address == self.base + LSR else None


@dataclass(frozen=True, slots=True)
class SerialModes:
    """What was carried from one port to the other."""

    divisor: int
    lcr: int
    mcr: int
    ier: int
    fcr: int
    trigger_known: bool
    """Whether the trigger level in ``fcr`` is the guest's: it may have to be found out yet."""


@dataclass(frozen=True, slots=True)
class Found:
    """A physical port as it was found."""

    state: Uart.State
    trigger_known: bool


class SerialHandover:
    """One port's two sides."""

    def __init__(self, front: SerialFront, driver: SerialDriver) -> None:
        self.front = front
        self.driver = driver
        self._carried: SerialModes | None = None
        self._put_back = 0
        """Bytes in the physical receiver that the emulated one has as well, while the port is given."""

    @property
    def port(self) -> EmulatedUart:
        """The emulated one."""
        return self.driver.port

    def may_take(self, *, middle: bool) -> bool:
        """Whether virtualizing may be begun now. Loopback is for tests, and soon over."""
        return (middle or self.front.mirror.over) and not self.driver.get(MCR) & LOOP

    def may_give(self, *, middle: bool) -> bool:
        """Whether devirtualizing may: errors cannot be put back, and nothing can be while the transmitter is at work."""
        port, driver = self.port, self.driver
        if not driver.driving or not port.trigger_known or not (middle or self.front.mirror.over):
            return False
        status = driver.poll()
        changes = port.msr & 0x0F
        if status & DR or port.overrun_pending or any(errors for _, errors in port.received):
            return False
        if changes & RING_ENDED and port.msr & RI:
            return False
        return not (port.received or changes) or bool(status & TEMT and not port.mcr & LOOP)

    def place(self, *, virtualized: bool) -> Place:
        """Where the guest is."""
        mirror = self.front.mirror
        return Place(mirror.stage.value, mirror.word)

    # -- from the physical port to the emulated one

    async def take(self, commit: Callable[[], None]) -> Found:
        """Read all there is. Only LCR, MCR and SCR read without side effects, so this cannot be gone back on."""
        commit()
        driver = self.driver
        lcr = driver.get(LCR)
        driver.put(LCR, lcr | DLAB)
        divisor = driver.get(DATA) | driver.get(IER) << 8
        driver.put(LCR, lcr & ~DLAB)
        ier = driver.get(IER)
        causes = driver.get(IIR_FCR)
        empty_pending = causes & 0x0F == TRANSMITTER
        if ier & SENT and not empty_pending:
            driver.put(IER, SENT)  # it may be hidden behind one of higher priority
            empty_pending = driver.get(IIR_FCR) & 0x0F == TRANSMITTER
        received: list[tuple[int, int]] = []
        overrun = False
        while True:
            status = driver.get(LSR)
            overrun |= bool(status & OE)
            if not status & DR or len(received) == FIFO:
                break
            received.append((driver.get(DATA), status & ERRORS))
        msr = driver.get(MSR)
        fifo = causes >> 6 == 3
        seen = self.front.mirror.fcr
        known = not fifo or (seen is not None and bool(seen & FIFO_ON))
        state = Uart.State(
            ier=ier, fcr=(seen or 0) if known and fifo else FIFO_ON if fifo else 0, lcr=lcr, mcr=driver.get(MCR), scr=driver.get(SCR),
            divisor=divisor, modem=msr & 0xF0, msr=msr, overrun=overrun, rx=tuple(received), timeout=causes & 0x0F == TIMED_OUT,
            thre_pending=empty_pending, tx=b"" if status & THRE else b"\0",  # how many, and which, nobody needs to know
        )  # fmt: skip
        return Found(state, known)

    def taken(self, found: Found) -> None:
        """Let the emulated port continue."""
        self.port.continue_from(found.state, trigger_known=found.trigger_known)
        self.driver.begin()
        self._carried = self._modes()

    # -- and back

    async def give(self) -> None:
        """Write all there is."""
        driver, port = self.driver, self.port
        driver.stop()
        driver.put(IER, 0)
        driver.put(IIR_FCR, port.fcr & 0xC9)
        changes = port.msr & 0x0F
        if port.received or changes:
            await self._put_received_back(changes)
        driver.set_divisor(port.divisor, port.lcr & ~DLAB)
        driver.put(SCR, port.scr)
        driver.put(MCR, port.mcr)
        driver.put(IER, SENT)
        driver.get(IIR_FCR)
        if port.empty_pending or not port.ier & SENT:
            driver.put(IER, 0)  # enabling it anew makes it pending
        driver.put(IER, port.ier)
        driver.put(LCR, port.lcr)
        self._carried = self._modes()

    async def _put_received_back(self, changes: int) -> None:
        """Send the characters to the port itself, with its inputs as they were before the changes that the guest has yet to see."""
        driver, port = self.driver, self.port
        before = (port.msr & 0xF0) ^ changes << 4
        outputs = before >> 4 & 1 and 2  # CTS is RTS in loopback
        outputs |= (before >> 5 & 1) | (before >> 6 & 3) << 2
        await driver.loop(outputs, EIGHT_BITS)
        for byte, _ in port.received:
            driver.put(DATA, byte)
            self._put_back += 1
        if self._put_back:
            await driver.emptied(self._put_back, EIGHT_BITS)
        driver.get(MSR)

    def given(self) -> None:
        """The emulated port rests."""
        self._put_back = 0
        self.port.still()

    async def reclaim(self) -> None:
        """Drive the port again. What was put back has to go, and what has come since is the guest's."""
        driver, doubled = self.driver, self._put_back
        self._put_back = 0
        driver.put(IER, 0)
        if driver.get(MCR) & LOOP and doubled:
            driver.put(IIR_FCR, self.port.fcr & 0xC9 | CLEAR_RECEIVER | CLEAR_TRANSMITTER if self.port.fcr & FIFO_ON else 0)
            await driver.emptied(1, EIGHT_BITS)
        while doubled and driver.get(LSR) & DR:
            driver.get(DATA)
            doubled -= 1
        driver.begin_again()

    def modes(self) -> SerialModes:
        """What was carried over."""
        assert self._carried is not None
        return self._carried

    def _modes(self) -> SerialModes:
        port = self.port
        return SerialModes(port.divisor, port.lcr, port.mcr, port.ier, port.fcr, port.trigger_known)
