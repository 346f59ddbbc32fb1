"""SynIC against the TLFS, Inter-Partition Communication: message slots, EOM, event flags, masks, auto-EOI; and the synthetic timers."""

from __future__ import annotations

import struct

import pytest

from avmm.hypervisor.hyperv import registers as reg
from avmm.hypervisor.hyperv.stimer import AUTO_ENABLE, DIRECT, ENABLE, PERIODIC
from tests.hypervisor.hyperv.rig import Rig

SIMP, SIEFP = 0x10000, 0x11000
SLOT2 = SIMP + 2 * 256


def ready(sint2: int = 0x200F3) -> Rig:
    rig = Rig()
    for index, value in ((reg.SIMP, SIMP | 1), (reg.SIEFP, SIEFP | 1), (reg.SINT0 + 2, sint2), (reg.SCONTROL, 1)):
        assert rig.write(index, value)
    return rig


def vectors(rig: Rig) -> list[int]:
    taken = []
    while rig.apic.intr and (vector := rig.apic.acknowledge()) is not None:
        taken.append(vector)
    return taken


def test_a_message_in_its_slot() -> None:
    rig = ready()
    rig.hyperv.synic.post(2, 1, b"payload")
    assert rig.memory.read(SLOT2, 23) == struct.pack("<IBBHQ", 1, 7, 0, 0, 0) + b"payload"
    assert vectors(rig) == [0xF3]
    assert rig.memory.read(SIMP, 512) == bytes(512)


def test_messages_wait_for_eom() -> None:
    rig = ready()
    rooms: list[int] = []
    rig.hyperv.synic.on_room = rooms.append
    for number in range(3):
        rig.hyperv.synic.post(2, 1, bytes((number,)))
    assert rig.hyperv.synic.depth(2) == 2
    assert vectors(rig) == [0xF3]
    assert rig.memory.read(SLOT2 + 5, 1) == b"\1"  # more is pending
    rig.write(reg.EOM, 0)
    assert rig.memory.read(SLOT2 + 16, 1) == b"\0"
    assert rig.hyperv.synic.depth(2) == 2
    seen = []
    for _ in range(3):
        seen.append(rig.memory.read(SLOT2 + 16, 1)[0])
        pending = rig.memory.read(SLOT2 + 5, 1)[0]
        rig.memory.pack("<I", SLOT2, 0)
        if pending & 1:
            rig.write(reg.EOM, 0)
    assert seen == [0, 1, 2]
    assert rig.hyperv.synic.depth(2) == 0
    assert rooms == [2, 2, 2]
    assert rig.read(reg.EOM) == 0


@pytest.mark.parametrize("switch", [reg.SIMP, reg.SCONTROL])
def test_messages_wait_for_the_controller(switch: int) -> None:
    rig = ready()
    value = rig.read(switch)
    assert value is not None
    rig.write(switch, 0)
    rig.hyperv.synic.post(2, 1, b"x")
    assert vectors(rig) == []
    assert rig.hyperv.synic.depth(2) == 1
    rig.write(switch, value)
    assert vectors(rig) == [0xF3]
    assert rig.hyperv.synic.depth(2) == 0


@pytest.mark.parametrize(("sint", "expected"), [(0xF3, [0xF3]), (0x100F3, []), (0x400F3, []), (0x4000F, [])])
def test_masked_and_polled_sints_do_not_interrupt(sint: int, expected: list[int]) -> None:
    rig = ready(sint)
    rig.hyperv.synic.post(2, 1, b"")
    assert rig.memory.unpack("<I", SLOT2) == (1,)
    assert vectors(rig) == expected


def test_an_event_flag_interrupts_when_it_was_clear() -> None:
    rig = ready()
    synic = rig.hyperv.synic
    assert synic.signal(2, 1)
    assert synic.signal(2, 1)
    assert synic.signal(2, 2047)
    assert rig.memory.read(SIEFP + 512, 256) == bytes((2,)) + bytes(254) + bytes((0x80,))
    assert vectors(rig) == [0xF3]
    assert synic.signal(2, 1)
    assert vectors(rig) == []
    rig.memory.write(SIEFP + 512, bytes(256))
    synic.signal(2, 1)
    assert vectors(rig) == [0xF3]
    assert not synic.signal(2, 2048)
    assert not synic.signal(2, -1)
    rig.write(reg.SIEFP, SIEFP)
    assert not synic.signal(2, 3)
    rig.write(reg.SIEFP, SIEFP | 1)
    rig.write(reg.SCONTROL, 0)
    assert not synic.signal(2, 3)


