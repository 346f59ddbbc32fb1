"""What happens when a guest touches a port: inside the hypervisor, and by way of VM-H, step by step."""

import asyncio

import avmm


async def guest(cpu: avmm.ScriptCpu) -> None:
    await cpu.inb(0x40)  # the PIT lives inside the hypervisor: a function call
    await cpu.inb(0x1F7)  # the disk lives with VM-H: an I/O request packet, there and back
    await cpu.inb(0x1234)  # nobody: the bus floats
    await cpu.outw(0xB004, 0x2000)


async def main() -> None:
    async with avmm.Host() as host:
        vm = await host.create_vm(avmm.VmConfig(memory="1M"), guest=guest)
        submit = host.service.submit

        def watch(irp):  # look over the shoulder of the hypervisor
            answer = submit(irp)
            answer._future.add_done_callback(
                lambda _: print(f"  IRP {irp.id}: {irp.kind.value} of {irp.device.name} port {irp.address:#x} by",
                                " -> ".join(f"{name} +{(at - irp.created) / 1000:.0f} us" for name, at in irp.hops))
            )  # fmt: skip
            return answer

        host.service.submit = watch
        await vm.start()
        await vm.wait_off()
        print(vm.stats)


asyncio.run(main())
