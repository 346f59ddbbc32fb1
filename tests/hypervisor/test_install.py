"""The installer: every event in every state, a cancellation at every await, and what a failure leaves behind."""

from __future__ import annotations

import asyncio
import hashlib
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import trustme

import avmm
from avmm.cpu.script import ScriptCpu
from avmm.devices.pit import Pit
from avmm.hypervisor.image import LIMIT, BuiltinChannel, DeviceImageError, Image, channel
from avmm.hypervisor.install import Action, Event, Installation, Installer, InstallError, State
from tests.vm.scripted import start_pic, start_pit

TABLE = {
    State.IDLE: {Event.BEGIN: (State.CHECKING, Action.CHECK), Event.CANCELLED: (State.FAILED, Action.GIVE_UP)},
    State.CHECKING: {
        Event.IN_PLACE: (State.DONE, Action.FINISH), Event.ELSEWHERE: (State.PROBING, Action.PROBE),
        Event.FAILED: (State.FAILED, Action.GIVE_UP), Event.CANCELLED: (State.FAILED, Action.GIVE_UP),
    },
    State.PROBING: {
        Event.IMAGE_KNOWN: (State.TRANSFERRING, Action.TRANSFER), Event.IMAGE_MISSING: (State.FETCHING, Action.FETCH),
        Event.FAILED: (State.FAILED, Action.GIVE_UP), Event.CANCELLED: (State.FAILED, Action.GIVE_UP),
    },
    State.FETCHING: {
        Event.FETCHED: (State.VERIFYING, Action.VERIFY),
        Event.FAILED: (State.FAILED, Action.GIVE_UP), Event.CANCELLED: (State.FAILED, Action.GIVE_UP),
    },
    State.VERIFYING: {
        Event.VERIFIED: (State.TRANSFERRING, Action.TRANSFER),
        Event.FAILED: (State.FAILED, Action.GIVE_UP), Event.CANCELLED: (State.FAILED, Action.GIVE_UP),
    },
    State.TRANSFERRING: {
        Event.TRANSFERRED: (State.SWITCHING, Action.SWITCH),
        Event.FAILED: (State.FAILED, Action.GIVE_UP), Event.CANCELLED: (State.FAILED, Action.GIVE_UP),
    },
    State.SWITCHING: {
        Event.SWITCHED: (State.DONE, Action.FINISH),
        Event.FAILED: (State.FAILED, Action.UNDO), Event.CANCELLED: (State.FAILED, Action.UNDO),
    },
    State.DONE: {Event.CANCELLED: (State.DONE, Action.NOTHING)},
    State.FAILED: {Event.CANCELLED: (State.FAILED, Action.NOTHING)},
}  # fmt: skip


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("event", Event)
def test_every_event_in_every_state(state: State, event: Event) -> None:
    run = Installation()
    run.state = state
    expected = TABLE[state].get(event)
    if expected is None:
        with pytest.raises(ValueError, match="cannot come"):
            run.feed(event)
        assert run.state is state
    else:
        assert (run.feed(event), run.state) == expected[::-1]


# -- the driver on a machine that is only pretended


class Site:
    """A site whose steps succeed unless told otherwise. ``log`` says what was done to the device."""

    def __init__(self, fail: str = "") -> None:
        self.fail = fail
        self.where = "service"
        self.image = "old"
        self.log: list[str] = []
        self.events: list[str] = []
        self.gate: asyncio.Event | None = None
        self.images: dict[str, type] = {}

    def place(self, device: str) -> str:
        return self.where

    def origin(self, device: str) -> str:
        return self.image

    def probe(self, device: str, wanted: str) -> str:
        return "a device"

    def known(self, device: str, key: str) -> type | None:
        return self.images.get(key)

    def transfer(self, device: str, image: type, wanted: str) -> str:
        self.log.append("transfer")
        if self.fail == "transfer":
            raise ValueError("no")
        return wanted

    def switch(self, exchange: str, key: str) -> None:
        self.log.append("switch")
        if self.fail == "switch":
            raise ValueError("no")
        self.where, self.image = exchange, key
        self.images[key] = Pit

    def undo(self, exchange: str) -> None:
        self.log.append("undo")

    async def at_boundary(self, action: Callable[[], None]) -> None:
        if self.gate is not None:
            await self.gate.wait()
        action()

    def now(self) -> int:
        return 0

    def trace(self, event: str, **fields: object) -> None:
        self.events.append(event)


class Gated:
    """A channel that waits."""

    origin = "gated"

    def __init__(self, gate: asyncio.Event, image: Image) -> None:
        self.gate, self.image = gate, image

    async def fetch(self) -> Image:
        await self.gate.wait()
        return self.image


def _refuse() -> Any:
    raise DeviceImageError("not good")


