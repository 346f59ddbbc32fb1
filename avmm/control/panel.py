"""The control panel of a running host: the machines of a description, a QMP socket for each and one for all, metrics.

The invariant: whatever fails or is cancelled on the way up or down, afterwards no machine, socket, task or port is left.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from avmm.boot.errors import BootError
from avmm.control.commands import COMMANDS, Target
from avmm.control.config import ConfigError, VmConfig
from avmm.control.description import Description
from avmm.control.host import Host
from avmm.control.metrics import MetricsServer
from avmm.control.qmp import QmpServer
from avmm.control.seat import LocalSeat, SeatServer
from avmm.control.sockets import CONSOLE_SUFFIX, SUFFIX, make_private, runtime_folder
from avmm.control.vm import Vm
from avmm.cpu.engine import ProcessorError
from avmm.host.opening import ImageError
from avmm.hypervisor.partition import RunState


class Panel:
    """A host as described. ``async with Panel(description) as panel: await panel.ended()``."""

    def __init__(self, description: Description) -> None:
        self.description = description
        self.host = Host(description.host.structure, description.host.threads)
        self.metrics: MetricsServer | None = None
        self.everything: QmpServer | None = None
        """The socket that controls all machines."""
        self.sockets: dict[str, QmpServer] = {}
        """Each machine's own socket."""
        self.consoles: dict[str, SeatServer] = {}
        """Where consoles attach to each machine."""
        self._held = AsyncExitStack()
        self._quit = asyncio.Event()
        self._closing: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        try:
            await self._up()
        except BaseException:
            await self._held.aclose()
            raise
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self._held.aclose()

    async def _up(self) -> None:
        description = self.description
        folder = make_private(description.host.runtime or runtime_folder())
        await self._held.enter_async_context(self.host)
        target = Target(self.host, COMMANDS, self._end)
        vms = [await self._make(config) for config in description.vms]
        self._held.push_async_callback(self._finish_closing)
        self.everything = QmpServer(description.host.qmp or folder / f"@{description.path.stem}{SUFFIX}", target)
        await self._serve(self.everything)
        for vm in vms:
            target.watch(vm)
            path = description.sockets.get(vm.name, folder / f"{vm.name}{SUFFIX}")
            server = self.sockets[vm.name] = QmpServer(path, Target(self.host, COMMANDS, self._end, vm))
            await self._serve(server)
            await self._seat(vm, path.with_suffix(CONSOLE_SUFFIX))
            vm.partition.observers.append(self._changed)
        if description.host.metrics_port is not None:
            self.metrics = MetricsServer(self.host, description.host.metrics_port)
            await self.metrics.start()
            self._held.push_async_callback(self.metrics.close)
        for vm in vms:
            await vm.start()

    async def _make(self, config: VmConfig) -> Vm:
        here = ("vm", config.name)
        try:
            vm = await self.host.create_vm(config)
        except (ConfigError, BootError, ImageError, ProcessorError) as error:
            raise self.description.wrong(str(error), *here, *_image_at_fault(config, str(error))) from None
        for device in config.placement:
            if device not in vm.partition.devices:
                known = ", ".join(sorted(vm.partition.devices))
                raise self.description.wrong(f"there is no device {device!r} to be placed: choose of {known}", *here, "placement", device)
        return vm

    async def _serve(self, server: QmpServer) -> None:
        await server.start()
        self._held.push_async_callback(server.close)

    async def _seat(self, vm: Vm, path: Path) -> None:
        """Let consoles attach to a machine."""
        seat = await self._held.enter_async_context(LocalSeat(vm))
        server = self.consoles[vm.name] = SeatServer(path, seat)
        await server.start()
        self._held.push_async_callback(server.close)

    # -- the end

    def _changed(self, state: RunState) -> None:
        if state.ended and all(vm.state.ended for vm in self.host.vms.values()):
            self._quit.set()

    async def ended(self) -> None:
        """Wait until every machine has ended, or somebody said quit. Machines that have ended stay to be looked at until then."""
        await self._quit.wait()

    async def _end(self, vm: Vm | None) -> None:
        """Carry out ``quit``: for one machine, or for all."""
        vms = list(self.host.vms.values()) if vm is None else [vm]
        for one in vms:
            if not one.state.ended:
                await one.partition.stop("quit")
        if vm is None:
            self._quit.set()
            return
        task = asyncio.get_running_loop().create_task(self._remove(vm), name=f"quit:{vm.name}")
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def _remove(self, vm: Vm) -> None:
        """Forget a machine; its clients read the answer to their ``quit`` before the socket goes."""
        server = self.sockets.pop(vm.name, None)
        if server is not None:
            await asyncio.sleep(0)
            await server.close()
        console = self.consoles.pop(vm.name, None)
        if console is not None:
            await console.close()
        if self.everything is not None:
            self.everything.target.unwatch(vm)
        if self.host.vms.get(vm.name) is vm:
            await self.host.remove_vm(vm)
        if not self.host.vms:
            self._quit.set()

    async def _finish_closing(self) -> None:
        while self._closing:
            await asyncio.gather(*self._closing, return_exceptions=True)


def _image_at_fault(config: VmConfig, sentence: str) -> tuple[str | int, ...]:
    """Return where in the machine's table the image is that an error names."""
    for key, disks in (("disks", config.disks), ("floppies", config.floppies)):
        for number, disk in enumerate(disks):
            if str(disk.path) in sentence:
                return key, number
    return ("cdrom",) if config.cdrom is not None and str(config.cdrom) in sentence else ()
