"""A seat in front of a machine, here and over its socket: pictures, keys, the serial line, consoles that come, go and stop reading."""

from __future__ import annotations

import asyncio
import socket
import stat
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from unittest.mock import Mock

import pytest

import avmm
import avmm_guests
from avmm.control.config import ConfigError
from avmm.control.seat import Facts, LocalSeat, PixelPicture, RemoteSeat, Seat, SeatError, TextPicture, wire
from avmm.control.seat.facts import Observer
from avmm.control.seat.picture import look
from avmm.control.seat.server import Session
from avmm.control.seat.stream import read
from avmm.control.seat.wire import Kind, WireError
from tests.console import sectors
from tests.control.panels import panel

PATIENCE = 120


class Watcher:
    """A viewer that remembers, and wakes who waits for something."""

    def __init__(self, seat: Seat) -> None:
        self.seat = seat
        self.output = bytearray()
        self.bells = 0
        self.reason = ""
        self._news = asyncio.Event()
        seat.watch(self)

    def picture_changed(self) -> None:
        self._news.set()

    def facts_changed(self) -> None:
        self._news.set()

    def serial(self, data: bytes) -> None:
        self.output += data
        self._news.set()

    def bell(self) -> None:
        self.bells += 1
        self._news.set()

    def lost(self, reason: str) -> None:
        self.reason = reason
        self._news.set()

    async def until(self, met: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE):
            while not met():
                self._news.clear()
                await self._news.wait()

    @property
    def text(self) -> str:
        picture = self.seat.picture
        return "\n".join(line.rstrip() for line in picture.lines()) if isinstance(picture, TextPicture) else ""


@asynccontextmanager
async def machine(folder: Path, then: bytes = sectors.ECHO, greeting: str = "ready> ") -> AsyncIterator[tuple[LocalSeat, Path]]:
    """The seat of a machine of a panel, and the socket where consoles attach."""
    image = sectors.write(folder / "guest.img", greeting, then)
    config = avmm.VmConfig(name="guest", memory="2M", disks=[avmm.Disk(image, "ro")], clock="real")
    async with panel(folder, config) as up:
        yield up.consoles["guest"].seat, up.consoles["guest"].path


