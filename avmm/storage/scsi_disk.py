"""A SCSI disk: command descriptor blocks in, data, status and sense out, over a BlockDevice of VM-H.

Follows SBC-3 and SPC-4. Commands that need no medium are answered at once; the others come back as :class:`Work`, a
coroutine for the board to run, so several can be in flight and end in any order. The disk does not know StorVSP. Where
the initiator's memory is there and its sectors need no waiting, they go straight between it and the medium (:meth:`ScsiDisk.at_once`).

The invariants: nothing a guest can put into a CDB or its parameters raises, and no command touches the medium unless all
of its sectors exist and the data it announced fit the buffer it gave.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any, Final, NamedTuple

from librt.strings import read_i16_be, read_i32_be, read_i64_be
from mypy_extensions import i64

from avmm.devices.block import SECTOR, BlockDevice, BlockError, BlockFault, PromptDevice, Trimmable
from avmm.storage import scsi_pages as pages
from avmm.storage import sense as codes
from avmm.storage.sense import ScsiStatus, Sense

CHUNK: Final = pages.MAX_TRANSFER // SECTOR


class Result(NamedTuple):
    """How a command ended. ``data`` are for the initiator; ``moved`` says how many bytes went either way."""

    data: bytes | bytearray = b""
    sense: Sense | None = None
    taken: int = 0

    @property
    def status(self) -> ScsiStatus:
        """The status byte."""
        return ScsiStatus.GOOD if self.sense is None else ScsiStatus.CHECK_CONDITION

    @property
    def moved(self) -> int:
        """Bytes transferred, in whichever direction."""
        return len(self.data) or self.taken


class Work(NamedTuple):
    """A command that has to wait for the medium: run ``coroutine`` for its Result. ``sectors`` is how much it moves."""

    coroutine: Coroutine[Any, Any, Result]
    sectors: int = 0


class Command(NamedTuple):
    """One command as it arrives: the CDB, the parameters or sectors sent with it, the room for what it returns."""

    cdb: bytes
    data: bytes = b""
    room: int = 0


_SECTOR: Final = SECTOR  # of an imported name the module's table would be asked each time
GOOD: Final = Result()
Inject = Callable[[str, int, int], BlockFault | None]
"""``inject(op, lba, count)``, op one of read, write, flush, discard: the fault to answer with instead of doing it, or None."""
_Handler = Callable[["ScsiDisk", Command], Result | Work]

_LENGTHS: Final = (6, 10, 10, 0, 16, 12, 0, 0)
"""CDB length by the top three bits of the operation code; 0 for vendor-specific and variable ones."""


class ScsiDisk:
    """A disk of 512-byte sectors. ``execute`` begins a command; ``inject`` lets tests fail requests as a broken medium would."""

    def __init__(self, medium: BlockDevice, serial: str = "AVMM00001", *, identity: pages.Identity | None = None) -> None:
        self.medium = medium
        self._prompt = medium if isinstance(medium, PromptDevice) else None
        self.identity = identity or pages.Identity(serial)
        self.inject: Inject | None = None
        self.attention: list[Sense] = []
        """Unit attentions that the initiator has not been told of, oldest first."""

    @property
    def thin(self) -> bool:
        """Whether the medium wants to hear of sectors no longer used."""
        return isinstance(self.medium, Trimmable) and not self.medium.read_only

    def notify(self, sense: Sense) -> None:
        """Tell the initiator something, by a unit attention on its next command."""
        if sense not in self.attention:
            self.attention.append(sense)

    def execute(self, command: Command) -> Result | Work:
        """Begin a command; either it has ended, or the Work that is left is returned."""
        cdb = command.cdb
        op = cdb[0] if cdb else _NO_OPERATION
        handler = _COMMANDS.get(op)
        if handler is None:
            return Result(sense=codes.INVALID_OPCODE)
        if len(cdb) < _LENGTHS[op >> 5]:
            return Result(sense=codes.INVALID_FIELD)
        if self.attention and op not in _NOT_HELD_UP:
            return Result(sense=self.attention.pop(0))
        return handler(self, command)

    def at_once(self, cdb: bytes, pieces: Sequence[memoryview], size: int, *, out: bool, id: int = 0) -> Result | None:
        """Carry out a plain READ or WRITE of ``size`` bytes between the initiator's memory and a medium that needs no waiting.

        GOOD when that is done. None, and nothing has happened, for all else: :meth:`execute` says what is wrong with it, or waits
        for the medium. ``pieces`` are not kept; ``id`` names the request's journey.
        """
        prompt = self._prompt
        if prompt is None or self.attention or self.inject is not None:
            return None
        length = len(cdb)
        if length >= 10 and cdb[0] == (_WRITE_10 if out else _READ_10):
            lba, count = i64(read_i32_be(cdb, 2)) & 0xFFFFFFFF, i64(read_i16_be(cdb, 7)) & 0xFFFF
        elif length >= 16 and cdb[0] == (_WRITE_16 if out else _READ_16):
            lba, count = read_i64_be(cdb, 2), i64(read_i32_be(cdb, 10)) & 0xFFFFFFFF
        else:
            return None
        medium = self.medium
        if cdb[1] or count * _SECTOR != size or not 0 <= lba <= medium.sectors - count or (out and medium.read_only):
            return None  # forced unit access, or whatever else is special or wrong
        try:
            if not (prompt.write_now(lba, count, pieces, id) if out else prompt.read_now(lba, count, pieces, id)):
                return None
        except BlockError as error:
            return Result(sense=codes.of_fault(error.fault, error.lba, writing=out))
        return GOOD

    # -- about the disk

    def _test_unit_ready(self, command: Command) -> Result:
        return GOOD if self.medium.sectors else Result(sense=codes.NO_MEDIUM)

    def _nothing_to_do(self, command: Command) -> Result:
        return GOOD

    def _request_sense(self, command: Command) -> Result:
        if command.cdb[1] & 1:  # descriptor format
            return Result(sense=codes.INVALID_FIELD)
        sense = self.attention.pop(0) if self.attention else codes.NO_SENSE
        return _give(command, sense.pack(), command.cdb[4])

    def _inquiry(self, command: Command) -> Result:
        cdb = command.cdb
        allocation = int.from_bytes(cdb[3:5], "big")
        if cdb[1] & 1:
            page = pages.vital_product_data(cdb[2], self.identity, thin=self.thin)
            return _give(command, page, allocation)
        return _give(command, None if cdb[2] else pages.standard_inquiry(self.identity), allocation)

    def _mode_sense(self, command: Command) -> Result:
        cdb = command.cdb
        short = cdb[0] == 0x1A
        body = pages.mode_pages(cdb[2] & 0x3F, cdb[2] >> 6)
        if body is None or cdb[3] not in (0, 0xFF):
            return Result(sense=codes.INVALID_FIELD)
        descriptor = b"" if cdb[1] & 8 else pages.block_descriptor(self.medium.sectors)
        device = pages.DPO_FUA | (pages.WRITE_PROTECT if self.medium.read_only else 0)
        if short:
            head = struct.pack(">BBBB", 3 + len(descriptor) + len(body), 0, device, len(descriptor))
            return _give(command, head + descriptor + body, cdb[4])
        head = struct.pack(">HBBHH", 6 + len(descriptor) + len(body), 0, device, 0, len(descriptor))
        return _give(command, head + descriptor + body, int.from_bytes(cdb[7:9], "big"))

    def _read_capacity_10(self, command: Command) -> Result:
        if not self.medium.sectors:
            return Result(sense=codes.NO_MEDIUM)
        if command.cdb[8] & 1 or any(command.cdb[2:6]):  # PMI, or an address without it
            return Result(sense=codes.INVALID_FIELD)
        return _give(command, pages.capacity_10(self.medium.sectors))

    def _service_action_in(self, command: Command) -> Result:
        if command.cdb[1] & 0x1F != 0x10:
            return Result(sense=codes.INVALID_FIELD)
        if not self.medium.sectors:
            return Result(sense=codes.NO_MEDIUM)
        data = pages.capacity_16(self.medium.sectors, thin=self.thin)
        return _give(command, data, int.from_bytes(command.cdb[10:14], "big"))

    # -- sectors

    def _read(self, command: Command) -> Result | Work:
        lba, count = _address(command.cdb)
        sense = self._check(command, lba, count)
        if sense is None and count * SECTOR > command.room:
            sense = codes.INVALID_FIELD
        if sense is not None or not count:
            return Result(sense=sense)
        return Work(self._do_read(lba, count), count)

    async def _do_read(self, lba: int, count: int) -> Result:
        try:
            self._fault("read", lba, count)
            return Result(await self.medium.read(lba, count))
        except BlockError as error:
            return Result(sense=codes.of_fault(error.fault, error.lba, writing=False))

    def _write(self, command: Command) -> Result | Work:
        cdb = command.cdb
        lba, count = _address(cdb)
        sense = self._check(command, lba, count, writing=True)
        if sense is None and count * SECTOR > len(command.data):
            sense = codes.INVALID_FIELD
        if sense is not None or not count:
            return Result(sense=sense)
        force_unit_access = cdb[0] != 0x0A and cdb[1] & 8 != 0
        return Work(self._do_write(lba, command.data[: count * SECTOR], force_unit_access), count)

    async def _do_write(self, lba: int, data: bytes, force_unit_access: bool) -> Result:
        try:
            self._fault("write", lba, len(data) // SECTOR)
            await self.medium.write(lba, data)
            if force_unit_access:
                self._fault("flush", lba, 0)
                await self.medium.flush()
        except BlockError as error:
            return Result(sense=codes.of_fault(error.fault, error.lba, writing=True))
        return Result(taken=len(data))

    def _verify(self, command: Command) -> Result | Work:
        lba, count = _address(command.cdb)
        compare = command.cdb[1] >> 1 & 3
        sense = self._check(command, lba, count)
        if sense is None and (compare > 1 or (compare and count * SECTOR > len(command.data))):
            sense = codes.INVALID_FIELD
        if sense is not None or not count:
            return Result(sense=sense)
        return Work(self._do_verify(lba, count, command.data if compare else None), count)

    async def _do_verify(self, lba: int, count: int, expected: bytes | None) -> Result:
        try:
            for first, part in _chunks(lba, count):
                self._fault("read", first, part)
                found = await self.medium.read(first, part)
                at = (first - lba) * SECTOR
                if expected is not None and found != expected[at : at + part * SECTOR]:
                    return Result(sense=codes.MISCOMPARE)
        except BlockError as error:
            return Result(sense=codes.of_fault(error.fault, error.lba, writing=False))
        return Result(taken=count * SECTOR if expected is not None else 0)

    def _synchronize_cache(self, command: Command) -> Result | Work:
        lba, count = _address(command.cdb)
        if not self.medium.sectors:
            return Result(sense=codes.NO_MEDIUM)
        if lba + count > self.medium.sectors:
            return Result(sense=codes.OUT_OF_RANGE)
        return Work(self._do_flush(lba))

    async def _do_flush(self, lba: int) -> Result:
        try:
            self._fault("flush", lba, 0)
            await self.medium.flush()
        except BlockError as error:
            return Result(sense=codes.of_fault(error.fault, error.lba, writing=True))
        return GOOD

    def _write_same(self, command: Command) -> Result | Work:
        cdb = command.cdb
        lba, count = _address(cdb)
        unmap, anchor, no_data = cdb[1] & 8, cdb[1] & 0x10, cdb[0] == 0x93 and cdb[1] & 1
        sense = self._check(command, lba, count, writing=True)
        if sense is None and (not count or anchor or (unmap and not self.thin) or (not unmap and count > pages.MAX_WRITE_SAME)):
            sense = codes.INVALID_FIELD
        if sense is None and not no_data and len(command.data) < SECTOR:
            sense = codes.INVALID_FIELD
        if sense is not None:
            return Result(sense=sense)
        if unmap:
            return Work(self._do_unmap([(lba, count)], 0 if no_data else SECTOR))
        return Work(self._do_write_same(lba, count, bytes(SECTOR) if no_data else command.data[:SECTOR], not no_data), count)

    async def _do_write_same(self, lba: int, count: int, sector: bytes, taken: bool) -> Result:
        try:
            for first, part in _chunks(lba, count):
                self._fault("write", first, part)
                await self.medium.write(first, sector * part)
        except BlockError as error:
            return Result(sense=codes.of_fault(error.fault, error.lba, writing=True))
        return Result(taken=SECTOR if taken else 0)

    def _unmap(self, command: Command) -> Result | Work:
        if not self.thin:
            return Result(sense=codes.INVALID_OPCODE)
        length = int.from_bytes(command.cdb[7:9], "big")
        if command.cdb[1] & 1 or length > len(command.data):  # ANCHOR, or parameters that were not sent
            return Result(sense=codes.INVALID_FIELD)
        if not length:
            return GOOD
        if length < 8:
            return Result(sense=codes.PARAMETER_LENGTH)
        described = min(int.from_bytes(command.data[2:4], "big"), length - 8) // 16
        if described > pages.MAX_UNMAP_DESCRIPTORS:
            return Result(sense=codes.INVALID_PARAMETER)
        extents = [struct.unpack_from(">QI", command.data, 8 + 16 * i) for i in range(described)]
        for lba, count in extents:
            sense = self._check(command, lba, count, writing=True)
            if sense is not None:
                return Result(sense=sense)
        return Work(self._do_unmap([(lba, count) for lba, count in extents if count], length))

    async def _do_unmap(self, extents: list[tuple[int, int]], taken: int) -> Result:
        medium = self.medium
        try:
            for lba, count in extents:
                self._fault("discard", lba, count)
                if isinstance(medium, Trimmable):
                    await medium.discard(lba, count)
        except BlockError as error:
            return Result(sense=codes.of_fault(error.fault, error.lba, writing=True))
        return Result(taken=taken)

    def _check(self, command: Command, lba: int, count: int, *, writing: bool = False) -> Sense | None:
        """Return why these sectors cannot be touched by this command, None when they can."""
        medium, cdb = self.medium, command.cdb
        if not medium.sectors:
            return codes.NO_MEDIUM
        if cdb[1] >> 5 and cdb[0] >> 5 and cdb[0] != 0x42:  # protection information, which there is not
            return codes.INVALID_FIELD
        if lba + count > medium.sectors:
            return codes.OUT_OF_RANGE
        return codes.WRITE_PROTECTED if writing and medium.read_only else None

    def _fault(self, op: str, lba: int, count: int) -> None:
        fault = self.inject(op, lba, count) if self.inject is not None else None
        if fault is not None:
            raise BlockError(fault, lba, "injected")


def _give(command: Command, data: bytes | None, allocation: int | None = None) -> Result:
    """Return as much of ``data`` as was asked for and fits; None is a field of the CDB that makes no sense."""
    if data is None:
        return Result(sense=codes.INVALID_FIELD)
    return Result(data[: command.room if allocation is None else min(allocation, command.room)])


def _address(cdb: bytes) -> tuple[int, int]:
    """Return the first sector and how many, by the layout of the CDB's group."""
    group = cdb[0] >> 5
    if group == 1:
        lba, count = _GROUP_1.unpack_from(cdb)
        return lba, count
    if group == 0:
        return int.from_bytes(cdb[1:4], "big") & 0x1FFFFF, cdb[4] or 256
    if group == 4:
        return int.from_bytes(cdb[2:10], "big"), int.from_bytes(cdb[10:14], "big")
    count = cdb[6:10] if group == 5 else cdb[7:9]
    return int.from_bytes(cdb[2:6], "big"), int.from_bytes(count, "big")


