"""What a machine has come to, so that two can be compared to the byte."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import avmm


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
    counters = {name: count for name, count in partition.processor.counters().items() if name not in HOST}
    return Moment(
        hashlib.sha256(partition.memory.view).hexdigest(), partition.processor.units, counters | {"injected": partition.injected},
        partition.clock.now(), tuple(partition.processor.register(name) for name in NAMES), bytes(vm.serial.output), vm.screen.text(),
    )  # fmt: skip
