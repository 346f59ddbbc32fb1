"""Boot the built-in guest from its disk, type a command, look at the screen, take a picture of it."""

import asyncio

import avmm
import avmm_guests


async def main() -> None:
    async with avmm.Host() as host:
        disk = avmm.Disk(avmm_guests.image(), "overlay")  # changes are kept apart, the image stays as it is
        vm = await host.create_vm(avmm.VmConfig(memory="16M", disks=[disk]))
        await vm.start()
        await vm.screen.wait_for("ok>", timeout=10)
        await vm.keyboard.type("read motd.txt\n")
        await vm.screen.wait_for(lambda text: text.endswith("which.\nok>"), timeout=10)
        print(vm.screen.text())
        vm.screen.save_png("/tmp/avmm-screen.png")
        await vm.keyboard.type("halt\n")
        print("the machine is off:", await vm.wait_off())


asyncio.run(main())
