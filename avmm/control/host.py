"""The host: the hypervisor with its service OS (VM-H), and the machines that run on it."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from avmm.control.assemble import assemble
from avmm.control.config import THREADS, ConfigError, VmConfig
from avmm.control.snapshot import Snapshot, clone_name, put
from avmm.control.switching import frequent_switches
from avmm.control.vm import Vm
from avmm.cpu.script import Guest
from avmm.host.service import ServiceOs
from avmm.host.structure import HostOs
from avmm.hypervisor.rounds import Rounds
from avmm.hypervisor.schedule import Schedule


class Host:
    """Runs virtual machines in this process. ``async with avmm.Host() as host:``; afterwards nothing of them is left."""

    def __init__(self, structure: str = "hybrid", threads: int = 1) -> None:
        if structure not in ("hybrid", "host"):
            raise ConfigError(f"there is no host structure {structure!r}: choose hybrid or host")
        self.structure = structure
        """``hybrid``: hypervisor and service OS; ``host``: host OS, kernel VMM and user-mode VMM (docs/placement.md)."""
        self.service = ServiceOs() if structure == "hybrid" else HostOs()
        if not 1 <= threads <= THREADS:
            raise ConfigError(f"{threads} threads are not possible: choose 1 to {THREADS}, at most one a processor of the host is useful")
        self.threads = threads
        """On how many of the host's processors the guests of different machines run at once (docs/control.md)."""
        self.schedule = Schedule(turns=threads)
        self.rounds = Rounds(self.schedule) if threads > 1 else None
        self.vms: dict[str, Vm] = {}
        self._switching = frequent_switches()

    async def __aenter__(self) -> Self:
        await self.service.__aenter__()
        self._switching.__enter__()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            for vm in list(self.vms.values()):
                await vm.shutdown()
        finally:
            try:
                await self.service.__aexit__(kind, error, trace)
            finally:
                self._switching.__exit__(None, None, None)

    async def create_vm(self, config: VmConfig | None = None, guest: Guest | None = None) -> Vm:
        """Make a machine, switched off. Raises ConfigError or ImageError with one sentence when it cannot be made.

        With ``guest``, a coroutine function taking a :class:`~avmm.cpu.script.ScriptCpu`, that runs on the machine instead of real code.
        """
        config = config if config is not None else VmConfig()
        if config.name in self.vms:
            raise ConfigError(f"there is a machine called {config.name} already: give this one another name")
        machine = await assemble(config, self.service, guest)
        partition, rounds = machine.partition, self.rounds
        partition.vcpu.share = self.schedule.share(config.name, config.weight, config.cap)
        if rounds is not None:
            partition.vcpu.make_fiber = lambda run_loop: rounds.fiber(run_loop, f"vm:{config.name}")
            partition.processor.house = rounds.house
        vm = self.vms[config.name] = Vm(config, machine, self)
        return vm

    async def clone(self, snapshot: Snapshot, name: str = "", *, config: VmConfig | None = None, paused: bool = False) -> Vm:
        """Make another machine from a snapshot, which goes on from there, or stands still there with ``paused``.

        Its memory is shared with all others of that snapshot until one of them writes. ``config`` describes the machine where the
        snapshot's own does not do: images that lie elsewhere, devices of one's own. Raises SnapshotError, and what
        :meth:`create_vm` raises; there is no machine then.
        """
        config = config or snapshot.config_for(name or clone_name(snapshot.config.name, set(self.vms)))
        vm = await self.create_vm(config)
        try:
            await put(vm, snapshot, sharing=True)
        except BaseException:
            await self.remove_vm(vm)
            raise
        await vm.partition.revive(paused=paused)
        return vm

    async def remove_vm(self, vm: Vm) -> None:
        """Shut a machine down and forget it."""
        await vm.shutdown()
        self.vms.pop(vm.name, None)
