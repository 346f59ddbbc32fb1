"""A host that records the screens of its machines, and that can be frozen, for those whose scenario fails."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from avmm.control.config import VmConfig
from avmm.control.host import Host
from avmm.control.vm import Vm
from avmm.cpu.script import Guest
from avmm.hypervisor.partition import RunState
from avmm.testing.screencast import Screencast

PATIENCE = 1.0
"""Seconds of the host's time for a machine to stand still; one that waits for something that never comes goes on."""


class RecordingHost(Host):
    """``casts`` has a recording of each machine, by name, if ``record`` is set."""

    def __init__(self, structure: str = "hybrid", *, record: bool = False) -> None:
        super().__init__(structure)
        self._record = record
        self.casts: dict[str, Screencast] = {}
        self.states: dict[str, RunState] = {}
        """What the machines did when they were frozen."""
        self.seconds = 0.0
        """Machine time when the test ended, that of the machine that was furthest."""

    async def create_vm(self, config: VmConfig | None = None, guest: Guest | None = None) -> Vm:
        vm = await super().create_vm(config, guest)
        if self._record:
            self.casts[vm.name] = Screencast(vm)
        return vm

    def note_the_time(self) -> None:
        """The test has ended."""
        self.seconds = round(max((vm.now for vm in self.vms.values()), default=0.0), 9)

    async def freeze(self) -> None:
        """Let all machines stand still, so that they can be looked at as they are now."""
        self.states = {vm.name: vm.state for vm in self.vms.values()}
        for vm in self.vms.values():
            with suppress(TimeoutError):
                async with asyncio.timeout(PATIENCE):
                    await vm.pause()
