"""Giving a physical ATA channel back: bring it into the state that the emulated one shows, by register accesses only.

Modes by SET FEATURES, SET MULTIPLE MODE, INITIALIZE DEVICE PARAMETERS and the power commands; status, error and a pending interrupt
by a command that ends like the guest's last one; a transfer in progress by issuing its remaining part and moving what the guest has
moved already (ATA/ATAPI-6, T13/1410D).

The invariant: the emulated device is not touched, so that the guest can stay with it whenever this fails.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from avmm.devices.ata.busmaster import ACTIVE, EngineState
from avmm.devices.ata.channel import State
from avmm.devices.ata.drive import DiskModes, DriveState
from avmm.devices.ata.registers import (
    ABRT,
    COUNT,
    DEV,
    DEVICE,
    DF,
    DIAGNOSTIC_PASSED,
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
    Phase,
)
from avmm.devices.block import SECTOR
from avmm.interpose.ata.driver import AtaDriver
from avmm.interpose.handover import DeviceHangs

SET_MODE, CACHE_ON, CACHE_OFF, AHEAD_ON, AHEAD_OFF, REVERT, KEEP = 0x03, 0x02, 0x82, 0xAA, 0x55, 0xCC, 0x66
MOVING = (Phase.DATA_IN, Phase.DATA_OUT, Phase.DMA_IN, Phase.DMA_OUT)
POWER_COMMANDS = {0x00: Command.STANDBY_IMMEDIATE, 0x80: Command.IDLE_IMMEDIATE}
_CODES = {
    (Phase.DATA_IN, False, False): Command.READ_SECTORS,
    (Phase.DATA_IN, False, True): Command.READ_MULTIPLE,
    (Phase.DATA_IN, True, False): Command.READ_SECTORS_EXT,
    (Phase.DATA_IN, True, True): Command.READ_MULTIPLE_EXT,
    (Phase.DATA_OUT, False, False): Command.WRITE_SECTORS,
    (Phase.DATA_OUT, False, True): Command.WRITE_MULTIPLE,
    (Phase.DATA_OUT, True, False): Command.WRITE_SECTORS_EXT,
    (Phase.DATA_OUT, True, True): Command.WRITE_MULTIPLE_EXT,
    (Phase.DMA_IN, False, False): Command.READ_DMA,
    (Phase.DMA_IN, True, False): Command.READ_DMA_EXT,
    (Phase.DMA_OUT, False, False): Command.WRITE_DMA,
    (Phase.DMA_OUT, True, False): Command.WRITE_DMA_EXT,
}


def obstacle(state: State, engine: EngineState) -> str:
    """Say why a physical device cannot be brought into this state, empty when it can."""
    for drive in state.drives:
        if drive is not None and drive.status & (ERR | DF) and drive.error != ABRT:
            return "the last command failed in a way that cannot be had on demand"
    if state.phase in (Phase.DMA_IN, Phase.DMA_OUT) and (state.start or engine.status & ACTIVE):
        return "the bus master has moved a part of the data"
    if state.phase in (Phase.BUSY, Phase.PACKET):
        return "the device is busy"
    return ""


async def establish(driver: AtaDriver, state: State, engine: EngineState, code: int, *, features: bool = True) -> None:
    """Bring the physical device into ``state``; ``code`` is the guest's last command. Raises DeviceHangs.

    ``features`` is False while the guest has not written FEATURES since it was virtualized: then that register must keep what it has.
    """
    link = driver.link
    wanted = {n: drive for n, drive in enumerate(state.drives) if drive is not None}
    diagnosed, moving = False, state.phase in MOVING
    await driver.settled()
    for n, drive in wanted.items():
        assert isinstance(drive.modes, DiskModes)
        await _set_modes(driver, n, drive.modes, features)
        diagnosed |= drive.error == DIAGNOSTIC_PASSED and not drive.status & ERR
    nien = state.control & NIEN
    driver.control(nien)
    if diagnosed:
        driver.control(SRST | nien)
        driver.control(nien)
    for n in (1 - state.active, state.active):
        if n in wanted and not (moving and n == state.active):
            await _end_like(driver, n, wanted[n])
    shown = wanted.get(state.selected) or wanted.get(state.active) or wanted[1 - state.active]
    if moving:
        await _place(driver, state, code)
        shown = wanted[state.active]
    _put_registers(driver, shown, features)
    driver.control(state.control & (NIEN | HOB | SRST))
    physical = link.engine
    physical.write_command(0)
    physical.restore(EngineState(engine.command & 0x08, engine.status & ~ACTIVE, engine.table, engine.table, 0, 0, False))
    if engine.command & 1:
        physical.command |= 1  # the guest has not stopped it yet


async def _set_modes(driver: AtaDriver, n: int, wanted: DiskModes, features: bool) -> None:
    """Modes are replaced as a whole: those that were found are what the device still has, also of what cannot be read."""
    have = await driver.modes(n)
    if wanted is not have:
        await _change_modes(driver, n, have, wanted, features)
    if wanted.power in POWER_COMMANDS and await driver.power(n) != wanted.power:
        await driver.simple(POWER_COMMANDS[wanted.power], n)
    if wanted.asleep:
        await driver.simple(Command.SLEEP, n)


async def _change_modes(driver: AtaDriver, n: int, have: DiskModes, wanted: DiskModes, features: bool) -> None:
    has_dma = have.transfer.mdma is not None or have.transfer.udma is not None
    if has_dma and wanted.transfer.mdma is None and wanted.transfer.udma is None:
        driver.bus_reset()  # as the guest's machine had one while we drove the device
        have = await driver.modes(n)

    async def feature(number: int, count: int) -> None:
        await driver.simple(Command.SET_FEATURES, n, features=number, count=count)

    geometry = have.heads, have.sectors, have.multiple
    if geometry[:2] != (wanted.heads, wanted.sectors):
        await driver.simple(Command.INITIALIZE_PARAMETERS, n, count=wanted.sectors, device=wanted.heads - 1)
    if have.multiple != wanted.multiple:
        await driver.simple(Command.SET_MULTIPLE, n, count=wanted.multiple)
    if features:
        await _set_features(feature, have, wanted)
    if geometry != (wanted.heads, wanted.sectors, wanted.multiple):
        now = (await driver.identify(n)).modes
        if (now.heads, now.sectors, now.multiple) != (wanted.heads, wanted.sectors, wanted.multiple):
            raise DeviceHangs(f"drive {n} does not take its modes back")


async def _set_features(feature: Callable[[int, int], Awaitable[None]], have: DiskModes, wanted: DiskModes) -> None:
    await feature(SET_MODE, 0x08 | wanted.transfer.pio)
    if wanted.transfer.udma is not None and have.transfer.udma != wanted.transfer.udma:
        await feature(SET_MODE, 0x40 | wanted.transfer.udma)
    if wanted.transfer.mdma is not None and have.transfer.mdma != wanted.transfer.mdma:
        await feature(SET_MODE, 0x20 | wanted.transfer.mdma)
    if have.write_cache != wanted.write_cache:
        await feature(CACHE_ON if wanted.write_cache else CACHE_OFF, 0)
    if have.look_ahead != wanted.look_ahead:
        await feature(AHEAD_ON if wanted.look_ahead else AHEAD_OFF, 0)
    await feature(REVERT if wanted.defaults_on_reset else KEEP, 0)


async def _end_like(driver: AtaDriver, n: int, wanted: DriveState) -> None:
    """Leave status, error and a pending interrupt in a drive as the guest's last command did."""
    failed = bool(wanted.status & ERR)
    assert isinstance(wanted.modes, DiskModes)
    if wanted.modes.asleep or (wanted.error == DIAGNOSTIC_PASSED and not failed and not wanted.intrq):
        return
    driver.select(n)
    if not wanted.intrq and driver.acknowledge() == wanted.status and driver.get(FEATURES) == wanted.error:
        return  # as the driver's own last command ended
    if wanted.error == DIAGNOSTIC_PASSED and not failed:
        driver.command(Command.EXECUTE_DIAGNOSTIC)
        await driver.settled()
        driver.device(0xE0 | n << 4)  # it has selected device 0
    else:
        driver.command(Command.NOP if failed else Command.CHECK_POWER_MODE)
        await driver.settled()
    if not wanted.intrq:
        driver.acknowledge()


