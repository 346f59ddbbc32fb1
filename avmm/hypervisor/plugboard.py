"""The devices of a machine and where they are connected to its buses: inside, called in the middle of an exit, or outside, through
I/O request packets.

Which of the two is decided for each access: a device outside may have plain registers (``Device.plain``), which it shares with the
hypervisor. Those are looked at or set in the exit; whatever does more is a packet, and finds them as the guest left them.

The invariant: a device that could not be connected everywhere it wants to answer is connected nowhere.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from avmm.devices.device import Device, PortRange
from avmm.hypervisor.bus import MemoryBus, PortBus
from avmm.hypervisor.irp import Irp, IrpKind
from avmm.hypervisor.slot import Slot


class Plugboard:
    """The devices and the buses of one machine.

    ``wait`` waits in the middle of an instruction; ``send`` takes a packet for a device outside; it is awaited for the feedback.
    """

    def __init__(self, partition: str, wait: Callable[[Awaitable[Any]], int], send: Callable[[Irp], Irp]) -> None:
        self.ports = PortBus(wait)
        self.address_space = MemoryBus(wait)
        self.devices: dict[str, Device] = {}
        self.placement: dict[str, str] = {}
        self._windows: dict[int, Device] = {}
        """Whose the data window on a port was when it was used up last."""
        self._partition = partition
        self._wait = wait
        self._send = send

    def plug(self, device: Device, *, inside: bool = True) -> None:
        """Connect a device to the buses, inside the hypervisor or with the service OS outside."""
        if device.name in self.devices:
            raise ValueError(f"this machine has a device called {device.name} already")
        self._attach(device, inside)
        self.devices[device.name] = device
        self.placement[device.name] = "hypervisor" if inside else "service"

    def replug(self, old: Device, new: Device, place: str) -> None:
        """Let ``new`` answer instead of ``old``, in ``place`` from now on. BusError, and nothing has changed, when it cannot."""
        self._detach(old)
        try:
            self._attach(new, inside=place == "hypervisor")
        except ValueError:
            self._attach(old, self._inside(old))
            raise
        self.devices[old.name] = new
        self.placement[old.name] = place
        self._windows.clear()

    def unplug(self, device: Device) -> None:
        """Take a device off the buses. Nothing of it may be in progress."""
        self._detach(device)
        del self.devices[device.name], self.placement[device.name]
        self._windows.clear()

    def move_ports(self, device: Device, before: tuple[PortRange, ...]) -> None:
        """A device's ``ports`` changed. BusError when the new ones are another device's; they answer nowhere then."""
        if device.name not in self.devices:
            return
        self.ports.detach(before, device)  # a move that was refused left those ports to another device
        inside = self._inside(device)
        read, write, _, _ = self._answers(device, inside)
        self.ports.attach(device, device.ports, read, write, inside=inside)

    def window_done(self, port: int) -> None:
        """Tell the device on a port, wherever it lives, that its data window is used up."""
        device = self._windows.get(port)
        if device is None:
            name = self.ports.owner(port)
            if name is None:
                return
            device = self._windows[port] = self.devices[name]
        if isinstance(device.board, Slot):
            device.board.window_done(port)
        if self._inside(device):
            waiting = device.window_done(port)
            if waiting is not None:
                self._wait(waiting)
        else:
            self._wait(self._send(Irp(IrpKind.WINDOW_DONE, device, port, partition=self._partition)))

    def _inside(self, device: Device) -> bool:
        return self.placement[device.name] == "hypervisor"

    def _attach(self, device: Device, inside: bool) -> None:
        """Let a device answer its ports and its memory. BusError, and nothing has changed, when another one answers there."""
        read, write, load, store = self._answers(device, inside)
        self.ports.attach(device, device.ports, read, write, inside=inside)
        try:
            self.address_space.attach(device, device.memory, load, store, inside=inside)
        except ValueError:
            self.ports.detach(device.ports, device)
            raise

    def _detach(self, device: Device) -> None:
        """Let nobody answer there any more."""
        self.ports.detach(device.ports, device)
        self.address_space.detach(device.memory)

    def _answers(self, device: Device, inside: bool) -> tuple[Any, Any, Any, Any]:
        """What the buses call for a device in its place: port read and write, load and store."""
        if inside:
            return device.read, device.write, device.read_memory, device.write_memory

        def send(kind: IrpKind, address: int, size: int, value: int = 0) -> Irp:
            return self._send(Irp(kind, device, address, size, value, partition=self._partition))

        ports, plain = self.ports, device.plain

        def read(port: int, size: int) -> int | Awaitable[int]:
            if plain(port, size):
                ports.plain += 1
                return device.read(port, size)
            return send(IrpKind.PORT_READ, port, size)

        def write(port: int, size: int, value: int) -> Awaitable[Any] | None:
            if plain(port, size, value):
                ports.plain += 1
                return device.write(port, size, value)
            return send(IrpKind.PORT_WRITE, port, size, value)

        return (
            read,
            write,
            lambda address, size: send(IrpKind.MEMORY_READ, address, size),
            lambda address, size, value: send(IrpKind.MEMORY_WRITE, address, size, value),
        )
