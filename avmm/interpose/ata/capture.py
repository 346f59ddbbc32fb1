"""Taking over a physical ATA channel: read its modes, registers and place in the sequence, and leave it idle for the VMM's driver.

At register level only (ATA/ATAPI-6, T13/1410D): what cannot be read is found out. nIEN shows in whether a command interrupts; HOB in
what the registers read as; sleep in a command not being executed. In the middle of a PIO transfer, or before the bus master was started,
the command is ended by SRST and continued by the emulated device: its parameters and data were seen by the mirror.

The invariant: until ``commit`` is called the device has only been looked at, and the guest can have it back as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from avmm.devices.ata.busmaster import ACTIVE, START, EngineState
from avmm.devices.ata.channel import State
from avmm.devices.ata.drive import DiskModes, DriveState
from avmm.devices.ata.registers import BSY, COUNT, DEV, DEVICE, DRQ, ERR, FEATURES, HOB, NIEN, READY, UNC, Address, Command, Phase
from avmm.devices.block import SECTOR, BlockError
from avmm.interpose.ata.driver import AtaDriver, Identity
from avmm.interpose.ata.sequence import MULTIPLE, AtaSequence, Flow, Issue, Stage
from avmm.interpose.handover import Unsuitable

CHECK_POWER_MODE = int(Command.CHECK_POWER_MODE)


@dataclass(slots=True)
class Captured:
    """All that a compatible device needs to go on in the physical one's place."""

    drives: tuple[DriveState | None, ...]
    selected: int
    control: int
    engine: EngineState
    transfer: State | None = None
    """With what is in progress, if something is."""
    reissue: int | None = None
    """A command that the emulated device has to be given anew: nothing of it had happened."""


@dataclass(slots=True)
class _Seen:
    """One drive as it was found."""

    status: int
    error: int
    registers: bytes
    """Sector count and address."""
    pending: bool
    previous: bytes = b""
    """What they read as with HOB."""
    power: int | None = None
    """Power mode, None when it was not told."""
    asleep: bool = False


def suitable(driver: AtaDriver, mirror: AtaSequence, *, between: bool) -> bool:
    """Whether the switch may be begun now, as far as can be told by looking."""
    engine = driver.link.engine
    if between:
        return mirror.over and not engine.command & START
    if mirror.stage in (Stage.IDLE, Stage.SETUP, Stage.STATUS, Stage.ISSUED):
        return True
    if mirror.issue is None or mirror.control is None:
        return False
    if mirror.stage is Stage.DMA:
        return not engine.command & START and not engine.status & ACTIVE
    return mirror.stage in (Stage.DATA_IN, Stage.DATA_OUT)


async def capture(driver: AtaDriver, mirror: AtaSequence, numbers: tuple[int, ...], commit: Callable[[], None]) -> Captured:
    """Take the device, with the drives of these numbers, over. Raises Unsuitable before ``commit``, DeviceHangs."""
    status = driver.alternate()
    if status & BSY:
        status = await driver.settled()
        mirror.look(status, driver.link.irq.level)
    transferring = bool(status & DRQ)
    if transferring and not suitable(driver, mirror, between=False):
        raise Unsuitable("the device waits for data of a command that was not seen from its beginning")
    commit()
    driver.expected = True  # the guest's
    engine = _engine(driver)
    device, raw = driver.get(DEVICE), driver.address()
    nien = None if mirror.control is None else mirror.control & NIEN
    asleep = False
    seen: dict[int, _Seen] = {}
    for n in numbers:
        seen[n] = drive = _look(driver, device, n)
        if not transferring:
            interrupted = await _knock(driver, drive)
            asleep |= drive.asleep
            if nien is None and not drive.asleep:
                nien = 0 if interrupted else NIEN
        if drive.pending:
            nien = 0
    nien = nien or 0
    for n, drive in seen.items():
        driver.select(n)
        driver.control(HOB | nien)
        drive.previous = driver.address()
    if nien:
        driver.control(0)
    if transferring or asleep:
        driver.soft_reset()
    identities: dict[int, Identity] = {}
    for n, drive in seen.items():
        identities[n] = await driver.identify(n, drive.power)
    states: list[DriveState | None] = [None, None]
    for n, drive in seen.items():
        states[n] = _drive(drive, identities[n].modes, device, mirror.features or 0)
    selected = device >> 4 & 1
    found = Captured(tuple(states), selected, nien, engine)
    issue = mirror.issue
    if transferring and issue is not None:
        await _go_on(driver, mirror, issue, found, identities[issue.drive])
        return found
    shown = seen[selected if selected in seen else numbers[0]]
    if raw == shown.previous and raw != shown.registers:
        found.control |= HOB
    return found


