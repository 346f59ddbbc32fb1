"""What it costs to virtualize a disk under a running guest, and to give it back: the measurement behind ``avmm demo devirtualize``.

A scripted guest reads a disk without pause, 16 sectors a request, and checks every sector, while the disk changes hands again and again.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from avmm.control.config import Disk, VmConfig
from avmm.control.host import Host
from avmm.control.vm import Vm
from avmm.cpu.script import ScriptCpu
from avmm.devices.block import SECTOR
from avmm.interpose.switch import SwitchReport

SECTORS, COUNT = 2048, 16
BASE = 0x1F0
ATTEMPTS = 5
ONLY_SHOWN = ("direct_after_mb_s", "rolled_back", "deferred_accesses", "host_pauses_us")


@dataclass
class Work:
    """What the guest has done."""

    requests: int = 0
    errors: int = 0
    """Requests that ended with an error."""
    lost: int = 0
    """Sectors whose content was not what it had to be."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A point of the chart."""

    mode: str
    mb_s: float
    exits_per_s: float


@dataclass(frozen=True, slots=True)
class Figures:
    """The result. Pauses as the guest's clocks show them, which is what the bound is about."""

    cycles: int
    errors: int
    lost: int
    pause_p50_us: float
    pause_p99_us: float
    pause_max_us: float
    bound_us: float
    direct_mb_s: float
    virtualized_mb_s: float
    exits_per_request_direct: float
    exits_per_request_virtualized: float
    direct_after_mb_s: float
    """Throughput in direct mode after all the cycles."""
    rolled_back: int
    deferred_accesses: int
    host_pauses_us: tuple[float, float, float]
    """The same three of the pauses in host time: with what the host took for others while the machine's time stood still."""

    def as_dict(self) -> dict[str, float]:
        """Return the figures that are compared from run to run, as JSON-ready types."""
        return {name: value for name, value in asdict(self).items() if name not in ONLY_SHOWN}


@dataclass
class Demo:
    """One run: iterate over :meth:`run` for the chart's samples, then take ``figures``."""

    cycles: int = 100
    bound: float = 0.002
    requests: int = 400
    figures: Figures | None = None
    reports: list[SwitchReport] = field(default_factory=list)
    work: Work = field(default_factory=Work)

    async def run(self) -> AsyncIterator[Sample]:
        """Measure direct, virtualized, switching, and direct again."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "disk.img"
            path.write_bytes(b"".join(lba.to_bytes(4, "little") * (SECTOR // 4) for lba in range(SECTORS)))
            config = VmConfig(name="devirtualize", memory="1M", disks=[Disk(path)], physical=("ata0",), clock="real")
            async with Host() as host:
                vm = await host.create_vm(config, lambda cpu: reader(cpu, self.work))
                await vm.start()
                direct, direct_exits = await self._measure(vm)
                yield Sample("direct", direct, 0.0)
                await self._switch(vm.virtualize, "between")
                virtualized, virtualized_exits = await self._measure(vm)
                yield Sample("virtualized", virtualized, virtualized * 1e6 / (COUNT * SECTOR) * virtualized_exits)
                await self._switch(vm.devirtualize, "between")
                for number in range(self.cycles):
                    async for sample in self._cycle(vm, ("between", "middle")[number % 2]):
                        yield sample
                after, _ = await self._measure(vm)
                yield Sample("direct", after, 0.0)
        self.figures = Figures(
            self.cycles, self.work.errors, self.work.lost, *_ranks([report.machine_pause_ns for report in self.reports]), self.bound * 1e6,
            direct, virtualized, direct_exits, virtualized_exits, after, sum(not report.done for report in self.reports),
            sum(report.deferred for report in self.reports), _ranks([report.pause_ns for report in self.reports]),
        )  # fmt: skip

    async def _cycle(self, vm: Vm, when: str) -> AsyncIterator[Sample]:
        for switch in (vm.virtualize, vm.devirtualize):
            await self._switch(switch, when)
            mb_s, exits = await self._measure(vm, 20)
            yield Sample(vm.physical["ata0"], mb_s, mb_s * 1e6 / (COUNT * SECTOR) * exits)

    async def _switch(self, switch: Callable[..., Awaitable[SwitchReport]], when: str) -> None:
        for attempt in range(ATTEMPTS):  # a bound may be too short, now or for ever: the last one goes past it
            on_bound = "defer" if attempt == ATTEMPTS - 1 else "rollback"
            self.reports.append(await switch("ata0", when=when, bound=self.bound, on_bound=on_bound))
            if self.reports[-1].done:
                return

    async def _measure(self, vm: Vm, requests: int = 0) -> tuple[float, float]:
        """Return MB/s and exits per request for a while."""
        first, begin, exits = self.work.requests, time.monotonic(), _exits(vm)
        last = first + (requests or self.requests)
        await vm.wait_until(lambda: self.work.requests >= last, 60, "the guest had read enough")
        made = self.work.requests - first
        return made * COUNT * SECTOR / (time.monotonic() - begin) / 1e6, (_exits(vm) - exits) / made


async def reader(cpu: ScriptCpu, work: Work) -> None:
    """A guest that reads the disk without pause, by polling, and checks every sector."""
    await cpu.outb(0x3F6, 2)
    lba = 0
    while True:
        for offset, value in ((6, 0xE0), (2, COUNT), (3, lba & 0xFF), (4, lba >> 8), (5, 0), (7, 0xC4)):
            await cpu.outb(BASE + offset, value)
        while (status := await cpu.inb(BASE + 7)) & 0x80:
            pass
        work.errors += status & 1
        data = await cpu.insw(BASE, COUNT * SECTOR // 2) if status & 8 else bytes(COUNT * SECTOR)
        wanted = b"".join(n.to_bytes(4, "little") for n in range(lba, lba + COUNT))
        work.lost += b"".join(data[at : at + 4] for at in range(0, len(data), SECTOR)) != wanted
        work.requests += 1
        lba = (lba + COUNT) % SECTORS


def _exits(vm: Vm) -> int:
    """Accesses to the disk's ports that were exits. A scripted processor counts none itself: the bus does."""
    return sum(tally.reads + tally.writes for tally in vm.partition.ports.every() if tally.device == "ata0" and not tally.direct)


def _ranks(pauses_ns: list[int]) -> tuple[float, float, float]:
    """Return the median, the 99th of 100 and the longest, in us."""
    pauses = sorted(pause / 1000 for pause in pauses_ns)
    middle, late = (pauses[min(len(pauses) - 1, int(len(pauses) * part))] for part in (0.5, 0.99))
    return middle, late, pauses[-1]
