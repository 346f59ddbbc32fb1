"""A machine as it was at one moment: taken, put back, and made into other machines.

A :class:`Snapshot` holds the partition's state, a picture of RAM that shares its pages with the machine (avmm.hypervisor.ram), what
the overlays of its disks hold, and what its user has seen of the serial line. What an image holds that is written in place
cannot be in it, and such a machine is refused; images that are only read are known again by their size and samples.

The invariant: a machine from a snapshot goes on, in virtual time, exactly as the one that it was taken from, to the byte.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from avmm.control.config import Disk, VmConfig
from avmm.hypervisor import state
from avmm.hypervisor.partition import Partition, RunState
from avmm.hypervisor.ram import RamImage
from avmm.hypervisor.state import PartitionState, StateError

if TYPE_CHECKING:
    from avmm.control.machine import Machine
    from avmm.control.serial import SerialState
    from avmm.control.vm import Vm
    from avmm.host.backing import BackingFile

VERSION = 1


class SnapshotError(Exception):
    """A snapshot cannot be taken, read, written or used here; one sentence says why."""


@dataclass(frozen=True, slots=True)
class SavedDisk:
    """A disk: ``name`` within the machine, the image it was, and what its overlay held as (first sector, data)."""

    name: str
    path: str
    size: int
    fingerprint: str
    overlay: bool
    changes: tuple[tuple[int, bytes], ...]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One machine at one moment. It needs memory only for what the machine changes afterwards, and gives it back when it is forgotten."""

    config: VmConfig
    partition: PartitionState
    disks: tuple[SavedDisk, ...]
    serial: SerialState
    boot_failure: str
    ram: RamImage
    version: int = VERSION

    @property
    def now(self) -> float:
        """The machine time at which it was taken, in seconds."""
        return self.partition.now / 1e9

    async def save(self, path: str | Path) -> None:
        """Write it to a file; all of it, or nothing. Raises SnapshotError."""
        from avmm.control import snapshot_file

        await snapshot_file.save(self, Path(path))

    @classmethod
    async def load(cls, path: str | Path) -> Snapshot:
        """Read a file that :meth:`save` wrote, here or in another process. Raises SnapshotError for any other, and for a damaged one."""
        from avmm.control import snapshot_file

        return await snapshot_file.load(Path(path))

    def config_for(self, name: str) -> VmConfig:
        """Return the configuration of another machine like this one. Its overlays are temporary: a permanent one has one machine."""
        return with_own_overlays(self.config, name)


async def take(vm: Vm) -> Snapshot:
    """Take a snapshot of a machine that runs or is paused, and let it go on. Raises SnapshotError."""
    async with vm.partition.still():
        _check_alive(vm.partition)
        return await _take(vm)


async def _take(vm: Vm) -> Snapshot:
    machine = vm.machine
    _check_savable(machine)
    disks = await save_disks(machine)
    try:
        saved = state.save(machine.partition)
        ram = machine.partition.ram.freeze()
    except StateError as error:
        raise SnapshotError(f"{vm.name} cannot be saved: {error}") from None
    except OSError as error:
        raise SnapshotError(f"{vm.name} cannot be saved: no memory for it ({error.strerror})") from None
    return Snapshot(vm.config, saved, disks, vm.serial.save(), machine.boot_failure, ram)


async def put(vm: Vm, snapshot: Snapshot, *, sharing: bool = False) -> None:
    """Make a machine that stands still, is off, has failed or was never on what the snapshot says. Raises SnapshotError, and
    nothing has changed then, unless a device refuses its state: then the machine has failed.
    """
    machine = vm.machine
    partition = machine.partition
    if vm.inputs.recorder is not None:
        raise SnapshotError(f"what reaches {vm.name} is recorded, and a record goes forward only: end it first")
    if partition.memory.size != snapshot.ram.size:
        sizes = f"{snapshot.ram.size >> 20}M", f"{partition.memory.size >> 20}M"
        raise SnapshotError(f"the snapshot is of a machine with {sizes[0]} of memory, and {vm.name} has {sizes[1]}")
    _check_savable(machine)
    try:
        state.check(partition, snapshot.partition)
    except StateError as error:
        raise SnapshotError(f"the snapshot does not fit {vm.name}: {error}") from None
    files = await match_disks(machine, snapshot.disks)
    try:
        for file, disk in files:
            if disk.overlay:
                await file.replace_changes(disk.changes)
        partition.ram.adopt(snapshot.ram, sharing=sharing)
        state.restore(partition, snapshot.partition)
    except (StateError, OSError) as error:
        partition.fail(error)
        raise SnapshotError(f"the snapshot does not fit {vm.name}, which has failed now: {error}") from None
    vm.serial.restore(snapshot.serial)
    machine.boot_failure = snapshot.boot_failure


