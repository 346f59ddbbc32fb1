"""The pytest plugin: fixtures for scenarios with guests, loaded by entry point wherever avmm is installed.

::

    @pytest.mark.asyncio
    @pytest.mark.avmm(memory="16M")                 # VmConfig's fields, or a machine.toml; without disks the built-in guest
    async def test_dir(screen, keyboard):
        await screen.wait_for("ok>")
        await keyboard.type("dir\\n")
        await screen.wait_for("readme.txt")

Time is virtual unless the machine says ``clock="real"``: a scenario is deterministic and as fast as the guest computes. When a test
fails, its report shows each machine's screen as a person would see it, the serial line's tail and the last exits, and the
command that runs the test the same way again. Pictures, recordings and traces go to the folder ``--avmm-artefacts`` names.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
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
    from avmm.testing.recording_host import RecordingHost

_HOST = pytest.StashKey["RecordingHost"]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add our options."""
    group = parser.getgroup("avmm", "scenarios with guests")
    group.addoption(
        "--avmm-artefacts", metavar="FOLDER",
        help="save there, for each machine of a test that failed: a picture and a recording (asciicast) of its screen, serial line, trace",
    )  # fmt: skip
    group.addoption("--avmm-seed", metavar="N", type=int, default=0, help="the seed of machines, and the fixture avmm_seed (default: 0)")
    group.addoption("--avmm-param", metavar="NAME=VALUE", action="append", default=[], help="a scenario's parameter, see avmm_param")
    parser.addini("avmm_machine", "the machine.toml of tests whose marker avmm names none, relative to this file")


def pytest_configure(config: pytest.Config) -> None:
    """Declare the markers."""
    config.addinivalue_line("markers", "avmm(file, vm=name, **fields): the machine of avmm_vm: a machine.toml, fields of avmm.VmConfig")
    config.addinivalue_line("markers", "avmm_params(**defaults): the names and defaults of what avmm_param holds")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Refuse parameters that no test has."""
    if config.getoption("--avmm-param") and items:
        from avmm.control.config import ConfigError
        from avmm.testing import params

        try:
            params.check(params.parse(config.getoption("--avmm-param")), [params.declared(item) for item in items])
        except ConfigError as error:
            raise pytest.UsageError(f"--avmm-param: {error}") from None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Let the machines of a test that fails stand still, so that the report shows them as they were then."""
    host = item.stash.get(_HOST, None)
    if host is not None and isinstance(item, pytest.Function) and inspect.iscoroutinefunction(item.obj):
        item.obj = _freezing(item.obj, host)
    yield


def _freezing(test: Callable[..., Awaitable[None]], host: RecordingHost) -> Callable[..., Awaitable[None]]:
    from avmm.control.watch import MachineEnded, WaitTimeout

    @functools.wraps(test)
    async def run(*arguments: Any, **named: Any) -> None:
        try:
            await test(*arguments, **named)
        except (Exception, pytest.fail.Exception) as error:
            host.note_the_time()
            await host.freeze()
            if isinstance(error, WaitTimeout | MachineEnded):
                _end_in_the_test(error)
            raise
        host.note_the_time()

    return run


def _end_in_the_test(error: BaseException) -> None:
    """Cut the traceback where the test calls us: how we wait is not what went wrong."""
    step = last = error.__traceback__
    while step is not None:
        if not str(step.tb_frame.f_globals.get("__name__", "")).startswith("avmm."):
            last = step
        step = step.tb_next
    if last is not None:
        last.tb_next = None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Show what the machines show, when a test that used them failed."""
    report: Any = yield
    host = item.stash.get(_HOST, None)
    if host is not None and report.when in ("setup", "call") and host.vms:
        item.user_properties.append(("avmm_machine_seconds", host.seconds))
        if report.failed:
            report.sections += _evidence(item, host)
    return report  # type: ignore[no-any-return]


def _evidence(item: pytest.Item, host: RecordingHost) -> list[tuple[str, str]]:
    from avmm.testing import evidence, params

    sections = []
    folder = item.config.getoption("--avmm-artefacts")
    given, seed = params.parse(item.config.getoption("--avmm-param")), item.config.getoption("--avmm-seed")
    run = "-".join([item.nodeid, *(f"{name}={value}" for name, value in given.items()), *([f"seed={seed}"] if seed else [])])
    for vm in host.vms.values():
        text = evidence.describe(vm, host.states.get(vm.name, vm.state))
        if folder:
            text += "\n" + evidence.save(vm, host.casts.get(vm.name), Path(folder), run)
        sections.append((f"avmm: {vm.name}", text))
    command = params.replay_command(item.nodeid, item.config.rootpath, seed, given)
    if any(vm.config.clock == "real" for vm in host.vms.values()):
        command += "\n(a machine here follows the host's clock, so another run may end differently)"
    sections.append(("avmm: to see it again", command))
    return sections


def _or_fail(make: Any, *arguments: Any) -> Any:
    """Return what ``make`` returns; what it finds wrong is the test's failure, without a traceback."""
    from avmm.control.config import ConfigError

    try:
        return make(*arguments)
    except ConfigError as error:
        sentence = str(error)
    pytest.fail(f"avmm: {sentence}", pytrace=False)


@pytest.fixture
def avmm_seed(request: pytest.FixtureRequest) -> int:
    """The seed of this run: ``--avmm-seed``, or a campaign's; machines have it unless their marker names another."""
    seed: int = request.config.getoption("--avmm-seed")
    return seed


@pytest.fixture
def avmm_param(request: pytest.FixtureRequest) -> dict[str, str | int | float | bool]:
    """The scenario's parameters by name: the defaults of the marker ``avmm_params``, or what ``--avmm-param`` or a campaign gave."""
    from avmm.testing import params

    def make() -> dict[str, params.Value]:
        return params.values(params.declared(request.node), params.parse(request.config.getoption("--avmm-param")))

    return _or_fail(make)  # type: ignore[no-any-return]


if pytest_asyncio is not None:

    @pytest_asyncio.fixture
    async def avmm_host(request: pytest.FixtureRequest, avmm_seed: int) -> AsyncIterator[Host]:
        """A host for machines, with the structure that the test's machine.toml names; everything on it ends with the test."""
        from avmm.testing.machine import description, wanted
        from avmm.testing.recording_host import RecordingHost

        described = _or_fail(lambda: description(wanted(request.node, avmm_seed)))
        host = RecordingHost(described.host.structure if described else "hybrid", record=bool(request.config.getoption("--avmm-artefacts")))
        request.node.stash[_HOST] = host
        async with host:
            yield host

    @pytest_asyncio.fixture
    async def avmm_vm(avmm_host: Host, request: pytest.FixtureRequest, avmm_seed: int) -> Vm:
        """A machine, started, as the marker ``avmm`` describes it: by default the built-in guest on an overlay of its disk."""
        from avmm.testing.machine import machine, wanted

        vm = await avmm_host.create_vm(_or_fail(lambda: machine(wanted(request.node, avmm_seed))))
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
