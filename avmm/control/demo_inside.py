"""What it costs to touch a device inside the hypervisor and outside: measured on a running machine.

A boot sector does each operation many times and says on port E9h when it begins the next one. It reads counter 0 of the PIT,
stores to the text screen, reads 4 KiB from the disk (eight sectors by PIO) and then waits for keys. Exits are the processor's own
count; a hop is a packet going from one task to the next, the feedback included; the time is the host's, of the guest's
instructions as well. A text screen inside is plain memory: no exit at all.

The invariant: inside and outside run the same code on the same machine; only the placement differs.
"""

from __future__ import annotations

import asyncio
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter_ns

from avmm.control.config import Disk, VmConfig
from avmm.control.host import Host
from avmm.control.vm import Vm
from avmm.hypervisor.irp import Irp

_SECTOR = bytes.fromhex(
    "31c08ed8b800b88ec0fac7062400867cc70626000000b000e6e9b9e803e440e2fcb001e6e9b9e80326c706a0004107e2f7b0"
    "02e6e9be1400baf601b0e0eebaf201b008ee42b010ee42b000ee42eebaf603b002eebaf701b020eebd0800baf701ec24883c"
    "0875f9baf001b90001bf00000668002007f36d074d75e24e75bab003e6e9fbf4ebfd50e460b020e620b004e6e958cf"
)  # examples/inside.asm
_COUNTS = {"pit read": 1000, "text write": 1000, "4 KiB disk read": 20}
KEYS = 20
RUNS = 7
"""The fastest of so many counts: what else the host does only adds to it."""
_DEVICES = ("pit", "video", "ata0", "keyboard", "pic")


@dataclass(frozen=True, slots=True)
class Cost:
    """What one operation costs in one placement, on average."""

    operation: str
    placement: str
    exits: float
    hops: float
    us: float

    def as_dict(self) -> dict[str, object]:
        """Return it as JSON-ready types."""
        return asdict(self)


class _Meter:
    """Counts between two marks of the guest."""

    def __init__(self, vm: Vm) -> None:
        self._vm = vm
        self._irps: list[Irp] = []
        vm.partition.on_irp.append(self._irps.append)
        self.marks: list[tuple[int, int, int, int]] = []
        """(the mark, host ns, exits, hops), of each mark so far."""
        self.marked = asyncio.Event()

    def mark(self, value: int) -> None:
        """The guest wrote to port E9h."""
        exits = self._vm.stats.exits
        count = exits["in"] + exits["out"] + exits["load"] + exits["store"]
        hops = sum(len(irp.hops) + 1 for irp in self._irps)
        self.marks.append((value, perf_counter_ns(), count, hops))
        self.marked.set()

    async def wait(self, value: int) -> None:
        """Wait until the guest has said ``value``."""
        while not self.marks or self.marks[-1][0] != value:
            self.marked.clear()
            await asyncio.wait_for(self.marked.wait(), 30)


async def _measure(image: Path, placement: str, structure: str) -> list[Cost]:
    where = "hypervisor" if placement == "inside" else "service"
    async with Host(structure) as host:
        config = VmConfig(
            name=placement, memory="4M", disks=[Disk(image, "ro")], clock="real", placement=dict.fromkeys(_DEVICES, where)
        )
        vm = await host.create_vm(config)
        meter = _Meter(vm)
        console = vm.partition.devices["debug-e9"]
        console.on_output = meter.mark  # type: ignore[attr-defined]
        await vm.start()
        await meter.wait(3)
        costs = []
        for i, (operation, count) in enumerate(_COUNTS.items()):
            begin, end = meter.marks[i], meter.marks[i + 1]
            costs.append(
                Cost(operation, placement, (end[2] - begin[2] - 1) / count, (end[3] - begin[3]) / count, (end[1] - begin[1]) / count / 1000)
            )
        costs.append(await _keys(vm, meter, placement))
        return costs


async def _keys(vm: Vm, meter: _Meter, placement: str) -> Cost:
    """Press and release keys, each when the guest has read the one before."""
    spent = exits = hops = 0
    for i in range(KEYS):
        _, _, exits_before, hops_before = meter.marks[-1]
        seen = len(meter.marks)
        begin = perf_counter_ns()
        (vm.keyboard.release if i & 1 else vm.keyboard.press)("a")
        while len(meter.marks) == seen:
            meter.marked.clear()
            await asyncio.wait_for(meter.marked.wait(), 30)
        spent += meter.marks[-1][1] - begin
        exits += meter.marks[-1][2] - exits_before - 1
        hops += meter.marks[-1][3] - hops_before
        await vm.sleep(0.002)
    return Cost("key press", placement, exits / KEYS, hops / KEYS, spent / KEYS / 1000)


async def demo_inside(structure: str = "hybrid") -> list[Cost]:
    """Measure a PIT read, a key press, a text write and a 4 KiB disk read with the devices inside and outside."""
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "inside.img"
        image.write_bytes(_SECTOR.ljust(510, b"\0") + b"\x55\xaa" + bytes(512 * 255))
        runs = [cost for _ in range(RUNS) for placement in ("inside", "outside") for cost in await _measure(image, placement, structure)]
    grouped: dict[tuple[str, str], list[Cost]] = {}
    for cost in runs:
        grouped.setdefault((cost.operation, cost.placement), []).append(cost)
    costs = [min(same, key=lambda cost: cost.us) for same in grouped.values()]
    order = ("pit read", "key press", "text write", "4 KiB disk read")
    return sorted(costs, key=lambda cost: (order.index(cost.operation), cost.placement))
