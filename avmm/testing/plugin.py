"""The pytest plugin: fixtures for scenarios with guests, loaded by entry point wherever avmm is installed.

::

    @pytest.mark.asyncio
    @pytest.mark.avmm(memory="16M")                 # VmConfig's fields; without disks the built-in guest
    async def test_dir(avmm_vm, screen, keyboard):
        await screen.wait_for("ok>")
        await keyboard.type("dir\\n")
        await screen.wait_for("readme.txt")

Time is virtual unless the marker says ``clock="real"``: a scenario is deterministic and as fast as the guest computes. When a test
fails, its report shows the screen as a person would see it, the serial line's tail and the last exits; a picture of the screen
goes to the folder ``--avmm-artefacts`` names.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

try:
    import pytest_asyncio
except ImportError:  # avmm may be installed where nobody tests with it
    pytest_asyncio = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from avmm.control.host import Host
    from avmm.control.keyboard import Keyboard, Mouse
    from avmm.control.screen import Screen
    from avmm.control.serial import Serial
    from avmm.control.vm import Vm

_MACHINES = pytest.StashKey["list[Vm]"]()
TRAIL_SHOWN = 12


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add our options."""
    group = parser.getgroup("avmm")
    group.addoption("--avmm-artefacts", metavar="FOLDER", help="save a picture of each machine's screen there when its test fails")


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marker."""
    config.addinivalue_line("markers", "avmm(**fields): the machine that the fixture avmm_vm makes: fields of avmm.VmConfig")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Show what the machines show, when a test that used them failed."""
    report: Any = yield
    if report.when == "call" and report.failed:
        for vm in item.stash.get(_MACHINES, []):
            report.sections.append((f"avmm: {vm.name}", describe(vm)))
            folder = item.config.getoption("--avmm-artefacts")
            if folder:
                Path(folder).mkdir(parents=True, exist_ok=True)
                name = re.sub(r"[^\w.-]+", "_", item.name)
                vm.screen.save_png(Path(folder) / f"{name}-{vm.name}.png")
    return report  # type: ignore[no-any-return]


def describe(vm: Vm) -> str:
    """Return what a person needs to see of a machine whose test failed."""
    from avmm.hypervisor.report import trail

    screen = vm.screen.text() or "(nothing, or graphics)"
    frame = "-" * max(40, max(map(len, screen.splitlines()), default=0))
    parts = [f"{vm.state.value} after {vm.now:.3f} s of machine time\n{frame}\n{screen}\n{frame}"]
    if vm.serial.output:
        parts.append(f"serial line, last part:\n{vm.serial.tail()}")
    parts.append("last exits:\n" + "\n".join(trail(vm.partition.processor, TRAIL_SHOWN)))
    if vm.partition.failure is not None:
        parts.append(str(vm.partition.failure))
    return "\n".join(parts)


if pytest_asyncio is not None:

    @pytest_asyncio.fixture
    async def avmm_host() -> AsyncIterator[Host]:
        """A host for machines; everything on it ends with the test."""
        from avmm.control.host import Host

        async with Host() as host:
            yield host

    @pytest_asyncio.fixture
    async def avmm_vm(avmm_host: Host, request: pytest.FixtureRequest) -> Vm:
        """A machine, started, as the marker ``avmm`` describes it: by default the built-in guest on an overlay of its disk."""
        from avmm.control.config import Disk, VmConfig

        marker = request.node.get_closest_marker("avmm")
        fields: dict[str, Any] = dict(marker.kwargs) if marker is not None else {}
        if not fields.keys() & {"disks", "floppies", "cdrom", "kernel"}:
            import avmm_guests

            fields["disks"] = [Disk(avmm_guests.image(), "overlay")]
        vm = await avmm_host.create_vm(VmConfig(**fields))
        request.node.stash.setdefault(_MACHINES, []).append(vm)
        await vm.start()
        return vm

    @pytest_asyncio.fixture
    async def screen(avmm_vm: Vm) -> Screen:
        """The machine's screen."""
        return avmm_vm.screen

    @pytest_asyncio.fixture
    async def serial(avmm_vm: Vm) -> Serial:
        """The machine's serial line."""
        return avmm_vm.serial

    @pytest_asyncio.fixture
    async def keyboard(avmm_vm: Vm) -> Keyboard:
        """The machine's keyboard."""
        return avmm_vm.keyboard

    @pytest_asyncio.fixture
    async def mouse(avmm_vm: Vm) -> Mouse:
        """The machine's mouse."""
        return avmm_vm.mouse