def _put_registers(driver: AtaDriver, drive: DriveState, features: bool) -> None:
    for offset in (FEATURES, COUNT, LBA_LOW, LBA_MID, LBA_HIGH)[not features :]:
        driver.put(offset, drive.previous[offset])
        driver.put(offset, drive.registers[offset])
    driver.device(drive.registers[DEVICE])


async def _place(driver: AtaDriver, state: State, code: int) -> None:
    """Issue what is left of a transfer and move the bytes that the guest has moved."""
    link, drive = driver.link, state.drives[state.active]
    assert drive is not None
    assert isinstance(drive.modes, DiskModes)
    begun = state.start if state.phase is Phase.DATA_IN else 0
    if code == Command.IDENTIFY and state.phase is Phase.DATA_IN:
        driver.select(state.active)
    else:
        count = (len(state.buffer) - begun) // SECTOR + state.remaining
        _put_address(driver, state, drive.modes, state.lba + begun // SECTOR, count)
        multiple = state.block == SECTOR * drive.modes.multiple and state.block > SECTOR
        code = _CODES[state.phase, state.address is Address.LBA48, multiple and state.phase in (Phase.DATA_IN, Phase.DATA_OUT)]
    driver.command(code)
    status = await driver.settled()
    if not status & DRQ:
        raise DeviceHangs(f"the device refuses to continue command {code:02x}h (status {status:02x}h)")
    if state.phase is Phase.DATA_IN:
        if not drive.intrq:
            driver.acknowledge()
        link.read_words(state.position)
    elif state.phase is Phase.DATA_OUT:
        done = 0
        while done < state.start:
            link.write_words(state.buffer[done : done + state.block])
            done += state.block
            await driver.settled()
            if done < state.start or not drive.intrq:
                driver.acknowledge()
        link.write_words(state.buffer[done : done + state.position])
    driver.expected = False


def _put_address(driver: AtaDriver, state: State, modes: DiskModes, lba: int, count: int) -> None:
    number = state.active * DEV
    if state.address is Address.LBA48:
        driver.device(0xE0 | number)
        for high, shift in ((count >> 8, 24), (count, 0)):
            driver.put(COUNT, high & 0xFF)
            for offset in (LBA_LOW, LBA_MID, LBA_HIGH):
                driver.put(offset, lba >> shift + 8 * (offset - LBA_LOW) & 0xFF)
        return
    if state.address is Address.LBA28:
        device, low, middle = LBA | lba >> 24 & 15, lba & 0xFF, lba >> 8 & 0xFFFF
    else:
        track, sector = divmod(lba, modes.sectors)
        middle, head = divmod(track, modes.heads)
        device, low = head, sector + 1
    driver.device(0xA0 | number | device)
    driver.put(COUNT, count & 0xFF)
    driver.put(LBA_LOW, low)
    driver.put(LBA_MID, middle & 0xFF)
    driver.put(LBA_HIGH, middle >> 8 & 0xFF)
