"""One disk request's whole way, hop by hop: from a program in the guest to the file in VM-H and back, under one id.

While a :class:`RequestTracer` is attached it hears what each layer notes anyway (the hops of I/O request packets and of storage
requests) and what three of them tell somebody who asks: the built-in guest its steps, a VMBus channel its packets, an interrupt
line its edges. Guests that tell nothing begin with their first trap, or with their packet in the ring.

The id is that of the packet, or of the access that started the command; everything else on the way is put to it by the guest's own
number of the request, which goes over the guest port and, in the transaction id, through the ring. The invariant: a tracer that is
detached leaves nothing behind, neither in the machine nor in the time it takes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from time import monotonic_ns
from typing import TYPE_CHECKING, Any

from avmm.clock import MILLISECOND
from avmm.control.watch import MachineEnded, WaitTimeout, wait_until
from avmm.devices.line import Sink
from avmm.host.requests import StorageRequest
from avmm.hypervisor.irp import Irp, IrpKind

if TYPE_CHECKING:
    from avmm.control.vm import Vm
    from avmm.host.virtualization_driver import Disk

GUEST, HYPERVISOR, SERVICE, VMBUS = "guest", "hypervisor", "service OS", "VMBus"
ASKED, CLASS, DIVERTED, PASSED, ATA, STORVSC, DONE, ANSWERED = range(1, 9)
STEPS = {
    ASKED: "a program asks",
    CLASS: "class driver",
    DIVERTED: "the shunt diverts it",
    PASSED: "the shunt lets it pass",
    ATA: "port driver for ATA",
    STORVSC: "port driver for VMBus",
    DONE: "class driver: done",
    ANSWERED: "the program has its answer",
}
"""The built-in guest's steps (guests/nub/kernel/trace.h)."""
SIGNAL = "hypercall HvSignalEvent"
DISK_DEVICES = frozenset({"ata0", "ata1", "bmide"})
DISK_LINES = (14, 15)
QUIET = 5 * MILLISECOND
"""Machine time for which a guest that tells nothing has left its ATA disk alone when it has done with a command."""
_KINDS = {
    IrpKind.PORT_READ: "IN {:03X}h",
    IrpKind.PORT_WRITE: "OUT {:03X}h",
    IrpKind.WINDOW_DONE: "{:03X}h block moved",
}


@dataclass(frozen=True, slots=True)
class Hop:
    """Where the request was at one moment; ``at`` in ns of the host's time, ``irp`` the access it is a part of."""

    at: int
    where: str
    what: str
    irp: int = 0


@dataclass(slots=True)
class RequestTrace:
    """One request. ``path`` is pio, dma, shunt or enlightened."""

    id: int = 0
    path: str = ""
    op: str = ""
    lba: int = 0
    sectors: int = 0
    error: str = ""
    hops: list[Hop] = field(default_factory=list)

    @property
    def microseconds(self) -> float:
        """From the first hop to the last."""
        return (self.hops[-1].at - self.hops[0].at) / 1000

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON-ready types; the time of each hop counts from the first one."""
        first = self.hops[0].at
        times = [round((hop.at - first) / 1000, 1) for hop in self.hops]
        hops = [{"us": us, "where": hop.where, "what": hop.what, "irp": hop.irp or None} for us, hop in zip(times, self.hops, strict=True)]
        return {
            "id": self.id, "path": self.path, "op": self.op, "lba": self.lba, "sectors": self.sectors, "error": self.error,
            "us": round(self.microseconds, 1), "hops": hops,
        }  # fmt: skip


class _Journey:
    """A request that is under way."""

    def __init__(self, number: int = 0) -> None:
        self.number = number
        """The guest's; 0 for a guest that tells nothing."""
        self.trace = RequestTrace()
        self.irps: dict[int, Irp] = {}
        self.transaction: int | None = None
        self.served = self.dma = self.diverted = self.over = False

    def hop(self, where: str, what: str, at: int = 0, irp: int = 0) -> None:
        self.trace.hops.append(Hop(at or monotonic_ns(), where, what, irp))


