"""The host: the hypervisor with its service OS (VM-H), and the machines that run on it."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from avmm.control.config import ConfigError, VmConfig
from avmm.control.machine import assemble
from avmm.control.vm import Vm
from avmm.host.service import ServiceOs


class Host:
    """Runs virtual machines in this process. ``async with avmm.Host() as host:``; afterwards nothing of them is left."""

    def __init__(self) -> None:
        self.service = ServiceOs()
        self.vms: dict[str, Vm] = {}

    async def __aenter__(self) -> Self:
        await self.service.__aenter__()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            for vm in list(self.vms.values()):
                await vm.shutdown()
        finally:
            await self.service.__aexit__(kind, error, trace)

    async def create_vm(self, config: VmConfig | None = None) -> Vm:
        """Make a machine, switched off. Raises ConfigError or ImageError with one sentence when it cannot be made."""
        config = config if config is not None else VmConfig()
        if config.name in self.vms:
            raise ConfigError(f"there is a machine called {config.name} already: give this one another name")
        machine = await assemble(config, self.service)
        vm = self.vms[config.name] = Vm(config, machine)
        return vm

    async def remove_vm(self, vm: Vm) -> None:
        """Shut a machine down and forget it."""
        await vm.shutdown()
        self.vms.pop(vm.name, None)
