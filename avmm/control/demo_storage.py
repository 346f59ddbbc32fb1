"""What a disk request costs by each path from guest to VM-H: measured on a running machine, always the same disk.

The guest reads and writes with direct I/O of three sizes, one and eight requests at a time. VM-H's disk is where all paths meet,
so the meter sits there: it notes when each request is finished. With N requests at a time, the one that is finished N places
later was sent when this one was: the time between the two is what one request takes, the guest's part included. Exits, signals
and interrupts are the machine's own counts; an I/O request packet is an access sent outside, or a request to the storage stack.
Bytes copied are all that this side moves for a request: between page cache and buffers or guest memory, buffer and buffer, through
a data port, in and out of descriptors and rings. Where the data go straight between page cache and guest memory it is their size once;
a request for which the page cache is not ready, as on a host with little memory or much to write, goes by a buffer: twice.

The invariant: the paths differ in nothing but the driver the guest uses.
"""

from __future__ import annotations

import asyncio
import re
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from time import monotonic_ns

from avmm.control.config import Disk, VmConfig
from avmm.control.host import Host
from avmm.control.vm import Vm
from avmm.devices.block import SECTOR
from avmm.host.requests import Op, StorageRequest

SIZES = (512, 4096, 65536)
DEPTHS = (1, 8)
OPERATIONS = ("read", "write")
BUILTIN_TIMEOUT = 60  # s of machine time
SETTLED = 0.7  # s; until then the built-in guest has no time stamp counter to go by and asks the 8254 for the time


@dataclass(frozen=True, slots=True)
class Measurement:
    """One path, operation, size and depth. The last five are per request."""

    path: str
    op: str
    size: int
    depth: int
    mb_s: float
    iops: float
    p50_us: float
    p99_us: float
    exits: float
    irps: float
    signals: float
    interrupts: float
    copied: float
    """Bytes."""

    def as_dict(self) -> dict[str, object]:
        """Return it as JSON-ready types, rounded as far as they mean something."""
        return {name: round(value, 3) if isinstance(value, float) else value for name, value in asdict(self).items()}


Report = Callable[[Measurement], None]
"""Told of each measurement as soon as it is made."""


@dataclass(frozen=True, slots=True)
class Counters:
    """The machine's counts at one moment."""

    exits: int
    irps: int
    signals: int
    interrupts: int
    copied: int


def counters(vm: Vm) -> Counters:
    """Return the counts of ``vm`` now."""
    stats, machine = vm.stats, vm.machine
    return Counters(
        exits=sum(count for kind, count in stats.exits.items() if kind != "interrupt"),
        irps=stats.outside + machine.disks[0].stats.requests,
        signals=sum(channel.stats.signals for channel in machine.disk_channels()),
        interrupts=stats.injected,
        copied=machine.partition.memory.copied + machine.disks[0].stats.copied,
    )


