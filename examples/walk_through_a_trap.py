# %% [markdown]
# # A walk through a trap
#
# What happens when a guest touches a port? This is a script in cells: run it as a whole with `python`, or cell by cell in an
# editor that knows `# %%` (VS Code, Spyder, PyCharm, or Jupyter by way of jupytext).
#
# The guest is a Python coroutine: `await cpu.inb(port)` is its IN instruction. The machine around it is a whole PC.

# %%
import asyncio
import threading

import avmm

loop = asyncio.new_event_loop()
thread = threading.Thread(target=loop.run_forever, daemon=True)
thread.start()  # a notebook has a loop already: ours is beside it


def do(coroutine):
    return asyncio.run_coroutine_threadsafe(coroutine, loop).result()


host = do(avmm.Host().__aenter__())


def play(guest, **fields):
    """Run a guest to its end; show each packet that leaves the hypervisor for the service OS (VM-H), and what was counted."""

    async def run():
        vm = await host.create_vm(avmm.VmConfig(memory="1M", **fields), guest)
        packets = []
        vm.partition.on_irp.append(packets.append)
        await vm.start()
        await vm.wait_off()
        for irp in packets:
            hops = " -> ".join(f"{name} +{(at - irp.created) / 1000:.0f} us" for name, at in irp.hops)
            print(f"  packet: {irp.kind.value} of {irp.device.name} at {irp.address:#x}: {hops}")
        stats = vm.stats
        print(f"  {stats.inside} handled inside the hypervisor, {stats.outside} outside, floating {stats.floating}")
        print(f"  {stats.injected} interrupts injected, {vm.now * 1000:.1f} ms of machine time")
        await host.remove_vm(vm)

    do(run())


async def off(cpu):
    await cpu.outw(0xB004, 0x2000)  # ACPI: power off


# %% [markdown]
# ## 1. A device inside the hypervisor
#
# The timer (PIT) lives inside. IN 40h traps: the vCPU leaves the guest, the port bus knows who has 40h, the device model's `read` is a
# function call, and its result goes back with the next VM entry. No task switch, no packet.


# %%
async def inside(cpu):
    print(f"  the timer's counter is {await cpu.inb(0x40)}")
    await off(cpu)


play(inside)


# %% [markdown]
# ## 2. A device outside
#
# The disk lives with VM-H. The hypervisor builds an I/O request packet and sends it off; the vCPU is suspended *in the middle of its
# instruction* until the feedback comes. The guest cannot tell the difference, except by a clock of the host.


# %%
async def outside(cpu):
    print(f"  the disk's status is {await cpu.inb(0x1F7):#04x}: nothing is plugged in")
    await off(cpu)


play(outside)


# %% [markdown]
# ## 3. Nobody
#
# No device has port 1234h. On a PC the bus floats, and the guest reads ones.


# %%
async def nobody(cpu):
    print(f"  port 1234h reads as {await cpu.inb(0x1234):#04x}")
    await off(cpu)


play(nobody)


# %% [markdown]
# ## 4. The same device, elsewhere
#
# Where a device lives is configuration. The timer outside costs a packet for each access; the guest, and the model's code, are the same.


# %%
async def moved(cpu):
    for _ in range(3):
        await cpu.inb(0x40)
    await off(cpu)


play(moved)
play(moved, placement={"pit": "service"})


# %% [markdown]
# ## 5. An interrupt comes back
#
# The timer's output is a wire to the interrupt controller. When it rises, the vCPU's HLT ends and the handler runs; who lowered, raised
# or masked what is all register accesses again, each of them a trap of the first kind.


# %%
async def interrupted(cpu):
    ticks = []

    async def on_timer(cpu):
        ticks.append(1)
        await cpu.outb(0x20, 0x20)  # end of interrupt

    for port, value in ((0x20, 0x11), (0x21, 0x20), (0x21, 0x04), (0x21, 0x01), (0x21, 0xFE)):
        await cpu.outb(port, value)  # 8259A: vectors from 20h, only IRQ 0 open
    for port, value in ((0x43, 0x34), (0x40, 0x9C), (0x40, 0x2E)):
        await cpu.outb(port, value)  # 8254: counter 0, mode 2, every 10 ms
    cpu.on(0x20, on_timer)
    cpu.sti()
    while len(ticks) < 3:
        await cpu.hlt()
    print(f"  {len(ticks)} ticks")
    await off(cpu)


play(interrupted)

# %%
do(host.__aexit__(None, None, None))
loop.call_soon_threadsafe(loop.stop)
thread.join()
loop.close()
