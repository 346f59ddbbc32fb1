"""Where a machine's devices live, and moving them: what ``vm.install`` and ``vm.uninstall`` do.

The mechanism is :mod:`avmm.hypervisor.install`; this is the machine's side of it: which instance takes whose place, and how it
is connected. A device is always moved as a new instance of the class that came through the channel, also when that is the
same class: one way for all of them, and a new image differs from the old one in nothing but its code.

The invariant: an exchange is complete or has not happened; nothing here waits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from avmm.control.parts import PARTS, Part
from avmm.devices.device import Device
from avmm.host.service import ServiceOs
from avmm.host.structure import HostOs
from avmm.hypervisor.image import channel
from avmm.hypervisor.install import Installer, InstallReport, Refused
from avmm.hypervisor.slot import Slot

if TYPE_CHECKING:
    from avmm.control.machine import Machine

PLACES = ("hypervisor", "service", "kernel")
"""Where a device model can be; ``kernel``, in the host OS but outside the kernel VMM, only in the host structure."""
OUTSIDE_BY_DEFAULT = frozenset({"ata0", "ata1", "bmide"})
ALIASES = {"mouse": "keyboard"}
"""Devices that live in another one: the mouse is plugged into the keyboard controller."""


def places(service: ServiceOs) -> tuple[str, ...]:
    """Return the places there are in a host structure."""
    return PLACES if isinstance(service, HostOs) else PLACES[:2]


def add_outside(service: ServiceOs, device: Device, name: str, place: str) -> None:
    """Start the task of a device outside: in the service OS, or as a driver in the host OS; nothing for one that is inside."""
    if place == "kernel":
        assert isinstance(service, HostOs)
        service.add_driver(device, name)
    elif place == "service":
        service.add(device, name)


@dataclass(slots=True)
class Exchange:
    """One instance about to take another's place, and how far that has come."""

    old: Device
    new: Device
    part: Part
    before: str
    wanted: str
    replugged: bool = False
    withdrawn: bool = False


class MachineSite:
    """A machine as its installer sees it."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.partition = machine.partition
        self._origins: dict[str, str] = {}
        self._known: dict[tuple[str, str], type[Device]] = {}

    def place(self, device: str) -> str:
        try:
            return self.partition.placement[device]
        except KeyError:
            known = ", ".join(name for name, live in self.partition.devices.items() if isinstance(live.board, Slot))
            raise Refused(f"this machine has no device called {device} (it has {known})") from None

    def origin(self, device: str) -> str:
        return self._origins.get(device, "builtin")

    def probe(self, device: str, wanted: str) -> str:
        live = self.partition.devices[device]
        if not isinstance(live.board, Slot):
            raise Refused("it is no device model that can be moved, but firmware or a physical device")
        there = places(self.machine.service)
        if wanted not in there:
            raise Refused(f"there is no place called {wanted}: choose {' or '.join(there)}")
        ports = sum(span.count for span in live.ports)
        memory = sum(span.size for span in live.memory)
        return f"{type(live).__qualname__}: {ports} ports, {memory >> 10} KiB of memory"

    def known(self, device: str, key: str) -> type[Device] | None:
        return self._known.get((device, key))

    def transfer(self, device: str, image: type[Device], wanted: str) -> Exchange:
        old = self.partition.devices[device]
        part = self.machine.part(device)
        slot = Slot(self.partition, inside=wanted == "hypervisor", lit=False)
        try:
            state = old.save()
            new = part.make(image, slot, old)
            if new.name != device:
                raise ValueError(f"the image is one of {new.name}, not of {device}")
            new.restore(suited(state, new))
        except BaseException:
            slot.discard()
            part.wire(self.machine, old, old)  # making an instance may have connected it
            raise
        return Exchange(old, new, part, self.partition.placement[device], wanted)

    def switch(self, exchange: Exchange, key: str) -> None:
        old, new = exchange.old, exchange.new
        self.partition.replug(old, new, exchange.wanted)
        exchange.replugged = True
        exchange.part.connect(self.machine, old, new)
        service = self.machine.service
        exchange.withdrawn = service.withdraw(old) is not None
        add_outside(service, new, f"{self.partition.name}/{new.name}", exchange.wanted)
        assert isinstance(new.board, Slot)
        assert isinstance(old.board, Slot)
        new.board.take_over(old.board)
        self._origins[new.name] = key
        self._known[new.name, key] = type(new)

    def undo(self, exchange: Exchange) -> None:
        old, new = exchange.old, exchange.new
        assert isinstance(new.board, Slot)
        if exchange.replugged:
            self.machine.service.withdraw(new)
            self.partition.replug(new, old, exchange.before)
            for observer in self.machine.on_exchange:
                observer(new, old)
        exchange.part.wire(self.machine, old, old)
        if exchange.withdrawn:
            add_outside(self.machine.service, old, f"{self.partition.name}/{old.name}", exchange.before)
        new.board.discard()

    async def at_boundary(self, action: Callable[[], None]) -> None:
        await self.partition.at_boundary(action)

    def now(self) -> int:
        return self.partition.clock.now()

    def trace(self, event: str, **fields: object) -> None:
        self.partition.trace(event, **fields)


def suited(state: object, device: Device) -> object:
    """Return ``state`` as the device's own ``State`` when another image of the same device saved it, field by field.

    An image from a file has classes of its own, also where it is a copy of the built-in one.
    """
    own: Any = getattr(type(device), "State", None)
    if not isinstance(own, type) or isinstance(state, own):
        return state
    wanted, given = getattr(own, "__dataclass_fields__", {}), getattr(state, "__dataclass_fields__", {})
    if not wanted or wanted.keys() != given.keys():
        return state  # the device says what it thinks of it
    return own(**{name: getattr(state, name) for name in given})


class Placement:
    """Where the devices of a machine live. ``vm.placement["pit"]`` tells; ``install`` and ``uninstall`` move them."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._installer = Installer(MachineSite(machine))

    def __getitem__(self, device: str) -> str:
        return self._machine.partition.placement[ALIASES.get(device, device)]

    def as_dict(self) -> dict[str, str]:
        """Return the place of each device that can be moved."""
        partition = self._machine.partition
        return {name: partition.placement[name] for name, live in partition.devices.items() if isinstance(live.board, Slot)}

    async def move(self, device: str, wanted: str, image: str = "builtin", sha256: str = "") -> InstallReport:
        """Bring a device to ``hypervisor``, ``service`` or (in the host structure) ``kernel``; see ``Vm.install``."""
        name = ALIASES.get(device, device)
        live = self._machine.partition.devices.get(name)
        part = PARTS.get(name)
        builtin = part.image if part is not None else type(live) if live is not None else Device  # the installer refuses what is not there
        way = channel(image, sha256, builtin=builtin)
        return await self._installer.move(name, wanted, way, f"{image} {sha256}".strip())
