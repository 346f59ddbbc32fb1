"""What a machine has come to, so that two can be compared to the byte."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import avmm
from avmm.cpu.unicorn.processor import UnicornProcessor


@dataclass(frozen=True)
class Moment:
    """Everything the guest has done and is, as far as it can be told from outside."""

    memory: str
    units: int
    counters: dict[str, int]
    now: int
    registers: tuple[int, ...]
    serial: bytes
    screen: str


HOST = ("run_ns", "run_cycles", "handler_cycles")
NAMES = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", "rip", "rflags", "cr0", "cr3", "cs", "ss")


async def moment(vm: avmm.Vm) -> Moment:
    """Stop a machine where it is, and tell."""
    await vm.pause()
    partition = vm.partition
    assert isinstance(partition.processor, UnicornProcessor)
    counters = {name: count for name, count in partition.processor.counters().items() if name not in HOST}
    return Moment(
        hashlib.sha256(partition.memory.view).hexdigest(), partition.processor.units, counters | {"injected": partition.vcpu.injected},
        partition.clock.now(), tuple(partition.processor.register(name) for name in NAMES), bytes(vm.serial.output), vm.screen.text(),
    )  # fmt: skip


async def goes_on_from_each(host: avmm.Host, start: avmm.Snapshot, typed: str, pauses: Sequence[float]) -> avmm.Vm:
    """Type everything at once and let it run: the uninterrupted run, those with a snapshot after a pause, and what is made of the
    snapshot must end alike. Returns the machine that was left alone.
    """

    async def work(vm: avmm.Vm, at: int) -> avmm.Snapshot | None:
        vm.keyboard.feed(typed)
        taken = None
        for number, pause in enumerate(pauses):
            await vm.sleep(pause)
            if number == at:
                taken = await vm.snapshot()
        await vm.sleep(0.2)
        return taken

    whole = await host.clone(start)
    await work(whole, -1)
    expected = await moment(whole)
    for at in range(len(pauses)):
        vm = await host.clone(start)
        taken = await work(vm, at)
        assert await moment(vm) == expected, f"with a snapshot after pause {at}"
        assert taken is not None
        other = await host.clone(taken, paused=True)
        assert other.partition.clock.now() == taken.partition.now
        await other.resume()
        await other.sleep((expected.now - taken.partition.now + 0.5) / 1e9)
        assert await moment(other) == expected, f"from the snapshot after pause {at}"
        await host.remove_vm(other)
        await host.remove_vm(vm)
    return whole
