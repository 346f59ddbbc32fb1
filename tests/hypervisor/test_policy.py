"""Automatic placement: what is touched often goes in, what the policy brought in and is quiet goes out, and nothing flaps."""

from __future__ import annotations

import asyncio

import pytest

import avmm
from avmm.clock import MILLISECOND
from avmm.cpu.script import ScriptCpu
from avmm.hypervisor.policy import Limits, Move, Policy, Watch
from tests.vm.scripted import end_of_interrupt, start_pic, start_pit

LIMITS = Limits(busy=1000, quiet=100, window=100 * MILLISECOND, patience=2, forgiveness=3, rest=2)


def follow(rates: list[float], place: str = "service", policy: Policy | None = None) -> list[Move | None]:
    """Look at one device with these rates (accesses per second) in successive windows, carrying out what is decided."""
    policy = policy or Policy(LIMITS)
    places, count, now = {"pit": place}, 0, 0
    policy.look(now, {"pit": 0}, places)
    decided: list[Move | None] = []
    for rate in rates:
        now += LIMITS.window
        count += int(rate / 10)
        moves = policy.look(now, {"pit": count}, places)
        decided.append(moves[0] if moves else None)
        for move in moves:
            places[move.device] = move.to
    return decided


IN, OUT = Move("pit", "hypervisor", 2000), Move("pit", "service", 0)


@pytest.mark.parametrize(
    ("rates", "place", "decided"),
    [
        ([999] * 9, "service", [None] * 9),
        ([2000], "service", [None]),
        ([2000, 2000], "service", [None, IN]),
        ([2000, 500, 2000, 500], "service", [None] * 4),  # one busy window is not enough
        ([2000] * 9, "service", [None, IN] + [None] * 7),
        ([0] * 9, "hypervisor", [None] * 9),  # it is inside by the user's wish and stays there
        # in; two windows of rest; three quiet ones; out; rest again; and then in once more when it is busy
        ([2000, 2000, 0, 0, 0, 0, 0], "service", [None, IN, None, None, None, None, OUT]),
        ([2000, 2000, 0, 0, 0, 0, 0, 2000, 2000, 2000, 2000], "service", [None, IN, None, None, None, None, OUT, None, None, None, IN]),
        ([2000, 2000, 0, 0, 0, 500, 0, 0, 500], "service", [None, IN] + [None] * 7),  # between the rates: the streak ends
        ([2000, 2000, 0, 0, 0, 0, 0], "kernel", [None, IN, None, None, None, None, Move("pit", "kernel", 0)]),
    ],
)
def test_decisions(rates: list[float], place: str, decided: list[Move | None]) -> None:
    assert follow(rates, place) == decided


def test_a_failed_move_is_not_tried_at_once_again() -> None:
    policy = Policy(LIMITS)
    now = count = tries = 0
    for _ in range(20):
        tries += len(policy.look(now, {"pit": count}, {"pit": "service"}))  # it never gets inside
        now += LIMITS.window
        count += 1000
    assert tries == 5  # in 19 windows: two busy ones and two of rest for each


@pytest.mark.parametrize("wrong", [{"busy": 10, "quiet": 10}, {"quiet": -1}, {"window": 0}, {"patience": 0}, {"forgiveness": 0}])
def test_limits_that_make_no_sense(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="cannot be quiet|must be longer"):
        Limits(**wrong)


async def reader(cpu: ScriptCpu) -> None:
    """Read the PIT 20 times at each of 1000 ticks, then only halt."""
    ticks = 0

    async def tick(cpu: ScriptCpu) -> None:
        nonlocal ticks
        ticks += 1
        for _ in range(20 if ticks <= 1000 else 0):
            await cpu.inb(0x40)
        await end_of_interrupt(cpu)

    await start_pic(cpu, masks=(0xFE, 0xFF))
    await start_pit(cpu, 1000)
    cpu.on(0x20, tick)
    cpu.sti()
    while True:
        await cpu.hlt()


async def watched(automatic: bool) -> tuple[list[tuple[str, int]], bool, list[str]]:
    """Run the reader for four seconds. Return the moves with their times, whether a timer is left, and the task names afterwards."""
    async with avmm.Host() as host:
        config = avmm.VmConfig(memory="1M", placement={"pit": "service", "pic": "service"}, auto_placement=automatic)
        vm = await host.create_vm(config, reader)
        await vm.start()
        await vm.sleep(4.5)
        events = [event for event in vm.partition.trace_log.events if event.name == "placement"]
        moves = [(f"{event.fields['device']} {event.fields['to']}", event.time // MILLISECOND) for event in events]
        armed = vm._watch is not None and vm._watch._timer.armed
        assert vm.placement["pic"] == "service"  # 1000 EOIs a second are below the limit
        await vm.shutdown()
        return moves, armed, [task.get_name() for task in asyncio.all_tasks() if "placement" in task.get_name()]


def test_a_machine_installs_what_its_guest_uses_and_gives_it_back() -> None:
    """I7: the hypervisor itself finds out which devices are used often."""
    moves, armed, tasks = asyncio.run(watched(True))
    assert [what for what, _ in moves] == ["pit hypervisor", "pit service"]
    into, out = (time for _, time in moves)
    assert into <= 160  # two windows of 50 ms, after the first access
    assert 1000 + 40 * 50 <= out <= 1000 + 45 * 50
    assert armed  # the PIC outside is still touched
    assert not tasks


def test_it_is_off_by_default() -> None:
    assert asyncio.run(watched(False))[0] == []
    assert not avmm.VmConfig().auto_placement


def test_an_idle_machine_has_no_timer_of_ours() -> None:
    async def idle(cpu: ScriptCpu) -> None:
        await cpu.inb(0x40)
        await cpu.hlt()

    async def run() -> None:
        async with avmm.Host() as host:
            vm = await host.create_vm(avmm.VmConfig(memory="1M", placement={"pit": "service"}, auto_placement=True), idle)
            assert isinstance(vm._watch, Watch)
            await vm.start()
            await vm.sleep(0.5)
            assert not vm._watch._timer.armed
            assert vm.partition.clock.next_due() is None

    asyncio.run(run())