def test_the_steps_are_taken_in_order_and_a_known_image_is_not_fetched_again() -> None:
    """I7: look whether it is there, probe, obtain the image, verify, transfer, switch."""
    async def run() -> None:
        site = Site()
        installer = Installer(site)
        first = await installer.move("pit", "hypervisor", BuiltinChannel(Pit))
        assert [step.name for step in first.steps] == ["check", "probe", "fetch", "verify", "wait", "transfer", "switch"]
        assert (first.moved, first.error, first.before, first.wanted) == (True, "", "service", "hypervisor")
        assert site.events == [f"install.{step.name}" for step in first.steps] + ["install.done"]
        again = await installer.move("pit", "hypervisor", BuiltinChannel(Pit))
        assert [step.name for step in again.steps] == ["check"]
        assert not again.moved
        back = await installer.move("pit", "service", BuiltinChannel(Pit))
        assert [step.name for step in back.steps] == ["check", "probe", "wait", "transfer", "switch"]

    asyncio.run(run())


@pytest.mark.parametrize(
    ("fail", "log", "words"),
    [
        ("fetch", [], "not good"), ("verify", [], "not good"), ("transfer", ["transfer"], "state was refused: no"),
        ("switch", ["transfer", "switch", "undo"], "switch failed: no"),
    ],
)  # fmt: skip
def test_a_failure_leaves_the_device_where_it_was(fail: str, log: list[str], words: str) -> None:
    class Channel:
        origin = "x"

        async def fetch(self) -> Image:
            if fail == "fetch":
                _refuse()
            return Image("x", _refuse if fail == "verify" else lambda: Pit)

    async def run() -> None:
        site = Site(fail)
        with pytest.raises(InstallError, match=words) as caught:
            await Installer(site).move("pit", "hypervisor", Channel())
        assert (site.where, site.image, site.log) == ("service", "old", log)
        assert caught.value.report.steps[-1].name == fail
        assert not caught.value.report.moved
        assert site.events[-1] == "install.failed"
        site.fail = ""
        await Installer(site).move("pit", "hypervisor", BuiltinChannel(Pit))  # and it can be tried again

    asyncio.run(run())


@pytest.mark.parametrize("at", ["lock", "fetch", "boundary"])
def test_cancelled_at_each_await_the_device_stays(at: str) -> None:
    async def run() -> None:
        site = Site()
        installer = Installer(site)
        gate = asyncio.Event()
        if at == "boundary":
            site.gate = asyncio.Event()
            gate.set()
        if at == "lock":
            await installer._lock.acquire()
        task = asyncio.create_task(installer.move("pit", "hypervisor", Gated(gate, Image("gated", lambda: Pit))))
        for _ in range(5):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (site.where, site.log) == ("service", [])
        assert site.events[-1:] == ([] if at == "lock" else ["install.failed"])
        if at == "lock":
            installer._lock.release()
        site.gate = None
        gate.set()
        assert (await installer.move("pit", "hypervisor", BuiltinChannel(Pit))).moved

    asyncio.run(run())


def test_a_cancellation_after_the_switch_comes_too_late_and_everything_is_whole() -> None:
    async def run() -> None:
        site = Site()
        task: asyncio.Task[Any] | None = None

        async def at_boundary(action: Callable[[], None]) -> None:
            action()
            assert task is not None
            task.cancel()
            await asyncio.sleep(0)

        site.at_boundary = at_boundary  # type: ignore[method-assign]
        task = asyncio.create_task(Installer(site).move("pit", "hypervisor", BuiltinChannel(Pit)))
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (site.where, site.log, site.events[-1]) == ("hypervisor", ["transfer", "switch"], "install.done")

    asyncio.run(run())


def test_two_installations_of_one_machine_follow_one_another() -> None:
    async def run() -> None:
        site = Site()
        installer = Installer(site)
        there = installer.move("pit", "hypervisor", BuiltinChannel(Pit))
        back = installer.move("pit", "service", BuiltinChannel(Pit))
        reports = await asyncio.gather(there, back)
        assert [report.moved for report in reports] == [True, True]
        assert site.where == "service"

    asyncio.run(run())


# -- channels

GOOD = b"""
from avmm.devices.pit import Pit as Builtin

class Pit(Builtin):
    marked = True
"""


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


async def load(image: str, sha256: str = "", **options: Any) -> Any:
    return (await channel(image, sha256, **options).fetch()).verify()


@contextmanager
def serving(context: ssl.SSLContext | None = None) -> Iterator[Callable[[bytes], str]]:
    """A loopback server; call it with what it shall answer to get the URL. With a context it speaks TLS."""
    body = b""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if body else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    httpd = HTTPServer(("127.0.0.1", 0), Handler)
    if context is not None:
        httpd.socket = context.wrap_socket(httpd.socket, server_side=True)
    thread = threading.Thread(target=partial(httpd.serve_forever, poll_interval=0.01))
    thread.start()

    def serve(data: bytes) -> str:
        nonlocal body
        body = data
        return f"{'http' if context is None else 'https'}://127.0.0.1:{httpd.server_port}/pit.py"

    try:
        yield serve
    finally:
        httpd.shutdown()
        thread.join()
        httpd.server_close()


@pytest.fixture
def server() -> Iterator[Callable[[bytes], str]]:
    with serving() as serve:
        yield serve


