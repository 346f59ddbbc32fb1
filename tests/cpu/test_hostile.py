"""Guests that try to bring their processor, and so this process, down. Whatever they do ends in an Exit or runs on."""

from __future__ import annotations

import random

import pytest

from avmm.cpu.engine import Exit
from tests.cpu.rig import GDT, PDPT, Rig, descriptor

RESERVED = 1 << 44

HOSTILE = [
    # (what, mode, source)
    ("jump to memory-mapped I/O", "pm32", "mov eax, 0xfec00000\njmp eax"),
    ("run into memory-mapped I/O", "pm32", "mov dword [0x1ffffc], 0x90909090\nmov eax, 0x1ffffc\njmp eax"),
    ("jump above RAM", "pm32", "mov eax, 0x10000000\njmp eax"),
    ("call into memory-mapped I/O", "real", "call 0xb800:0"),
    ("stack in memory-mapped I/O", "pm32", "mov esp, 0xfec01000\npush eax\nint 0x40\nSTOP"),
    ("IDT in memory-mapped I/O", "pm32", "lidt [z]\nint 0x40\nz: dw 0x7ff\ndd 0xfec00000"),
    ("GDT in memory-mapped I/O", "pm32", "lgdt [z]\nmov ax, 0x40\nmov ds, ax\nz: dw 0x7ff\ndd 0xfec00000"),
    ("page tables in memory-mapped I/O", "paging", "mov eax, 0xfec00000\nmov cr3, eax\nmov eax, [0x400000]"),
    ("TSS in memory-mapped I/O", "pm32", "mov byte [GDT + TSS_SEL + 7], 0xfe\nmov byte [GDT + TSS_SEL + 4], 0xc0\nmov byte [GDT + TSS_SEL + 5], 0x89\nmov ax, TSS_SEL\nltr ax\nring3_32 user\nuser: int 0x40"),
    ("null task register", "pm32", "xor ax, ax\nltr ax\nring3_32 user\nuser: ud2"),
    ("null task register, hardware stack switch", "pm32", "xor ax, ax\nltr ax\nring3_32 user\nuser: call CALL_GATE | 3:0"),
    ("null task register in long mode", "long", "xor ax, ax\nltr ax\nring3_64 user\nuser: ud2"),
    ("no task register at all", "real", "lgdt [g]\nlidt [i]\nmov eax, cr0\nor al, 1\nmov cr0, eax\njmp dword 8:pm\ng: dw 0xff\ndd 0x5000\ni: dw 0x7ff\ndd 0x6000\nbits 32\npm: mov ax, 16\nmov ss, ax\nring3_32 user\nuser: ud2"),
    ("endless rep movs", "pm32", "mov ecx, -1\ncld\nrep movsb"),
    ("rep stos over everything", "pm32", "xor edi, edi\nmov ecx, -1\ncld\nrep stosd"),
    ("rep ins over everything", "pm32", "xor edi, edi\nmov ecx, -1\nmov edx, 0x1f0\ncld\nrep insd"),
    ("rep outs from everywhere", "long", "xor esi, esi\nmov rcx, -1\nmov edx, 0x1f0\ncld\nrep outsd"),
    ("interrupt storm through itself", "real", "mov word [0x40*4], here\nhere: int 0x40"),
    ("fault in the fault handler", "pm32", "mov dword [IDT + 6*8], here\nmov word [IDT + 6*8 + 2], 8\nhere: ud2"),
    ("rewrite everything under itself", "real", "mov ax, 0\nmov es, ax\nmov di, 0\nmov cx, 0xffff\nmov al, 0xcc\nrep stosb"),
    ("VMRUN with a plausible VMCB", "long", "mov rax, 0x3000\nvmrun\nSTOP"),
    ("SMM", "pm32", "rsm"),
    ("monitor and mwait", "pm32", "mov eax, 0x3000\nxor ecx, ecx\nxor edx, edx\nmonitor\nmwait\nSTOP"),
    ("all MSRs", "long", "mov r8d, 0xc0000000\nagain:\n mov ecx, r8d\n mov eax, -1\n mov edx, -1\n wrmsr\n inc r8d\n cmp r8d, 0xc0000110\n jne again\n STOP"),
    ("SVM's MSRs", "long", "mov ecx, 0xc0010117\nrdmsr\nxor eax, eax\nwrmsr\nmov ecx, 0xc0010114\nrdmsr\nwrmsr\nSTOP"),
    ("debug registers", "pm32", "mov eax, -1\nmov dr7, eax\nmov dr0, eax\nmov dr6, eax\nnop\nSTOP"),
    ("CR0 without anything", "pm32", "xor eax, eax\nmov cr0, eax\nnop\nnop"),
    ("paging off in long mode", "long", "mov rax, 0x11\nmov cr0, rax\nnop\nmov eax, [0x3000]"),
    ("long mode off under the code", "long", "mov rax, cr4\nand al, 0xdf\nmov cr4, rax\nmov rax, cr3\nmov cr3, rax\nmov eax, [0x3000]"),
    ("CR3 beyond physical memory", "long", "mov rax, 0xffffffffff000\nmov cr3, rax\nnop"),
    ("CR3 at the engine's own pages", "long", f"mov rax, {RESERVED:#x}\nmov cr3, rax\nnop"),
    ("sysret to a non-canonical address", "long", "mov ecx, 0xc0000080\nrdmsr\nor al, 1\nwrmsr\nmov rcx, 0x8000000000000000\nmov r11, 2\no64 sysret"),
    ("iret to a non-canonical address", "long", "push 0x10\npush 0x9000\npush 2\npush 0x50\nmov rax, 0x8000000000000000\npush rax\niretq"),
    ("task switch to itself", "pm32", "jmp TSS_SEL:0"),
    ("task gate to nothing", "pm32", "mov byte [IDT + 0x40*8 + 5], 0x85\nmov word [IDT + 0x40*8 + 2], 0\nint 0x40"),
    ("fxrstor of nonsense", "long", "mov rax, cr4\nor ax, 0x600\nmov cr4, rax\nmov dword [0x3018], -1\nfxrstor [0x3000]\nSTOP"),
    ("xsetbv of nonsense", "long", "mov rax, cr4\nbts rax, 18\nmov cr4, rax\nmov eax, -1\nmov edx, -1\nxor ecx, ecx\nxsetbv\nxsave [0x3000]\nSTOP"),
    ("wild far pointers", "pm32", "mov dword [0x3000], -1\nmov word [0x3004], 0xffff\njmp far [0x3000]"),
    ("loadall, undefined two-byte opcodes", "pm32", "db 0x0f, 5, 0x0f, 7, 0x0f, 0xa6, 0xc0, 0x0f, 0xa7, 0xc0"),
    ("instruction across the end of RAM", "pm32", "mov byte [0x1fffff], 0xb8\nmov eax, 0x1fffff\njmp eax"),
]  # fmt: skip


