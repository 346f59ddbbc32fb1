"""Where devices are connected to the buses: inside, called in the middle of an exit, or outside, through I/O request packets.

The invariant: a device that could not be connected everywhere it wants to answer is connected nowhere.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from avmm.devices.device import Device, PortRange
from avmm.hypervisor.bus import MemoryBus, PortBus, Wait
from avmm.hypervisor.irp import Irp, IrpKind


class Plugboard:
    """The port and memory bus of one machine. ``send`` takes a packet for a device outside and returns what its feedback is awaited on."""

    def __init__(self, partition: str, wait: Wait, send: Callable[[Irp], Irp]) -> None:
        self.ports = PortBus(wait)
        self.address_space = MemoryBus(wait)
        self._partition = partition
        self._send = send

    def attach(self, device: Device, inside: bool) -> None:
        """Let a device answer its ports and its memory. BusError, and nothing has changed, when another one answers there."""
        read, write, load, store = self._answers(device, inside)
        self.ports.attach(device, device.ports, read, write, inside=inside)
        try:
            self.address_space.attach(device, device.memory, load, store, inside=inside)
        except ValueError:
            self.ports.detach(device.ports, device)
            raise

    def detach(self, device: Device) -> None:
        """Let nobody answer there any more."""
        self.ports.detach(device.ports, device)
        self.address_space.detach(device.memory)

    def move_ports(self, device: Device, before: tuple[PortRange, ...], inside: bool) -> None:
        """A device's ``ports`` changed. BusError when the new ones are another device's; they answer nowhere then."""
        self.ports.detach(before, device)  # a move that was refused left those ports to another device
        read, write, _, _ = self._answers(device, inside)
        self.ports.attach(device, device.ports, read, write, inside=inside)

    def window_done(self, device: Device, port: int) -> Irp:
        """Tell a device outside that the data window on its port is used up."""
        return self._send(Irp(IrpKind.WINDOW_DONE, device, port, partition=self._partition))

    def _answers(self, device: Device, inside: bool) -> tuple[Any, Any, Any, Any]:
        """What the buses call for a device in its place: port read and write, load and store."""
        if inside:
            return device.read, device.write, device.read_memory, device.write_memory

        def send(kind: IrpKind, address: int, size: int, value: int = 0) -> Irp:
            return self._send(Irp(kind, device, address, size, value, partition=self._partition))

        return (
            lambda port, size: send(IrpKind.PORT_READ, port, size),
            lambda port, size, value: send(IrpKind.PORT_WRITE, port, size, value),
            lambda address, size: send(IrpKind.MEMORY_READ, address, size),
            lambda address, size, value: send(IrpKind.MEMORY_WRITE, address, size, value),
        )
