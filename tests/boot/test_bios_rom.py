"""The ROM: addresses, stubs by disassembly, and the stubs executed on a plain Unicorn processor in real mode."""

from __future__ import annotations

import struct
from typing import Any

import capstone
import pytest
import unicorn
from unicorn import x86_const as x86

from avmm.boot.bios import rom
from avmm.boot.bios.rom import CALLS, POST, PRIVATE_PORT, ROM_IMAGE, VECTORS, Service, diskette_table, rom_image

OUT = f"out {PRIVATE_PORT:#x}, al"


def disassemble(offset: int, end: str = "iret") -> list[str]:
    decoder = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_16)
    lines = []
    for instruction in decoder.disasm(ROM_IMAGE[offset : offset + 96], offset):
        lines.append(f"{instruction.mnemonic} {instruction.op_str}".strip())
        if instruction.mnemonic == end:
            break
    return lines


def test_size_and_compatibility_addresses() -> None:
    assert len(ROM_IMAGE) == 0x10000
    assert ROM_IMAGE[0xFFF0:0xFFF5] == bytes((0xEA, 0x5B, 0xE0, 0x00, 0xF0))
    assert ROM_IMAGE[0xFFFE] == 0xFC
    assert ROM_IMAGE[0xFFF5:0xFFFD].decode().count("/") == 2
    assert ROM_IMAGE[0xFF53] == 0xCF
    assert sum(ROM_IMAGE) & 0xFF == 0
    assert not any(ROM_IMAGE[:0xE000])  # left free for tables
    assert struct.unpack_from("<HBB", ROM_IMAGE, 0xE6F5) == (8, 0xFC, 1)


@pytest.mark.parametrize("number", [0x10, 0x11, 0x12, 0x17, 0x1A, 0x0B, 0x77])
def test_simple_stub(number: int) -> None:
    assert disassemble(VECTORS[number]) == [OUT, "iret"]


def test_disk_stub_opens_interrupts_first() -> None:
    assert disassemble(VECTORS[0x13]) == ["sti", OUT, "iret"]
    assert VECTORS[0x40] == VECTORS[0x13]


def test_timer_stub() -> None:
    lines = disassemble(VECTORS[0x08])
    assert lines.index("int 0x1c") < lines.index("cli") < len(lines) - 1 - lines[::-1].index(OUT)
    assert lines[:3] == ["push ds", "push dx", "push ax"]
    assert lines[-4:] == ["pop ax", "pop dx", "pop ds", "iret"]


def test_post_ends_in_int_19h() -> None:
    lines = disassemble(POST, "hlt")
    assert lines[-3:] == ["sti", "int 0x19", "hlt"]
    assert OUT in lines


def test_vectors() -> None:
    for number in range(0x60, 0x67):
        assert VECTORS[number] == 0
    for number in (0x00, 0x05, 0x1B, 0x1C, 0x4A, 0xFF):
        assert VECTORS[number] == rom.IRET_STUB


def test_every_service_is_called_from_somewhere() -> None:
    assert set(CALLS.values()) == set(Service)
    for ip in CALLS:
        assert ROM_IMAGE[ip : ip + 2] == bytes((0xE6, PRIVATE_PORT)) or ROM_IMAGE[ip - 2 : ip] == bytes((0xE6, PRIVATE_PORT))


def test_font_goes_to_its_place() -> None:
    image = rom_image(bytes(range(256)) * 4)
    assert image[0xFA6E : 0xFA6E + 256] == bytes(range(256))
    assert sum(image) & 0xFF == 0
    with pytest.raises(ValueError, match="1024"):
        rom_image(b"x")


@pytest.mark.parametrize(("sectors", "tracks"), [(9, 40), (9, 80), (15, 80), (18, 80), (36, 80)])
def test_diskette_table(sectors: int, tracks: int) -> None:
    table = diskette_table(sectors, tracks)
    assert len(table) == 14
    assert (table[3], table[4], table[11]) == (2, sectors, tracks - 1)


