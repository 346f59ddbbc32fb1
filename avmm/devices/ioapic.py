"""The I/O APIC, an Intel 82093AA: 24 inputs, each with a redirection entry that says what message to send.

After the 82093AA datasheet (registers, section 3) and, for level-triggered entries, the remote IRR protocol with EOI
messages. Polarity is ignored (a line that is True is asserted) and so is the destination: there is one processor.

The invariant: a level-triggered entry has at most one message under way (remote IRR), and when the EOI comes for a line
that is still asserted, the next message goes at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from avmm.devices.device import Board, Device, MemoryRange
from avmm.devices.line import Sink

BASE = 0xFEC00000
INPUTS = 24
VERSION = 0x00000011 | (INPUTS - 1) << 16

MASKED = 1 << 16
LEVEL = 1 << 15
REMOTE_IRR = 1 << 14
_WRITABLE = 0xFF << 56 | 0x1AFFF  # all but delivery status (12), remote IRR (14) and the reserved bits

# Delivery modes, bits 8-10.
FIXED, LOWEST, SMI, NMI, INIT, EXTINT = 0, 1, 2, 4, 5, 7

Deliver = Callable[[int, bool, int], None]


class IoApic(Device):
    """Index and data registers at 0xFEC00000; ``inputs[n]`` is the sink of global system interrupt n."""

    name = "ioapic"
    memory = (MemoryRange(BASE, 0x1000),)

    @dataclass(frozen=True)
    class State:
        """Registers and the levels of the inputs."""

        index: int
        id: int
        entries: tuple[int, ...]
        levels: int
        version: int = 1

    def __init__(self, board: Board, deliver: Deliver | None = None) -> None:
        super().__init__(board)
        self.deliver: Deliver = deliver or _lose
        """``deliver(vector, level_triggered, mode)``: the message to the processor's local APIC."""
        self.inputs: list[Sink] = [self._input(number) for number in range(INPUTS)]
        self._levels = 0
        self._power_on()

    def _power_on(self) -> None:
        self._index = 0
        self._id = 0
        self._entries = [MASKED] * INPUTS

    def reset(self) -> None:
        """RESET#: every entry masked. The inputs keep their levels, which belong to the devices."""
        self._power_on()

    def _input(self, number: int) -> Sink:
        bit = 1 << number

        def changed(level: bool) -> None:
            if not level:
                self._levels &= ~bit
            elif not self._levels & bit:
                self._levels |= bit
                self._send(number)  # an edge that meets a masked entry is lost

        return changed

    def _send(self, number: int) -> None:
        entry = self._entries[number]
        mode = entry >> 8 & 7
        if entry & (MASKED | REMOTE_IRR):
            return
        level = entry & LEVEL != 0 and mode in (FIXED, LOWEST)
        if level:
            self._entries[number] = entry | REMOTE_IRR
        self.deliver(entry & 0xFF, level, mode)

    def eoi(self, vector: int) -> None:
        """The local APIC's EOI message: entries waiting for it may send again."""
        for number, entry in enumerate(self._entries):
            if entry & REMOTE_IRR and entry & 0xFF == vector:
                self._entries[number] = entry & ~REMOTE_IRR
                if self._levels >> number & 1:
                    self._send(number)

    def read_memory(self, address: int, size: int) -> int:
        """Load from IOREGSEL (offset 0) or IOWIN (10h); nothing else answers."""
        offset = address & 0xFF
        if offset & ~0x13:
            return 0
        value = self._register() if offset & 0x10 else self._index
        return value >> 8 * (offset & 3) & ((1 << 8 * size) - 1)

    def write_memory(self, address: int, size: int, value: int) -> None:
        """Store to IOREGSEL (any width) or IOWIN (32 bits)."""
        offset = address & 0xFF
        if offset == 0:
            self._index = value & 0xFF
        elif offset == 0x10 and size >= 4:
            self._write_register(value & 0xFFFFFFFF)

    def _register(self) -> int:
        index = self._index
        if index in (0, 2):
            return self._id
        if index == 1:
            return VERSION
        number = (index - 0x10) >> 1
        if 0 <= number < INPUTS:
            return self._entries[number] >> 32 * (index & 1) & 0xFFFFFFFF
        return 0

    def _write_register(self, value: int) -> None:
        index = self._index
        if index == 0:
            self._id = value & 0x0F000000
        number = (index - 0x10) >> 1
        if not 0 <= number < INPUTS:
            return
        old = self._entries[number]
        entry = (old & 0xFFFFFFFF | value << 32 if index & 1 else old >> 32 << 32 | value) & _WRITABLE
        if entry & LEVEL:
            entry |= old & REMOTE_IRR  # going through edge mode forgets it: how an OS clears a stuck one
        self._entries[number] = entry
        if entry & LEVEL and self._levels >> number & 1:
            self._send(number)

    def save(self) -> State:
        return self.State(self._index, self._id, tuple(self._entries), self._levels)

    def restore(self, state: State) -> None:
        if not isinstance(state, self.State) or state.version != 1 or len(state.entries) != INPUTS:
            raise ValueError("this is not a saved I/O APIC of version 1")
        self._index, self._id, self._levels = state.index, state.id, state.levels
        self._entries = list(state.entries)


def _lose(vector: int, level: bool, mode: int) -> None:
    """Nobody is wired to the output."""
