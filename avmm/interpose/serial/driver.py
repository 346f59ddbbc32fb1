"""The VMM's own driver of a serial port, on behalf of an emulated one.

It drives the physical port with all its interrupts and, as soon as it may, a trigger of one byte (PC16550D, sections 8.3 to 8.7).
Line format, speed, modem outputs and FIFO clears go through as the guest makes them; bytes go through as there is room.

The guest's trigger level cannot be read (FCR). If it was not seen it is found out, in loopback, once the port is idle; the other side is
kept from sending meanwhile (RTS is inactive in loopback), and the guest is served by the emulated port.

The invariant: a byte is in one receiver, or one transmitter, only, and in order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from avmm.clock import MILLISECOND
from avmm.devices.uart import BI, DR, FE, FIFO, OUT2, PE, TEMT, THRE
from avmm.interpose.front import nothing
from avmm.interpose.handover import DeviceHangs
from avmm.interpose.serial.sequence import DATA, DLAB, IER, IIR_FCR, LCR, LOOP, LSR, MCR, MSR, NO_CAUSE
from avmm.interpose.strand import Resume, Strand, Suspend
from avmm.platform.serial import SerialLink

if TYPE_CHECKING:
    from avmm.interpose.serial.port import EmulatedUart

RECEIVED, ALL = 0x01, 0x0F
"""Interrupt enable: data available; all four."""
AVAILABLE = 0x04
"""The cause of an interrupt: the receiver is filled up to the trigger level."""
FIFO_ON, CLEAR_RECEIVER, CLEAR_TRANSMITTER = 1, 2, 4
ERRORS = PE | FE | BI
OUTPUTS = 0x07
"""DTR, RTS and OUT1."""
TRIGGERS = ((1, 0x00), (4, 0x40), (8, 0x80), (14, 0xC0))
FIVE_BITS, EIGHT_BITS = 0, 3
CHARACTER_NS = {FIVE_BITS: 61_000, EIGHT_BITS: 87_000}
"""What a character takes at the highest speed."""
PROBE_AGAIN = 2 * MILLISECOND


class SerialDriver:
    """Drives ``link``. Between :meth:`attach` and :meth:`detach` its interrupt is ours."""

    port: EmulatedUart
    """Whom it works for."""

    def __init__(self, link: SerialLink) -> None:
        self.link = link
        self.on_idle: Callable[[], None] = nothing
        self.driving = False
        """Whether the physical port follows the emulated one: not during a switch, nor in loopback."""
        self.probing = False
        """Whether the port is in loopback, to find out how it is set."""
        self.spurious = 0
        """Interrupts that had no cause."""
        self._clock = link.cable.clock
        self._timer = self._clock.timer(self._go_on)
        self._again = self._clock.timer(self.probe)
        self._wake: Resume | None = None
        self._strand: Strand | None = None
        self._ier = self._lcr = self._mcr = self._divisor = 0
        self.handed = 0
        """Bytes of the emulated transmitter that the physical one has."""

    # -- hands on and off

    def attach(self) -> None:
        """Take the interrupt line; :meth:`begin` starts to drive."""
        self.link.irq.connect(self._interrupt)

    def begin(self) -> None:
        """Drive the port, set as the emulated one is."""
        self.driving = True
        self._settings(fresh=True)
        self._enable(ALL)
        if self.port.trigger_known:
            self.put(IIR_FCR, self.port.fcr & 0x09)
        self.poll()
        self.probe()

    def detach(self) -> None:
        """Give up whatever waits, and the line."""
        self.stop()
        self.link.irq.connect(None)

    def stop(self) -> None:
        """Do not drive the port any more, nor listen to it."""
        self.driving = self.probing = False
        if self._strand is not None:
            self._strand.cancel()
            self._strand = None
        self._timer.cancel()
        self._again.cancel()
        self._wake = None

    # -- registers

    def get(self, register: int) -> int:
        """Read a register."""
        return self.link.read(self.link.uart.base + register)

    def put(self, register: int, value: int) -> None:
        """Write a register."""
        self.link.write(self.link.uart.base + register, value)

    def set_divisor(self, divisor: int, lcr: int) -> None:
        """Set the speed, and then the line format."""
        self.put(LCR, DLAB)
        self.put(DATA, divisor & 0xFF)
        self.put(IER, divisor >> 8)
        self.put(LCR, lcr)

    def _enable(self, ier: int) -> None:
        self._ier = ier
        self.put(IER, ier)

    def follow(self) -> None:
        """The guest has set something."""
        if self.driving:
            self._settings()

    def _settings(self, *, fresh: bool = False) -> None:
        port = self.port
        lcr = port.lcr & ~DLAB
        mcr = OUT2 if port.mcr & LOOP else port.mcr & OUTPUTS | OUT2  # in loopback the guest's outputs are inactive
        if fresh or port.divisor != self._divisor:
            self.set_divisor(port.divisor, lcr)
        elif lcr != self._lcr:
            self.put(LCR, lcr)
        if fresh or mcr != self._mcr:
            self.put(MCR, mcr)
        self._lcr, self._mcr, self._divisor = lcr, mcr, port.divisor

    def clear(self, fcr: int) -> None:
        """The guest wrote FIFO control."""
        if self.driving:
            self.put(IIR_FCR, fcr & 0x0F if fcr & FIFO_ON else 0)
            self.handed = len(self.port.sending)

    # -- bytes

    def _interrupt(self, level: bool) -> None:
        if not level or not self.driving:
            return
        causes = 0
        while causes < 2 * FIFO and self.get(IIR_FCR) & 0x0F != NO_CAUSE:
            causes += 1
            self.poll()
        self.spurious += not causes
        self.probe()
        self.on_idle()

    def poll(self) -> int:
        """Take what the receiver has, as far as there is room, and tell the port what has been sent; return LSR."""
        if not self.driving:
            return 0
        port = self.port
        while True:
            status = self.get(LSR)
            port.overrun_seen(status)
            if not status & DR or not port.has_room:
                break
            port.take(self.get(DATA), status & ERRORS)
        wanted = ALL & ~RECEIVED if status & DR else ALL  # what the guest has no room for would keep the line up
        if wanted != self._ier:
            self._enable(wanted)
        if status & THRE:
            port.sent(self.handed)
            self.handed = 0
        port.modem(self.get(MSR))
        self.send()
        return status

    def send(self) -> None:
        """Hand over what is to be sent."""
        sending = self.port.sending
        while self.driving and self.handed < len(sending):
            self.handed += 1  # before it is written: the port may interrupt for the next one within
            self.put(DATA, sending[self.handed - 1])

    # -- loopback

    def _go_on(self) -> None:
        wake, self._wake = self._wake, None
        if wake is not None:
            wake(None)

    async def loop(self, outputs: int, line: int) -> None:
        """Go into loopback, at the highest speed and with ``line`` bits a character."""
        self.put(MCR, LOOP | outputs)
        self.set_divisor(1, line)

    async def emptied(self, characters: int, line: int) -> None:
        """Wait until that many characters have gone from the transmitter. Raises DeviceHangs."""
        for _ in range(2):
            until = self._clock.now() + characters * CHARACTER_NS[line]

            def begin(resume: Resume, until: int = until) -> None:
                self._wake = resume
                self._timer.arm(until)

            await Suspend(begin)
            if self.get(LSR) & TEMT:
                return
        raise DeviceHangs(f"{self.link.uart.name} does not send")

    def probe(self) -> None:
        """Find out the trigger level, if it is not known and the port has nothing else to do."""
        port = self.port
        if not self.driving or port.trigger_known:
            return
        if port.sending or self.poll() & (TEMT | DR) != TEMT:
            self._again.arm(self._clock.now() + PROBE_AGAIN)  # nothing tells when the last bit is out
            return
        self.driving, self.probing = False, True
        self._strand = Strand(self._find_trigger(), self._found)

    async def _find_trigger(self) -> int:
        """Fill the receiver until it asks to be read."""
        self._enable(RECEIVED)
        await self.loop(0, FIVE_BITS)
        have = 0
        for count, bits in TRIGGERS:
            for _ in range(count - have):
                self.put(DATA, 0)
            await self.emptied(count - have, FIVE_BITS)
            have = count
            if self.get(IIR_FCR) & 0x0F == AVAILABLE:
                return bits
        raise DeviceHangs(f"{self.link.uart.name} does not ask to be read")

    def _found(self, result: Any) -> None:
        self.probing, self._strand = False, None
        port = self.port
        if isinstance(result, BaseException) and not isinstance(result, DeviceHangs):
            raise result
        self.put(IIR_FCR, port.fcr & FIFO_ON | CLEAR_RECEIVER)
        if not port.trigger_known and isinstance(result, int):
            port.fcr = port.fcr & 0x3F | result
        port.trigger_known = True
        self.begin_again()
        self.on_idle()

    def begin_again(self) -> None:
        """Drive the port after a loopback. The modem's lines changed for that only."""
        self._settings(fresh=True)
        self.get(MSR)
        self.begin()


