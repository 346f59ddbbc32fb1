"""Blocks that count in place: the same units, blocks, stops and registers as with a call of the hook for each."""

from __future__ import annotations

import json
import random
import subprocess
import sys

import pytest

from avmm.cpu.engine import Exit
from tests.cpu.rig import Rig

MODES = ("real", "pm32", "paging", "long")
SOURCE = """
 sti
 mov esi, 40
again: inc ebx
 test bl, 3
 jz fourth
 add edx, ebx
 nop
fourth: call below
 mov edi, 0xb000
 mov ecx, 30
 cld
 rep stosb
 mov ecx, 3
tight: loop tight
 jmp behind
behind: dec esi
 jnz again
 STOP
below: xchg ebx, eax
 out 0x80, al
%if __?BITS?__ != 16
 mov al, [0x180000]
%endif
 jmp away
away: nop
 jmp back
back: nop
 jmp home
home: nop
 xchg ebx, eax
 ret
"""
WITHOUT = """
import json, sys
from avmm.cpu.unicorn import _shim
_shim.install_blocks = lambda library: False
from tests.cpu.test_blocks import history
print(json.dumps([history(mode, seed) for mode, seed in json.loads(sys.argv[1])]))
"""


def history(mode: str, seed: int) -> list[list[int]]:
    """Run in slices of random length, with interrupts; return where each of them ended, and what was interrupted."""
    chance = random.Random(f"{mode} {seed}")
    rig = Rig(SOURCE, mode, ram=1 << 20)  # what the guest reads is a device, so that an interrupt comes in the middle of a chain
    found = []
    why = Exit.BUDGET

    def interrupt(*_access: int) -> None:
        if chance.random() < 0.2:
            rig.raise_interrupt(0x40 + chance.randrange(16))

    rig.on_out = rig.on_load = interrupt
    while why is Exit.BUDGET:
        interrupt()
        why = rig.run(chance.choice((1, 7, 30, 200, 5000)))
        registers = [rig.reg(name) for name in ("rip", "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rflags")]
        found.append([int(why), rig.cpu.units, rig.cpu.counters()["blocks"], len(rig.traps), len(rig.log), *registers])
    assert why is Exit.STOPPED
    return [*found, [trap.ip for trap in rig.traps]]


def test_the_same_is_counted() -> None:
    cases = [(mode, seed) for mode in MODES for seed in range(5)]
    done = subprocess.run([sys.executable, "-c", WITHOUT, json.dumps(cases)], check=True, capture_output=True, text=True, timeout=120)
    without = json.loads(done.stdout)
    for (mode, seed), expected in zip(cases, without, strict=True):
        assert history(mode, seed) == expected


@pytest.mark.parametrize("mode", MODES)
def test_all_blocks_but_those_of_strings_count_in_place(mode: str) -> None:
    """Each block of a straight run is translated once; REP MOVSB keeps its call, which may move the rest of it in bulk."""
    rig = Rig("mov ecx, 1\nmov edi, 0xb000\njmp next\nnext: call below\n out 0x80, al\n hlt\nbelow: ret\nSTOP", mode)
    before = rig.cpu.native_vcpu.in_place
    assert rig.run() is Exit.HALT
    straight = rig.cpu.native_vcpu.in_place - before
    assert straight >= rig.cpu.counters()["blocks"] >= 4
    rig = Rig("mov ecx, 1\nmov edi, 0xb000\njmp next\nnext: rep stosb\ncall below\n out 0x80, al\n hlt\nbelow: ret\nSTOP", mode)
    before = rig.cpu.native_vcpu.in_place
    assert rig.run() is Exit.HALT
    assert rig.cpu.native_vcpu.in_place - before == straight  # the string is a block more, and not in place