@pytest.mark.asyncio
async def test_a_console_attaches_sees_types_and_leaves(tmp_path: Path) -> None:
    async with machine(tmp_path) as (here, path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        async with RemoteSeat(path) as seat:
            watcher = Watcher(seat)
            assert seat.name == "guest"
            await watcher.until(lambda: "ready>" in watcher.text and seat.facts is not None)
            await seat.type("H")
            await seat.type("ello, World!")
            await seat.press(("shift", "a"))
            await watcher.until(lambda: "ready> Hello, World!A" in watcher.text)
            assert seat.picture == look(here.vm.screen)
            assert seat.facts is not None
            assert (seat.facts.state, seat.facts.clock) == ("running", "real")
            assert [(disk.name, disk.mode) for disk in seat.facts.disks] == [("disk0", "emulated")]
        assert watcher.reason == "this console has left"
        assert here.vm.state is avmm.RunState.RUNNING


@pytest.mark.asyncio
async def test_two_consoles_type_at_once_and_each_character_stays_whole(tmp_path: Path) -> None:
    async with machine(tmp_path) as (_, path), RemoteSeat(path) as first, RemoteSeat(path) as second:
        watcher = Watcher(first)
        other = Watcher(second)
        await watcher.until(lambda: "ready>" in watcher.text)
        await asyncio.gather(first.type("ABCDEFGH" * 4), second.type("abcdefgh" * 4))
        await watcher.until(lambda: sum(map(str.isalpha, watcher.text.partition("> ")[2])) == 64)
        typed = watcher.text.partition("> ")[2].strip()
        assert "".join(filter(str.isupper, typed)) == "ABCDEFGH" * 4
        assert "".join(filter(str.islower, typed)) == "abcdefgh" * 4
        await other.until(lambda: other.text == watcher.text)


@pytest.mark.asyncio
async def test_a_console_that_vanishes_in_the_middle_of_a_paste_leaves_the_machine_and_no_key_down(tmp_path: Path) -> None:
    async with machine(tmp_path) as (here, path):
        reader, writer = await asyncio.open_unix_connection(path)
        await read(reader, wire.TO_CLIENT_LIMIT)
        writer.write(wire.message(Kind.TYPE, b"X" * 5000))
        async with RemoteSeat(path) as seat:
            watcher = Watcher(seat)
            await watcher.until(lambda: "XX" in watcher.text)
            writer.transport.abort()
            before = ""
            while before != watcher.text:  # until nothing more of the paste comes
                before = watcher.text
                await here.vm.sleep(0.3)
            assert watcher.text.count("X") < 5000
            await seat.type("x")
            await watcher.until(lambda: "Xx" in watcher.text)  # and not another X: Shift is up
            assert not here.vm.machine.keyboard.keyboard.held


def begins(watcher: Watcher, text: str) -> bool:
    return watcher.text.startswith(text)


@pytest.mark.asyncio
async def test_a_console_that_stops_reading_gets_the_latest_picture_and_holds_nobody_up(tmp_path: Path) -> None:
    async with machine(tmp_path) as (here, path), RemoteSeat(path) as seat:
        watcher = Watcher(seat)
        await watcher.until(lambda: "ready>" in watcher.text)
        reader, writer = await asyncio.open_unix_connection(path, limit=1024)
        here.vm.screen.vga.text_memory[160:320] = b"?\x07" * 80
        await watcher.until(lambda: "????" in watcher.text)
        for n in range(200):  # each round changes every cell: far more than the connection's buffers hold
            here.hurry()
            here.vm.screen.vga.text_memory[: 80 * 25 * 2] = bytes((65 + n % 26, 7)) * (80 * 25)
            await watcher.until(partial(begins, watcher, chr(65 + n % 26)))
        count, last = 0, None
        picture = None
        async with asyncio.timeout(PATIENCE):
            while last != look(here.vm.screen):
                found = await read(reader, wire.TO_CLIENT_LIMIT)
                assert found is not None
                if found[0] is Kind.TEXT:
                    picture = last = wire.decode_text(found[1], picture)
                    count += 1
        assert count < 150
        writer.close()


@pytest.mark.asyncio
async def test_a_console_that_goes_just_when_it_is_told_something_is_let_go(tmp_path: Path) -> None:
    class Writer:
        """A stream's end whose other end goes; uvloop's raises RuntimeError then."""

        gone = False
        sent = b""
        transport = Mock()

        def is_closing(self) -> bool:
            return self.gone

        def write(self, data: bytes) -> None:
            if self.gone:
                raise RuntimeError("the handler is closed")
            self.sent += data

        async def drain(self) -> None:
            pass

    async with machine(tmp_path) as (here, _):
        writer = Writer()
        session = Session(here, asyncio.StreamReader(), writer)  # type: ignore[arg-type]
        serving = asyncio.ensure_future(session.run())
        watcher = Watcher(here)
        await watcher.until(lambda: "ready>" in watcher.text and len(writer.sent) > 1000)
        writer.gone = True
        session.picture_changed()
        async with asyncio.timeout(PATIENCE):
            await serving


@pytest.mark.asyncio
async def test_the_serial_line_goes_both_ways_with_its_past_and_takes_a_lot(tmp_path: Path) -> None:
    async with machine(tmp_path, sectors.SERIAL_GREETING + sectors.SERIAL_ECHO, "") as (here, path):
        await here.vm.serial.wait_for("serial>")
        async with RemoteSeat(path) as seat:
            watcher = Watcher(seat)
            await watcher.until(lambda: watcher.output == b"serial>")
            data = bytes(range(32, 127)) * 3
            await seat.send(data)
            await watcher.until(lambda: len(watcher.output) >= 7 + len(data))
            assert watcher.output == b"serial>" + data
            await seat.send_break()
            await watcher.until(lambda: watcher.output.endswith(b"\0"))


@pytest.mark.asyncio
async def test_who_waits_and_who_watches_hears_that_the_host_has_gone(tmp_path: Path) -> None:
    async with machine(tmp_path, sectors.IDLE) as (_, path):
        seat = await RemoteSeat(path).__aenter__()
        watcher = Watcher(seat)
        typing = asyncio.ensure_future(seat.type("nobody reads this" * 100))
        await watcher.until(lambda: seat.facts is not None)
    await watcher.until(lambda: watcher.reason != "")
    with pytest.raises(SeatError):
        await typing
    with pytest.raises(SeatError):
        await seat.press(("a",))
    await seat.__aexit__(None, None, None)
    with pytest.raises(ConfigError, match="cannot reach"):
        await RemoteSeat(path).__aenter__()


@pytest.mark.parametrize("nonsense", [b"\x63\0\0\0\0", b"\x10\xff\xff\xff\xff", b"\x10\0\0\0\3zzz", b"\x14\0\0\0\1z", b"\x02\0\0\0\0"])
@pytest.mark.asyncio
async def test_a_client_that_talks_nonsense_is_dropped_alone(tmp_path: Path, nonsense: bytes) -> None:
    async with machine(tmp_path) as (_, path), RemoteSeat(path) as seat:
        watcher = Watcher(seat)
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(nonsense)
        async with asyncio.timeout(PATIENCE):
            await reader.read(-1)
        writer.close()
        await watcher.until(lambda: "ready>" in watcher.text)


@pytest.mark.asyncio
async def test_a_socket_that_is_something_else(tmp_path: Path) -> None:
    async with machine(tmp_path) as (_, path):
        with pytest.raises(ConfigError, match="is no console's socket"):
            await RemoteSeat(path.with_suffix(".qmp")).__aenter__()


@pytest.mark.asyncio
async def test_graphics_are_shrunk_to_what_the_console_can_show(tmp_path: Path) -> None:
    async with machine(tmp_path, sectors.MODE_13H + sectors.IDLE, "") as (_, path), RemoteSeat(path) as seat:
        watcher = Watcher(seat)
        await watcher.until(lambda: isinstance(seat.picture, PixelPicture))
        seat.room(80, 50)
        await watcher.until(lambda: isinstance(seat.picture, PixelPicture) and seat.picture.width == 80)
        assert isinstance(seat.picture, PixelPicture)
        assert (seat.picture.height, seat.picture.size) == (50, (320, 200))
        assert seat.picture.rgb[:3] == b"\xaa\0\0"
        assert seat.picture.rgb[-3:] == b"\0\0\0"


def test_pictures_survive_the_wire_and_damage_does_not() -> None:
    cells = bytes(range(256)) * 2
    first = TextPicture(16, 16, cells, (3, 4), bytes(48), True)
    second = TextPicture(16, 16, cells[:32] + b"!" + cells[33:], None, bytes(48), False)
    whole, change = wire.encode_picture(first, None), wire.encode_picture(second, first)
    assert len(change) < len(whole) / 4
    assert wire.decode_text(whole[5:], None) == first
    assert wire.decode_text(change[5:], first) == second
    pixels = PixelPicture(4, 2, bytes(range(24)), (320, 200))
    assert wire.decode_pixels(wire.encode_picture(pixels, None)[5:]) == pixels
    for broken in (b"", whole[5:-1], whole[5:59] + b"\xff\xff" + bytes(32)):
        with pytest.raises(WireError):
            wire.decode_text(broken, None)
    for broken in (b"", wire.encode_picture(pixels, None)[5:-3], wire.encode_picture(pixels, None)[5:13] + b"junk"):
        with pytest.raises(WireError):
            wire.decode_pixels(broken)


def test_facts_survive_the_wire() -> None:
    async def facts() -> Facts:
        async with avmm.Host() as host:
            vm = await host.create_vm(avmm.VmConfig(memory="16M", disks=[avmm.Disk(avmm_guests.image(), "overlay")], hyperv=True))
            await vm.start()
            await vm.screen.wait_for("ok>")
            return Observer(vm).take()

    found = asyncio.run(facts())
    assert Facts.from_dict(wire.decode_json(wire.encode_json(found.as_dict()))) == found
    assert found.vmbus is False
    assert found.moved == {}
    assert found.counters.ata > 0


@pytest.mark.asyncio
async def test_nobody_looks_at_a_screen_that_nobody_watches(tmp_path: Path) -> None:
    async with machine(tmp_path) as (here, path):
        await here.vm.screen.wait_for("ready>")
        await here.vm.sleep(0.2)
        assert here.vm.screen.vga._generation == 0
        async with LocalSeat(here.vm) as seat:
            watcher = Watcher(seat)
            await watcher.until(lambda: "ready>" in watcher.text)
        assert watcher.reason == "the machine is gone"
        with socket.socket(socket.AF_UNIX) as probe:
            probe.connect(str(path))  # the panel has its own seat


TOLD = ["emulated", "enlightened", "enlightened", "shunt", "shunt", "enlightened", "enlightened", "emulated"]
SEEN = ["emulated", "enlightened", "enlightened", "enlightened", "shunt", "shunt", "enlightened", "emulated"]


@pytest.mark.asyncio
@pytest.mark.parametrize(("silent", "expected"), [(False, TOLD), (True, SEEN)])
async def test_the_mode_of_a_disk_is_told_while_the_guest_changes_it(silent: bool, expected: list[str]) -> None:
    """By the guest itself; or, of one that tells nothing, by what VM-H sees, which knows of a shunt when a request has passed it."""
    async with avmm.Host() as host:
        vm = await host.create_vm(avmm.VmConfig(memory="16M", disks=[avmm.Disk(avmm_guests.image(), "overlay")], hyperv=True))
        observer = Observer(vm)
        if silent:
            vm.machine.guest_port = None
        await vm.start()
        await vm.serial.wait_for("ok> ")
        modes = [observer.take().disks[0].mode]
        for line in (
            "mode enlightened",
            "bench disk write",
            "mode shunt-only",
            "write a.txt b",
            "mode enlightened",
            "write c.txt d",
            "mode emulated",
        ):
            vm.serial.write(line + "\n")
            await vm.serial.wait_for("\nok> ", timeout=120)
            modes.append(observer.take().disks[0].mode)
        assert modes == expected
