"""The hypercall ABI against the TLFS, Hypercall Interface, on registers and on a real processor executing VMMCALL."""

from __future__ import annotations

import struct

import pytest

from avmm.hypervisor.hyperv import registers as reg
from avmm.hypervisor.hyperv.hypercall import Connections, Status
from avmm.memory import GuestMemory
from tests.cpu.rig import Rig as CpuRig
from tests.devices.bench import Bench
from tests.hypervisor.hyperv.rig import CODE32, Rig

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


def ready() -> Heard:
    rig = Heard()
    rig.write(reg.GUEST_OS_ID, 1)
    rig.write(reg.HYPERCALL, 0x5001)
    return rig


def test_the_64_bit_convention() -> None:
    rig = ready()
    rig.registers.values |= {"rcx": 0x1005D, "rdx": 0x2001, "rax": 99}
    assert rig.hyperv.hypercall()
    assert rig.events == [(0x2001, 0)]
    assert rig.registers.values["rax"] == 0
    rig.registers.values |= {"rcx": POST, "rdx": rig.message(connection=9)}
    assert rig.hyperv.hypercall()
    assert rig.registers.values["rax"] == 0x12


def test_the_32_bit_convention() -> None:
    rig = ready()
    rig.registers.cs = CODE32
    rig.registers.values |= {"rdx": 0, "rax": 0x1005D, "rbx": 0x0003, "rcx": 0x2001}
    assert rig.hyperv.hypercall()
    assert rig.events == [(0x2001, 3)]
    assert (rig.registers.values["rax"], rig.registers.values["rdx"]) == (0, 0)
    rig.registers.values |= {"rdx": 0, "rax": POST, "rbx": 0, "rcx": rig.message()}
    assert rig.hyperv.hypercall()
    assert rig.messages == [(1, b"hello")]


def test_who_may_not_call() -> None:
    assert not Heard().hyperv.hypercall()  # no hypercall page
    for name, value in (("cr0", 0x10), ("rflags", 1 << 17 | 2)):
        rig = ready()
        rig.registers.values[name] = value
        assert not rig.hyperv.hypercall()
    rig = ready()
    rig.registers.ss |= 3 << 5
    assert not rig.hyperv.hypercall()
    assert not rig.hyperv.calls


CALLER = {
    "paging": "mov eax, 0x1005d\n xor edx, edx\n mov ecx, 0x2001\n xor ebx, ebx\n mov esi, 0x8000\n call esi",
    "pm32": "mov eax, 0x1005d\n xor edx, edx\n mov ecx, 0x2001\n xor ebx, ebx\n mov esi, 0x8000\n call esi",
    "compat": "mov eax, 0x1005d\n xor edx, edx\n mov ecx, 0x2001\n xor ebx, ebx\n mov esi, 0x8000\n call esi",
    "long": "mov ecx, 0x1005d\n mov edx, 0x2001\n mov esi, 0x8000\n call rsi",
}


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
    parts.write(reg.GUEST_OS_ID, 1)
    assert parts.msrs.write(reg.GUEST_OS_ID, 1)
    for index, (_, write) in hyperv.handlers().items():
        if index in (reg.GUEST_OS_ID, reg.HYPERCALL):
            assert write(0x8001)
    return cpu, events


@pytest.mark.parametrize("mode", list(CALLER))
def test_vmmcall_on_the_processor(mode: str) -> None:
    cpu, events = on_processor(f"{CALLER[mode]}\n mov dword [0x4000], eax\n mov dword [0x4004], 0x1234\n out 0xff, al", mode)
    cpu.poke(0x4000, "I", 77)
    cpu.run()
    assert events == [(0x2001, 0)]
    assert cpu.peek(0x4000) == 0
    assert cpu.peek(0x4004) == 0x1234
    assert not cpu.traps


def test_vmmcall_from_ring_3_is_an_invalid_opcode() -> None:
    cpu, events = on_processor("ring3_32 user\nuser: vmmcall\n jmp $", "pm32")
    cpu.stop_on_trap = True
    cpu.run()
    assert [trap.vector for trap in cpu.traps] == [6]
    assert not events


def test_vmmcall_without_the_interface_is_an_invalid_opcode() -> None:
    cpu = CpuRig("vmmcall\n jmp $", "long")
    cpu.stop_on_trap = True
    cpu.run()
    assert [trap.vector for trap in cpu.traps] == [6]
