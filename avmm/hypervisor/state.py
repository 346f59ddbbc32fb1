"""What a partition is at one moment, apart from its memory: taken from a machine that stands still, and put into one.

The pieces are frozen dataclasses with a version each: the processor's, the vCPU's, every device's. A deadline is named by
its device and its place among the device's timers, and the order in which they will fire is kept, which for equal deadlines
is the order in which they were armed. Levels of lines are set without telling anybody: the controllers have states of their own.

The invariant: a machine that a state was put into goes on, in virtual time, exactly as the one it was taken from.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from avmm.clock import Timer, VirtualClock, WallClock
from avmm.cpu.engine import ProcessorError, ProcessorState
from avmm.devices.device import Device
from avmm.hypervisor.slot import Slot, SlotState
from avmm.hypervisor.vcpu import VcpuState

if TYPE_CHECKING:
    from avmm.hypervisor.partition import Partition

VERSION = 1


class StateError(ValueError):
    """A machine cannot be saved, or a state cannot be put into it; one sentence says why."""


@dataclass(frozen=True, slots=True)
class SavedDevice:
    """One device. ``slot`` is None for one that has none, such as the firmware."""

    name: str
    state: object
    slot: SlotState | None


@dataclass(frozen=True, slots=True)
class Deadline:
    """A timer that is armed: number ``index`` of those of ``device``."""

    device: str
    index: int
    due: int


@dataclass(frozen=True, slots=True)
class PartitionState:
    """One partition. ``now`` in ns of machine time, ``lines`` as (number, level, edges), ``deadlines`` as they will fire."""

    virtual: bool
    now: int
    processor: ProcessorState
    vcpu: VcpuState
    random: tuple[Any, ...]
    msrs: tuple[tuple[int, int], ...]
    lines: tuple[tuple[int, bool, int], ...]
    devices: tuple[SavedDevice, ...]
    deadlines: tuple[Deadline, ...]
    memories: tuple[tuple[int, bytes], ...]
    """What RAM elsewhere than at 0 holds, by its address: a firmware's."""
    reset: str | None
    """Why a reset has been asked for that is still to come."""
    resets: int
    irps: int
    plain: int
    injected: int
    version: int = VERSION


def save(partition: Partition) -> PartitionState:
    """Return the state of a partition that stands still with no work in flight. StateError when something in it cannot be saved."""
    try:
        processor = partition.processor.save(partition.vcpu.save().halted)
    except ProcessorError as error:
        raise StateError(str(error)) from None
    return PartitionState(
        virtual=isinstance(partition.clock, VirtualClock),
        now=partition.clock.now(),
        processor=processor,
        vcpu=partition.vcpu.save(),
        random=partition.random.getstate(),
        msrs=partition.msrs.save(),
        lines=tuple((number, line.level, line.edges) for number, line in sorted(partition.lines.items())),
        devices=tuple(_save_device(device) for device in partition.devices.values()),
        deadlines=_deadlines(partition),
        memories=tuple((address, bytes(memory)) for address, memory in sorted(partition.memories.items())),
        reset=partition.wanted_reset,
        resets=partition.resets,
        irps=partition.irps,
        plain=partition.ports.plain,
        injected=partition.vcpu.injected,
    )


def check(partition: Partition, state: PartitionState) -> None:
    """StateError when ``state`` is not of a machine like this one. Nothing is changed."""
    if state.version != VERSION:
        raise StateError(f"the state is of version {state.version}, and this avmm knows version {VERSION}")
    if state.virtual != isinstance(partition.clock, VirtualClock):
        kinds = ("real", "virtual")
        raise StateError(f"the state is of a machine in {kinds[state.virtual]} time, and this one is in {kinds[not state.virtual]} time")
    saved, here = {device.name for device in state.devices}, set(partition.devices)
    if saved != here:
        missing, more = sorted(saved - here), sorted(here - saved)
        what = f"has no {', '.join(missing)}" if missing else f"has {', '.join(more)} besides"
        raise StateError(f"the state is of a machine with other devices: this one {what}")
    if {address for address, _ in state.memories} != set(partition.memories):
        raise StateError("the state is of a machine with another firmware")


def restore(partition: Partition, state: PartitionState) -> None:
    """Put a state into a partition that stands still, memory comes first. StateError, and it may be half done, when it does not fit."""
    check(partition, state)
    clock = partition.clock
    assert isinstance(clock, VirtualClock | WallClock)
    try:
        partition.processor.restore(state.processor)
        partition.follow_processor()
        clock.set(state.now)
        for address, content in state.memories:
            partition.memories[address][:] = content
        partition.random.setstate(state.random)
        partition.msrs.restore(state.msrs)
        for number, level, edges in state.lines:
            line = partition.line(number)
            line.level, line.edges = level, edges
        for saved in state.devices:
            device = partition.devices[saved.name]
            if isinstance(device.board, Slot) and saved.slot is not None:
                device.board.restore(saved.slot)
            if saved.state is not None:
                _restore_device(device, saved.state)
    except (ProcessorError, ValueError) as error:
        raise StateError(str(error)) from None
    _arm(partition, state.deadlines)
    partition.wanted_reset = state.reset
    partition.resets, partition.irps, partition.vcpu.injected = state.resets, state.irps, state.injected
    partition.ports.plain = state.plain
    partition.vcpu.restore(state.vcpu)


def _restore_device(device: Device, state: object) -> None:
    try:
        device.restore(state)
    except (TypeError, AttributeError, LookupError, OverflowError, struct.error) as error:  # a file may hold anything there
        raise StateError(f"the saved state of {device.name} makes no sense ({type(error).__name__}: {error})") from None


def _save_device(device: Device) -> SavedDevice:
    board = device.board
    try:
        state = device.save()
    except (NotImplementedError, ValueError) as error:
        raise StateError(f"{device.name} cannot be saved: {error}") from None
    return SavedDevice(device.name, state, board.save() if isinstance(board, Slot) else None)


def _timers(device: Device) -> list[Timer]:
    return device.board.timers() if isinstance(device.board, Slot) else device.deadlines()


def _deadlines(partition: Partition) -> tuple[Deadline, ...]:
    names = {timer: (name, index) for name, device in partition.devices.items() for index, timer in enumerate(_timers(device))}
    return tuple(Deadline(*names[timer], timer.due) for timer in partition.clock.armed() if timer in names and timer.due is not None)


def _arm(partition: Partition, deadlines: tuple[Deadline, ...]) -> None:
    """Arm each device's timers anew, the earliest first: the devices did that one by one."""
    timers = {name: _timers(device) for name, device in partition.devices.items()}
    for timer in (timer for of_device in timers.values() for timer in of_device):
        timer.cancel()
    for deadline in deadlines:
        if not 0 <= deadline.index < len(timers.get(deadline.device, ())):
            raise StateError(f"{deadline.device} had a timer that the one here does not have")
        timers[deadline.device][deadline.index].arm(deadline.due)