def test_auto_eoi() -> None:
    rig = ready()
    rig.hyperv.synic.signal(2, 1)
    assert rig.apic.acknowledge() == 0xF3
    assert rig.apic.read_memory(0xFEE00170, 4) == 0  # nothing in service
    rig.hyperv.synic.signal(2, 2)
    assert rig.apic.acknowledge() == 0xF3
    rig.write(reg.SINT0 + 2, 0xF3)  # now the guest ends it itself
    rig.hyperv.synic.signal(2, 3)
    assert rig.apic.acknowledge() == 0xF3
    rig.hyperv.synic.signal(2, 4)
    assert not rig.apic.intr
    rig.write(reg.EOI, 0)
    assert rig.apic.acknowledge() == 0xF3


def test_a_masked_sint_has_no_auto_eoi() -> None:
    rig = ready(0x300F3)
    assert rig.apic.auto_eoi == 0


CONFIG, COUNT = reg.STIMER0_CONFIG, reg.STIMER0_COUNT


def test_a_one_shot_timer_posts_a_message() -> None:
    rig = ready()
    rig.bench.pass_time(50_000)
    assert rig.write(COUNT + 2, 1000)
    assert rig.write(CONFIG + 2, ENABLE | 2 << 16)
    rig.bench.pass_time(49_999)
    assert vectors(rig) == []
    rig.bench.pass_time(1)
    assert vectors(rig) == [0xF3]
    assert rig.memory.read(SLOT2, 5) == struct.pack("<IB", 0x80000010, 24)
    assert rig.memory.unpack("<IIQQ", SLOT2 + 16) == (1, 0, 1000, 1000)
    assert rig.read(CONFIG + 2) == 2 << 16  # it is off again
    rig.bench.pass_time(10**9)
    assert vectors(rig) == []


def test_a_deadline_in_the_past_fires_now() -> None:
    rig = ready()
    rig.bench.pass_time(10**6)
    rig.write(CONFIG, AUTO_ENABLE | DIRECT | 0x60 << 4)
    rig.write(COUNT, 5)
    assert (rig.read(CONFIG) or 0) & ENABLE
    rig.bench.pass_time(0)
    assert vectors(rig) == [0x60]


def test_a_periodic_timer_in_direct_mode() -> None:
    rig = ready()
    rig.write(COUNT, 10_000)
    rig.write(CONFIG, ENABLE | PERIODIC | DIRECT | 0x60 << 4)
    fired = 0
    for _ in range(100):
        rig.bench.pass_time(100_000)
        fired += len(vectors(rig))
        rig.write(reg.EOI, 0)
    assert fired == 10
    rig.write(COUNT, 0)
    assert not (rig.read(CONFIG) or 0) & ENABLE
    rig.bench.pass_time(10**7)
    assert vectors(rig) == []


def test_a_guest_that_takes_no_timer_messages_gets_no_pile_of_them() -> None:
    rig = ready()
    rig.write(COUNT, 1)
    rig.write(CONFIG, ENABLE | PERIODIC | 2 << 16)
    rig.bench.pass_time(10**7)
    assert rig.hyperv.synic.depth(2) <= 1
    assert len(vectors(rig)) == 1


@pytest.mark.parametrize("config", [ENABLE, ENABLE | PERIODIC])
def test_a_timer_with_nobody_to_tell_is_not_enabled(config: int) -> None:
    rig = ready()
    rig.write(CONFIG, config)
    assert rig.read(CONFIG) == config & ~ENABLE


def test_a_deadline_at_the_end_of_time() -> None:
    rig = ready()
    rig.write(CONFIG, AUTO_ENABLE | 2 << 16)
    assert rig.write(COUNT, (1 << 64) - 1)
    rig.write(CONFIG, ENABLE | PERIODIC | 2 << 16)
    rig.bench.pass_time(10**9)
    assert vectors(rig) == []


def test_a_message_of_vmbus_that_waits_does_not_cost_a_one_shot_timer_its_expiry() -> None:
    rig = ready()
    rig.hyperv.synic.post(2, 1, b"first")
    rig.hyperv.synic.post(2, 1, b"second")  # waits: the slot is taken
    assert rig.write(CONFIG, AUTO_ENABLE | 2 << 16)
    assert rig.write(COUNT, 1000)
    rig.bench.pass_time(1_000_000)
    rig.bench.pass_time(1_000_000)
    types = []
    while (kind := rig.memory.unpack("<I", SLOT2)[0]) != 0:
        types.append(kind)
        rig.memory.pack("<I", SLOT2, 0)
        rig.write(reg.EOM, 0)
    assert types == [1, 1, 0x80000010]