async def restore(vm: Vm, snapshot: Snapshot, *, paused: bool = False) -> None:
    """Put a snapshot into a machine and let it go on from there, unless it is, or is to be, ``paused``. Raises SnapshotError."""
    partition = vm.partition
    if partition.state in (RunState.RUNNING, RunState.PAUSED):
        if paused:
            await partition.pause()
        async with partition.still():
            _check_alive(partition)
            await put(vm, snapshot)
        return
    if partition.state is not RunState.CREATED:
        await partition.stop()  # what its devices had under way ends
    await put(vm, snapshot)
    await partition.revive(paused=paused)


def _check_alive(partition: Partition) -> None:
    if partition.state not in (RunState.RUNNING, RunState.PAUSED):
        reason = "was not started" if partition.state is RunState.CREATED else f"is {partition.state.value}"
        raise SnapshotError(f"there is nothing to save of {partition.name}: it {reason}")


def with_own_overlays(config: VmConfig, name: str) -> VmConfig:
    """Return the configuration of another machine on the same images, with temporary overlays and no gdb."""
    alone = replace(config, name=name, gdb="", gdb_wait=False, gdb_reverse=False)
    return replace(alone, disks=_apart(config.disks), floppies=_apart(config.floppies))


def _apart(disks: tuple[Disk, ...] | list[Disk]) -> tuple[Disk, ...]:
    return tuple(replace(disk, overlay=None) for disk in disks)


def _check_savable(machine: Machine) -> None:
    if machine.physical.devices:
        name, device = machine.partition.name, min(machine.physical.devices)
        raise SnapshotError(f"{name} has a physical device, {device}, which cannot be brought back: leave it out of `physical`")


def _local(name: str) -> str:
    return name.split("/", 1)[1].partition("+")[0]  # behind the sign: which medium it is that was put in


async def save_disks(machine: Machine) -> tuple[SavedDisk, ...]:
    """Return what a machine's disks are and hold; no request may be in flight. SnapshotError for one that is written in place."""
    saved = []
    for name in machine.names:
        file = machine.service.disks[name].file
        if file.mode == "rw":
            owner = machine.partition.name
            raise SnapshotError(f"{file.path} is written in place, and cannot be brought back: give it to {owner} with an overlay")
        changes = await file.changes()
        saved.append(SavedDisk(_local(name), str(file.path), file.size, await file.fingerprint(), file.overlay is not None, changes))
    return tuple(saved)


async def match_disks(machine: Machine, disks: tuple[SavedDisk, ...]) -> list[tuple[BackingFile, SavedDisk]]:
    """Return the images of a machine with what was saved of each. SnapshotError when they are others."""
    files = {_local(name): machine.service.disks[name].file for name in machine.names}
    name = machine.partition.name
    saved = {disk.name: disk for disk in disks}
    if missing := sorted(saved.keys() - files.keys()):
        raise SnapshotError(f"the snapshot needs {missing[0]} ({saved[missing[0]].path}), which {name} does not have")
    if more := sorted(files.keys() - saved.keys()):
        raise SnapshotError(f"{name} has {more[0]} ({files[more[0]].path}), which the machine of the snapshot did not have")
    for disk in disks:
        file = files[disk.name]
        if file.size != disk.size or await file.fingerprint() != disk.fingerprint:
            raise SnapshotError(f"{file.path} is not what {disk.name} of the snapshot was ({disk.path}, {disk.size} bytes)")
        if file.mode == "rw" or (file.overlay is not None) != disk.overlay:
            raise SnapshotError(f"{disk.name} of {name} and of the snapshot differ: both have an overlay, or both are read-only")
    return [(files[disk.name], disk) for disk in disks]


def clone_name(name: str, taken: set[str]) -> str:
    """Return a name for a clone that no machine has."""
    return next(free for n in range(1, len(taken) + 2) if (free := f"{name}-{n}") not in taken)