async def _go_on(driver: AtaDriver, mirror: AtaSequence, issue: Issue, found: Captured, identity: Identity) -> None:
    """Add to what was found what is left of the command in progress."""
    if issue.flow is not Flow.PIO_IN and issue.flow is not Flow.PIO_OUT:
        found.drives, found.reissue = _quiet(found.drives), issue.code
        return
    idle = State(
        found.drives, found.selected, found.control, Phase.IDLE, issue.drive, Phase.IDLE, Address.CHS, 0, 0, SECTOR, b"", 0, 0, 0, 0, None
    )  # fmt: skip
    if issue.flow is Flow.PIO_IN:
        found.transfer = await _data_in(driver, mirror, issue, idle, identity)
    else:
        found.transfer = _data_out(mirror, issue, idle, identity)
    found.drives = found.transfer.drives


def _engine(driver: AtaDriver) -> EngineState:
    """Read the bus master's registers and stop it."""
    engine = driver.link.engine
    state = EngineState(engine.command, engine.status, engine.table, engine.table, 0, 0, False)
    engine.write_command(0)
    return state


def _look(driver: AtaDriver, device: int, n: int) -> _Seen:
    """Read what one drive shows; selecting it makes the registers show their latest values."""
    driver.device(device & ~DEV | n << 4)
    return _Seen(driver.alternate(), driver.get(FEATURES), driver.address(), driver.link.irq.level)


async def _knock(driver: AtaDriver, drive: _Seen) -> bool:
    """Ask the drive that is selected for its power mode, and return whether it interrupted.

    A drive that sleeps does nothing, and the sector count stays. If that is what the answer would be, NOP tells: it is aborted.
    """
    driver.command(CHECK_POWER_MODE)
    if driver.alternate() & BSY:
        await driver.settled()
    interrupted = driver.link.irq.level
    driver.acknowledge()
    drive.power = driver.get(COUNT)
    if drive.power == drive.registers[0]:
        driver.command(Command.NOP)
        if not await driver.ended() & ERR:
            drive.power, drive.asleep = None, True
    return interrupted


def _drive(seen: _Seen, modes: DiskModes, device: int, features: int) -> DriveState:
    if seen.asleep:
        modes = replace(modes, asleep=True, power=0)
    registers, previous = bytes((0, features, *seen.registers, device, 0)), bytes((0, 0, *seen.previous, 0, 0))
    return DriveState(registers, previous, seen.error, seen.status, seen.pending, modes)


def _quiet(drives: tuple[DriveState | None, ...]) -> tuple[DriveState | None, ...]:
    """Return drives as they were before the command that is to be issued again."""
    return tuple(drive and replace(drive, status=READY) for drive in drives)


def _extent(mirror: AtaSequence, issue: Issue, identity: Identity) -> tuple[int, int, int]:
    """Return first sector, bytes of all, and bytes per DRQ block of the command."""
    modes = identity.modes
    block = SECTOR * (modes.multiple or 1) if issue.code in MULTIPLE else SECTOR
    return issue.lba(modes.heads, modes.sectors), issue.sectors * SECTOR, block


async def _data_in(driver: AtaDriver, mirror: AtaSequence, issue: Issue, idle: State, identity: Identity) -> State:
    """Read the current DRQ block again; the rest follows from the emulated device's own requests."""
    lba, total, block = _extent(mirror, issue, identity)
    start = mirror.moved // block * block
    size = min(block, total - start)
    try:
        if issue.code == Command.IDENTIFY:
            driver.select(issue.drive)
            driver.command(Command.IDENTIFY)
            await driver.ended()
            data = driver.link.read_words(SECTOR)
        else:
            data = await driver.read(issue.drive, lba + start // SECTOR, size // SECTOR)
    except BlockError:
        drives = [drive and replace(drive) for drive in idle.drives]
        failed = drives[issue.drive]
        assert failed is not None
        drives[issue.drive] = replace(failed, status=READY | ERR, error=UNC, intrq=True)
        return replace(idle, drives=tuple(drives))
    return replace(
        idle, phase=Phase.DATA_IN, flow=Phase.DATA_IN, address=issue.address, lba=lba + start // SECTOR,
        remaining=(total - start - size) // SECTOR, block=block, buffer=data, end=size, position=mirror.moved - start,
    )  # fmt: skip


def _data_out(mirror: AtaSequence, issue: Issue, idle: State, identity: Identity) -> State:
    """Continue with all the data the guest gave so far; the device may have written some of them, and gets them once more."""
    lba, total, block = _extent(mirror, issue, identity)
    start = mirror.moved // block * block
    buffer = bytes(mirror.data).ljust(total, b"\0")
    return replace(
        idle, phase=Phase.DATA_OUT, flow=Phase.DATA_OUT, address=issue.address, lba=lba, remaining=0, block=block, buffer=buffer,
        start=start, end=min(start + block, total), position=mirror.moved - start,
    )  # fmt: skip

