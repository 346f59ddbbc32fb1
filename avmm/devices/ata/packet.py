"""The commands of an ATAPI CD-ROM drive: the few ATA ones, and the protocol around PACKET.

ATA/ATAPI-6 (T13/1410D) clauses 8.23 and 9.8 (PACKET), with the command packets in ``cdrom``. The interrupt reason is in
the count register: command packet (CoD), data to the host (IO), command over (both).

The invariant: a PACKET command that got its packet ends in ``finish`` or ``check``, both with the sense data stored.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from avmm.devices.ata import cdrom
from avmm.devices.ata.commands import POWER_ACTIVE, transfer_modes
from avmm.devices.ata.drive import CD_RATIO, CD_SECTOR, GOOD, AtapiCdrom, Sense
from avmm.devices.ata.identify import identify_cdrom
from avmm.devices.ata.registers import ABRT, COD, COUNT, FEATURES, IO, LBA_HIGH, LBA_MID, Address, Command, Phase
from avmm.devices.block import BlockError, BlockFault

if TYPE_CHECKING:
    from avmm.devices.ata.sequencer import Sequencer

DMA_FEATURE = 0x01
OVERLAP_FEATURE = 0x02


def execute(sequencer: Sequencer, drive: AtapiCdrom, code: int) -> None:
    """Start ATA command ``code`` on a PACKET device."""
    task = drive.task
    if code == Command.PACKET and not task.registers[FEATURES] & OVERLAP_FEATURE:
        sequencer.accept_packet(drive)
    elif code == Command.IDENTIFY_PACKET:
        sequencer.send(drive, identify_cdrom(drive, sequencer.active))
    elif code == Command.SET_FEATURES and task.registers[FEATURES] == 0x03:
        transfer = transfer_modes(drive.modes.transfer, task.registers[COUNT])
        if transfer is not None:
            drive.modes = replace(drive.modes, transfer=transfer)
        sequencer.complete(drive, ABRT if transfer is None else 0)
    elif code == Command.CHECK_POWER_MODE:
        task.registers[COUNT] = POWER_ACTIVE
        sequencer.complete(drive)
    elif code in (Command.SLEEP, Command.IDLE_IMMEDIATE, Command.STANDBY_IMMEDIATE, Command.FLUSH_CACHE):
        drive.modes = replace(drive.modes, asleep=code == Command.SLEEP)
        sequencer.complete(drive)
    else:
        if code in (Command.IDENTIFY, Command.READ_SECTORS):
            task.set_signature(*drive.signature)  # tells the host that it talks to a PACKET device
        sequencer.complete(drive, ABRT)


def execute_packet(sequencer: Sequencer, drive: AtapiCdrom, packet: bytes) -> None:
    """Run the command packet that the host has written."""
    registers = drive.task.registers
    limit = registers[LBA_HIGH] << 8 | registers[LBA_MID]
    flow = Phase.DMA_IN if registers[FEATURES] & DMA_FEATURE else Phase.DATA_IN
    reply = cdrom.execute(drive, packet)
    if reply.sense != GOOD:
        check(sequencer, drive, reply.sense)
    elif reply.count:
        lba, count = reply.lba * CD_RATIO, reply.count * CD_RATIO
        sequencer.begin(drive, flow, Address.PACKET, lba=lba, count=count, block=_block(limit, CD_SECTOR))
    elif reply.data:
        sequencer.send(drive, reply.data, flow, Address.PACKET, _block(limit, 2))
    else:
        finish(sequencer, drive)


def _block(limit: int, unit: int) -> int:
    """Return the bytes per DRQ block for the host's byte count limit: whole units if possible, always whole words."""
    limit = min(limit, 0xFFFE) or 0xFFFE
    if limit >= unit:
        return limit - limit % unit
    return max(2, limit & ~1)


def finish(sequencer: Sequencer, drive: AtapiCdrom) -> None:
    """End a PACKET command well."""
    drive.task.registers[COUNT] = IO | COD
    sequencer.complete(drive)


def check(sequencer: Sequencer, drive: AtapiCdrom, sense: Sense) -> None:
    """End a PACKET command with CHECK CONDITION: the sense key is in the upper half of the error register."""
    drive.modes = replace(drive.modes, sense=sense)
    drive.task.registers[COUNT] = IO | COD
    sequencer.complete(drive, sense.key << 4 | ABRT)


def medium_failed(sequencer: Sequencer, drive: AtapiCdrom, error: BlockError) -> None:
    """End a PACKET command whose data could not be read."""
    sequencer.board.trace("ata error", channel=sequencer.name, lba=error.lba // CD_RATIO, fault=error.fault.name)
    senses = {BlockFault.RANGE: cdrom.OUT_OF_RANGE, BlockFault.NO_MEDIUM: cdrom.NO_MEDIUM}
    check(sequencer, drive, senses.get(error.fault, cdrom.UNREADABLE))
