"""The I/O-sequence state machine of an ATA channel: what the guest is in the middle of, as told by its own accesses.

Fed by the accesses that are intercepted, and by looks at the alternate status register, which have no side effect (ATA/ATAPI-6,
T13/1410D, clauses 7.3 and 9). It mirrors what cannot be read back (command code, FEATURES, device control, data given to the
device) and says in which stage of a sequence the guest is. It performs nothing.

The invariant: what it claims to know was seen. ``issue`` is None, ``control`` is None, ``features`` is None until then.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from avmm.devices.ata.registers import (
    BSY,
    COMMAND,
    COUNT,
    DATA,
    DEVICE,
    DRDY,
    DRQ,
    ERR,
    FEATURES,
    HOB,
    LBA,
    LBA_HIGH,
    LBA_LOW,
    LBA_MID,
    NIEN,
    SRST,
    Address,
    Command,
    TaskFile,
)
from avmm.devices.ata.transfer import BEFORE_MEDIUM
from avmm.devices.block import SECTOR


class Stage(enum.Enum):
    """Where in a sequence the guest is."""

    UNKNOWN = "not seen yet"
    IDLE = "between sequences"
    SETUP = "registers are being written"
    ISSUED = "command issued, device busy"
    DATA_IN = "data to be read by the guest"
    DATA_OUT = "data to be written by the guest"
    DMA = "data for the bus master"
    STATUS = "interrupt has come, status to be read"
    RESET = "SRST is held"


class Flow(enum.Enum):
    """How a command moves data."""

    NONE = "no data"
    PIO_IN = "data port, to the host"
    PIO_OUT = "data port, to the device"
    DMA_IN = "bus master, to memory"
    DMA_OUT = "bus master, from memory"


_IN = (Command.READ_SECTORS, Command.READ_SECTORS_NO_RETRY, Command.READ_SECTORS_EXT, Command.READ_MULTIPLE, Command.READ_MULTIPLE_EXT)
_OUT = (
    Command.WRITE_SECTORS, Command.WRITE_SECTORS_NO_RETRY, Command.WRITE_SECTORS_EXT, Command.WRITE_MULTIPLE, Command.WRITE_MULTIPLE_EXT,
)  # fmt: skip
FLOWS: dict[int, Flow] = {
    **dict.fromkeys((*_IN, Command.IDENTIFY, Command.IDENTIFY_PACKET), Flow.PIO_IN),
    **dict.fromkeys(_OUT, Flow.PIO_OUT),
    **dict.fromkeys((Command.READ_DMA, Command.READ_DMA_NO_RETRY, Command.READ_DMA_EXT), Flow.DMA_IN),
    **dict.fromkeys((Command.WRITE_DMA, Command.WRITE_DMA_NO_RETRY, Command.WRITE_DMA_EXT), Flow.DMA_OUT),
}
EXT = frozenset({
    Command.READ_SECTORS_EXT, Command.READ_MULTIPLE_EXT, Command.READ_DMA_EXT, Command.WRITE_SECTORS_EXT, Command.WRITE_MULTIPLE_EXT,
    Command.WRITE_DMA_EXT,
})  # fmt: skip
MULTIPLE = frozenset({Command.READ_MULTIPLE, Command.READ_MULTIPLE_EXT, Command.WRITE_MULTIPLE, Command.WRITE_MULTIPLE_EXT})


@dataclass(frozen=True, slots=True)
class Issue:
    """A command as the guest issued it."""

    code: int
    drive: int
    registers: bytes
    """The command block when the command was written, by offset."""
    previous: bytes

    @property
    def flow(self) -> Flow:
        """How it moves data."""
        return FLOWS.get(self.code, Flow.NONE)

    @property
    def address(self) -> Address:
        """How it gives its address."""
        if self.code in EXT:
            return Address.LBA48
        if self.code == Command.IDENTIFY or not self.registers[DEVICE] & LBA:
            return Address.CHS
        return Address.LBA28

    @property
    def sectors(self) -> int:
        """How many sectors it moves."""
        if self.code == Command.IDENTIFY:
            return 1
        return self._task().count48 if self.code in EXT else self._task().count28

    def lba(self, heads: int, per_track: int) -> int:
        """Return its first sector; CHS addresses by the translation given."""
        task = self._task()
        if self.code == Command.IDENTIFY:
            return BEFORE_MEDIUM
        if self.address is Address.LBA48:
            return task.lba48
        if self.address is Address.LBA28:
            return task.lba28
        cylinder = self.registers[5] << 8 | self.registers[4]
        return (cylinder * heads + (self.registers[DEVICE] & 15)) * per_track + self.registers[3] - 1

    def _task(self) -> TaskFile:
        task = TaskFile()
        task.registers[:], task.previous[:] = self.registers, self.previous
        return task


class AtaSequence:
    """The mirror of one channel. Feed :meth:`look` before and after each access that you feed to :meth:`read` or :meth:`write`."""

    def __init__(self) -> None:
        self.stage = Stage.UNKNOWN
        self.issue: Issue | None = None
        """The command in progress, None when its beginning was not seen, or there is none."""
        self.moved = 0
        """Bytes of the command's data that went through the data port."""
        self.data = bytearray()
        """Those that went to the device."""
        self.control: int | None = None
        """Device control as the guest wrote it last (without HOB)."""
        self.features: int | None = None
        self._task = TaskFile()
        self._writes = [0] * 8
        """How often each register was written since the last command: the device may change them in one."""
        self._setup = False

    # -- events

    def write(self, offset: int, size: int, value: int) -> None:
        """The guest wrote to the command block."""
        if offset == DATA:
            if self.stage is Stage.DATA_OUT and self.issue is not None:
                room = self.issue.sectors * SECTOR - self.moved
                self.data += value.to_bytes(size, "little")[: max(room, 0)]
                self.moved = len(self.data)
        elif self.stage in (Stage.ISSUED, Stage.RESET):
            return  # a busy device takes no writes
        elif offset == COMMAND:
            self._command(value)
        else:
            self._task.put(offset, value)
            self._writes[offset] += 1
            self._setup = True
            if offset == FEATURES:
                self.features = value
            if self.stage in (Stage.IDLE, Stage.UNKNOWN):
                self.stage = Stage.SETUP

    def _command(self, code: int) -> None:
        if self.stage not in (Stage.IDLE, Stage.SETUP, Stage.STATUS):
            return
        task = self._task
        issue = Issue(code, task.registers[DEVICE] >> 4 & 1, bytes(task.registers), bytes(task.previous))
        self.issue = issue if self._all_seen(issue) else None
        self._writes = [0] * 8
        self.moved = 0
        self.data.clear()
        self._setup = False
        self.stage = Stage.ISSUED

    def _all_seen(self, issue: Issue) -> bool:
        """Whether every parameter of a command was written before our eyes."""
        if issue.flow is Flow.NONE:
            return True
        times = 2 if issue.code in EXT else 1
        parameters = () if issue.code == Command.IDENTIFY else (COUNT, LBA_LOW, LBA_MID, LBA_HIGH)
        return self._writes[DEVICE] > 0 and all(self._writes[offset] >= times for offset in parameters)

    def read(self, offset: int, size: int) -> None:
        """The guest read from the command block."""
        if offset == DATA and self.stage is Stage.DATA_IN and self.issue is not None:
            self.moved = min(self.moved + size, self.issue.sectors * SECTOR)

    def device_control(self, value: int) -> None:
        """The guest wrote to device control."""
        was, self.control = self.control, value & ~HOB
        if value & SRST:
            self.stage = Stage.RESET
        elif was is not None and was & SRST:
            self.stage = Stage.IDLE
        if value & SRST:
            self.issue = None
            self._setup = False
            self.data.clear()

    def look(self, status: int, line: bool) -> None:
        """The alternate status register read ``status`` and INTRQ was ``line``."""
        if self.stage is Stage.RESET:
            return
        if status & BSY:
            self.stage = Stage.ISSUED
        elif status & DRQ:
            self._waits_for_data(line)
        else:
            self._over(status, line)

    def _waits_for_data(self, line: bool) -> None:
        flow = self.issue.flow if self.issue is not None else None
        if flow is Flow.PIO_IN and self.stage is Stage.ISSUED:
            self._learn(line)
        stages = {Flow.PIO_IN: Stage.DATA_IN, Flow.PIO_OUT: Stage.DATA_OUT, Flow.DMA_IN: Stage.DMA, Flow.DMA_OUT: Stage.DMA}
        self.stage = stages.get(flow, Stage.UNKNOWN) if flow is not None else Stage.UNKNOWN

    def _over(self, status: int, line: bool) -> None:
        if self.stage is Stage.ISSUED and self.issue is not None and status & DRDY and (self.issue.flow is not Flow.PIO_IN or status & ERR):
            self._learn(line)
        self.issue = None
        self.stage = Stage.STATUS if line else Stage.SETUP if self._setup else Stage.IDLE

    def _learn(self, line: bool) -> None:
        """An interrupt is due: whether it shows tells nIEN, which cannot be read."""
        if self.control is None:
            self.control = 0 if line else NIEN

    def interrupted(self) -> None:
        """INTRQ rose: nIEN is not set."""
        if self.control is None:
            self.control = 0

    # -- what it tells

    @property
    def over(self) -> bool:
        """Whether no sequence is in progress."""
        return self.stage is Stage.IDLE

    @property
    def resting(self) -> bool:
        """Whether the device has nothing to do."""
        return self.stage in (Stage.IDLE, Stage.SETUP)

    @property
    def word(self) -> int:
        """The word of the transfer that comes next."""
        return self.moved // 2
