"""A 16550A serial port.

Follows National Semiconductor's PC16550D data sheet (Universal Asynchronous Receiver/Transmitter with FIFOs), sections 8.1 to 8.6,
placed as on a PC: eight ports, and the interrupt pin gated by OUT2.

Sending takes no machine time (unless ``paced``): a byte is out when the OUT has been executed, so the transmitter is always empty.
What the host sends waits in a queue without bound and enters the receiver as it finds room.

Invariant: the line is high exactly while an enabled interrupt is pending and MCR.OUT2 is set; nothing the host sends is lost in the
receiver, except by a guest that resets its FIFO (and by overrun, if asked for).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from avmm.clock import MICROSECOND, SECOND
from avmm.devices.device import Board, Device, PortRange

CRYSTAL = 1_843_200
FIFO = 16
GAP = 100 * MICROSECOND
"""From the first read that makes room to the bytes that fill it, so that each filling is an interrupt edge of its own."""

_TRIGGER = (1, 4, 8, 14)

# Interrupt enable: data available, transmitter empty, line status, modem status.
_RDI, _THRI, _RLSI, _MSI = 1, 2, 4, 8
# Line status.
DR, OE, PE, FE, BI, THRE, TEMT, FIFO_ERROR = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20, 0x40, 0x80
_ERRORS = OE | PE | FE | BI
# Modem control and status (the upper half of MSR; the lower are the changes).
OUT2, LOOP = 0x08, 0x10
CTS, DSR, RI, DCD = 0x10, 0x20, 0x40, 0x80
_DLAB, _SET_BREAK = 0x80, 0x40


class Uart(Device):
    """One serial port; ``on_output`` hears each byte sent, :meth:`receive` takes what comes down the wire."""

    @dataclass(frozen=True)
    class State:
        """A saved port; deadlines in ns of machine time."""

        version: int = 1
        ier: int = 0
        fcr: int = 0
        lcr: int = 0
        mcr: int = 0
        scr: int = 0
        divisor: int = 12
        modem: int = CTS | DSR | DCD
        msr: int = CTS | DSR | DCD
        overrun: bool = False
        rx: tuple[tuple[int, int], ...] = ()
        rbr: int = 0
        timeout: bool = False
        thre_pending: bool = False
        tx: bytes = b""
        shifting: int | None = None
        queue: tuple[tuple[int, int], ...] = ()
        activity: int = 0
        timeout_due: int | None = None
        fill_due: int | None = None
        tx_due: int | None = None

    def __init__(
        self, board: Board, base: int = 0x3F8, irq: int = 4, name: str = "com1", *, paced: bool = False, overrun: bool = False
    ) -> None:
        super().__init__(board)
        self.name = name
        self.base = base
        self.ports = (PortRange(base, 8),)
        self.line = board.line(irq)
        self.paced = paced
        """Whether bytes take the time on the line that the divisor says, in both directions. Fixed from the start."""
        self.overrun = overrun
        """Whether :meth:`receive` pushes bytes into a full receiver, where they are lost, as a wire does."""
        self.on_output: Callable[[int], None] = _ignore
        """Called with each byte the guest sends."""
        self._modem = CTS | DSR | DCD
        self._timeout_timer = board.clock.timer(self._quiet)
        self._fill_timer = board.clock.timer(self._fill)
        self._tx_timer = board.clock.timer(self._shifted)
        self.reset()

    def reset(self) -> None:
        self.ier = self.fcr = self.lcr = self.mcr = self.scr = 0
        self.divisor = 12
        self.msr = self._modem
        self._overrun = False
        self._rx: deque[tuple[int, int]] = deque()
        self._rbr = 0
        self._timeout = False
        self._thre_pending = False
        self._tx: deque[int] = deque()
        self._shifting: int | None = None
        self._queue: deque[tuple[int, int]] = deque()
        self._activity = 0
        for timer in (self._timeout_timer, self._fill_timer, self._tx_timer):
            timer.cancel()
        self._choose()
        self.line.lower()

    def _choose(self) -> None:
        """See whether a byte written to the first port goes straight out."""
        self._direct = not (self.paced or self.lcr & _DLAB or self.mcr & LOOP)

    # -- the other end of the cable

    def receive(self, data: bytes) -> None:
        """Take bytes from the wire; any amount."""
        if self.overrun and not self.mcr & LOOP:
            for byte in data:
                self._arrive(byte, 0)
            self._update()
            return
        self._queue.extend((byte, 0) for byte in data)
        self._offer()

    def receive_break(self) -> None:
        """Take a break from the wire: a zero with the break and framing marks."""
        self._queue.append((0, BI | FE))
        self._offer()

    @property
    def queued(self) -> int:
        """Bytes from the host that are not in the receiver yet."""
        return len(self._queue)

    @property
    def idle(self) -> bool:
        """Whether the guest has read all that the host sent, and all it sent itself is out."""
        return not (self._queue or self._rx or self._tx or self._shifting is not None)

    def set_modem(self, *, cts: bool | None = None, dsr: bool | None = None, dcd: bool | None = None, ri: bool | None = None) -> None:
        """Set the modem's lines as the port sees them; None leaves one as it is."""
        for bit, level in ((CTS, cts), (DSR, dsr), (DCD, dcd), (RI, ri)):
            if level is not None:
                self._modem = self._modem | bit if level else self._modem & ~bit
        self._modem_changed()

    # -- receiver

    def _char_time(self) -> int:
        """One character on the line: start, data, parity and stop bits."""
        bits = 1 + 5 + (self.lcr & 3) + (self.lcr >> 3 & 1) + 1 + (self.lcr >> 2 & 1)
        return bits * 16 * max(self.divisor, 1) * SECOND // CRYSTAL

    @property
    def _room(self) -> int:
        return (FIFO if self.fcr & 1 else 1) - len(self._rx)

    def _offer(self) -> None:
        if not self._fill_timer.armed:
            self._fill()

    def _fill(self) -> None:
        """Let waiting bytes in: as many as there is room for, or one of them with its time on the line."""
        if self.mcr & LOOP:
            return
        count = min(self._room, len(self._queue), 1 if self.paced else FIFO)
        for _ in range(count):
            self._arrive(*self._queue.popleft())
        if self.paced and count and self._queue:
            self._fill_timer.arm(self.clock.now() + self._char_time())
        if count:
            self._update()

    def _arrive(self, byte: int, errors: int) -> None:
        """One character is complete in the receiver's shift register."""
        if self._room <= 0:
            self._overrun = True
            if not self.fcr & 1:
                self._rx[-1] = (byte, errors)  # without FIFO the newer character wins; a full FIFO keeps what it has
            return
        self._rx.append((byte, errors))
        self._active()

    def _active(self) -> None:
        """The FIFO has moved: the character timeout starts anew."""
        self._timeout = False
        if self.fcr & 1 and self._rx:
            self._activity = self.clock.now()
            if not self._timeout_timer.armed:
                self._timeout_timer.arm(self._activity + 4 * self._char_time())

    def _quiet(self) -> None:
        """Four characters' time has passed since the timer was armed; if the FIFO moved in between, it has yet to pass."""
        if not (self.fcr & 1 and self._rx):
            return
        due = self._activity + 4 * self._char_time()
        if due > self.clock.now():
            self._timeout_timer.arm(due)
            return
        self._timeout = True
        self._update()

    def _read_rbr(self) -> int:
        if self._rx:
            self._rbr = self._rx.popleft()[0]
            self._active()
            if self._queue and not self._fill_timer.armed:
                self._fill_timer.arm(self.clock.now() + (self._char_time() if self.paced else GAP))
            self._update()
        return self._rbr

    # -- transmitter

    def _write_thr(self, value: int) -> None:
        """A byte to send that does not go straight out: looped back, or paced."""
        self._thre_pending = False
        self._update()
        if not self.paced:
            self._thre_pending = True
            self._arrive(value, 0)
        elif self._shifting is None:
            self._shift(value)
        elif len(self._tx) < (FIFO if self.fcr & 1 else 1):
            self._tx.append(value)
        elif not self.fcr & 1:
            self._tx[-1] = value
        self._update()

    def _shift(self, value: int) -> None:
        """Move a byte to the shift register; the holding register is empty again if that was the last."""
        self._shifting = value
        self._tx_timer.arm(self.clock.now() + self._char_time())
        if not self._tx:
            self._thre_pending = True

    def _shifted(self) -> None:
        """The last bit is out."""
        value, self._shifting = self._shifting, None
        if self._tx:
            self._shift(self._tx.popleft())
        if value is not None:
            if self.mcr & LOOP:
                self._arrive(value, 0)
            else:
                self.on_output(value)
        self._update()

    # -- status and interrupt

    def _lsr(self) -> int:
        status = OE if self._overrun else 0
        if self._rx:
            status |= DR | self._rx[0][1]
            if self.fcr & 1 and any(errors for _, errors in self._rx):
                status |= FIFO_ERROR
        if not self._tx:
            status |= THRE if self._shifting is not None else THRE | TEMT
        return status

    def _read_lsr(self) -> int:
        if not self._rx and not self._overrun and self._shifting is None and not self._tx:
            return THRE | TEMT  # the common case: a console polls this before every byte
        status = self._lsr()
        if status & _ERRORS:
            self._overrun = False
            if self._rx and self._rx[0][1]:
                self._rx[0] = (self._rx[0][0], 0)
            self._update()
        return status

    def _cause(self) -> int:
        """Return the low bits of IIR: the pending interrupt of highest priority, 1 for none."""
        ier = self.ier
        if ier & _RLSI and (self._overrun or (self._rx and self._rx[0][1])):
            return 0x06
        if ier & _RDI and self._rx:
            if len(self._rx) >= (_TRIGGER[self.fcr >> 6] if self.fcr & 1 else 1):
                return 0x04
            if self._timeout:
                return 0x0C
        if ier & _THRI and self._thre_pending:
            return 0x02
        return 0x00 if ier & _MSI and self.msr & 0x0F else 0x01

    def _update(self) -> None:
        self.line.set(self.mcr & OUT2 != 0 and self._cause() != 1)

    def _read_iir(self) -> int:
        cause = self._cause()
        if cause == 0x02:
            self._thre_pending = False
            self._update()
        return cause | 0xC0 if self.fcr & 1 else cause

    def _modem_changed(self) -> None:
        """Work out MSR from the modem's lines, or in loopback from the port's own outputs."""
        lines = self._modem
        if self.mcr & LOOP:
            dtr, rts, out = self.mcr & 1, self.mcr >> 1 & 1, self.mcr >> 2 & 3
            lines = rts << 4 | dtr << 5 | out << 6
        before = self.msr
        changed = (before ^ lines) & 0xF0
        changed &= ~(lines & RI)  # the ring indicator counts at its trailing edge only
        self.msr = lines | before & 0x0F | changed >> 4
        self._update()

    # -- registers

    def read(self, port: int, size: int) -> int:
        register = port - self.base & 7
        if register == 5:
            return self._read_lsr()
        if register == 0:
            return self.divisor & 0xFF if self.lcr & _DLAB else self._read_rbr()
        if register == 1:
            return self.divisor >> 8 if self.lcr & _DLAB else self.ier
        if register == 2:
            return self._read_iir()
        if register == 6:
            status = self.msr
            self.msr &= 0xF0
            self._update()
            return status
        return (self.lcr, self.mcr, 0, 0, self.scr)[register - 3]

    def write(self, port: int, size: int, value: int) -> None:
        register = port - self.base
        if register == 0 and self._direct:  # a Linux boot comes here 50 000 times
            if self.ier & _THRI:  # the pin falls with the write and rises when the byte is out
                self._thre_pending = False
                self._update()
            self._thre_pending = True
            self.on_output(value)
            if self.ier & _THRI:
                self._update()
        elif register < 2 and self.lcr & _DLAB:
            shift = 8 * register
            self.divisor = self.divisor & ~(0xFF << shift) | value << shift
        elif register < 5:
            _WRITERS[register](self, value)
        elif register == 7:
            self.scr = value

    def _write_ier(self, value: int) -> None:
        if value & ~self.ier & _THRI and not self._tx:
            self._thre_pending = True  # enabling the interrupt with an empty transmitter asks at once
        self.ier = value & 0x0F
        self._update()

    def _write_fcr(self, value: int) -> None:
        """Bit 0 switches the FIFOs and empties both when it changes; without it no other bit counts."""
        switched = (value ^ self.fcr) & 1
        self.fcr = value & 0xC9 if value & 1 else 0
        if switched or value & 3 == 3:
            self._rx.clear()
            self._timeout = False
            self._timeout_timer.cancel()
        if (switched or value & 5 == 5) and self._tx:
            self._tx.clear()
            self._thre_pending = True
        self._update()
        if self._queue and not self._fill_timer.armed:
            self._fill_timer.arm(self.clock.now() + GAP)

    def _write_lcr(self, value: int) -> None:
        begun = value & ~self.lcr & _SET_BREAK
        self.lcr = value
        self._choose()
        if begun and self.mcr & LOOP:
            self._arrive(0, BI | FE)
            self._update()

    def _write_mcr(self, value: int) -> None:
        self.mcr = value & 0x1F
        self._choose()
        self._modem_changed()
        self._offer()

    # -- saved state

    def save(self) -> State:
        return self.State(
            ier=self.ier, fcr=self.fcr, lcr=self.lcr, mcr=self.mcr, scr=self.scr, divisor=self.divisor, modem=self._modem, msr=self.msr,
            overrun=self._overrun, rx=tuple(self._rx), rbr=self._rbr, timeout=self._timeout, thre_pending=self._thre_pending,
            tx=bytes(self._tx), shifting=self._shifting, queue=tuple(self._queue), activity=self._activity,
            timeout_due=self._timeout_timer.due, fill_due=self._fill_timer.due, tx_due=self._tx_timer.due,
        )  # fmt: skip

    def restore(self, state: Any) -> None:
        if not isinstance(state, self.State) or state.version != 1 or len(state.rx) > FIFO or len(state.tx) > FIFO:
            raise ValueError("this is not a serial port state of version 1")
        self.ier, self.fcr, self.lcr, self.mcr, self.scr = state.ier, state.fcr, state.lcr, state.mcr, state.scr
        self.divisor, self._modem, self.msr, self._overrun = state.divisor, state.modem, state.msr, state.overrun
        self._rx, self._rbr, self._timeout = deque(state.rx), state.rbr, state.timeout
        self._thre_pending, self._tx, self._shifting = state.thre_pending, deque(state.tx), state.shifting
        self._queue, self._activity = deque(state.queue), state.activity
        timers = (self._timeout_timer, state.timeout_due), (self._fill_timer, state.fill_due), (self._tx_timer, state.tx_due)
        for timer, due in timers:
            timer.cancel()
            if due is not None:
                timer.arm(due)
        self._choose()
        self._update()


_WRITERS: tuple[Callable[[Uart, int], None], ...] = (
    Uart._write_thr, Uart._write_ier, Uart._write_fcr, Uart._write_lcr, Uart._write_mcr,
)  # fmt: skip


def _ignore(byte: int) -> None:
    pass
