"""Waiting for what a guest shows: texts, pixels, quiet, one after another; in machine time, and cheap while the guest is idle."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

import avmm
import avmm_guests
from avmm.clock import MILLISECOND
from avmm.control.watch import IDLE_INTERVAL

pytestmark = pytest.mark.asyncio


@pytest_asyncio.fixture
async def vm() -> AsyncIterator[avmm.Vm]:
    async with avmm.Host() as host:
        vm = await host.create_vm(avmm.VmConfig(memory="16M", disks=[avmm.Disk(avmm_guests.image(), "overlay")]))
        await vm.start()
        await vm.serial.wait_for("ok> ")
        yield vm


async def acknowledge(cpu: avmm.ScriptCpu) -> None:
    await cpu.outb(0x20, 0x20)


async def talker(cpu: avmm.ScriptCpu) -> None:
    """Says a letter every 100 ms for a second, then nothing for 20 s, though its timer goes on, then a last word."""
    for port, value in ((0x20, 0x11), (0x21, 0x20), (0x21, 0x04), (0x21, 0x01), (0x21, 0xFE)):
        await cpu.outb(port, value)
    for port, value in ((0x43, 0x34), (0x40, 59659 & 0xFF), (0x40, 59659 >> 8)):  # counter 0, mode 2: every 50 ms
        await cpu.outb(port, value)
    cpu.on(0x20, acknowledge)
    cpu.sti()
    for letter, ticks in [*((letter, 2) for letter in "abcdefghij"), ("", 400), ("end", 2)]:
        for byte in letter.encode():
            await cpu.outb(0x3F8, byte)
        for _ in range(ticks):
            await cpu.hlt()


async def talking(host: avmm.Host) -> avmm.Vm:
    vm = await host.create_vm(avmm.VmConfig(memory="1M"), guest=talker)
    await vm.start()
    return vm


async def test_ten_idle_minutes_are_a_few_thousand_looks(vm: avmm.Vm) -> None:
    looks = 0

    def never() -> bool:
        nonlocal looks
        looks += 1
        return False

    began = vm.now
    with pytest.raises(avmm.WaitTimeout, match="600 s of machine time passed before it happened"):
        await vm.wait_until(never, 600)
    assert vm.now - began == pytest.approx(600, abs=0.001)
    assert looks < 600e9 / IDLE_INTERVAL + 100


async def test_sleep_is_exact_and_looks_at_nothing(vm: avmm.Vm) -> None:
    began, slices = vm.now, vm.stats.slices
    await vm.sleep(600)
    assert vm.now - began == pytest.approx(600, abs=1e-6)
    assert vm.stats.slices - slices < 50


async def test_looks_come_often_again_when_the_guest_wakes() -> None:
    async with avmm.Host() as host:
        vm = await talking(host)
        await vm.serial.wait_for("j")
        await vm.serial.wait_for("end", timeout=70)
        assert vm.now == pytest.approx(21, abs=0.05)


async def test_text_by_string_pattern_and_function(vm: avmm.Vm) -> None:
    await vm.keyboard.type("echo one two\n")
    assert "\none two" in await vm.screen.wait_for("\none two")
    await vm.screen.wait_for(re.compile(r"^one \w+$", re.MULTILINE))
    await vm.screen.wait_for(lambda text: text.count("ok>") == 2)


async def test_what_a_function_raises_comes_out_and_the_machine_goes_on(vm: avmm.Vm) -> None:
    with pytest.raises(ZeroDivisionError):
        await vm.screen.wait_for(lambda text: bool(1 / (len(text) - len(text))))
    await vm.keyboard.type("echo still here\n")
    await vm.screen.wait_for("\nstill here")


async def test_a_sequence_on_the_serial_line_is_consumed_in_order(vm: avmm.Vm) -> None:
    vm.serial.write("echo first\necho second\n")
    first, second = await vm.serial.expect_sequence("\nfirst", re.compile(r"\nsec\w+"))
    assert "second" not in first.split("\nfirst")[0]
    assert "second" in second


async def test_a_sequence_on_the_screen(vm: avmm.Vm) -> None:
    vm.serial.write("echo red\n")
    assert len(await vm.screen.expect_sequence("red", "\nred\nok>")) == 2


async def test_a_sequence_says_which_step_did_not_come(vm: avmm.Vm) -> None:
    began = vm.now
    with pytest.raises(avmm.WaitTimeout, match=r"(?s)step 2 of 2: .*the screen showed 'never'; it shows:.*ok>"):
        await vm.screen.expect_sequence("ok>", "never", timeout=0.5)
    assert vm.now - began == pytest.approx(0.5, abs=0.01)


async def test_the_serial_line_becomes_quiet_only_when_the_guest_has_finished() -> None:
    async with avmm.Host() as host:
        vm = await talking(host)
        assert await vm.serial.wait_stable(quiet=0.3) == "abcdefghij"
        assert vm.now == pytest.approx(0.9 + 0.3, abs=0.1)


async def test_a_line_that_never_becomes_quiet() -> None:
    async with avmm.Host() as host:
        vm = await talking(host)
        with pytest.raises(avmm.WaitTimeout, match=r"the serial line was quiet for 0.2 s; its last words:\nabc"):
            await vm.serial.wait_stable(quiet=0.2, timeout=0.5)


async def test_the_screen_becomes_stable_behind_what_was_typed(vm: avmm.Vm) -> None:
    await vm.keyboard.type("read motd.txt\n")
    text = await vm.screen.wait_stable(quiet=0.2)
    assert text.endswith("ok>")
    assert text.count("ok>") == 2


async def test_a_pixel(vm: avmm.Vm) -> None:
    width, height, _ = vm.screen.pixels()
    assert vm.screen.pixel(width - 1, height - 1) == (0, 0, 0)
    await vm.screen.wait_pixel(width - 1, height - 1, (0, 0, 0))
    with pytest.raises(avmm.WaitTimeout, match=r"the pixel at \(0, 399\) was \(1, 2, 3\); it is \(0, 0, 0\)"):
        await vm.screen.wait_pixel(0, height - 1, (1, 2, 3), timeout=0.1)
    with pytest.raises(avmm.WaitTimeout, match=f"it is outside of {width}x{height}"):
        await vm.screen.wait_pixel(width, 0, (0, 0, 0), timeout=0.1)


class FrameBuffer:
    """The monitor while an enlightened guest draws it: one pixel, black and then white."""

    shown = True
    size = 1, 1
    generation = 0

    def mode(self) -> str:
        return "graphics"

    def text_rows(self) -> list[str]:
        return []

    def pixels(self) -> tuple[int, int, bytes]:
        return 1, 1, bytes(3) if not self.generation else b"\xff" * 3

    def draw(self) -> None:
        self.generation += 1


async def test_what_an_enlightened_guest_draws_is_what_is_waited_for(vm: avmm.Vm, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = FrameBuffer()
    monkeypatch.setattr(vm.screen, "_synthetic", picture)
    clock = vm.partition.clock
    begin = clock.now()
    timer = clock.timer(picture.draw)
    timer.arm(begin + 300 * MILLISECOND)
    await vm.screen.wait_stable(quiet=0.2)
    assert picture.generation == 0
    await vm.screen.wait_pixel(0, 0, (255, 255, 255), timeout=1)
    timer.arm(clock.now() + 100 * MILLISECOND)
    await vm.screen.wait_stable(quiet=0.2)
    assert picture.generation == 2
