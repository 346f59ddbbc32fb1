"""From mode to mode by the guest's own code, system calls, virtual-8086 mode, CPUID and the model-specific registers."""

from __future__ import annotations

import pytest

from avmm.cpu.engine import Exit
from tests.cpu.rig import CODE64, GDT, IDT, PML4, STACK0, TSS, USER32, USER64, USER_DATA, USER_STACK, Rig, descriptor

GDT_SOURCE = """
align 8
gdt: dq 0, 0x00cf9b000000ffff, 0x00cf93000000ffff, 0x00af9b000000ffff, 0x000f9b000000ffff, 0x000093000000ffff
gdtr: dw 6*8-1
 dd gdt
"""
TABLES = """
 mov dword [0x10000], 0x11003
 mov dword [0x10004], 0
 mov dword [0x11000], 0x12003
 mov dword [0x11004], 0
 mov dword [0x12000], 0x83
 mov dword [0x12004], 0
"""


def test_real_to_protected_to_long_and_back() -> None:
    source = f"""
 cli
 lgdt [gdtr]
 mov eax, cr0
 or al, 1
 mov cr0, eax
 jmp dword 8:pm
bits 32
pm: mov ax, 16
 mov ds, ax
 mov ss, ax
 mov esp, 0x9000
 out 0x32, al
{TABLES}
 mov eax, cr4
 or al, 0x20
 mov cr4, eax
 mov eax, 0x10000
 mov cr3, eax
 mov ecx, 0xc0000080
 rdmsr
 or ah, 1
 wrmsr
 mov eax, cr0
 or eax, 0x80000000
 mov cr0, eax
 out 0x33, al
 jmp 24:lm
bits 64
lm: mov rax, 0x123456789abcdef0
 mov r15, rax
 push rax
 pop rbx
 out 0x64, al
 push 8
 push back
 retfq
bits 32
back: mov eax, cr0
 btr eax, 31
 mov cr0, eax
 mov ecx, 0xc0000080
 rdmsr
 and ah, 0xfe
 wrmsr
 jmp 32:small
bits 16
small: mov ax, 40
 mov ds, ax
 mov ss, ax
 mov eax, cr0
 and al, 0xfe
 mov cr0, eax
 jmp 0:real
real: xor ax, ax
 mov ds, ax
 mov ss, ax
 int 0x40
 out 0x16, al
 STOP
{GDT_SOURCE}
"""
    rig = Rig(source)
    assert rig.run() is Exit.STOPPED
    assert [port for port, _, _ in rig.log] == [0x32, 0x33, 0x64, 0x16]
    assert rig.reg("rbx") == rig.reg("r15") == 0x123456789ABCDEF0
    assert [t.vector for t in rig.traps] == [0x40]
    assert rig.reg("efer") == 0
    assert not rig.reg("cr0") & 0x80000001


def test_unreal_mode_keeps_the_big_limit() -> None:
    source = f"lgdt [gdtr]\nmov eax, cr0\nor al, 1\nmov cr0, eax\nmov bx, 16\nmov ds, bx\nand al, 0xfe\nmov cr0, eax\nxor bx, bx\nmov ds, bx\nmov ebx, 0x180000\nmov dword [ebx], 0x55667788\nSTOP\n{GDT_SOURCE}"
    rig = Rig(source)
    assert rig.run() is Exit.STOPPED
    assert rig.peek(0x180000) == 0x55667788


def test_a20_is_not_masked() -> None:
    """FFFF:0010 is the first byte of the second megabyte (the A20 gate is the chipset's business)."""
    rig = Rig("mov ax, 0xffff\nmov es, ax\nmov byte [es:0x10], 0x77\nSTOP")
    rig.run()
    assert rig.ram[0x100000] == 0x77
    assert rig.ram[0] != 0x77


# -- SYSCALL and SYSENTER


