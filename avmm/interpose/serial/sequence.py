"""The I/O-sequence state machine of a serial port: what the guest is in the middle of, as told by its own accesses.

A 16550's LSR and IIR cannot be looked at without side effects (PC16550D, 8.4 and 8.6), so what the guest read there is all that is known;
LCR and the interrupt pin can. FCR cannot be read at all: it is remembered. Nothing is performed.

The invariant: what it claims to know was seen. ``fcr`` is None until then.
"""

from __future__ import annotations

import enum

from avmm.devices.uart import DR, THRE

DATA, IER, IIR_FCR, LCR, MCR, LSR, MSR, SCR = range(8)
DLAB, LOOP = 0x80, 0x10
NO_CAUSE, TRANSMITTER = 1, 2


class Stage(enum.Enum):
    """Where in a sequence the guest is."""

    IDLE = "between sequences"
    DIVISOR = "the divisor is being set"
    SENDING = "bytes were given to the transmitter"
    RECEIVING = "bytes wait to be read"
    INTERRUPT = "an interrupt waits to be served"


class SerialSequence:
    """The mirror of one port."""

    def __init__(self) -> None:
        self.stage = Stage.IDLE
        self.word = 0
        """Bytes given to the transmitter since it was last seen empty."""
        self.fcr: int | None = None
        """FIFO control as the guest wrote it last, without the bits that clear."""
        self._line = self._divisor = self._received = False

    # -- events

    def write(self, register: int, value: int) -> None:
        """The guest wrote."""
        if register == DATA and not self._divisor:
            self.word += 1
        elif register == IIR_FCR:
            self.fcr = value & 0xC9 if value & 1 else 0
        self._settle()

    def read(self, register: int, value: int) -> None:
        """The guest read that."""
        if register == LSR:
            self._received = bool(value & DR)
            if value & THRE:
                self.word = 0
        elif register == IIR_FCR and value & 0x0F == TRANSMITTER:
            self.word = 0
        self._settle()

    def look(self, lcr: int, line: bool) -> None:
        """LCR read so, and the interrupt pin was ``line``."""
        self._divisor, self._line = bool(lcr & DLAB), line
        self._settle()

    def _settle(self) -> None:
        if self._divisor:
            self.stage = Stage.DIVISOR
        elif self._line:
            self.stage = Stage.INTERRUPT
        elif self._received:
            self.stage = Stage.RECEIVING
        else:
            self.stage = Stage.SENDING if self.word else Stage.IDLE

    # -- what it tells

    @property
    def over(self) -> bool:
        """Whether no sequence is in progress."""
        return self.stage is Stage.IDLE

    @property
    def resting(self) -> bool:
        """Whether the port has nothing to do."""
        return self.stage is Stage.IDLE
