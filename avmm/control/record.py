"""Records of what reached a machine, from power-on to its end: given again, they make the same run to the byte.

A record is a file, all numbers little-endian: magic "AVMMINPT", version (4 bytes), zero (4), then frames of length (4), CRC-32 (4) and
an encoded value (avmm.control.codec): a :class:`Header`, any number of :class:`~avmm.control.inputs.Input`, and an :class:`End`. Each
frame is written when it happens, so that the record of a machine, or of a process, that died is good up to there. Among the inputs
are checks of registers and interrupts: a run that is not the recorded one is found out at the first that differs.

The invariant: the machine of a record begins at power-on in virtual time with images that nobody has written to, or whose
changes are in the record.
"""

from __future__ import annotations

import hashlib
import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avmm.clock import MILLISECOND, SECOND, VirtualClock
from avmm.control import codec
from avmm.control.config import ConfigError, VmConfig
from avmm.control.inputs import Diverged, Input, fingerprint
from avmm.control.snapshot import SavedDisk, SnapshotError, match_disks, save_disks, with_own_overlays
from avmm.host.opening import ImageError
from avmm.hypervisor.advance import run_to
from avmm.hypervisor.partition import RunState

if TYPE_CHECKING:
    from avmm.control.host import Host
    from avmm.control.vm import Vm

MAGIC = b"AVMMINPT"
VERSION = 1
HEAD = struct.Struct("<8sII")
FRAME = struct.Struct("<II")
FRAME_LIMIT = 1 << 30
CHECK_EVERY = 50 * MILLISECOND
"""Machine time between two checks of a machine that does something."""
GRACE = SECOND
"""How much longer than the recorded machine a replayed one may run before it counts as one that does not end."""


class RecordError(Exception):
    """A machine cannot be recorded, or a file cannot be replayed; one sentence says why."""


@dataclass(frozen=True, slots=True)
class Header:
    """The machine of a record. ``files``: what it starts from, by the field of its configuration, with its SHA-256."""

    config: VmConfig
    disks: tuple[SavedDisk, ...]
    files: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class End:
    """What the machine was at the end of the record, and the SHA-256 of its memory."""

    now: int
    units: int
    fingerprint: int
    memory: str
    state: str
    reason: str

    @property
    def ended(self) -> bool:
        """Whether the machine was off, or had failed."""
        return self.state in (RunState.OFF.value, RunState.FAILED.value)


@dataclass(frozen=True, slots=True)
class Record:
    """What a file holds. ``end`` is None when the recorder did not get so far."""

    path: Path
    header: Header
    inputs: tuple[Input, ...]
    end: End | None

    @property
    def last(self) -> int:
        """The machine time up to which it goes, ns."""
        return self.end.now if self.end is not None else self.inputs[-1].now if self.inputs else 0


class Recorder:
    """Writes what reaches one machine to a file. ``await Recorder.begin(vm, path)`` before the machine is started, then :meth:`close`."""

    def __init__(self, vm: Vm, path: Path, fd: int) -> None:
        self.error: OSError | None = None
        """Why the record ends before the machine did."""
        self.path = path
        self._vm = vm
        self._fd = fd
        self._units = -1
        self._timer = vm.partition.clock.timer(self._check)

    @classmethod
    async def begin(cls, vm: Vm, path: str | Path) -> Recorder:
        """Begin to record a machine that was not started yet. Raises RecordError; no file is made then."""
        partition, path = vm.partition, Path(path)
        if vm.inputs.recorder is not None:
            raise RecordError(f"{vm.name} is recorded already")
        if partition.state is not RunState.CREATED:
            raise RecordError(f"a record begins at power-on, and {vm.name} is {partition.state.value} already")
        if not isinstance(partition.clock, VirtualClock):
            raise RecordError(f"{vm.name} is in real time, where no run can be repeated: give it clock='virtual'")
        try:
            header = Header(vm.config, await save_disks(vm.machine), tuple(_files(vm.config)))
            frame = _frame(header)
        except (SnapshotError, codec.CodecError) as error:
            raise RecordError(f"{vm.name} cannot be recorded: {error}") from None
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise RecordError(f"cannot write the record {path}: {error.strerror}") from None
        recorder = cls(vm, path, fd)
        recorder._write(HEAD.pack(MAGIC, VERSION, 0) + frame)
        vm.inputs.record(recorder._note)
        vm.inputs.recorder = recorder
        recorder._timer.arm(partition.clock.now() + CHECK_EVERY)
        return recorder

    async def close(self) -> None:
        """Write what the machine is now, and end the record. The machine must not be shut down yet."""
        self._timer.cancel()
        self._vm.inputs.stop(self._note)
        self._vm.inputs.recorder = None
        try:
            async with self._vm.partition.still():
                self._write(_frame(_end(self._vm)))
            if self.error is None:
                os.fsync(self._fd)
        except OSError as error:
            self.error = error
        finally:
            os.close(self._fd)

    def _check(self) -> None:
        units = self._vm.partition.processor.units
        if units != self._units:
            self._units = units
            self._vm.inputs.check()
        self._timer.arm(self._vm.partition.clock.now() + CHECK_EVERY)

    def _note(self, entry: Input) -> None:
        self._write(_frame(entry))

    def _write(self, data: bytes) -> None:
        """Append to the file. A full disk ends the record, not the machine."""
        view = memoryview(data)
        try:
            while view and self.error is None:
                view = view[os.write(self._fd, view) :]
        except OSError as error:
            self.error = error
            self._vm.partition.trace("record ends", reason=error.strerror)


