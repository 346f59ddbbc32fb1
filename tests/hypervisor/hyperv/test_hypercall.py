"""The hypercall ABI against the TLFS, Hypercall Interface, on registers and on a real processor executing VMMCALL."""

from __future__ import annotations

import struct

import pytest

from avmm.hypervisor.hyperv import registers as reg
from avmm.hypervisor.hyperv.hypercall import Connections, Status
from avmm.memory import GuestMemory
from tests.cpu.rig import Rig as CpuRig
from tests.devices.bench import Bench
from tests.hypervisor.hyperv.rig import Rig

POST, SIGNAL, FAST = 0x5C, 0x5D, 1 << 16


class Heard(Rig):
    """The interface with somebody listening on connection 7."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[tuple[int, bytes]] = []
        self.events: list[tuple[int, int]] = []
        self.hyperv.connections = Connections(self._message, self._event)

    def _message(self, connection: int, kind: int, payload: bytes) -> Status:
        if connection != 7:
            return Status.INVALID_CONNECTION_ID
        self.messages.append((kind, payload))
        return Status.SUCCESS

    def _event(self, connection: int, flag: int) -> Status:
        self.events.append((connection, flag))
        return Status.SUCCESS

    def message(self, address: int = 0x3000, connection: int = 7, kind: int = 1, size: int = 5) -> int:
        self.memory.write(address, struct.pack("<IIII", connection, 0, kind, size) + b"hello" + bytes(235))
        return address


def test_post_message() -> None:
    rig = Heard()
    assert rig.call(POST, rig.message()) == 0
    assert rig.messages == [(1, b"hello")]
    assert rig.call(POST, rig.message(connection=0xAB000007)) == 0  # 24 bits count
    assert rig.call(POST, rig.message(size=240)) == 0
    assert len(rig.messages[-1][1]) == 240
    assert rig.hyperv.calls == {POST: 3}


@pytest.mark.parametrize(("control", "address", "fields", "status"), [
    (POST | FAST, 0x3000, {}, 2), (POST, 0x3004, {}, 4), (POST, 0x3000, {"size": 241}, 3), (POST, 0x3000, {"size": 0xFFFFFFFF}, 3),
    (POST, 0x3000, {"connection": 8}, 0x12), (POST, 0x3000, {"kind": 0}, 5), (POST, 0x3000, {"kind": 0x80000010}, 5),
    (POST | 1 << 32, 0x3000, {}, 3), (POST | 1 << 17, 0x3000, {}, 3), (POST, 0x3F08, {}, 5), (POST, 0x800000, {}, 5),
    (POST, (1 << 64) - 8, {}, 5), (0x0046, 0x3000, {}, 2), (0, 0, {}, 2), (0xFFFF, 0, {}, 2),
])  # fmt: skip
def test_refused_messages(control: int, address: int, fields: dict[str, int], status: int) -> None:
    rig = Heard()
    rig.message(0x3000, **fields)
    if address != 0x3000:
        rig.message(min(address, 0x7FFF00) & ~7)
    assert rig.call(control, address) == status
    assert not rig.messages


def test_signal_event_fast_and_slow() -> None:
    rig = Heard()
    assert rig.call(0x1005D, 0x2001) == 0
    assert rig.call(0x1005D, 0x0003_0000_2001) == 0
    rig.memory.pack("<IHH", 0x3000, 0x2002, 0, 0)
    assert rig.call(SIGNAL, 0x3000) == 0
    assert rig.events == [(0x2001, 0), (0x2001, 3), (0x2002, 0)]
    assert rig.call(SIGNAL, 0x3001) == 4
    assert rig.call(0x1005D | 1 << 48, 1) == 3
    assert rig.call(0x1005D, 1 << 48) == 3


def test_there_are_no_calls_without_a_hypercall_page() -> None:
    rig = Heard()
    assert rig.hyperv.hypercall(0x1005D, 0x2001) is None
    rig.write(reg.GUEST_OS_ID, 1)
    rig.write(reg.HYPERCALL, 0x5001)
    assert rig.hyperv.hypercall(0x1005D, 0x2001) == 0
    rig.write(reg.GUEST_OS_ID, 0)
    assert rig.hyperv.hypercall(0x1005D, 0x2001) is None
    assert (rig.events, rig.hyperv.calls) == ([(0x2001, 0)], {0x5D: 1})


LONG = ("mov rcx, {control}\n mov rdx, {input}", "mov rax, -1", "call rsi")
PAIRS = ("mov edx, {control_high}\n mov eax, {control_low}\n mov ebx, {input_high}\n mov ecx, {input_low}", "", "call esi")
CONVENTIONS = {"long": LONG, "compat": PAIRS, "paging": PAIRS, "pm32": PAIRS}


def caller(mode: str, control: int, argument: int) -> str:
    """Code that makes a hypercall through the page at 0x8000, and then stops."""
    load, garbage, call = CONVENTIONS[mode]
    values = {
        "control": control, "control_high": control >> 32, "control_low": control & 0xFFFFFFFF,
        "input": argument, "input_high": argument >> 32, "input_low": argument & 0xFFFFFFFF,
    }  # fmt: skip
    return f"{garbage}\n mov esi, 0x8000\n {load.format(**values)}\n {call}\n mov dword [0x4004], 0x1234\n out 0xff, al"


def on_processor(source: str, mode: str) -> tuple[CpuRig, list[tuple[int, int]]]:
    """A processor in ``mode`` with the interface: the hypercall page is at 0x8000."""
    cpu = CpuRig(source, mode)
    bench = Bench()
    bench.memory = GuestMemory(cpu.ram, cpu.cpu.invalidate)
    parts = Rig()
    hyperv = type(parts.hyperv)(bench, cpu.cpu, parts.apic)
    hyperv.install(parts.msrs)
    events: list[tuple[int, int]] = []

    def heard(connection: int, flag: int) -> Status:
        events.append((connection, flag))
        return Status.SUCCESS

    hyperv.connections = Connections(lambda *message: Status.INVALID_CONNECTION_ID, heard)
    assert parts.msrs.write(reg.GUEST_OS_ID, 1)
    assert parts.msrs.write(reg.HYPERCALL, 0x8001)
    cpu.cpu.reset(cpu.state)
    return cpu, events


@pytest.mark.parametrize("mode", list(CONVENTIONS))
@pytest.mark.parametrize(("control", "argument", "status", "heard"), [
    (0x1005D, 0x2001, 0, [(0x2001, 0)]),
    (0x1005D, 0x0003_0000_2001, 0, [(0x2001, 3)]),
    (0x1005D, 0x0001_0000_0000_2001, 3, []),  # a reserved bit in the upper half of the input
    (0x1_0001_005D, 0x2001, 3, []),  # ... and of the control word
    (0x1234, 0, 2, []),
])  # fmt: skip
def test_vmmcall_on_the_processor(mode: str, control: int, argument: int, status: int, heard: list[tuple[int, int]]) -> None:
    cpu, events = on_processor(caller(mode, control, argument), mode)
    cpu.run()
    assert events == heard
    assert (cpu.reg("rax"), cpu.peek(0x4004)) == (status, 0x1234)
    assert mode == "long" or cpu.reg("rdx") == 0
    assert not cpu.traps


@pytest.mark.parametrize("mode", ["long", "pm32"])
def test_a_result_of_64_bits(mode: str) -> None:
    """A rep count is in the upper half of the result."""
    cpu = CpuRig("vmmcall\n out 0xff, al", mode)
    asked: list[tuple[int, int]] = []

    def answer(control: int, argument: int) -> int:
        asked.append((control, argument))
        return 0xC_0000_0005

    cpu.cpu.callbacks.hypercall = answer
    cpu.cpu.reset(cpu.state)
    for name, value in {"rax": 1, "rdx": 2, "rbx": 3, "rcx": 1 << 63 | 4 if mode == "long" else 4}.items():
        cpu.cpu.begin()
        cpu.cpu.set_register(name, value)
    cpu.run()
    if mode == "long":
        assert (asked, cpu.reg("rax"), cpu.reg("rdx")) == ([(1 << 63 | 4, 2)], 0xC_0000_0005, 2)
    else:
        assert (asked, cpu.reg("rax"), cpu.reg("rdx")) == ([(2 << 32 | 1, 3 << 32 | 4)], 5, 0xC)


@pytest.mark.parametrize("prefixes", ["", "db 0x66", "db 0x2e, 0x66, 0x3e"])
def test_vmmcall_with_prefixes(prefixes: str) -> None:
    cpu, events = on_processor(f"mov ecx, 0x1005d\n mov edx, 0x2001\n {prefixes}\n vmmcall\n out 0xff, al", "long")
    cpu.run()
    assert (events, cpu.traps) == ([(0x2001, 0)], [])


@pytest.mark.parametrize(("mode", "source"), [("real", "vmmcall"), ("pm32", "ring3_32 user\nuser: vmmcall"), ("long", "ring3_64 user\nuser: vmmcall")])
def test_vmmcall_outside_a_kernel_is_an_invalid_opcode(mode: str, source: str) -> None:
    cpu, events = on_processor(f"{source}\n jmp $", mode)
    cpu.stop_on_trap = True
    cpu.run()
    assert [trap.vector for trap in cpu.traps] == [6]
    assert not events


def test_vmmcall_without_the_interface_is_an_invalid_opcode() -> None:
    cpu = CpuRig("vmmcall\n jmp $", "long")
    cpu.stop_on_trap = True
    cpu.run()
    assert [trap.vector for trap in cpu.traps] == [6]
