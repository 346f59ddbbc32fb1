"""Take the disk controller away from a guest that is reading from it, and give it back, again and again. The guest reads on."""

import asyncio

import avmm
import avmm_guests


async def main() -> None:
    async with avmm.Host() as host:
        disk = avmm.Disk(avmm_guests.image(), "overlay")
        vm = await host.create_vm(avmm.VmConfig(memory="16M", disks=[disk], physical=["ata0"]))
        await vm.start()
        await vm.serial.wait_for("ok> ")
        vm.serial.write("bench disk read 4\nsum pattern.txt\n")
        for number in range(8):
            await vm.sleep(0.002)
            switch = vm.devirtualize if number % 2 else vm.virtualize
            report = await switch("ata0", when="middle")
            print(
                f"{vm.now * 1000:7.3f} ms: to {report.to:<11} {report.outcome.value}, {report.stage}, word {report.word}; "
                f"the guest found it busy for {report.machine_pause_ns / 1000:.1f} us"
            )
        print(await vm.serial.wait_for("as written.", timeout=60))
        print(f"{vm.stats.direct:,} accesses went straight to the disk")


asyncio.run(main())