def test_syscall_and_sysret_in_long_mode() -> None:
    source = """
 mov ecx, 0xc0000081
 xor eax, eax
 mov edx, 0x00480050
 wrmsr
 inc ecx
 mov eax, kernel
 xor edx, edx
 wrmsr
 mov ecx, 0xc0000084
 mov eax, 0x100
 wrmsr
 mov ecx, 0xc0000080
 rdmsr
 or al, 1
 wrmsr
 ring3_64 user
user:
 mov rax, 0x1122334455667788
 stc
 syscall
after:
 setc bl
 out 0x31, al
 STOP
kernel:
 mov r14, cs
 mov r13, ss
 mov r12, rcx
 mov r10, r11
 mov r9, rsp
 o64 sysret
"""
    rig = Rig(source, "long")
    rig.poke(GDT + 0x48, "QQQ", descriptor(0, 0xFFFFF, 0xFB, 0xC), descriptor(0, 0xFFFFF, 0xF3, 0xC), descriptor(0, 0xFFFFF, 0xFB, 0xA))
    # STAR[47:32] is the kernel's CS (0x50) and SS (0x58); STAR[63:48] + 16 and + 8 the user's
    rig.poke(GDT + 0x50, "QQ", descriptor(0, 0xFFFFF, 0x9B, 0xA), descriptor(0, 0xFFFFF, 0xFB, 0xA))
    assert rig.run() is Exit.STOPPED
    assert rig.traps == []
    assert rig.reg("r14") == 0x50
    assert rig.reg("r13") == 0x58
    assert rig.reg("r12") == rig.label("after")
    assert rig.reg("r10") & 1
    assert rig.reg("r9") == USER_STACK  # SYSCALL does not load RSP
    assert rig.reg("bl") == 1
    assert rig.reg("cs") == 0x48 + 16 | 3
    assert rig.reg("ss") == 0x48 + 8 | 3
    assert rig.cpu.counters()["syscalls"] == 1


def test_syscall_masks_flags() -> None:
    source = """
 mov ecx, 0xc0000081
 xor eax, eax
 mov edx, 0x00480050
 wrmsr
 inc ecx
 mov eax, kernel
 xor edx, edx
 wrmsr
 mov ecx, 0xc0000084
 mov eax, 0x600
 wrmsr
 mov ecx, 0xc0000080
 rdmsr
 or al, 1
 wrmsr
 std
 sti
 stc
 syscall
kernel:
 pushfq
 pop rbx
 mov rdi, 0x3000
 stosb
 STOP
"""
    rig = Rig(source, "long")
    assert rig.run() is Exit.STOPPED
    assert rig.reg("rbx") & 0x601 == 1
    assert rig.reg("r11") & 0x601 == 0x601
    assert rig.reg("rdi") == 0x3001


def test_syscall_without_sce_is_an_undefined_opcode() -> None:
    for mode in ("pm32", "long", "compat"):
        rig = Rig("here:\n syscall\n STOP", mode, stop_on_trap=True)
        rig.run()
        assert [(t.vector, t.ip) for t in rig.traps] == [(6, rig.label("here"))]


def test_sysret_in_ring_3_is_refused() -> None:
    rig = Rig("ring3_64 user\nuser:\n nop\nhere:\n o64 sysret", "long", stop_on_trap=True, efer=1)
    rig.run()
    assert [(t.vector, t.error, t.ip) for t in rig.traps] == [(13, 0, rig.label("here"))]


def test_syscall_from_compatibility_mode_goes_to_cstar() -> None:
    source = """
 mov ecx, 0xc0000081
 xor eax, eax
 mov edx, 0x00480050
 wrmsr
 mov ecx, 0xc0000083
 mov eax, kernel
 xor edx, edx
 wrmsr
 ring3_32 user
user:
 syscall
after:
 STOP
bits 64
kernel:
 mov r14, cs
 mov r12, rcx
 STOP
"""
    rig = Rig(source, "compat", efer=1)
    rig.poke(GDT + 0x58, "Q", descriptor(0, 0xFFFFF, 0x93, 0xC))
    assert rig.run() is Exit.STOPPED
    assert rig.reg("r14") == 0x50
    assert rig.reg("r12") == rig.label("after")


def test_syscall_in_legacy_mode() -> None:
    source = "mov ecx, 0xc0000081\nmov eax, kernel\nmov edx, 0x00080008\nwrmsr\nring3_32 user\nuser:\n syscall\nafter:\n STOP\nkernel:\n mov ebx, ecx\n mov si, cs\n STOP"
    rig = Rig(source, "pm32", efer=1)
    assert rig.run() is Exit.STOPPED
    assert rig.reg("ebx") == rig.label("after")
    assert rig.reg("si") == 8


