"""Boot a second machine, read-only, from the disk that a first one is using."""

import asyncio

import avmm
import avmm_guests


async def main() -> None:
    async with avmm.Host() as host:
        disk = avmm.Disk(avmm_guests.image(), "overlay")
        first = await host.create_vm(avmm.VmConfig(name="first", memory="16M", disks=[disk], physical=["ata0"]))
        await first.start()
        await first.serial.wait_for("ok> ")
        await first.virtualize("ata0")

        second = await host.create_vm(avmm.VmConfig(name="second", memory="16M", disks=[avmm.Disk(first.share_disk("ata0"), "ro")]))
        await second.start()
        await second.serial.wait_for("ok> ")
        for vm in (first, second):
            vm.serial.write("sum pattern.txt\n")
            print(vm.name, await vm.serial.wait_for("\nok> "))
        second.serial.write("write note.txt it cannot\n")
        print(await second.serial.wait_for("\nok> "))

        await second.shutdown()
        await first.remove_interposer("ata0", "share")
        print("first:", (await first.devirtualize("ata0")).outcome.value)


asyncio.run(main())