@pytest.mark.parametrize(("mode", "source"), [pytest.param(mode, source, id=what.replace(" ", "_")) for what, mode, source in HOSTILE])
def test_the_process_survives(mode: str, source: str) -> None:
    rig = Rig(source, mode)
    rig.poke(GDT + 0x80, "Q", 0x600 | 8 << 16 | 0xEC << 40)
    if mode == "real":
        for vector in range(32):  # an IDT for guests that go to protected mode themselves
            rig.gate(vector, selector=8)
        for i, (base, limit, access, flags) in enumerate([(0, 0, 0, 0), (0, 0xFFFFF, 0x9B, 12), (0, 0xFFFFF, 0x93, 12), (0, 0xFFFFF, 0xFB, 12), (0, 0xFFFFF, 0xF3, 12)]):
            rig.poke(GDT + 8 * i, "Q", descriptor(base, limit, access, flags))
    for _ in range(2):
        why = rig.run(4_000)
        if why is Exit.ERROR:
            assert "rip" in rig.cpu.failure
    rig.cpu.reset(rig.state)  # and it can be used again
    rig.ram[0x1000:0x1001] = b"\xf4"
    rig.ram[0x600:0xE00] = b"\xf4" * 0x800
    if mode in ("real", "pm16", "pm32"):
        assert rig.run() is Exit.HALT


@pytest.mark.parametrize("offset", range(0, 0x6000, 0x1000))
@pytest.mark.parametrize("how", ["read", "write", "execute", "pte", "pde"])
def test_the_engines_own_pages_cannot_be_reached(offset: int, how: str) -> None:
    """Page tables that point at the reserved pages (stub, VMCB, host save area, MSR map) above the guest's physical addresses."""
    source = {"read": "mov rax, [0x30000]\nSTOP", "write": "mov qword [0x30000], -1\nSTOP", "execute": "mov rax, 0x30000\njmp rax",
              "pte": "mov rax, [0x40000000]\nmov qword [0x40000000], -1\nSTOP", "pde": "mov rax, [0x40000000]\nmov qword [0x40000000], -1\nSTOP"}[how]  # fmt: skip
    rig = Rig("jmp next\nnext:\n" + source, "long", stop_on_trap=True)
    rig.run(1)
    reserved = rig.cpu._reserved

    def content() -> bytes:
        data = bytearray(reserved)
        data[0x10A8:0x10B0] = bytes(8)  # EVENTINJ in the VMCB, where the engine notes each exception it delivers
        return bytes(data)

    before = content()
    rig.page(0x30000, RESERVED + offset | 7)
    if how == "pte":
        rig.poke(PDPT + 8, "Q", 0x1C000 | 7)
        rig.poke(0x1C000, "Q", RESERVED + offset | 7)
    elif how == "pde":
        rig.poke(PDPT + 8, "Q", RESERVED + offset | 7)
    assert rig.run(10_000) is Exit.STOPPED
    assert content() == before
    assert [t.vector for t in rig.traps] == [14]  # a reserved bit in a page table entry
    assert rig.traps[0].error in (8 | 1, 8 | 2 | 1, 8 | 16 | 1)


@pytest.mark.parametrize("mode", ["real", "pm32", "long"])
@pytest.mark.parametrize("seed", range(8))
def test_random_code(mode: str, seed: int) -> None:
    """Random bytes as code: an Exit, never an exception or a crash."""
    random_ = random.Random(f"{mode}{seed}")
    rig = Rig("nop", mode)
    rig.ram[0x1000:0x4000] = random_.randbytes(0x3000)
    for _ in range(12):
        if rig.run(1_000) in (Exit.SHUTDOWN, Exit.ERROR):
            rig.ram[0x1000:0x4000] = random_.randbytes(0x3000)
            rig.cpu.reset(rig.state)
        else:
            rig.cpu.set_register("rip", 0x1000 + random_.randrange(0x3000))
