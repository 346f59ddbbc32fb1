"""Two Intel 8259A interrupt controllers, cascaded as in a PC/AT, with the edge/level control registers of EISA and PCI chipsets.

Follows the Intel 8259A data sheet (order number 231468); section names below are its own. The ELCR (ports 4D0h/4D1h)
makes single inputs level-triggered; ICW1.LTIM does so for a whole chip.

The invariant: a bit of IRR is set only while its input is high, so a request whose line drops before INTA is withdrawn; an
INTA that then finds no request answers level 7 and sets no bit in ISR (the spurious interrupt). The INT output is a
function of IRR, IMR, ISR and the modes, and is computed anew only where one of them changes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from avmm.devices.device import Board, Device, PortRange
from avmm.devices.line import Sink

CASCADE = 2
"""The master's input that the slave's INT is wired to."""
NOBODY = 0xFF
"""What the processor reads in an INTA cycle when no controller drives the bus."""
SPURIOUS = 7
"""The level an 8259A answers with when the request is gone by the time of INTA."""

ICW1_IC4, ICW1_SNGL, ICW1_ADI, ICW1_LTIM, ICW1_SELECT = 0x01, 0x02, 0x04, 0x08, 0x10
ICW4_8086, ICW4_AEOI, ICW4_SFNM = 0x01, 0x02, 0x10
OCW3_RIS, OCW3_RR, OCW3_POLL, OCW3_SELECT, OCW3_SMM, OCW3_ESMM = 0x01, 0x02, 0x04, 0x08, 0x20, 0x40

_RANK = tuple(bytes(next((i for i in range(8) if mask >> ((first + i) & 7) & 1), 8) for mask in range(256)) for first in range(8))
"""``_RANK[first][mask]``: how far the best level in ``mask`` is from ``first``, the level of highest priority; 8 if mask is empty."""


@dataclass(frozen=True, slots=True)
class ChipState:
    """One 8259A; ``expect`` is the initialization word awaited next (2-4), 0 when none."""

    lines: int
    irr: int
    isr: int
    imr: int
    first: int
    icw1: int
    icw2: int
    icw3: int
    icw4: int
    expect: int
    elcr: int
    rotate_aeoi: bool
    special_mask: bool
    poll: bool
    read_isr: bool


class Chip:
    """One 8259A. ``on_int`` hears each change of the INT output ``int``."""

    __slots__ = (
        "elcr", "expect", "first", "icw1", "icw2", "icw3", "icw4", "imr", "int", "irr", "isr", "lines", "on_int", "poll", "read_isr",
        "rotate_aeoi", "slave", "special_mask",
    )  # fmt: skip

    def __init__(self, slave: bool) -> None:
        self.slave = slave
        """Whether the SP pin makes this a slave."""
        self.on_int: Callable[[bool], None] = _nothing
        self.int = False
        self.lines = 0
        """Levels of the eight inputs."""
        self.elcr = 0
        self.icw1 = self.icw2 = self.icw3 = self.icw4 = 0
        self.isr = self.imr = 0
        self.rotate_aeoi = False
        self.reset()

    def reset(self) -> None:
        """Power-on: all registers zero (the data sheet leaves them undefined), edge-triggered, INT low."""
        self.elcr = self.icw2 = 0
        self._icw1(0)
        self.expect = 0

    # -- inputs and output

    def set_input(self, bit: int, level: bool) -> None:
        """Drive the input with mask ``bit``; only changes count."""
        if level:
            if not self.lines & bit:
                self.lines |= bit
                self.irr |= bit
                self.update()
        elif self.lines & bit:
            self.lines &= ~bit
            if self.irr & bit:  # withdrawn
                self.irr &= ~bit
                self.update()

    @property
    def level_triggered(self) -> int:
        """Mask of the inputs in level mode: their IRR bit follows the input and survives INTA."""
        return 0xFF if self.icw1 & ICW1_LTIM else self.elcr

    def set_elcr(self, value: int) -> None:
        """Choose the level-triggered inputs; one that becomes level-triggered while high is a request at once."""
        self.elcr = value
        self.irr |= self.lines & self.level_triggered
        self.update()

    def update(self) -> None:
        """Compute INT: a request that is not masked and of higher priority than all that inhibits it."""
        requests = self.irr & ~self.imr
        high = False
        if requests:
            rank = _RANK[self.first]
            best = rank[requests]
            # In special mask mode a masked level in service inhibits nothing.
            limit = rank[self.isr & ~self.imr if self.special_mask else self.isr]
            high = best < limit
            if best == limit and self.icw4 & ICW4_SFNM:  # special fully nested: a slave in service may interrupt again
                high = self.cascaded(best + self.first & 7)
        if high is not self.int:
            self.int = high
            self.on_int(high)

    # -- acknowledging

    def cascaded(self, level: int) -> bool:
        """Whether a slave is to answer INTA for this level of a master."""
        return not self.slave and not self.icw1 & ICW1_SNGL and bool(self.icw3 >> level & 1)

    def accept(self) -> int:
        """First INTA (or the read after a poll command): put the best request in service. Returns its level, or -1 if it is gone."""
        if not self.int:
            return -1
        first = self.first
        level = _RANK[first][self.irr & ~self.imr] + first & 7
        bit = 1 << level
        self.isr |= bit
        if not bit & self.level_triggered:
            self.irr &= ~bit
        self.update()
        return level

    def finish(self, level: int) -> None:
        """End of the last INTA: automatic EOI, where ICW4 asks for it."""
        if self.icw4 & ICW4_AEOI:
            self.isr &= ~(1 << level)
            if self.rotate_aeoi:
                self.first = level + 1 & 7
            self.update()

    def vector(self, level: int) -> int:
        """Return what the chip puts on the bus in the second INTA: the vector, or in MCS-80 mode the low byte of the CALL address."""
        if self.icw4 & ICW4_8086:
            return self.icw2 & 0xF8 | level
        if self.icw1 & ICW1_ADI:
            return self.icw1 & 0xE0 | level << 2
        return self.icw1 & 0xC0 | level << 3

    # -- registers

    def write_command(self, value: int) -> None:
        """Write with A0 = 0: ICW1, OCW2 or OCW3."""
        if not value & (ICW1_SELECT | OCW3_SELECT):
            self._ocw2(value)
        elif value & ICW1_SELECT:
            self._icw1(value)
        else:
            self._ocw3(value)

    def write_data(self, value: int) -> None:
        """Write with A0 = 1: the ICW that is due, otherwise OCW1."""
        expect = self.expect
        if not expect:
            if value != self.imr:
                self.imr = value
                self.update()
            return
        last = 4 if self.icw1 & ICW1_IC4 else 0
        if expect == 2:
            self.icw2 = value
            self.expect = last if self.icw1 & ICW1_SNGL else 3
        elif expect == 3:
            self.icw3 = value
            self.expect = last
        else:
            self.icw4 = value
            self.expect = 0
        self.update()

    def read_command(self) -> int:
        """Read with A0 = 0: the poll word, ISR or IRR."""
        if self.poll:
            return self._poll()
        return self.isr if self.read_isr else self.irr

    def read_data(self) -> int:
        """Read with A0 = 1: IMR, unless a poll command waits for its read."""
        return self._poll() if self.poll else self.imr

    def _poll(self) -> int:
        self.poll = False
        level = self.accept()
        if level < 0:
            return 0
        self.finish(level)
        return 0x80 | level

    def _icw1(self, value: int) -> None:
        self.icw1 = value
        self.icw3 = SPURIOUS if self.slave else 0  # "the slave mode address is set to 7"
        self.icw4 = 0
        self.isr = self.imr = self.first = 0
        self.rotate_aeoi = self.special_mask = self.poll = self.read_isr = False
        self.expect = 2
        self.irr = self.lines & self.level_triggered  # the edge sense circuit is reset
        self.update()

    def _ocw2(self, value: int) -> None:
        level = value & 7
        match value >> 5:
            case 0b001 | 0b101:  # non-specific EOI, with or without rotation
                # A masked level is not ended by it in special mask mode.
                serviced = self.isr & ~self.imr if self.special_mask else self.isr
                if not serviced:
                    return
                level = _RANK[self.first][serviced] + self.first & 7
                self.isr &= ~(1 << level)
                if value & 0x80:
                    self.first = level + 1 & 7
            case 0b011:
                self.isr &= ~(1 << level)
            case 0b111:
                self.isr &= ~(1 << level)
                self.first = level + 1 & 7
            case 0b110:
                self.first = level + 1 & 7
            case 0b100 | 0b000:
                self.rotate_aeoi = value >= 0x80
                return
            case _:  # 010: no operation
                return
        self.update()

    def _ocw3(self, value: int) -> None:
        self.poll = bool(value & OCW3_POLL)
        if value & OCW3_RR:
            self.read_isr = bool(value & OCW3_RIS)
        if value & OCW3_ESMM:
            self.special_mask = bool(value & OCW3_SMM)
            self.update()

    def save(self) -> ChipState:
        """Return the chip's registers and input levels."""
        return ChipState(**{name: getattr(self, name) for name in ChipState.__slots__})

    def restore(self, state: ChipState) -> None:
        """Take over the saved registers; INT follows from them."""
        for name in ChipState.__slots__:
            setattr(self, name, getattr(state, name))


