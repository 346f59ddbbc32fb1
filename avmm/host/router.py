"""The router of I/O request packets, and the tasks of the device models outside the hypervisor.

An Irp that the hypervisor submits goes to the router's task and from there to the task "device:<name>"; its completion
is the feedback packet. A task switch costs 2.5-3 us, and both together 9.5: so when a device is idle the
router makes the register access for it, in its own task, and only what the access has to wait for (a device may answer
with an awaitable) goes to the device's task. A device that is busy gets its Irps through its inbox. A vCPU has one Irp in
flight at most, as it is suspended in the instruction: the inboxes are larger than there are vCPUs, so a slow device does not hold
up the router.

The invariants: each device sees its Irps in the order they were submitted, one at a time; every Irp submitted is
answered, at the latest with :class:`ServiceEnded` when the router's or the device's task ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Coroutine
from dataclasses import dataclass
from time import monotonic_ns

from mypy_extensions import mypyc_attr

from avmm.devices.block import journey
from avmm.devices.device import Device
from avmm.host.requests import Stage, StageEnded
from avmm.hypervisor.irp import Irp, IrpKind

ROUTER_INBOX = 1024
DEVICE_INBOX = 256


class NoSuchDevice(LookupError):
    """The Irp is for a device model that the service OS does not run."""


class ServiceBusy(Exception):
    """More Irps than the router's inbox holds, which takes more vCPUs than can be."""


class ServiceEnded(Exception):
    """The service OS, or the device's task, ended before the Irp was answered."""


@dataclass(slots=True)
class DeviceStats:
    """What a device model outside has done so far."""

    irps: int = 0
    errors: int = 0
    latency: int = 0
    """Sum from the making of the Irps to their feedback, ns of host time."""


Answer = int | Awaitable[int | None] | None


def _access(irp: Irp) -> Answer:
    """Make the access, the frequent ones first: a dictionary would ask each kind for its hash, which enum computes in Python."""
    device, kind = irp.device, irp.kind
    if kind is IrpKind.PORT_READ:
        return device.read(irp.address, irp.size)
    if kind is IrpKind.PORT_WRITE:
        return device.write(irp.address, irp.size, irp.value)
    if kind is IrpKind.WINDOW_DONE:
        return device.window_done(irp.address)
    if kind is IrpKind.MEMORY_READ:
        return device.read_memory(irp.address, irp.size)
    return device.write_memory(irp.address, irp.size, irp.value)


@dataclass(slots=True)
class Begun:
    """An access that was made, and what it waits for."""

    irp: Irp
    answer: Awaitable[int | None]


Item = Irp | Begun
"""What goes through the inboxes."""


@mypyc_attr(allow_interpreted_subclasses=True)
class IrpStage(Stage[Item]):
    """A stage whose items are Irps."""

    def reject(self, item: Item, error: Exception) -> None:
        if isinstance(error, StageEnded):
            error = ServiceEnded(str(error))
        if isinstance(item, Begun):
            item.irp.fail(error)
            if isinstance(item.answer, Coroutine):
                item.answer.close()
        else:
            item.fail(error)


class OutsideDevice(IrpStage):
    """A device model outside the hypervisor, and its task "device:<name>"."""

    def __init__(self, device: Device, name: str) -> None:
        super().__init__(f"device:{name}", DEVICE_INBOX)
        self.device = device
        self.stats = DeviceStats()

    @property
    def idle(self) -> bool:
        """Whether nothing is before an Irp that comes now."""
        return self._current is None and not self.inbox and not self.ended

    def begin(self, irp: Irp) -> Begun | None:
        """Make the access. None if that answered the Irp, otherwise what is left to be performed."""
        irp.hop(self.name)
        journey.set(irp.id)
        try:
            answer = _access(irp)
        except Exception as error:
            self._answer(irp, error)
            return None
        if answer is None or isinstance(answer, int):
            self._answer(irp, answer or 0)
            return None
        return Begun(irp, answer)

    async def perform(self, item: Item) -> None:
        """Execute one access. An exception of the device model, or of what it awaits, goes to the one who awaits the Irp."""
        begun = self.begin(item) if isinstance(item, Irp) else item
        if begun is None:
            return
        journey.set(begun.irp.id)
        try:
            self._answer(begun.irp, await begun.answer or 0)
        except asyncio.CancelledError:
            self._answer(begun.irp, ServiceEnded(f"{self.name}: what the access waited for was cancelled"))
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
        except Exception as error:
            self._answer(begun.irp, error)

    def _answer(self, irp: Irp, answer: int | Exception) -> None:
        stats = self.stats
        stats.irps += 1
        stats.latency += monotonic_ns() - irp.created
        if isinstance(answer, int):
            irp.complete(answer)
        else:
            stats.errors += 1
            irp.fail(answer)


@mypyc_attr(allow_interpreted_subclasses=True)
class Router(IrpStage):
    """The task ``name`` that gives each Irp to its device; the devices' tasks are in its group."""

    def __init__(self, name: str) -> None:
        super().__init__(name, ROUTER_INBOX)
        self.outside: dict[Device, OutsideDevice] = {}
        """The device models that live here."""
        self._group = asyncio.TaskGroup()

    def add(self, device: Device, name: str = "") -> OutsideDevice:
        """Start the task of a device model that lives outside. ``name`` must be unique, by default it is the device's."""
        if self.ended:
            raise ServiceEnded("the service OS has ended")
        name = name or device.name
        if device in self.outside or any(other.name == f"device:{name}" for other in self.outside.values()):
            raise ValueError(f"the service OS runs a device called {name} already")
        outside = self.outside[device] = OutsideDevice(device, name)
        outside.start(self._group)
        return outside

    def withdraw(self, device: Device) -> OutsideDevice | None:
        """Forget a device model that has no Irp in flight, at once; its task ends by itself. None if it does not live here."""
        outside = self.outside.pop(device, None)
        if outside is not None and outside.task is not None:
            outside.task.cancel()
        return outside

    def submit(self, irp: Irp) -> Irp:
        """Take an Irp from the hypervisor; await it for the answer."""
        if not self.offer(irp):
            irp.fail(ServiceBusy("the service OS is overwhelmed with I/O request packets"))
        return irp

    async def perform(self, item: Item) -> None:
        """Route one Irp to its device."""
        assert isinstance(item, Irp)
        await self.route(item, self.name)

    async def route(self, irp: Irp, hop: str) -> None:
        """Give an Irp to its device's task, or make an idle device's access here, in the task called ``hop``."""
        irp.hop(hop)
        outside = self.outside.get(irp.device)
        if outside is None:
            irp.fail(NoSuchDevice(f"the service OS does not run {irp.device.name}"))
            return
        message = outside.begin(irp) if outside.idle else irp
        if message is not None and not outside.offer(message):
            await outside.put(message)

    @property
    def stats(self) -> dict[str, DeviceStats]:
        """The counters of each device model, by name."""
        return {outside.name.removeprefix("device:"): outside.stats for outside in self.outside.values()}