SYSENTER = """
 mov ecx, 0x174
 mov eax, 8
 xor edx, edx
 wrmsr
 inc ecx
 mov eax, 0x8800
 wrmsr
 inc ecx
 mov eax, kernel
 wrmsr
 ring3_32 user
user:
 mov ecx, esp
 mov edx, back
 mov ebx, 3
 sysenter
back:
 dec ebx
 jz fin
 mov ecx, esp
 mov edx, back
 sysenter
fin:
 STOP
kernel:
 inc dword [0x3000]
 mov [0x3004], esp
 mov si, cs
 mov di, ss
 sysexit
"""


@pytest.mark.parametrize("mode", ["pm32", "paging", "pae"])
def test_sysenter_and_sysexit(mode: str) -> None:
    rig = Rig(SYSENTER, mode)
    assert rig.run() is Exit.STOPPED, rig.traps
    assert rig.traps == []
    assert rig.peek(0x3000) == 3
    assert rig.peek(0x3004) == 0x8800
    assert (rig.reg("si"), rig.reg("di")) == (8, 16)
    assert rig.reg("cs") & 3 == 3


@pytest.mark.parametrize("source", ["sysenter", "sysexit"])
def test_sysenter_without_a_segment_is_refused(source: str) -> None:
    rig = Rig(f"here:\n {source}", "pm32", stop_on_trap=True)
    rig.run()
    assert [(t.vector, t.error, t.ip) for t in rig.traps] == [(13, 0, rig.label("here"))]


def test_sysenter_in_real_mode_is_refused() -> None:
    rig = Rig("mov ecx, 0x174\nmov eax, 8\nxor edx, edx\nwrmsr\nhere:\n sysenter", stop_on_trap=True)
    rig.run()
    assert [(t.vector, t.ip) for t in rig.traps] == [(13, rig.label("here"))]


# -- virtual-8086 mode

V86 = """
 push dword 0
 push dword 0
 push dword 0
 push dword 0
 push dword 0
 push dword 0x8800
 push dword {flags}
 push dword 0
 push dword user
 iretd
bits 16
user:
 {source}
 jmp $
"""