class Runner:
    """Real-mode Unicorn over the ROM; ``on_out(runner, service)`` plays the VMM, ``on_halt(runner)`` gives the vector that ends a HLT."""

    def __init__(self, on_out: Any, on_halt: Any = None) -> None:
        self.uc = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_16)
        self.uc.mem_map(0, 0x100000)
        self.uc.mem_write(0xF0000, ROM_IMAGE)
        for number, offset in VECTORS.items():
            self.uc.mem_write(4 * number, struct.pack("<HH", offset, 0xF000 if offset else 0))
        self.on_out = on_out
        self.on_halt = on_halt
        self.calls: list[Service] = []
        self.ports: list[tuple[int, int]] = []
        self.inputs: dict[int, int] = {}
        self.uc.hook_add(unicorn.UC_HOOK_INTR, lambda uc, number, data: self.interrupt(number))
        self.uc.hook_add(unicorn.UC_HOOK_INSN, self._out, None, 1, 0, x86.UC_X86_INS_OUT)
        self.uc.hook_add(unicorn.UC_HOOK_INSN, lambda uc, port, size, data: self.inputs[port], None, 1, 0, x86.UC_X86_INS_IN)

    def _out(self, uc: Any, port: int, size: int, value: int, data: Any) -> None:
        if port != PRIVATE_PORT:
            self.ports.append((port, value))
            return
        service = CALLS[uc.reg_read(x86.UC_X86_REG_IP)]
        self.calls.append(service)
        self.on_out(self, service)

    def get(self, name: str) -> int:
        return int(self.uc.reg_read(getattr(x86, f"UC_X86_REG_{name.upper()}")))

    def set(self, name: str, value: int) -> None:
        self.uc.reg_write(getattr(x86, f"UC_X86_REG_{name.upper()}"), value)

    def interrupt(self, number: int) -> None:
        """What INT does in real mode."""
        flags = self.get("eflags")
        sp = self.get("sp") - 6 & 0xFFFF
        self.uc.mem_write(self.get("ss") * 16 + sp, struct.pack("<HHH", self.get("ip"), self.get("cs"), flags & 0xFFFF))
        self.set("sp", sp)
        self.set("eflags", flags & ~0x300)
        offset, segment = struct.unpack("<HH", self.uc.mem_read(4 * number, 4))
        self.set("cs", segment)
        self.set("ip", offset)

    def wait_flag(self, on: bool) -> None:
        at = self.get("ss") * 16 + self.get("sp") + 5
        self.uc.mem_write(at, bytes((self.uc.mem_read(at, 1)[0] & 0x7F | on << 7,)))

    def run(self, code: str, **registers: int) -> None:
        """Run guest code at 0100:0000 that ends with HLT."""
        program = bytes.fromhex(code)
        self.uc.mem_write(0x1000, program)
        for name, value in {"ss": 0, "sp": 0x7000, "cs": 0x100, "eflags": 0x202, **registers}.items():
            self.set(name, value)
        at = 0x1000
        for _ in range(50):
            self.uc.emu_start(at, 0xFFFFF, count=500)
            if self.get("cs") == 0x100:
                return
            assert self.get("eflags") & 0x200, "halted with interrupts off"
            self.interrupt(self.on_halt(self))
            at = self.get("cs") * 16 + self.get("ip")
        raise AssertionError("never came back")


REGISTERS = {
    "eax": 0x11112222,
    "ebx": 0x33334444,
    "ecx": 0x55556666,
    "edx": 0x77778888,
    "esi": 0x9999AAAA,
    "edi": 0xBBBBCCCC,
    "ebp": 0xDDDDEEEE,
    "ds": 0x200,
    "es": 0x300,
}


@pytest.mark.parametrize("number", [0x08, 0x0B, 0x0E, 0x10, 0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x1A, 0x70, 0x71, 0x74, 0x75, 0x76])
def test_stubs_keep_every_register_and_flag(number: int) -> None:
    def vmm(runner: Runner, service: Service) -> None:
        if service in (Service.RTC_IRQ, Service.MOUSE_IRQ):
            runner.set("al", 0)

    runner = Runner(vmm)
    runner.run(f"CD {number:02X} F4", eflags=0x2 | 0x8D5 | 0x200, **REGISTERS)
    assert {name: runner.get(name) for name in REGISTERS} == REGISTERS
    assert runner.get("eflags") & 0xFD5 == 0xAD5
    assert runner.get("sp") == 0x7000
    assert number == 0x71 or runner.calls


@pytest.mark.parametrize(("number", "service"), [(0x16, Service.KEYBOARD), (0x15, Service.SYSTEM)])
def test_waiting_halts_until_the_service_is_done(number: int, service: Service) -> None:
    def vmm(runner: Runner, asked: Service) -> None:
        runner.wait_flag(asked in (Service.KEYBOARD, Service.SYSTEM, Service.SYSTEM_WAIT) and len(halts) < 3)

    halts: list[int] = []

    def halt(runner: Runner) -> int:
        halts.append(runner.get("ip"))
        return 0x08

    runner = Runner(vmm, halt)
    runner.run(f"CD {number:02X} F4", **REGISTERS)
    assert len(halts) == 3
    assert runner.calls[0] is service
    assert runner.calls.count(Service.TIMER) == 3
    assert {name: runner.get(name) for name in REGISTERS} == REGISTERS
    assert not runner.get("eflags") & 0x8000