class Pic(Device):
    """Master (20h-21h) and slave (A0h-A1h), ELCR at 4D0h-4D1h. Sinks ``inputs[0..15]`` in, ``output`` to the processor out."""

    name = "pic"
    ports = (PortRange(0x20, 2), PortRange(0xA0, 2), PortRange(0x4D0, 2))

    ELCR_BITS = (0xF8, 0xDE)
    """The inputs that may be level-triggered; 0, 1, 2, 8 and 13 are edge-triggered always."""

    @dataclass(frozen=True, slots=True)
    class State:
        """Both chips."""

        master: ChipState
        slave: ChipState
        version: int = 1

    def __init__(self, board: Board) -> None:
        super().__init__(board)
        self.output: Callable[[bool], None] = _nothing
        """Called with the new level whenever the master's INT changes."""
        self.master = master = Chip(slave=False)
        self.slave = slave = Chip(slave=True)
        master.on_int = self._int
        slave.on_int = partial(master.set_input, 1 << CASCADE)
        self.inputs: list[Sink] = [partial((slave if n & 8 else master).set_input, 1 << (n & 7)) for n in range(16)]
        """The sinks of ISA interrupts 0-15. Input 2 is not brought out: on an AT it is the cascade."""
        self.inputs[CASCADE] = _nothing
        self._reads: dict[int, Callable[[], int]] = {
            0x20: master.read_command, 0x21: master.read_data, 0xA0: slave.read_command, 0xA1: slave.read_data,
            0x4D0: lambda: master.elcr, 0x4D1: lambda: slave.elcr,
        }  # fmt: skip
        self._writes: dict[int, Callable[[int], None]] = {
            0x20: master.write_command, 0x21: master.write_data, 0xA0: slave.write_command, 0xA1: slave.write_data,
            0x4D0: lambda value: master.set_elcr(value & self.ELCR_BITS[0]),
            0x4D1: lambda value: slave.set_elcr(value & self.ELCR_BITS[1]),
        }  # fmt: skip

    @property
    def intr(self) -> bool:
        """Level of the master's INT output."""
        return self.master.int

    def _int(self, level: bool) -> None:
        self.output(level)

    def acknowledge(self) -> int:
        """Run the INTA cycles and return the vector; level 7 of the chip that finds its request gone."""
        master = self.master
        level = master.accept()
        if level < 0:
            return master.vector(SPURIOUS)
        vector = self._answer_slave(level) if master.icw3 >> level & 1 and master.cascaded(level) else master.vector(level)
        master.finish(level)
        return vector

    def _answer_slave(self, level: int) -> int:
        """Return the vector from the slave that the master addresses by ``level``; its IR stays in service even if spurious."""
        slave = self.slave
        if level != CASCADE or slave.icw3 & 7 != CASCADE:
            return NOBODY
        own = slave.accept()
        if own < 0:
            return slave.vector(SPURIOUS)
        slave.finish(own)
        return slave.vector(own)

    def read(self, port: int, size: int) -> int:
        return self._reads[port]()

    def write(self, port: int, size: int, value: int) -> None:
        self._writes[port](value)

    def reset(self) -> None:
        self.slave.reset()
        self.master.reset()

    def save(self) -> State:
        return self.State(self.master.save(), self.slave.save())

    def restore(self, state: State) -> None:
        if not isinstance(state, self.State) or state.version != 1:
            raise ValueError("not a state of the PIC, version 1")
        # The slave first, quietly: what its INT does to the master's input is in the master's own state.
        self.slave.on_int = _nothing
        self.slave.restore(state.slave)
        self.slave.update()
        self.slave.on_int = partial(self.master.set_input, 1 << CASCADE)
        self.master.restore(state.master)
        self.master.update()


def _nothing(level: bool) -> None:
    pass
