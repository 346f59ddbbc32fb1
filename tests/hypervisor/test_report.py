"""The report of a machine that failed."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from avmm.hypervisor.report import disassembly, failure_report, registers, trail
from avmm.hypervisor.vcpu import ProcessorFailure
from avmm.memory import GuestMemory
from tests.cpu.rig import Rig


@pytest.mark.parametrize(
    ("mode", "source", "expected"),
    [("real", "jmp next\nnext: mov ax, 0x1234\nint 0x21", ["mov ax, 0x1234", "int 0x21"]),
     ("pm32", "jmp next\nnext: mov eax, 0x12345678\nlea edi, [eax + ecx*4]", ["mov eax, 0x12345678", "lea edi, [eax + ecx*4]"]),
     ("long", "jmp next\nnext: mov r15, 0x123456789abcdef0\nsyscall", ["movabs r15, 0x123456789abcdef0", "syscall"])],
)  # fmt: skip
def test_disassembly_in_the_mode_of_the_code(mode: str, source: str, expected: list[str]) -> None:
    rig = Rig(source, mode)
    rig.run(1)
    lines = disassembly(rig.cpu, GuestMemory(rig.ram), 2)
    assert [line.split("  ")[-1] for line in lines] == expected
    assert lines[0].startswith(f"{rig.reg('rip'):#010x}")


def test_disassembly_of_what_is_not_there() -> None:
    rig = Rig("jmp next\nnext: nop", "paging")
    rig.run(1)
    memory = GuestMemory(rig.ram)
    rig.page(0x30000, 0)
    assert disassembly(rig.cpu, memory, linear=0x30000) == ["0x00030000  (not mapped, or not an instruction)"]
    assert disassembly(rig.cpu, memory, linear=0xFFFFFFF0)[0].startswith("0xfffffff0  (not mapped")
    rig.ram[0x40000:0x40002] = b"\xff\xff"
    assert "not an instruction" in disassembly(rig.cpu, memory, linear=0x40000)[0]


def test_registers_in_the_width_of_the_mode() -> None:
    rig = Rig("mov rax, 0x1122334455667788\nmov r9, 5\nSTOP", "long")
    rig.run()
    text = registers(rig.cpu)
    assert "rax 1122334455667788" in text
    assert " r9 0000000000000005" in text
    assert "cs 0050" in text
    rig = Rig("mov eax, 0x55667788\nSTOP", "pm32")
    rig.run()
    text = registers(rig.cpu)
    assert "rax 55667788" in text
    assert "r9" not in text
    assert "cr0 11" in text


def test_trail_shows_the_last_exits() -> None:
    rig = Rig("mov dx, 0x3f8\nmov al, 0x41\nout dx, al\nin ax, 0x60\nint 0x40\nSTOP")
    rig.run()
    lines = trail(rig.cpu, 3)
    assert len(lines) == 3
    assert lines[-1].endswith("out       0x00ff size 1 value 0xa5")
    assert any("in        0x0060 size 2 value 0xa5a5" in line for line in trail(rig.cpu))
    assert any("out       0x03f8 size 1 value 0x41" in line for line in trail(rig.cpu))


def test_the_whole_report_and_after_close() -> None:
    rig = Rig("in al, 0x60\nSTOP")
    rig.run()
    partition = SimpleNamespace(name="vm", processor=rig.cpu, memory=GuestMemory(rig.ram))
    try:
        raise KeyError("a bug of ours")
    except KeyError as error:
        report = failure_report(partition, error)  # type: ignore[arg-type]
    for part in ("vm failed: 'a bug of ours'", "rax", "next instructions:", "last exits:", "in the VMM:", "test_report.py"):
        assert part in report
    assert "in the VMM" not in failure_report(partition, ProcessorFailure("gave up"))  # type: ignore[arg-type]
    rig.cpu.close()
    assert "rax" in failure_report(partition, ProcessorFailure(""))  # type: ignore[arg-type]