class RequestTracer:
    """Follows the disk requests of one machine: ``with RequestTracer(vm, op="read") as tracer:``, and ``tracer.finished`` grows."""

    def __init__(self, vm: Vm, limit: int = 1, op: str = "") -> None:
        self._vm = vm
        self._limit = limit
        self._op = op
        self.finished: list[RequestTrace] = []
        self._numbered: dict[int, _Journey] = {}
        self._by_id: dict[int, _Journey] = {}
        self._by_transaction: dict[int, _Journey] = {}
        self._on_ata: _Journey | None = None
        self._heard = 0
        """Machine time when there was something of an ATA disk last."""
        self._signalled = 0
        """When the guest signalled last, until a packet is taken."""
        self._undo: list[Callable[[], None]] = []

    # -- attaching

    def __enter__(self) -> RequestTracer:
        machine, partition, undo = self._vm.machine, self._vm.partition, self._undo
        partition.on_irp.append(self._irp)
        undo.append(lambda: partition.on_irp.remove(self._irp))
        undo += [partition.ports.listen(name, partial(self._trap, name)) for name in DISK_DEVICES]
        for name in machine.names:
            self._follow_disk(machine.service.disks[name])
        for number in DISK_LINES:
            line = partition.line(number)
            sink = line.sink
            line.connect(self._tap(number, sink))
            undo.append(lambda line=line, sink=sink: line.connect(sink))  # type: ignore[misc]
        if machine.guest_port is not None:
            machine.guest_port.listener = self._step
            self._vm.inputs.post("tell", True)
            undo.append(self._listen_no_more)
        self._follow_channel()
        return self

    def __exit__(self, *exception: object) -> None:
        while self._undo:
            self._undo.pop()()

    def _listen_no_more(self) -> None:
        assert self._vm.machine.guest_port is not None
        self._vm.machine.guest_port.listener = None
        self._vm.inputs.post("tell", False)

    def _follow_disk(self, disk: Disk) -> None:
        before = disk.watcher

        def watch(request: StorageRequest) -> None:
            if before is not None:
                before(request)
            self._stored(request)

        disk.watch(watch)
        self._undo.append(lambda: disk.watch(before))

    def _follow_channel(self) -> None:
        """Follow the disks' channels; one that is opened later is found when the guest says that a request goes there."""
        for channel in self._vm.machine.disk_channels():
            if channel.watcher is None:
                channel.watcher = self._packet
                self._undo.append(partial(setattr, channel, "watcher", None))

    def _tap(self, number: int, sink: Sink | None) -> Sink:
        def changed(level: bool) -> None:
            journey = self._on_ata
            if level and journey is not None:
                self._heard = self._vm.partition.clock.now()
                journey.hop(HYPERVISOR, f"IRQ {number}")
            if sink is not None:
                sink(level)

        return changed

    def enough(self) -> bool:
        """Whether all were traced that were wanted."""
        journey = self._on_ata
        if journey is not None and not journey.number and journey.served and self._vm.partition.clock.now() - self._heard > QUIET:
            self._finish(journey)
        return len(self.finished) >= self._limit

    # -- what is heard

    def _step(self, step: int, number: int) -> None:
        if step == ASKED and len(self._numbered) < self._limit + 64:
            self._numbered[number] = _Journey(number)
        journey = self._numbered.get(number)
        if journey is None or step not in STEPS:
            return
        journey.hop(GUEST, STEPS[step])
        if step == ATA:
            self._on_ata = journey
        elif step == STORVSC:
            self._follow_channel()
        elif step == DIVERTED:
            journey.diverted = True
        elif step == DONE and journey is self._on_ata:
            self._on_ata = None
        elif step == ANSWERED:
            del self._numbered[number]
            self._finish(journey)

    def _accessed(self, device: str, writing: bool) -> _Journey | None:
        """Return the request that an access to the ATA disk's devices is a part of; None when it is of none."""
        journey = self._on_ata
        if journey is not None and not journey.number and journey.served and writing and device != "bmide":
            self._finish(journey)  # a guest that tells nothing begins its next command
            journey = None
        if journey is None:
            if not writing:
                return None
            journey = self._on_ata = _Journey()
        self._heard = self._vm.partition.clock.now()
        journey.dma |= device == "bmide"
        return journey

    def _trap(self, device: str, port: int, writing: bool) -> None:
        """An access was made that takes no packet: to a device in the hypervisor, or to a plain register of one outside."""
        journey = self._accessed(device, writing)
        if journey is not None:
            kind = IrpKind.PORT_WRITE if writing else IrpKind.PORT_READ
            way = "answered inside" if self._vm.partition.placement[device] == "hypervisor" else "plain register"
            journey.hop(HYPERVISOR, f"{_KINDS[kind].format(port)} traps, {way}")

    def _irp(self, irp: Irp) -> None:
        name = irp.device.name
        journey = self._accessed(name, irp.kind is IrpKind.PORT_WRITE) if name in DISK_DEVICES else None
        if journey is None:
            return
        journey.irps[irp.id] = irp
        self._by_id[irp.id] = journey
        named = _KINDS.get(irp.kind, irp.kind.value + " {:X}h").format(irp.address)
        journey.hop(HYPERVISOR, f"{named} traps", irp.created, irp.id)
        irp.when_answered(lambda: journey.hop(HYPERVISOR, f"{named}: VM entry", 0, irp.id))

    def _packet(self, what: str, id: int, transaction: int) -> None:
        if what == "taken":
            journey = self._numbered.get(transaction >> 8) or _Journey()
            if not journey.number and self._signalled:
                journey.hop(HYPERVISOR, SIGNAL, self._signalled)
            self._signalled = 0
            journey.trace.id, journey.transaction = id, transaction
            self._by_id[id] = self._by_transaction[transaction] = journey
            journey.hop(VMBUS, "the packet is taken out of the ring")
        elif what == "sent":
            sent = self._by_transaction.pop(transaction, None)
            if sent is not None:
                sent.hop(VMBUS, "the completion is in the ring")
                if not sent.number:
                    asyncio.get_running_loop().call_soon(self._finish, sent)
        elif what == "signal":
            self._signalled = monotonic_ns()
            for one in self._numbered.values():
                if one.transaction is None and not one.served and one.trace.hops[-1].what == STEPS[STORVSC]:
                    one.hop(HYPERVISOR, SIGNAL)
        else:
            for one in {*self._numbered.values(), *self._by_id.values()}:
                if one.transaction is not None and one.transaction not in self._by_transaction and not one.over:
                    one.hop(HYPERVISOR, "event flag, synthetic interrupt")

    def _stored(self, request: StorageRequest) -> None:
        journey = self._by_id.get(request.id) or self._on_ata
        if journey is None:
            return
        self._heard = self._vm.partition.clock.now()
        trace = journey.trace
        if not journey.served:
            trace.op, trace.lba, trace.id = request.op.value, request.lba, request.id
        trace.sectors += request.count
        trace.error = str(request.error) if request.error is not None else trace.error
        journey.served = True
        for name, at in request.hops or ():
            journey.hop("VM-H", name, at)

    def _finish(self, journey: _Journey) -> None:
        if journey is self._on_ata:
            self._on_ata = None
        journey.over = True
        trace = journey.trace
        for irp in journey.irps.values():
            for name, at in irp.hops:
                journey.hop(SERVICE, name, at, irp.id)
            self._by_id.pop(irp.id, None)
        self._by_id.pop(trace.id, None)
        if journey.served and self._op in ("", trace.op) and len(self.finished) < self._limit:
            trace.hops.sort(key=lambda hop: hop.at)
            over_vmbus = journey.transaction is not None
            only = journey.diverted and self._vm.mode == "shunt-only"
            trace.path = ("shunt" if only else "enlightened") if over_vmbus else "dma" if journey.dma else "pio"
            self.finished.append(trace)


async def trace_requests(vm: Vm, count: int = 1, op: str = "", timeout: float = 10) -> list[RequestTrace]:
    """Return the way of the next ``count`` disk requests (of one ``op``), fewer when ``timeout`` seconds of machine time pass before."""
    with RequestTracer(vm, count, op) as tracer:
        try:
            await wait_until(vm.partition, tracer.enough, timeout, lambda: f"{count} requests were traced")
        except (WaitTimeout, MachineEnded):
            pass  # what there is, is the answer
        return tracer.finished
