"""Ten machines in one process, each doing its own work."""

import asyncio

import avmm
import avmm_guests


async def work(host: avmm.Host, number: int) -> str:
    disk = avmm.Disk(avmm_guests.image(), "overlay")
    vm = await host.create_vm(avmm.VmConfig(name=f"vm{number}", memory="8M", disks=[disk]))
    await vm.start()
    await vm.screen.wait_for("ok>", timeout=10)
    await vm.keyboard.type(f"write note.txt machine {number} was here\n")
    await vm.keyboard.type("read note.txt\n")
    await vm.screen.wait_for(f"\nmachine {number} was here", timeout=10)
    return f"{vm.name}: {vm.stats.exits['in'] + vm.stats.exits['out']} port accesses in {vm.now * 1000:.0f} ms of machine time"


async def main() -> None:
    async with avmm.Host() as host:
        for line in await asyncio.gather(*(work(host, number) for number in range(10))):
            print(line)


asyncio.run(main())
