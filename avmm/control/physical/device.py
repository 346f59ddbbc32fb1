"""One physical device of a machine: its two sides, and how the buses are routed to the one that the guest has.

The invariant: the buses lead where the front says; nobody else routes its ports and memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from avmm.devices.device import Device, PortRange
from avmm.hypervisor.bus import Read, Route, Write
from avmm.hypervisor.partition import Partition
from avmm.interpose.front import Front, Way
from avmm.interpose.handover import Handover
from avmm.interpose.switch import Switch


class PhysicalDevice:
    """A device that can be virtualized, of any kind."""

    def __init__(self, partition: Partition, front: Front[Any], handover: Handover) -> None:
        self.partition = partition
        self.front = front
        self.handover = handover
        self.switch: Switch | None = None
        self._routes: dict[Way, Route] = {}

    @property
    def name(self) -> str:
        """What the device is called."""
        return self.front.name

    @property
    def mode(self) -> str:
        """``direct`` or ``virtualized``; while it is switched, what it was before."""
        return Way.DIRECT.value if self.front.target is self.front.physical else Way.VIRTUALIZED.value

    @property
    def interposed(self) -> list[str]:
        """What has been put between: it must go before the guest gets the device back."""
        return []

    def plug(self) -> None:
        """Be on the buses from now on."""
        self.partition.plug(self.front)
        self.front.on_route = self.route
        self.refresh()

    def routes(self, way: Way) -> Iterator[tuple[Device, tuple[PortRange, ...], Read, Write]]:
        """Say which ports of which devices are the device's, and what answers them that way."""
        read, write, _ = self.front.handlers_of(way)
        yield self.front, self.front.ports, read, write

    def refresh(self) -> None:
        """Look again where the device's ports are, and prepare each way to them: a switch only takes it."""
        ports, old = self.partition.ports, self._routes
        self._routes = {way: ports.add_route(self.routes(way), direct=way is Way.DIRECT) for way in Way}
        self.route()
        for route in old.values():
            ports.drop_route(route)

    def route(self) -> None:
        """Let the device's addresses be answered by who has it now."""
        front, memory = self.front, self.partition.address_space
        self.partition.ports.take(self._routes[front.way])
        if front.memory:
            read, write, direct = front.handlers
            memory.detach(front.memory)
            memory.attach(front, front.memory, read, write, direct=direct)

    def close(self) -> None:
        """The machine has ended."""
