"""The host structure that is not hybrid: a host OS with a kernel VMM, and a user-mode VMM beside it.

In the hybrid structure (:class:`~avmm.host.service.ServiceOs`) an access that leaves the hypervisor goes to the service OS,
which runs the device models. In the host structure the hypervisor's part is a kernel VMM, and the control panel and the device
models are a user-mode process. An Irp goes from the kernel VMM to the host OS (task "host-os"), which wakes the user-mode VMM
(task "user-vmm"): one hop more. A device model may also be a driver in the host OS, outside the kernel VMM; then the Irp
is answered there, and the user-mode VMM never hears of it.

The invariant is that of the service OS: each device sees its Irps in order, one at a time, and every Irp is answered.
"""

from __future__ import annotations

from avmm.devices.device import Device
from avmm.host.router import ROUTER_INBOX, IrpStage, Item, OutsideDevice
from avmm.host.service import ServiceOs
from avmm.hypervisor.irp import Irp


class HostOs(ServiceOs):
    """A host OS under a kernel VMM, with the user-mode VMM on it. Used as a :class:`ServiceOs` is."""

    def __init__(self) -> None:
        super().__init__("host-os")
        self.user = UserVmm(self)
        self.drivers: set[Device] = set()
        """The device models that are in the host OS itself."""

    async def __aenter__(self) -> HostOs:
        await super().__aenter__()
        self.user.start(self._group)
        return self

    async def stop(self) -> None:
        await super().stop()
        await self.user.stop()

    def add_driver(self, device: Device, name: str = "") -> OutsideDevice:
        """Start a device model in the host OS instead of the user-mode VMM."""
        outside = self.add(device, name)
        self.drivers.add(device)
        return outside

    def withdraw(self, device: Device) -> OutsideDevice | None:
        self.drivers.discard(device)
        return super().withdraw(device)

    async def perform(self, item: Item) -> None:
        """Answer an Irp for a driver; hand everything else to the user-mode VMM."""
        assert isinstance(item, Irp)
        if item.device in self.drivers:
            await self.route(item, self.name)
            return
        item.hop(self.name)
        if not self.user.offer(item):
            await self.user.put(item)


class UserVmm(IrpStage):
    """The user-mode VMM: its router task, behind the host OS."""

    def __init__(self, host: HostOs) -> None:
        super().__init__("user-vmm", ROUTER_INBOX)
        self._host = host

    async def perform(self, item: Item) -> None:
        assert isinstance(item, Irp)
        await self._host.route(item, self.name)
