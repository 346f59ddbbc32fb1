"""A guest that is a Python coroutine: it programs the timer, takes ten interrupts and reads the clock."""

import asyncio

import avmm

ticks = 0


async def on_timer(cpu: avmm.ScriptCpu) -> None:
    global ticks
    ticks += 1
    await cpu.outb(0x20, 0x20)  # end of interrupt


async def guest(cpu: avmm.ScriptCpu) -> None:
    for port, value in ((0x20, 0x11), (0x21, 0x20), (0x21, 0x04), (0x21, 0x01), (0x21, 0xFE)):
        await cpu.outb(port, value)  # 8259A: vectors from 20h, only IRQ 0 open
    await cpu.outb(0x43, 0x34)  # 8254: counter 0, mode 2
    await cpu.outb(0x40, 11932 & 0xFF)
    await cpu.outb(0x40, 11932 >> 8)  # a tick every 10 ms
    cpu.on(0x20, on_timer)
    cpu.sti()
    while ticks < 10:
        await cpu.hlt()
    await cpu.outb(0x70, 0x00)
    print(f"{ticks} ticks; the clock shows second {await cpu.inb(0x71):02x}")
    await cpu.outw(0xB004, 0x2000)  # ACPI: power off


async def main() -> None:
    async with avmm.Host() as host:
        vm = await host.create_vm(avmm.VmConfig(memory="1M"), guest=guest)
        await vm.start()
        print("the machine is off:", await vm.wait_off())
        print(f"{vm.now * 1000:.1f} ms of machine time, {vm.stats.injected} interrupts")


asyncio.run(main())
