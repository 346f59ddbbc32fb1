"""Devices in every place of both host structures, a user's own device in them, and what the places cost."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

import avmm
from avmm.cpu.script import ScriptCpu
from avmm_console.cli import group
from examples.dice import Dice
from tests.vm.scripted import end_of_interrupt, start_pic, start_pit

PLACES = [("hybrid", "hypervisor"), ("hybrid", "service"), ("host", "hypervisor"), ("host", "service"), ("host", "kernel")]
ROUTES = {
    ("hybrid", "service"): ["service-os", "device:vm/dice"],
    ("host", "service"): ["host-os", "user-vmm", "device:vm/dice"],
    ("host", "kernel"): ["host-os", "device:vm/dice"],
}


async def play(structure: str, place: str, move: bool = False) -> tuple[list[int], list[int], list[str]]:
    """Roll the die ten times; return the faces, the machine times in ms at which they came, and the route of the last Irp."""
    faces: list[int] = []
    times: list[int] = []
    ready = asyncio.Event()

    async def guest(cpu: ScriptCpu) -> None:
        async def rolled(cpu: ScriptCpu) -> None:
            faces.append(await cpu.inb(0x300))
            times.append(vm.partition.clock.now() // 1_000_000)
            await end_of_interrupt(cpu, 5)
            if len(faces) < 10:
                await cpu.outb(0x300, 7)
            else:
                ready.set()

        async def tick(cpu: ScriptCpu) -> None:
            await end_of_interrupt(cpu)

        await start_pic(cpu)
        await start_pit(cpu, 500)
        cpu.on(0x25, rolled)
        cpu.on(0x20, tick)
        cpu.sti()
        await cpu.outb(0x300, 7)
        while True:
            await cpu.hlt()

    async with avmm.Host(structure) as host:
        placement = dict.fromkeys(("dice", "pit", "pic", "lapic"), place)
        vm = await host.create_vm(avmm.VmConfig(memory="1M", seed=3, devices=[Dice], placement=placement), guest)
        routes: list[list[str]] = []
        vm.partition.on_irp.append(lambda irp: irps.append(irp) if irp.device.name == "dice" else None)
        irps: list[avmm.hypervisor.irp.Irp] = []
        await vm.start()
        for i in range(20 if move else 0):  # in the middle of a roll, before and after the interrupt
            await vm.sleep(0.003)
            for device in ("dice", "pic", "pit"):
                await (vm.install(device) if i & 1 else vm.uninstall(device, "kernel" if i & 2 and structure == "host" else "service"))
        await vm.wait_until(ready.is_set, 2)
        assert vm.partition.lines[5].level is False
        routes = [[name for name, _ in irp.hops] for irp in irps]
        return faces, times, routes[-1] if routes else []


@pytest.fixture(scope="module")
def expected() -> tuple[list[int], list[int]]:
    faces, times, _ = asyncio.run(play("hybrid", "hypervisor"))
    assert len(faces) == 10
    assert set(faces) <= set(range(1, 7))
    assert len(set(faces)) > 1
    assert times == [7 * n for n in range(1, 11)]
    return faces, times


@pytest.mark.parametrize(("structure", "place"), PLACES)
def test_the_same_machine_in_every_place(structure: str, place: str, expected: tuple[list[int], list[int]]) -> None:
    """I8: in virtual time not only the result is the same but also the moment of each interrupt."""
    faces, times, route = asyncio.run(play(structure, place))
    assert (faces, times) == expected
    assert route == ROUTES.get((structure, place), [])


@pytest.mark.parametrize("structure", ["hybrid", "host"])
def test_moving_in_the_middle_of_a_roll_changes_nothing(structure: str, expected: tuple[list[int], list[int]]) -> None:
    faces, times, _ = asyncio.run(play(structure, "hypervisor", move=True))
    assert (faces, times) == expected


def test_places_that_a_structure_does_not_have() -> None:
    async def run() -> None:
        with pytest.raises(avmm.ConfigError, match="choose hybrid or host"):
            avmm.Host("other")
        async with avmm.Host() as host:
            with pytest.raises(avmm.ConfigError, match="cannot be placed in 'kernel'"):
                await host.create_vm(avmm.VmConfig(memory="1M", placement={"pit": "kernel"}))

    asyncio.run(run())


def test_a_device_published_by_an_entry_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `pip install ./examples` publishes it."""
    info = tmp_path / "avmm_dice-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: avmm-dice\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[avmm.devices]\ndice = examples.dice:Dice\nbroken = examples.nothing:Dice\n")
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])

    async def run() -> None:
        async with avmm.Host() as host:
            vm = await host.create_vm(avmm.VmConfig(memory="1M", devices=["dice"], placement={"dice": "service"}))
            assert vm.placement["dice"] == "service"
            report = await vm.install("dice", "entry-point:dice")
            assert report.moved
            with pytest.raises(avmm.InstallError, match="cannot be imported"):
                await vm.install("dice", "entry-point:broken")
            assert vm.placement["dice"] == "hypervisor"
            for wrong, words in (("nothing", "no installed package"), ("broken", "cannot be imported")):
                with pytest.raises(avmm.ConfigError, match=words):
                    await host.create_vm(avmm.VmConfig(name="other", memory="1M", devices=[wrong]))

    asyncio.run(run())


def test_the_demonstration_of_inside_and_outside() -> None:
    result = CliRunner().invoke(group, ["demo", "inside", "--json"], standalone_mode=False)
    assert result.exception is None, result.output
    costs = {(cost["operation"], cost["placement"]): cost for cost in json.loads(result.output)}
    assert len(costs) == 8
    assert all(cost["us"] > 0 for cost in costs.values())
    inside, outside = costs["pit read", "inside"], costs["pit read", "outside"]
    assert (inside["exits"], inside["hops"], outside["exits"], outside["hops"]) == (1, 0, 1, 3)
    assert costs["text write", "inside"]["exits"] == 0
    assert costs["text write", "outside"]["exits"] == 1
    assert outside["us"] > inside["us"], costs  # how much more is for benchmarks: machines are noisy