def test_files_and_urls_need_the_right_hash(tmp_path: Path, server: Callable[[bytes], str]) -> None:
    path = tmp_path / "pit.py"
    path.write_bytes(GOOD)
    for place in (str(path), path.as_uri(), server(GOOD), f"{path}#Pit"):
        assert asyncio.run(load(place, sha(GOOD))).marked, place
        with pytest.raises(DeviceImageError, match="has SHA-256"):
            asyncio.run(load(place, sha(b"other")))
        with pytest.raises(DeviceImageError, match="needs its SHA-256"):
            asyncio.run(load(place))


def test_https_needs_a_certificate_that_is_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    with serving(context) as serve:
        url = serve(GOOD)
        with pytest.raises(DeviceImageError, match=f"cannot fetch the image {url}: .*certificate verify failed"):
            asyncio.run(load(url, sha(GOOD)))
        authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
        assert asyncio.run(load(url, sha(GOOD))).marked
        with pytest.raises(DeviceImageError, match="has SHA-256"):
            asyncio.run(load(url, sha(b"other")))


def test_nothing_is_executed_before_the_hash_was_compared(tmp_path: Path) -> None:
    path = tmp_path / "bad.py"
    path.write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()")
    with pytest.raises(DeviceImageError, match="was not used"):
        asyncio.run(load(str(path), "0" * 64))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (b"import no_such_module_", "cannot be imported: ModuleNotFoundError"),
        (b"raise SystemExit(3)", "cannot be imported: SystemExit"),
        (b"def (", "cannot be imported: SyntaxError"),
        (b"x = 1", "no device class"),
        (GOOD + b"class Other(Builtin): pass", "has 2 device classes"),
        (b"#" * (LIMIT + 1), "longer than 1024 KiB"),
    ],
)
def test_bad_images_are_refused_with_a_reason(tmp_path: Path, source: bytes, words: str) -> None:
    path = tmp_path / "image.py"
    path.write_bytes(source)
    with pytest.raises(DeviceImageError, match=words):
        asyncio.run(load(str(path), sha(source)))


@pytest.mark.parametrize(
    ("image", "words"),
    [
        ("ftp://x/y.py", "cannot fetch an image by ftp"), ("/no/such/file.py", "cannot read the image"),
        ("file:///no/such/file.py", "cannot fetch the image"), ("http://127.0.0.1:1/x.py", "cannot fetch the image"),
        ("entry-point:nothing-like-that", "no installed package publishes"), ("builtin", "no built-in image"),
    ],
)  # fmt: skip
def test_places_that_are_none(image: str, words: str) -> None:
    with pytest.raises(DeviceImageError, match=words):
        asyncio.run(load(image, "0" * 64))


def test_a_server_that_has_no_such_image(server: Callable[[bytes], str]) -> None:
    with pytest.raises(DeviceImageError, match="404"):
        asyncio.run(load(server(b""), "0" * 64))


# -- on a machine


async def counting(cpu: ScriptCpu) -> None:
    """Let the PIT tick 1000 times a second, and look at its counter after each tick."""
    await start_pic(cpu)
    await start_pit(cpu, 1000)

    async def tick(cpu: ScriptCpu) -> None:
        await cpu.outb(0x20, 0x20)

    cpu.on(0x20, tick)
    cpu.sti()
    while True:
        await cpu.hlt()
        await cpu.outb(0x43, 0)
        await cpu.inb(0x40)
        await cpu.inb(0x40)


def test_a_failed_install_on_a_machine_changes_nothing(tmp_path: Path) -> None:
    """Images that cannot take over: they refuse the state, claim another's port, or are another device."""
    images = {
        "state was refused": b"from avmm.devices.pit import Pit as P\nclass Pit(P):\n def restore(self, s): raise ValueError('no')\n",
        "switch failed": b"from avmm.devices.pit import *\nfrom avmm.devices.pit import Pit as P\n"
        b"class Mine(P):\n ports = (PortRange(0x20, 1),)\n",
        "is one of dice": b"from avmm.devices.card import Card\nclass Dice(Card): pass\n",
    }

    async def run() -> None:
        async with avmm.Host() as host:
            vm = await host.create_vm(avmm.VmConfig(memory="1M", placement={"pit": "service"}), counting)
            await vm.start()
            await vm.sleep(0.001)
            for words, source in images.items():
                path = tmp_path / f"{sha(source)}.py"
                path.write_bytes(source)
                pit, tasks = vm.partition.devices["pit"], {task.get_name() for task in asyncio.all_tasks()}
                with pytest.raises(InstallError, match=words):
                    await vm.install("pit", str(path), sha(source))
                assert vm.partition.devices["pit"] is pit
                assert vm.placement["pit"] == "service"
                assert {task.get_name() for task in asyncio.all_tasks()} == tasks
                before = vm.stats.outside
                await vm.sleep(0.001)
                assert vm.stats.outside > before  # it goes on outside
                assert vm.partition.clock.next_due() is not None
            for device, to, words in (
                ("nothing", "service", "no device called nothing"), ("bios", "service", "firmware"), ("rtc", "kernel", "no place called kernel")
            ):  # fmt: skip
                with pytest.raises(InstallError, match=words):
                    await vm.uninstall(device, to)
            assert (await vm.install("pit")).moved

    asyncio.run(run())
