"""The I/O-sequence state machine of a frame device: what the guest is in the middle of.

Fed by the accesses that are intercepted and by looks at STATUS, which reads without side effects. It performs nothing.

The invariant: BUSY is ISSUED, DONE is STATUS; the rest is what the guest wrote since its last command.
"""

from __future__ import annotations

import enum

from avmm.platform.frame import BUSY, COMMAND, DONE, REGISTERS, WRITABLE


class Stage(enum.Enum):
    """Where in a sequence the guest is."""

    IDLE = "between sequences"
    SETUP = "registers are being written"
    ISSUED = "command issued, device busy"
    STATUS = "command done, to be acknowledged"


class FrameSequence:
    """The mirror of one device."""

    def __init__(self) -> None:
        self.stage = Stage.IDLE
        self.word = 0
        self._setup = False

    def write(self, offset: int) -> None:
        """The guest wrote there."""
        if offset >= REGISTERS or self.stage is Stage.ISSUED:
            return
        if offset == COMMAND:
            self._setup = False
        elif offset in WRITABLE:
            self._setup = True

    def look(self, status: int) -> None:
        """STATUS read so."""
        if status & BUSY:
            self.stage = Stage.ISSUED
        elif status & DONE:
            self.stage = Stage.STATUS
        else:
            self.stage = Stage.SETUP if self._setup else Stage.IDLE

    @property
    def over(self) -> bool:
        """Whether no sequence is in progress."""
        return self.stage is Stage.IDLE

    @property
    def resting(self) -> bool:
        """Whether the device has nothing to do."""
        return self.stage in (Stage.IDLE, Stage.SETUP)