def read(path: str | Path) -> Record:
    """Read a record. RecordError in one sentence for a file that is none; what was cut off at its end is not missed."""
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise RecordError(f"cannot read the record {path}: {error.strerror}") from None
    if len(data) < HEAD.size or data[: len(MAGIC)] != MAGIC:
        raise RecordError(f"{path} is not a record of avmm")
    _, version, _ = HEAD.unpack_from(data)
    if version != VERSION:
        raise RecordError(f"{path} is a record of version {version}, and this avmm reads version {VERSION}")
    try:
        values = [codec.decode(frame) for frame in _frames(path, data)]
    except codec.CodecError as error:
        raise RecordError(f"{path} cannot be used by this avmm: {error}") from None
    end = values.pop() if values and isinstance(values[-1], End) else None
    if not values or not isinstance(values[0], Header) or not all(isinstance(value, Input) for value in values[1:]):
        raise RecordError(f"the record {path} is damaged")
    return Record(path, values[0], tuple(values[1:]), end)


class Replay:
    """A machine that does again what was recorded. ``await Replay.make(host, record)``, then :meth:`run`."""

    def __init__(self, vm: Vm, record: Record) -> None:
        self.vm = vm
        self.record = record

    @classmethod
    async def make(cls, host: Host, record: Record, name: str = "") -> Replay:
        """Make the machine of a record, switched off. Raises RecordError, and what ``Host.create_vm`` raises."""
        header = record.header
        for what, digest in _files(header.config):
            if dict(header.files).get(what) != digest:
                raise RecordError(f"{getattr(header.config, what)} is not the {what} of the record {record.path} any more")
        vm = await host.create_vm(with_own_overlays(header.config, name or header.config.name))
        try:
            for file, disk in await match_disks(vm.machine, header.disks):
                if disk.overlay:
                    await file.replace_changes(disk.changes)
            await vm.media.open_all(record.inputs)
        except (SnapshotError, ConfigError, ImageError) as error:
            await host.remove_vm(vm)
            raise RecordError(f"the record {record.path} cannot be replayed: {error}") from None
        vm.inputs.replay(record.inputs)
        return cls(vm, record)

    async def run(self) -> None:
        """Start the machine and let it do what it did; it stands still, is off or has failed afterwards, as the recorded one was.

        Raises Diverged, which says where first, when it does anything else.
        """
        vm, end = self.vm, self.record.end
        await vm.start()
        alive = end is None or not end.ended
        await run_to(vm.partition, now=self.record.last + (0 if alive else GRACE))
        failure = vm.partition.failure
        if failure is not None and isinstance(failure.__cause__, Diverged):
            raise failure.__cause__
        if end is not None:
            _compare(vm, end)


def _compare(vm: Vm, end: End) -> None:
    found = _end(vm)
    state = end.state if end.ended else RunState.PAUSED.value
    what = ""
    if found.state != state:
        what = f"it is {found.state} ({found.reason or 'no reason'}), where the recorded one was {end.state} ({end.reason or 'no reason'})"
    elif (found.now, found.units) != (end.now, end.units):
        what = f"it ends at {found.now} ns after {found.units} units, where the record has {end.now} ns and {end.units} units"
    elif found.fingerprint != end.fingerprint:
        what = "its registers are others"
    elif found.memory != end.memory:
        what = "its memory is another"
    if what:
        raise Diverged(f"{vm.name} diverges from the record after the last check, before {end.now / 1e9:.9f} s: {what}")


def _end(vm: Vm) -> End:
    partition = vm.partition
    memory = hashlib.sha256(partition.memory.view).hexdigest()
    reason = str(partition.failure.__cause__) if partition.failure is not None else partition.off_reason
    return End(partition.clock.now(), partition.processor.units, fingerprint(partition), memory, partition.state.value, reason)


def _frame(value: object) -> bytes:
    data = codec.encode(value)
    return FRAME.pack(len(data), zlib.crc32(data)) + data


def _frames(path: Path, data: bytes) -> Iterator[bytes]:
    at = HEAD.size
    while at + FRAME.size <= len(data):
        length, checksum = FRAME.unpack_from(data, at)
        frame = data[at + FRAME.size : at + FRAME.size + length]
        at += FRAME.size + length
        if len(frame) < length <= FRAME_LIMIT:
            return  # the recorder died in the middle of it
        if zlib.crc32(frame) != checksum:
            raise RecordError(f"the record {path} is damaged")
        yield frame


def _files(config: VmConfig) -> Iterator[tuple[str, str]]:
    """Yield the files that a machine starts from besides its disks."""
    fields: dict[str, Any] = {"kernel": config.kernel, "initrd": config.initrd}
    if config.bios not in ("builtin", "seabios"):
        fields["bios"] = config.bios
    for what, path in fields.items():
        if path is not None:
            try:
                yield what, hashlib.sha256(Path(path).read_bytes()).hexdigest()
            except OSError as error:
                raise RecordError(f"cannot read the {what} {path}: {error.strerror}") from None