def v86(source: str, iopl: int = 3, **options: object) -> Rig:
    return Rig(V86.format(flags=0x20002 | iopl << 12, source=source), "pm32", stop_on_trap=True, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("source", ["int 0x40", "int3", "cli", "sti", "pushf", "popf", "hlt", "iret"])
def test_v86_sensitive_instructions_fault_with_iopl_0(source: str) -> None:
    rig = v86(f"mov ax, 0\n mov es, ax\nhere:\n {source}", iopl=0)
    rig.gate(3, dpl=3)
    rig.run()
    t = rig.traps[0]
    assert t.flags & 0x20000
    assert t.handler_sp == STACK0 - (36 if source == "int3" else 40)
    assert (t.sp, t.ss) == (0x8800, 0)
    if source == "int3":  # not IOPL-sensitive
        assert (t.vector, t.ip) == (3, rig.label("here") + 1)
    else:
        assert (t.vector, t.error, t.ip) == (13, 0, rig.label("here"))


def test_v86_int_with_iopl_3_goes_through_the_idt() -> None:
    rig = v86("int 0x40\nhere:")
    rig.gate(0x40, dpl=3)
    rig.run()
    t = rig.traps[0]
    assert (t.vector, t.ip, t.sp) == (0x40, rig.label("here"), 0x8800)
    assert t.handler_sp == STACK0 - 36


def test_v86_interrupt_and_return() -> None:
    rig = v86("mov ax, 0x300\n mov ds, ax\n inc word [0]\n jmp user")
    rig.run(2000)
    rig.stop_on_trap = False
    rig.cpu.set_register("rflags", rig.reg("rflags") | 0x200)
    rig.raise_interrupt(0x20)
    before = rig.peek(0x3000, "H")
    rig.run(2000)
    assert [t.vector for t in rig.traps] == [0x20]
    assert rig.traps[0].flags & 0x20000
    assert rig.reg("rflags") & 0x20000
    assert rig.peek(0x3000, "H") > before


# -- CPUID, RDMSR, WRMSR, RDTSC


@pytest.mark.parametrize("prefix", [0, 1, 4])
@pytest.mark.parametrize("mode", ["real", "pm32", "long"])
def test_cpuid(mode: str, prefix: int) -> None:
    bytes_ = "db 0x66\n" * prefix
    rig = Rig(f"mov eax, 0x12345678\nmov ecx, 5\n{bytes_}cpuid\nnop\nSTOP", mode)
    asked: list[tuple[int, int]] = []

    def cpuid(leaf: int, subleaf: int, native: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
        asked.append((leaf, subleaf))
        return 0xA, 0xB, 0xC, 0xFFFFFFFF

    rig.cpu.callbacks.cpuid = cpuid
    assert rig.run() is Exit.STOPPED
    assert asked == [(0x12345678, 5)]
    assert [rig.reg(n) for n in ("rax", "rbx", "rcx", "rdx")] == [0xA, 0xB, 0xC, 0xFFFFFFFF]


def test_cpuid_native_answer_names_an_amd_part() -> None:
    rig = Rig("xor eax, eax\ncpuid\nSTOP", "pm32")
    rig.run()
    assert b"".join(rig.reg(n).to_bytes(4, "little") for n in ("ebx", "edx", "ecx")) == b"AuthenticAMD"


@pytest.mark.parametrize("prefix", [0, 1, 3])
@pytest.mark.parametrize("mode", ["real", "pm32", "long"])
def test_rdmsr_and_wrmsr(mode: str, prefix: int) -> None:
    bytes_ = "db 0x66\n" * prefix
    rig = Rig(f"mov ecx, 0x1b\nmov eax, 0x89abcdef\nmov edx, 0x01234567\n{bytes_}wrmsr\nxor eax, eax\n{bytes_}rdmsr\nSTOP", mode)
    assert rig.run() is Exit.STOPPED
    assert rig.msrs == {0x1B: 0x0123456789ABCDEF}
    assert rig.reg("rax") == 0x89ABCDEF
    assert rig.reg("rdx") == 0x01234567


@pytest.mark.parametrize("mode", ["real", "pm32", "long"])
@pytest.mark.parametrize("source", ["rdmsr", "wrmsr", "db 0x66\n rdmsr", "db 0xf3\n wrmsr"])
def test_a_refused_msr_is_gp_at_the_instruction(mode: str, source: str) -> None:
    rig = Rig(f"mov ecx, 0xbad\nnop\nhere:\n {source}", mode, stop_on_trap=True)
    rig.run()
    assert [(t.vector, t.error, t.ip) for t in rig.traps] == [(13, None if mode == "real" else 0, rig.label("here"))]


def test_an_msr_in_ring_3_is_refused_without_an_exit() -> None:
    for source in ("rdmsr", "wrmsr"):
        rig = Rig(f"ring3_64 user\nuser:\n mov ecx, 0x1b\nhere:\n {source}", "long", stop_on_trap=True)
        rig.run()
        assert [(t.vector, t.error, t.ip) for t in rig.traps] == [(13, 0, rig.label("here"))]
        assert rig.msrs == {}


@pytest.mark.parametrize(("index", "good"), [(0xC0000082, False), (0xC0000100, False), (0xC0000081, True), (0xC0000084, True)])
def test_non_canonical_addresses_in_msrs(index: int, good: bool) -> None:
    rig = Rig(f"mov ecx, {index}\nmov edx, 0x80000000\nxor eax, eax\nwrmsr\nSTOP", "long", stop_on_trap=True)
    rig.run()
    assert [t.vector for t in rig.traps] == ([] if good else [13])


def test_fs_and_gs_base() -> None:
    source = """
 mov ecx, 0xc0000100
 mov eax, 0x3000
 xor edx, edx
 wrmsr
 inc ecx
 mov eax, 0x3100
 wrmsr
 inc ecx
 mov eax, 0x3200
 wrmsr
 mov dword [fs:4], 0x11
 mov dword [gs:4], 0x22
 swapgs
 mov dword [gs:4], 0x33
 mov ecx, 0xc0000102
 rdmsr
 STOP
"""
    rig = Rig(source, "long")
    assert rig.run() is Exit.STOPPED
    assert [rig.peek(a) for a in (0x3004, 0x3104, 0x3204)] == [0x11, 0x22, 0x33]
    assert rig.reg("eax") == 0x3100


def test_rdtsc_counts_virtual_time() -> None:
    rig = Rig("rdtsc\nmov ebx, eax\nmov ecx, 1000\nagain: loop again\nrdtsc\nSTOP", "pm32")
    rig.cpu.set_time_base(5_000_000)
    rig.run()
    assert rig.reg("ebx") >= 5_000_000
    assert 1900 <= rig.reg("eax") - rig.reg("ebx") <= 2100  # LOOP is two bytes long, one unit each


def test_the_time_stamp_counter_wraps() -> None:
    rig = Rig("rdtsc\nmov esi, edx\nmov edi, eax\nmov ecx, 0x10\nrdmsr\nSTOP", "pm32")
    for base in (-1, -(1 << 63) - 3, (1 << 64) + 9, 1 << 63):
        rig.cpu.set_time_base(base)
    rig.run()
    assert rig.reg("esi") == rig.reg("edx") == 0x80000000
    assert 0 < rig.reg("edi") <= rig.reg("eax") < 200


@pytest.mark.parametrize("mode", ["pm32", "long"])
def test_rdtscp_tells_the_processor_too(mode: str) -> None:
    """ECX is IA32_TSC_AUX, EDX:EAX what RDTSC tells; the flags stay."""
    rig = Rig("mov ecx, 0xc0000103\nmov eax, 0x1234\nxor edx, edx\nwrmsr\nnot ecx\nrdtsc\nmov esi, eax\ncmp ecx, ecx\nrdtscp\nsetz bl\nSTOP", mode)
    rig.run()
    assert rig.reg("rcx") == 0x1234
    assert rig.reg("bl") == 1
    assert (rig.reg("rax"), rig.reg("rdx")) == (rig.reg("rsi"), 0)  # the block has been counted as a whole


def test_rdtsc_stops_where_machine_time_does() -> None:
    rig = Rig("mov ecx, 1000\nagain: loop again\nrdtsc\nmov ebx, eax\nmov ecx, 0x10\nrdmsr\nSTOP", "pm32", virtual_time=False)
    rig.cpu.set_time_base(5_000_000, 100)
    rig.run()
    assert (rig.reg("ebx"), rig.reg("eax")) == (5_000_100, 5_000_100)


def test_rdtsc_with_tsd_in_ring_3() -> None:
    rig = Rig("ring3_32 user\nuser:\n nop\nhere:\n rdtsc", "pm32", stop_on_trap=True, cr4=4)
    rig.run()
    assert [(t.vector, t.ip) for t in rig.traps] == [(13, rig.label("here"))]


SVM = {"vmrun": 0xD8, "vmmcall": 0xD9, "vmload": 0xDA, "vmsave": 0xDB, "stgi": 0xDC, "clgi": 0xDD, "skinit": 0xDE, "invlpga": 0xDF}


@pytest.mark.parametrize("mode", ["pm32", "long"])
@pytest.mark.parametrize("source", list(SVM))
def test_no_nested_virtualization(mode: str, source: str) -> None:
    rig = Rig(f"mov eax, 0x3000\nnop\nhere:\n db 0x0f, 1, {SVM[source]}\n STOP", mode, stop_on_trap=True)
    rig.run()
    assert [(t.vector, t.ip) for t in rig.traps] == [(6, rig.label("here"))]


EFERS = [(0x500, True), (0xD01, True), (0x901, True), (0x1500, False), (0x2500, False), (0x1, False), (0x100000500, False)]


@pytest.mark.parametrize(("value", "good"), EFERS)
def test_efer_in_long_mode(value: int, good: bool) -> None:
    """SVME is not there for the guest (CPUID does not offer it), LME cannot be changed while paging is on, LMA not at all."""
    rig = Rig(f"mov ecx, 0xc0000080\nrdmsr\nmov ebx, eax\nmov eax, {value & 0xFFFFFFFF}\nmov edx, {value >> 32}\nwrmsr\nrdmsr\nSTOP", "long", stop_on_trap=True)
    rig.run()
    assert rig.reg("ebx") == 0x500
    assert [t.vector for t in rig.traps] == ([] if good else [13])
    if good:
        assert rig.reg("eax") == value | 0x400
        assert rig.reg("efer") == value | 0x400


def test_sysenter_is_not_recognized_in_64_bit_code_of_an_amd_part() -> None:
    rig = Rig("here:\n sysenter", "long", stop_on_trap=True)
    rig.run()
    assert [(t.vector, t.ip) for t in rig.traps] == [(6, rig.label("here"))]


# -- call gates, tasks, LDT


def test_call_gate_from_ring_3() -> None:
    rig = Rig("ring3_32 user\nuser:\n push dword 0x1234\n call CALL_GATE | 3:0\nhere:\n STOP\nkernel:\n mov ebx, [esp + 8]\n mov si, cs\n mov ebp, esp\n retf 4", "pm32")
    at = rig.label("kernel")
    rig.poke(GDT + 0x80, "Q", at & 0xFFFF | 8 << 16 | 1 << 32 | 0xEC << 40 | (at >> 16) << 48)
    assert rig.run() is Exit.STOPPED, rig.traps
    assert (rig.reg("ebx"), rig.reg("si")) == (0x1234, 8)
    assert rig.reg("ebp") == STACK0 - 20
    assert rig.reg("cs") == USER32


def test_task_gate_switches_to_another_task() -> None:
    """#DF through a task gate, as 32-bit systems do: a new stack even when the old one is gone."""
    rig = Rig("mov ax, 0x28\n mov dword [0x3000], 1\n int 0x40\n STOP\ntask:\n mov ebx, 0x77\n mov si, cs\n STOP", "pm32")
    tss = 0x1A000
    rig.poke(GDT + 0x90, "Q", descriptor(tss, 0x67, 0x89, 0))
    rig.poke(tss + 0x1C, "III", 0, rig.label("task"), 2)
    rig.poke(tss + 0x38, "I", 0xA800)
    for at, selector in ((0x48, 16), (0x4C, 8), (0x50, 16), (0x54, 16), (0x58, 16), (0x5C, 16)):
        rig.poke(tss + at, "I", selector)
    rig.gate(0x40, 0x85, selector=0x90)
    assert rig.run() is Exit.STOPPED, (rig.traps, hex(rig.reg("rip")))
    assert (rig.reg("ebx"), rig.reg("si")) == (0x77, 8)
    assert rig.peek(tss, "H") == 0x28  # back link
    assert rig.peek(TSS + 0x20) == rig.label("task") - 10 or rig.peek(TSS + 0x20) > 0x1000


def test_registers_read_and_write_by_name() -> None:
    rig = Rig("mov eax, 0x11223344\nmov bx, 0x5566\nmov ch, 0x77\nmov cl, 0x88\nSTOP")
    rig.run()
    assert [rig.reg(n) for n in ("eax", "ax", "ah", "al", "bx", "ch", "cl")] == [0x11223344, 0x3344, 0x33, 0x44, 0x5566, 0x77, 0x88]
    rig.cpu.set_register("rdx", 0xFFFFFFFFFFFFFFFF)
    rig.cpu.set_register("edx", 5)
    assert rig.reg("rdx") == 5
    rig.cpu.set_register("dh", 9)
    assert rig.reg("dx") == 0x905
    rig.cpu.set_register("ds", 0x1234)
    assert rig.cpu.segment("ds").base == 0x12340
    with pytest.raises(KeyError):
        rig.reg("xyz")
    with pytest.raises(KeyError):
        rig.cpu.set_register("xyz", 1)


def test_translate() -> None:
    rig = Rig("STOP", "long")
    rig.page(0x30000, 0x40000 | 3)
    rig.page(0x31000, 0)
    rig.run()
    assert rig.cpu.translate(0x30123) == 0x40123
    assert rig.cpu.translate(0x31000) is None
    assert (rig.cpu.segment("cs").selector, rig.cpu.segment("cs").attributes) == (CODE64, 0xA9B)
    assert rig.cpu.segment("tr").attributes == 0x8B
    assert (rig.reg("cr3"), rig.reg("efer")) == (PML4, 0x500)
    assert IDT
    assert (USER64, USER_DATA) == (0x5B, 0x23)
