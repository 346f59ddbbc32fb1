"""Going back in time: an earlier moment is reached exactly, and what happened after it happens again."""

from __future__ import annotations

import random
import re
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

import avmm
import guests
from avmm.control.inputs import Diverged, Input
from tests.vm.history import Moment, moment

pytestmark = pytest.mark.asyncio


@pytest_asyncio.fixture
async def vm() -> AsyncIterator[avmm.Vm]:
    """The built-in guest at its prompt."""
    async with avmm.Host() as host:
        vm = await host.create_vm(avmm.VmConfig(memory="16M", disks=[avmm.Disk(guests.image(), "overlay")]))
        await vm.start()
        await vm.screen.wait_for("ok>")
        yield vm


async def work(vm: avmm.Vm, steps: int = 6) -> list[Moment]:
    """Type, use the mouse and the serial line, and look at the machine in between."""
    seen = []
    for number in range(steps):
        await vm.keyboard.type(f"write n{number} {number}\n" if number % 2 else "sum pattern.txt\n")
        vm.mouse.move(number, -number)
        vm.serial.write("x")
        await vm.sleep(0.07)
        seen.append(await moment(vm))
        await vm.resume()
    return seen


async def test_every_moment_is_reached_again(vm: avmm.Vm) -> None:
    history = await vm.keep_history(every=0.2)
    seen = await work(vm)
    assert len(history.moments) > 5
    for there in random.Random(1).sample(seen, 6):
        await history.goto(now=there.now, keep=True)
        assert await moment(vm) == there
        assert vm.state is avmm.RunState.PAUSED
    for there in random.Random(2).sample(seen, 3):
        await history.goto(units=there.units, keep=True)
        assert vm.partition.processor.units == there.units
        assert vm.partition.clock.now() <= there.now, "the first moment at which so much had been done"


async def test_what_happened_after_happens_again_unless_somebody_interferes(vm: avmm.Vm) -> None:
    history = await vm.keep_history(every=0.2)
    seen = await work(vm)
    await history.goto(now=seen[1].now, keep=True)
    await history.goto(now=seen[4].now, keep=True)  # forward again, on what was recorded
    assert await moment(vm) == seen[4]
    await history.goto(now=seen[0].now, keep=True)
    await vm.resume()
    await vm.sleep((seen[-1].now - seen[0].now + 0.5) / 1e9)
    assert await moment(vm) == seen[-1]
    await history.goto(now=seen[0].now, keep=True)
    vm.keyboard.press("z")  # another future
    vm.keyboard.release("z")
    await vm.resume()
    await vm.sleep(2)
    text = vm.screen.text()
    assert text.endswith("z")
    assert "n1" not in text
    assert vm.inputs.left == 0


async def test_rewind_goes_on_from_there(vm: avmm.Vm) -> None:
    history = await vm.keep_history()
    start = history.start
    await vm.keyboard.type("write one 1\n")
    await vm.sleep(0.2)
    before = vm.now
    await vm.sleep(0.1)
    await vm.keyboard.type("write two 2\n")
    await vm.sleep(0.5)
    await vm.rewind(vm.now - before)
    assert vm.now == pytest.approx(before, abs=1e-6)
    assert vm.state is avmm.RunState.RUNNING
    await vm.keyboard.type("dir\n")
    text = await vm.screen.wait_for("files")
    assert "one" in text
    assert "two" not in text
    await vm.rewind(1e9)
    assert vm.partition.clock.now() == history.start == start, "there is nothing before the history"


async def test_back_from_the_end_of_a_machine(vm: avmm.Vm) -> None:
    """After power-off, and after a failure: how did it come to that?"""
    history = await vm.keep_history(every=0.1)
    await vm.keyboard.type("halt\n")
    await vm.wait_off()
    await history.goto(now=history.start + 50_000_000)
    assert vm.state is avmm.RunState.PAUSED
    await vm.resume()
    await vm.keyboard.type("\ntime\n")  # behind the half of a command that was typed by then
    await vm.screen.wait_for("2026-")
    vm.partition.fail(RuntimeError("a bug"))
    with pytest.raises(avmm.GuestFailure):
        await vm.wait_off()
    await vm.rewind(0.1)
    await vm.keyboard.type("\necho alive\n")
    await vm.screen.wait_for("\nalive")


async def test_snapshots_are_thinned_out(vm: avmm.Vm) -> None:
    history = await vm.keep_history(every=0.01)
    start, history._most = history.start, 8
    seen = await work(vm, 3)
    assert len(history.moments) <= 8
    assert history.start == start
    await history.goto(now=seen[0].now)
    assert await moment(vm) == seen[0]


async def diverges(vm: avmm.Vm) -> str:
    """Run until the machine fails because it is not what the record says, and return what it says of that."""
    with pytest.raises(avmm.GuestFailure) as failed:
        await vm.sleep(0.5)
    assert isinstance(failed.value.__cause__, Diverged)
    return str(failed.value.__cause__)


async def test_a_run_that_differs_says_where(vm: avmm.Vm) -> None:
    taken = await vm.snapshot()
    record: list[Input] = []
    vm.inputs.record(record.append)
    await vm.keyboard.type("ab\n")
    vm.inputs.check()
    await vm.sleep(0.3)
    vm.inputs.stop(record.append)
    assert [entry.kind for entry in record] == ["press", "release"] * 3 + ["check"]
    await vm.restore(taken)
    vm.inputs.replay(record)
    vm.keyboard.press("q")
    assert vm.inputs.ignored == 1
    await vm.sleep(0.3)
    assert vm.inputs.left == 0
    assert "ab" in vm.screen.text()

    for wrong, sentence in (
        ([Input(record[0].now, record[0].units, "press", ("b",)), *record[1:]], "between .* its registers are others|units"),
        ([*record[:2], Input(record[2].now, record[2].units + 1, *("press", ("b",)))], f"executed {record[2].units} units, where the record"),
    ):
        await vm.restore(taken)
        vm.inputs.replay(wrong)
        assert re.search(sentence, await diverges(vm))


async def test_what_has_no_history_says_so(vm: avmm.Vm) -> None:
    with pytest.raises(avmm.SnapshotError, match=r"vm has no history to go back in: have it kept first"):
        await vm.rewind(1)
    history = await vm.keep_history()
    assert await vm.keep_history() is history
    for now, units in ((1, None), (None, 1)):
        with pytest.raises(avmm.SnapshotError, match=r"the history of vm begins at [0-9.]+ s, after \d+ units of work"):
            await history.goto(now=now, units=units)
    async with avmm.Host() as host:
        real = await host.create_vm(avmm.VmConfig(memory="1M", clock="real"))
        await real.start()
        with pytest.raises(avmm.SnapshotError, match="vm is in real time, where no run can be repeated"):
            await real.keep_history()
