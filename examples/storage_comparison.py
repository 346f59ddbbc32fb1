"""One guest, one disk, three ways to it: through the registers of an emulated controller, by the enlightened stack over VMBus, and
with only a shunt between the two. The guest's own benchmark tells what its programs see; we count what it takes.
"""

import asyncio

from rich.console import Console
from rich.table import Table

import avmm
import avmm_guests

TRAPS = ("in", "out", "load", "store", "instruction")


async def main() -> None:
    table = Table("mode", "us a request of 64 KiB", "of 4 KiB", "traps", "packets to the service OS", title="bench disk read")
    async with avmm.Host() as host:
        disk = avmm.Disk(avmm_guests.image(), "overlay")
        vm = await host.create_vm(avmm.VmConfig(memory="16M", disks=[disk], hyperv=True))
        await vm.start()
        await vm.serial.wait_for("ok> ")
        for mode in ("emulated", "enlightened", "shunt-only"):
            await vm.set_mode(mode)
            before = vm.stats
            vm.serial.write("bench disk read 4\n")
            answer = await vm.serial.wait_for("\nok> ", timeout=60)
            after = vm.stats
            (result,) = (line for line in answer.splitlines() if line.startswith("bench ") and "depth=" in line)
            costs = {size: int(us) / int(count) for size, count, us in (part.split(":") for part in result.split() if ":" in part)}
            traps = sum(after.exits[kind] - before.exits[kind] for kind in TRAPS)
            table.add_row(mode, f"{costs['65536']:.0f}", f"{costs['4096']:.0f}", f"{traps:,}", f"{after.outside - before.outside:,}")
    Console(width=100).print(table)


asyncio.run(main())