class Segment:
    """A number of requests of one size: when each piece of them was finished."""

    def __init__(self, size: int, requests: int) -> None:
        self.size = size
        self.left = size * requests
        self.pieces: list[tuple[int, int, int]] = []
        """(host ns, first byte on the disk, bytes)."""
        self.first: Counters | None = None
        self.last: Counters | None = None

    def window(self, streams: int) -> list[tuple[int, int]]:
        """Return (host ns, bytes) of the pieces finished while all of ``streams`` processes, each with its part of the disk, ran."""
        pieces = self.pieces
        if streams > 1:
            part = (sum(count for _, _, count in pieces)) // streams
            of_stream: dict[int, list[int]] = {}
            for now, at, _ in pieces:
                of_stream.setdefault(at // part, []).append(now)
            begin, end = max(times[0] for times in of_stream.values()), min(times[-1] for times in of_stream.values())
            inner = [piece for piece in pieces if begin <= piece[0] <= end]
            if sum(count for _, _, count in inner) >= 4 * streams * self.size:
                pieces = inner
        return [(now, count) for now, _, count in pieces]

    def finished(self, streams: int) -> list[int]:
        """Return when each whole request in the window was finished, from a beginning that counts as one."""
        pieces = self.window(streams)
        times, total, whole = [pieces[0][0]], 0, 0
        for now, count in pieces[1:]:
            total += count
            while total >= (whole + 1) * self.size:
                whole += 1
                times.append(now)
        return times

    def measurement(self, path: str, op: str, depth: int, streams: int = 1) -> Measurement:
        """Return the figures. ``streams``: processes that were started one after the other, each with its part of the disk."""
        times = self.finished(streams)
        spent = max(1, times[-1] - times[0])
        latencies = sorted(later - sooner for sooner, later in zip(times, times[depth:], strict=False)) or [spent]
        per_second = (len(times) - 1) * 1e9 / spent
        requests = max(1.0, sum(count for _, _, count in self.pieces[1:]) / self.size)
        first, last = self.first, self.last
        assert first is not None
        assert last is not None
        return Measurement(
            path, op, self.size, depth, per_second * self.size / 1e6, per_second,
            latencies[(len(latencies) - 1) // 2] / 1000, latencies[(len(latencies) - 1) * 99 // 100] / 1000,
            (last.exits - first.exits) / requests, (last.irps - first.irps) / requests,
            (last.signals - first.signals) / requests, (last.interrupts - first.interrupts) / requests,
            (last.copied - first.copied) / requests,
        )  # fmt: skip


class Meter:
    """Watches a machine's first disk. ``with Meter(vm) as meter: meter.expect(...)``, then have the guest do it."""

    def __init__(self, vm: Vm) -> None:
        self._vm = vm
        self._op = Op.READ
        self._coming: Iterator[Segment] = iter(())
        self._current: Segment | None = None

    def __enter__(self) -> Meter:
        self._vm.machine.disks[0].watch(self._finished)
        return self

    def __exit__(self, *exception: object) -> None:
        self._vm.machine.disks[0].watch(None)

    def expect(self, op: str, segments: list[Segment]) -> None:
        """Have the requests that come now counted to ``segments``, one after the other; what comes after them is not counted."""
        self._op = Op(op)
        self._coming = iter(segments)
        self._current = next(self._coming, None)

    def _finished(self, request: StorageRequest) -> None:
        segment = self._current
        if segment is None or request.op is not self._op or request.error is not None:
            return
        length = request.count * SECTOR
        segment.pieces.append((monotonic_ns(), request.lba * SECTOR, length))
        if segment.first is None:
            segment.first = counters(self._vm)
        segment.left -= length
        if segment.left <= 0:
            segment.last = counters(self._vm)
            self._current = next(self._coming, None)


# -- the built-in guest

MODES = {
    "pio": ("mode emulated", "disk pio"),
    "dma": ("mode emulated", "disk dma"),
    "shunt": ("mode shunt-only",),
    "enlightened": ("mode enlightened",),
}
PROMPT = "\nok> "
_REQUESTS = {65536: 64, 4096: 256, 512: 256}
"""What one ``bench disk`` of the guest does, in this order."""


class DemoError(Exception):
    """The guest did not do what the demonstration needs; one sentence says what."""


async def say(vm: Vm, line: str) -> str:
    """Have the built-in guest carry out a command, and return what it printed."""
    vm.serial.write(line + "\n")
    return (await vm.serial.wait_for(PROMPT, BUILTIN_TIMEOUT)).partition("\n")[2].removesuffix(PROMPT.strip("\n")).replace("\r", "")


async def switch(vm: Vm, path: str) -> None:
    """Have the built-in guest reach its disk by a path. DemoError when it cannot."""
    for line in MODES[path]:
        answer = (await say(vm, line)).strip()
        if answer and not answer.startswith("mode: "):
            raise DemoError(f"The built-in guest cannot go by {path}: {answer}")


@asynccontextmanager
async def booted(image: str | Path) -> AsyncIterator[Vm]:
    """Run the built-in guest on a copy of ``image``, up to its prompt, in real time."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "guest.img"
        await asyncio.to_thread(shutil.copy, image, copy)
        async with Host() as host:
            vm = await host.create_vm(VmConfig(name="storage", memory="8M", disks=[Disk(copy)], hyperv=True, clock="real"))
            await vm.start()
            await vm.serial.wait_for("ok> ", BUILTIN_TIMEOUT)
            await vm.sleep(SETTLED)
            yield vm


async def demo_builtin(
    image: str | Path, report: Report = lambda one: None, *, quick: bool = False, rounds: int = 1
) -> list[Measurement]:
    """Measure the four paths of the built-in guest on a copy of ``image``: of so many rounds the best counts.

    ``quick`` leaves depth 8 and writes out.
    """
    found = []
    async with booted(image) as vm:
        with Meter(vm) as meter:
            for path in MODES:
                await switch(vm, path)
                for op in OPERATIONS[: 1 if quick else None]:
                    for depth in DEPTHS[: 1 if quick else None]:
                        measured = [await _bench(vm, meter, path, op, depth) for _ in range(rounds)]
                        for one in (max(alike, key=lambda each: each.mb_s) for alike in zip(*measured, strict=True)):
                            report(one)
                            found.append(one)
            await switch(vm, "pio")
    return found


async def _bench(vm: Vm, meter: Meter, path: str, op: str, depth: int) -> list[Measurement]:
    segments = [Segment(size, requests) for size, requests in _REQUESTS.items()]
    meter.expect(op, segments)
    said = await say(vm, f"bench disk {op} {depth}")
    if re.search(rf"^bench \S+ {op} depth={depth} ", said, re.MULTILINE) is None or segments[-1].last is None:
        raise DemoError(f"The built-in guest did not measure its disk: {said.strip()}")
    return [segment.measurement(path, op, depth) for segment in reversed(segments)]