_GROUP_1: Final = struct.Struct(">2xIxH")  # address and count in a CDB of ten bytes


def _chunks(lba: int, count: int) -> Iterator[tuple[int, int]]:
    for first in range(lba, lba + count, CHUNK):
        yield first, min(CHUNK, lba + count - first)


_COMMANDS: Final[dict[int, _Handler]] = {
    0x00: ScsiDisk._test_unit_ready,
    0x03: ScsiDisk._request_sense,
    0x12: ScsiDisk._inquiry,
    0x1A: ScsiDisk._mode_sense,
    0x5A: ScsiDisk._mode_sense,
    0x1B: ScsiDisk._nothing_to_do,  # START STOP UNIT: it turns as long as there is power
    0x1E: ScsiDisk._nothing_to_do,  # PREVENT ALLOW MEDIUM REMOVAL: the medium is fixed
    0x25: ScsiDisk._read_capacity_10,
    0x9E: ScsiDisk._service_action_in,
    **dict.fromkeys((0x08, 0x28, 0xA8, 0x88), ScsiDisk._read),
    **dict.fromkeys((0x0A, 0x2A, 0xAA, 0x8A), ScsiDisk._write),
    **dict.fromkeys((0x2F, 0xAF, 0x8F), ScsiDisk._verify),
    **dict.fromkeys((0x35, 0x91), ScsiDisk._synchronize_cache),
    **dict.fromkeys((0x41, 0x93), ScsiDisk._write_same),
    0x42: ScsiDisk._unmap,
}

_READ_10: Final = 0x28
_WRITE_10: Final = 0x2A
_READ_16: Final = 0x88
_WRITE_16: Final = 0x8A
_NO_OPERATION: Final = 0xFF  # vendor-specific, and none of ours
_NOT_HELD_UP: Final = frozenset((0x03, 0x12, 0xA0))
"""REQUEST SENSE, INQUIRY and REPORT LUNS are carried out in spite of a unit attention."""
