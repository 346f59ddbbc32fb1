"""Changing who drives a machine's physical devices: what ``vm.virtualize`` and ``vm.devirtualize`` do.

The mechanism is :mod:`avmm.interpose`; this is the machine's side of it: which devices there are, and how the caller's task waits for a
switch that happens in the guest's accesses.

The invariant: one switch of a device at a time; a call returns a report, or raises, exactly once, also when the machine ends.
"""

from __future__ import annotations

import asyncio
from typing import TypeVar

from avmm.clock import MILLISECOND, SECOND
from avmm.control.physical.device import PhysicalDevice
from avmm.hypervisor.partition import Partition, RunState
from avmm.interpose.front import Way
from avmm.interpose.switch import Plan, Step, Switch, SwitchReport

D = TypeVar("D", bound=PhysicalDevice)
EAGER = 20 * MILLISECOND
"""How long a switch in the middle of a sequence waits for the guest to begin one."""


class VirtualizeError(ValueError):
    """The device cannot be switched now; one sentence says why. Nothing was changed."""


class PhysicalDevices:
    """The physical devices of one machine, by name."""

    def __init__(self, partition: Partition) -> None:
        self.partition = partition
        self.devices: dict[str, PhysicalDevice] = {}

    def add(self, device: D) -> D:
        """Add one, and return it."""
        self.devices[device.name] = device
        return device

    def refresh(self) -> None:
        """The bus master's ports have moved."""
        for device in self.devices.values():
            device.refresh()

    def find(self, device: str) -> PhysicalDevice:
        """Return a device. VirtualizeError when there is none of that name."""
        found = self.devices.get(device)
        if found is None:
            if device in self.partition.devices:
                raise VirtualizeError(f"{device} is no physical device: name it in the machine's `physical`")
            raise VirtualizeError(f"this machine has no device called {device}")
        return found

    async def switch(  # noqa: PLR0917 - the order of Vm.virtualize
        self,
        device: str,
        virtualize: bool,
        when: str,
        bound: float,
        on_bound: str,
        patience: float,
    ) -> SwitchReport:
        """Switch a device; see ``Vm.virtualize``."""
        found = self.find(device)
        if when not in ("between", "middle"):
            raise VirtualizeError(f"there is no {when!r} to switch at: choose between or middle")
        if on_bound not in ("rollback", "defer"):
            raise VirtualizeError(f"there is no {on_bound!r} for what to do past the bound: choose rollback or defer")
        if bound <= 0 or patience <= 0:
            raise VirtualizeError("bound and patience are seconds, more than none")
        plan = Plan(virtualize, when == "middle", int(bound * SECOND), on_bound == "defer", int(patience * SECOND), EAGER)
        begun: list[Switch] = []
        ended: asyncio.Future[SwitchReport] = asyncio.get_running_loop().create_future()

        def watch(state: RunState) -> None:
            if state.ended and not ended.done():
                ended.set_exception(VirtualizeError(f"the machine went off before {device} was switched"))

        self.partition.observers.append(watch)
        try:
            await self.partition.at_boundary(lambda: begun.append(self._begin(found, plan, ended)))
            return await ended
        except asyncio.CancelledError:
            for switch in begun:
                switch.cancel()  # or it is finished, when it is too late for that
            raise
        except VirtualizeError:
            for switch in begun:
                switch.abandon()
            raise
        finally:
            self.partition.observers.remove(watch)

    def _begin(self, device: PhysicalDevice, plan: Plan, ended: asyncio.Future[SwitchReport]) -> Switch:
        name, front = device.name, device.front
        if self.partition.state.ended:
            raise VirtualizeError("the machine is off")
        if device.switch is not None and device.switch.step is not Step.ENDED:
            raise VirtualizeError(f"{name} is being switched already")
        if (front.way is Way.VIRTUALIZED) is plan.virtualize:
            raise VirtualizeError(f"{name} is {front.way.value} already")
        if not plan.virtualize and device.interposed:
            raise VirtualizeError(f"{name} has interposers ({', '.join(device.interposed)}): remove them first")

        def done(report: SwitchReport) -> None:
            self.partition.trace("switch", device=name, to=report.to, outcome=report.outcome.name, stage=report.stage)
            if not ended.done():
                ended.set_result(report)

        device.switch = Switch(front, device.handover, plan, done)
        return device.switch