def test_keyboard_interrupt_calls_the_intercept_then_the_service() -> None:
    seen = []

    def vmm(runner: Runner, service: Service) -> None:
        seen.append((service, runner.get("ax")))
        if service is Service.KEYBOARD_IRQ:
            runner.set("al", 0x1B)

    runner = Runner(vmm)
    runner.inputs[0x60] = 0x1E
    runner.uc.mem_write(4 * 0x1B, struct.pack("<HH", 0, 0x180))
    runner.uc.mem_write(0x1800, bytes.fromhex("FE06 0005 CF"))  # inc byte [500h]; iret
    runner.run("CD 09 F4", eax=0xABCD, ds=0)
    assert seen == [(Service.SYSTEM, 0x4F1E), (Service.KEYBOARD_IRQ, 0x001E)]
    assert runner.ports == [(0x20, 0x20)]
    assert runner.uc.mem_read(0x500, 1)[0] == 1
    assert runner.get("eax") == 0xABCD


def test_intercept_may_swallow_the_scan_code() -> None:
    runner = Runner(lambda *_: None)
    runner.inputs[0x60] = 0x1E
    runner.uc.mem_write(4 * 0x15, struct.pack("<HH", 0, 0x180))
    runner.uc.mem_write(0x1800, bytes.fromhex("F8 CA 02 00"))  # clc; retf 2
    runner.run("CD 09 F4")
    assert runner.calls == []
    assert runner.ports == [(0x20, 0x20)]


def test_pause_halts_in_int_9() -> None:
    answers = [0xFF, 1, 0]

    def vmm(runner: Runner, service: Service) -> None:
        if service in (Service.KEYBOARD_IRQ, Service.KEYBOARD_PAUSED):
            runner.set("al", answers.pop(0))

    runner = Runner(vmm, lambda runner: 0x08)
    runner.inputs[0x60] = 0x45
    runner.run("CD 09 F4", eax=0x1234)
    assert answers == []
    assert runner.get("eax") == 0x1234


def test_mouse_handler_gets_four_words() -> None:
    def vmm(runner: Runner, service: Service) -> None:
        runner.set("al", 1)
        runner.set("bx", 0x09)
        runner.set("cx", 0x0A)
        runner.set("dx", 0x0B)
        runner.set("ds", 0x9FC0)

    runner = Runner(vmm)
    runner.uc.mem_write(0x9FC22, struct.pack("<HH", 0, 0x180))
    # push bp; mov bp,sp; mov ax,[bp+12]; mov cs:[10h],ax; the same for x and y; pop bp; retf
    runner.uc.mem_write(0x1800, bytes.fromhex("55 89E5 8B460C 2EA34000 8B460A 2EA34200 8B4608 2EA34400 5D CB"))
    runner.run("CD 74 F4", **REGISTERS)
    assert struct.unpack("<HHH", runner.uc.mem_read(0x1840, 6)) == (0x09, 0x0A, 0x0B)
    assert {name: runner.get(name) for name in REGISTERS} == REGISTERS


def test_alarm_calls_int_4ah() -> None:
    runner = Runner(lambda runner, service: runner.set("al", 1))
    runner.uc.mem_write(4 * 0x4A, struct.pack("<HH", 0, 0x180))
    runner.uc.mem_write(0x1800, bytes.fromhex("FE06 0005 CF"))
    runner.run("CD 70 F4", ds=0, eax=0x55)
    assert runner.uc.mem_read(0x500, 1)[0] == 1
    assert runner.get("eax") == 0x55


def test_reset_vector_to_boot_sector() -> None:
    runner = Runner(lambda runner, service: runner.set("al", 0) if service is Service.POST else runner.set("dl", 0x80))
    runner.uc.mem_write(0x7C00, b"\xf4")
    runner.uc.reg_write(x86.UC_X86_REG_CS, 0xF000)
    runner.uc.emu_start(0xFFFF0, 0xFFFFF, count=200)
    assert runner.calls == [Service.POST, Service.BOOT]
    assert (runner.get("cs"), runner.get("ip"), runner.get("ss"), runner.get("sp")) == (0, 0x7C01, 0, 0x7C00)
    assert (runner.get("dl"), runner.get("ds"), runner.get("es")) == (0x80, 0, 0)
    assert runner.get("eflags") & 0x200


def test_shutdown_request_resumes_at_40_67() -> None:
    runner = Runner(lambda runner, service: runner.set("al", 1))
    runner.uc.mem_write(0x467, struct.pack("<HH", 0x10, 0x180))
    runner.uc.mem_write(0x1810, b"\xf4")
    runner.uc.reg_write(x86.UC_X86_REG_CS, 0xF000)
    runner.uc.emu_start(0xFFFF0, 0xFFFFF, count=200)
    assert (runner.get("cs"), runner.get("ip")) == (0x180, 0x11)
