"""QMP with the public client library, and with clients that misbehave."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import stat
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from qemu.qmp import EventListener, ExecuteError, QMPClient

from avmm.control.config import ConfigError
from avmm.control.panel import Panel
from avmm.control.qmp import COMMAND_LIMIT, JsonStream, QmpError, QmpServer, decode
from avmm.hypervisor.partition import RunState
from tests.control.panels import BUSY, ECHO, machine, panel

pytestmark = pytest.mark.asyncio


async def connect(path: Path) -> Any:
    """Return a client. What it returns has no type that says more than object."""
    client = QMPClient("test")
    await client.connect(str(path))
    return client


async def refused(client: QMPClient, command: str, arguments: dict[str, Any] | None = None) -> tuple[str, str]:
    with pytest.raises(ExecuteError) as caught:
        await client.execute(command, arguments)
    error: Any = caught.value.received["error"]
    return error["class"], error["desc"]


async def hmp(client: QMPClient, line: str) -> str:
    return str(await client.execute("human-monitor-command", {"command-line": line}))


async def test_a_session_of_the_public_client(tmp_path: Path) -> None:
    async with asyncio.timeout(60), panel(tmp_path, machine(tmp_path, "a")) as up:
        server = up.sockets["a"]
        assert stat.S_IMODE(server.path.stat().st_mode) == 0o600
        vm = up.host.vms["a"]
        client = await connect(server.path)
        assert client.greeting is not None
        assert client.greeting.QMP.capabilities == []
        assert await client.execute("query-name") == {"name": "a"}
        assert await client.execute("query-status") == {"status": "running", "running": True}
        assert (await client.execute("query-version"))["package"].startswith("avmm ")
        names = {command["name"] for command in await client.execute("query-commands")}
        assert {"stop", "cont", "query-block", "device_add", "screendump", "x-avmm-install", "qmp_capabilities"} <= names
        await vm.screen.wait_for("ready>")

        with client.listener(("STOP", "RESUME", "RESET", "POWERDOWN", "X_AVMM_PLACEMENT")) as events:
            await client.execute("stop")
            assert await client.execute("query-status") == {"status": "paused", "running": False}
            assert vm.state is RunState.PAUSED
            assert (await events.get())["event"] == "STOP"
            await client.execute("cont")
            assert (await events.get())["event"] == "RESUME"
            await client.execute("system_powerdown")
            assert (await events.get())["event"] == "POWERDOWN"
            await client.execute("x-avmm-uninstall", {"device": "pit"})
            assert vm.placement["pit"] == "service"
            assert (await events.get())["data"] == {"device": "pit", "placement": "service"}
            report = await client.execute("x-avmm-install", {"device": "pit"})
            assert report["moved"] is True
            assert vm.placement["pit"] == "hypervisor"
            await events.get()
            await client.execute("system_reset")
            reset = await events.get()
            assert reset["data"] == {"guest": False, "reason": "host-qmp-system-reset"}
            assert reset["timestamp"].keys() == {"seconds", "microseconds"}

        await vm.screen.wait_for("ready>")
        await client.execute("send-key", {"keys": [{"type": "qcode", "data": "shift"}, {"type": "qcode", "data": "a"}]})
        await vm.screen.wait_for("ready> A")
        await client.execute("send-key", {"keys": [{"type": "number", "data": 0x30}]})
        await client.execute("x-avmm-type", {"text": "ye"})
        await vm.screen.wait_for("ready> Abye")
        await client.disconnect()


async def test_queries_and_monitor(tmp_path: Path) -> None:
    async with asyncio.timeout(60), panel(tmp_path, machine(tmp_path, "a")) as up:
        vm = up.host.vms["a"]
        await vm.screen.wait_for("ready>")
        client = await connect(up.sockets["a"].path)
        (block,) = await client.execute("query-block")
        assert block["device"] == "floppy0"
        assert block["inserted"]["ro"] is True
        assert block["inserted"]["file"] == str(tmp_path / "a.img")
        (stats,) = await client.execute("query-blockstats")
        assert stats["stats"]["rd_bytes"] >= 512
        (cpu,) = await client.execute("query-cpus-fast")
        assert (cpu["cpu-index"], cpu["target"]) == (0, "x86_64")
        assert await client.execute("query-memory-size-summary") == {"base-memory": 2 << 20, "plugged-memory": 0}
        counted = await client.execute("x-avmm-stats")
        assert counted["injected"] > 0
        assert counted["summary"]["placement"]["ata0"] == "service"
        assert [one["name"] for one in await client.execute("x-avmm-list")] == ["a"]

        picture = tmp_path / "screen.ppm"
        await client.execute("screendump", {"filename": str(picture)})
        with Image.open(picture) as shown:
            assert (shown.format, shown.size) == ("PPM", vm.screen.pixels()[:2])
        await client.execute("screendump", {"filename": str(tmp_path / "s.png"), "format": "png"})
        with Image.open(tmp_path / "s.png") as shown:
            assert shown.tobytes() == vm.screen.pixels()[2]

        await client.execute("stop")
        assert await hmp(client, "info status") == "VM status: paused\r\n"
        assert "rip" in await hmp(client, "info registers")
        assert "floppy0" in await hmp(client, "info block")
        assert "0040-0043: pit (hypervisor)" in await hmp(client, "info mtree")
        code = " ".join(f"0x{byte:02x}" for byte in ECHO[:8])
        assert await hmp(client, "xp /8xb 0x7c00") == f"0000000000007c00: {code}\r\n"
        assert await hmp(client, "x/8bx 0x7c00") == f"0000000000007c00: {code}\r\n"
        word = int.from_bytes(ECHO[:4], "little")
        assert await hmp(client, "xp/wx 0x7c00") == f"0000000000007c00: 0x{word:08x}\r\n"
        assert "xor" in await hmp(client, "x/1i 0x7c00")
        assert await hmp(client, "xp /c 0x7dfe") == "0000000000007dfe: 'U'\r\n"
        assert "invalid format" in await hmp(client, "x/2z 0")
        assert await hmp(client, "bogus") == "unknown command: 'bogus'\r\n"
        assert await hmp(client, "cont") == ""
        assert vm.state is RunState.RUNNING
        await client.disconnect()


async def test_refusals(tmp_path: Path) -> None:
    async with asyncio.timeout(60), panel(tmp_path, machine(tmp_path, "a")) as up:
        client = await connect(up.sockets["a"].path)
        cases: list[tuple[str, dict[str, Any] | None, str, str]] = [
            ("nonsense", None, "CommandNotFound", "has not been found"),
            ("qmp_capabilities", None, "CommandNotFound", "already complete"),
            ("stop", {"now": 1}, "GenericError", "Parameter 'now' is unexpected"),
            ("screendump", None, "GenericError", "Parameter 'filename' is missing"),
            ("screendump", {"filename": "/nope/x"}, "GenericError", "cannot write /nope/x"),
            ("screendump", {"filename": "x", "format": "gif"}, "GenericError", "does not accept value 'gif'"),
            ("send-key", {"keys": 3}, "GenericError", "expected: array"),
            ("send-key", {"keys": []}, "GenericError", "between 1 and 16"),
            ("send-key", {"keys": [{"type": "qcode", "data": "zz"}]}, "GenericError", "does not accept value 'zz'"),
            ("send-key", {"keys": [7]}, "GenericError", "a key is"),
            ("input-send-event", {"events": [{"type": "abs"}]}, "GenericError", "an input event is"),
            ("eject", {"device": "floppy0"}, "GenericError", "is not removable"),
            ("eject", {"device": "nope"}, "DeviceNotFound", "not found"),
            ("device_add", {"driver": "nope"}, "GenericError", "not a valid device model name"),
            ("device_del", {"id": "nope"}, "DeviceNotFound", "not found"),
            ("device_del", {"id": "pit"}, "GenericError", "cannot be unplugged"),
            ("x-avmm-install", {"device": "nope"}, "GenericError", "no device called nope"),
            ("x-avmm-type", {"text": "\u20ac"}, "GenericError", "cannot be typed"),
            ("x-avmm-type", {"text": "x" * 5000}, "GenericError", "4096"),
        ]
        for command, arguments, kind, reason in cases:
            assert (got := await refused(client, command, arguments))[0] == kind, got
            assert reason in got[1]
        assert (await client.execute("query-status"))["running"] is True
        await client.disconnect()


async def test_own_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from avmm.control.commands import plug
    from avmm.devices.debug import PostCode
    from avmm.devices.device import PortRange

    class Lamp(PostCode):
        name = "lamp"
        ports = (PortRange(0x300, 1),)

    monkeypatch.setattr(plug, "entry_point_class", lambda name: Lamp)
    async with asyncio.timeout(60), panel(tmp_path, machine(tmp_path, "a")) as up:
        vm = up.host.vms["a"]
        client = await connect(up.sockets["a"].path)
        for place in ("hypervisor", "service"):
            assert await client.execute("device_add", {"driver": "lamp", "id": "lamp", "placement": place}) == {"id": "lamp"}
            assert vm.partition.ports.owner(0x300) == "lamp"
            assert vm.placement["lamp"] == place
            assert "already" in (await refused(client, "device_add", {"driver": "lamp"}))[1]
            with client.listener("DEVICE_DELETED") as deleted:
                await client.execute("device_del", {"id": "lamp"})
                assert (await deleted.get())["data"]["device"] == "lamp"
            assert vm.partition.ports.owner(0x300) is None
            assert "a/lamp" not in up.host.service.stats
        assert "wrong" in (await refused(client, "device_add", {"driver": "lamp", "id": "wrong"}))[1]
        await client.disconnect()


async def test_cdrom(tmp_path: Path) -> None:
    first, second = tmp_path / "1.iso", tmp_path / "2.iso"
    first.write_bytes(bytes(2048 * 20))
    second.write_bytes(bytes(2048 * 30))
    async with asyncio.timeout(60), panel(tmp_path, machine(tmp_path, "a", cdrom=first)) as up:
        client = await connect(up.sockets["a"].path)

        async def cdrom() -> dict[str, Any]:
            return next(block for block in await client.execute("query-block") if block["device"] == "cdrom")

        assert (await cdrom())["inserted"]["file"] == str(first)
        await client.execute("eject", {"device": "cdrom"})
        assert (await cdrom())["tray_open"] is True
        assert "inserted" not in await cdrom()
        for path in (second, first, second):
            await client.execute("blockdev-change-medium", {"device": "cdrom", "filename": str(path)})
            assert (await cdrom())["inserted"]["file"] == str(path)
        assert "/nope" in (await refused(client, "blockdev-change-medium", {"device": "cdrom", "filename": "/nope"}))[1]
        assert (await cdrom())["inserted"]["image"]["virtual-size"] == 2048 * 30
        assert len([name for name in up.host.service.disks if "cdrom" in name]) == 1
        await client.disconnect()


async def test_quit_and_shutdown(tmp_path: Path) -> None:
    async with asyncio.timeout(60):
        async with panel(tmp_path, machine(tmp_path, "a"), machine(tmp_path, "b")) as up:
            assert up.everything is not None
            both = await connect(up.everything.path)
            assert "Parameter 'vm' is missing" in (await refused(both, "query-status"))[1]
            assert (await refused(both, "query-status", {"vm": "c"}))[0] == "DeviceNotFound"
            assert [vm["name"] for vm in await both.execute("x-avmm-list")] == ["a", "b"]
            client = await connect(up.sockets["a"].path)
            listener = EventListener("SHUTDOWN")
            both.register_listener(listener)
            assert await client.execute("quit") == {}
            event = await listener.get()
            assert event["data"] == {"guest": False, "reason": "host-qmp-quit", "vm": "a"}
            with suppress(EOFError):
                await client.disconnect()
            while "a" in up.host.vms:
                await asyncio.sleep(0)
            assert not (tmp_path / "run" / "a.qmp").exists()
            assert await both.execute("query-status", {"vm": "b"}) == {"status": "running", "running": True}
            await both.execute("stop", {"vm": "b"})
            up.host.vms["b"].partition.power_off("the guest entered ACPI S5")
            await both.execute("cont", {"vm": "b"})
            event = await listener.get()
            assert event["data"] == {"guest": True, "reason": "guest-shutdown", "vm": "b"}
            await up.ended()
            assert await both.execute("query-status", {"vm": "b"}) == {"status": "shutdown", "running": False}
            assert "has ended" in (await refused(both, "stop", {"vm": "b"}))[1]
            await both.disconnect()
        assert not list((tmp_path / "run").iterdir())


async def test_stop_and_cont_from_many_at_once(tmp_path: Path) -> None:
    async with asyncio.timeout(60), panel(tmp_path, machine(tmp_path, "a", BUSY)) as up:
        clients = [await connect(up.sockets["a"].path) for _ in range(8)]
        for _ in range(5):
            await asyncio.gather(*(client.execute("cont" if n % 3 else "stop") for n, client in enumerate(clients)))
        await clients[0].execute("cont")
        assert (await clients[0].execute("query-status"))["running"] is True
        for client in clients:
            await client.disconnect()


# -- clients that misbehave


async def raw(path: Path) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_unix_connection(path, limit=1 << 24)
    assert b'"QMP"' in await reader.readline()
    return reader, writer


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, text: bytes) -> dict[str, Any]:
    writer.write(text)
    answer: dict[str, Any] = json.loads(await reader.readline())
    return answer


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b'{"execute": bad}', "JSON parse error"),
        (b"hello\n", "JSON parse error"),
        (b"}\n", "JSON parse error"),
        (b'{"execute": "sto\n', "JSON parse error"),
        (b'{"execute": "stop"]', "JSON parse error"),
        (b'{"execute": "\xff"}', "not UTF-8"),
        (b'{"execute": NaN}', "invalid keyword 'NaN'"),
        (b'{"execute": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
        (b'{"id": ' + b"9" * 5000 + b"}", "JSON parse error"),
        (b"[1]", "must be a JSON object"),
        (b"3\n", "must be a JSON object"),
        (b"{}", "lacks member 'execute'"),
        (b'{"execute": 3}', "must be a string"),
        (b'{"execute": "stop", "arguments": 3}', "must be an object"),
        (b'{"execute": "stop", "extra": 3}', "'extra' is unexpected"),
    ],
)
async def test_malformed(tmp_path: Path, text: bytes, reason: str) -> None:
    async with asyncio.timeout(60), panel(tmp_path, machine(tmp_path, "a")) as up:
        reader, writer = await raw(up.sockets["a"].path)
        assert "capabilities negotiation" in (await ask(reader, writer, b'{"execute": "stop"}'))["error"]["desc"]
        assert await ask(reader, writer, b'{"execute": "qmp_capabilities"}') == {"return": {}}
        answer = await ask(reader, writer, text)
        assert answer["error"]["class"] == "GenericError"
        assert reason in answer["error"]["desc"]
        # it finds its way back, and others are served
        answer = await ask(reader, writer, b'{"execute": "query-name", "id": {"x": [1, null]}}')
        assert answer == {"return": {"name": "a"}, "id": {"x": [1, None]}}
        writer.close()
        assert up.host.vms["a"].state is RunState.RUNNING


async def test_giant_line(tmp_path: Path) -> None:
    async with asyncio.timeout(60), panel(tmp_path, machine(tmp_path, "a")) as up:
        server = up.sockets["a"]
        reader, writer = await raw(server.path)
        big = json.dumps({"execute": "query-name", "id": "x" * (COMMAND_LIMIT - 100)}).encode()
        assert "id" in await ask(reader, writer, big)
        writer.write(b'{"execute": "' + b"x" * (COMMAND_LIMIT + 100))
        assert "more than 1048576 bytes" in json.loads(await reader.readline())["error"]["desc"]
        assert await reader.read() == b""  # and closed
        writer.close()
        while server.clients:
            await asyncio.sleep(0)
        assert up.host.vms["a"].state is RunState.RUNNING


async def test_slow_and_half_open_clients(tmp_path: Path) -> None:
    """A client that does not read is dropped; one that says nothing is left alone; the guest and other clients go on."""
    async with asyncio.timeout(60), panel(tmp_path, machine(tmp_path, "a")) as up:
        server, vm = up.sockets["a"], up.host.vms["a"]
        silent = [socket.socket(socket.AF_UNIX) for _ in range(3)]
        for one in silent:
            one.setblocking(False)
            one.connect(os.fspath(server.path))
        slow = socket.socket(socket.AF_UNIX)
        slow.setblocking(False)
        slow.connect(os.fspath(server.path))
        slow.send(b'{"execute": "qmp_capabilities"}')
        good = await connect(server.path)
        while server.clients < 5 or not all(session.negotiated for session in list(server._sessions)[3:]):
            await asyncio.sleep(0)
        with good.listener("PADDING") as heard:
            for _ in range(200):
                server.event("PADDING", {"text": "x" * 10_000})
                await heard.get()
        assert server.dropped == 1
        assert server.clients == 4
        before = vm.partition.clock.now()
        await vm.sleep(0.01)
        assert vm.partition.clock.now() > before
        await good.disconnect()
        for one in (*silent, slow):
            one.close()
        while server.clients:
            await asyncio.sleep(0)


async def test_a_client_that_never_reads_its_replies(tmp_path: Path) -> None:
    async with asyncio.timeout(60), panel(tmp_path, machine(tmp_path, "a")) as up:
        target = up.sockets["a"].target
        server = QmpServer(tmp_path / "short.qmp", target, patience=0.05)
        await server.start()
        with socket.socket(socket.AF_UNIX) as greedy:
            greedy.setblocking(False)
            greedy.connect(os.fspath(server.path))
            sent, command = 0, b'{"execute": "qmp_capabilities"}' + b'{"execute": "query-commands"}' * 1000
            while not server.clients:
                await asyncio.sleep(0)
            while server.clients:
                try:
                    sent += greedy.send(command)
                except (BlockingIOError, ConnectionError):
                    pass
                await asyncio.sleep(0)
            assert sent < 8 << 20  # it was stopped, not served for ever
        await server.close()


async def test_a_hundred_clients(tmp_path: Path) -> None:
    async with asyncio.timeout(60), panel(tmp_path, machine(tmp_path, "a")) as up:
        vm = up.host.vms["a"]
        clients = await asyncio.gather(*(raw(up.sockets["a"].path) for _ in range(100)))

        async def session(number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await ask(reader, writer, b'{"execute": "qmp_capabilities"}')
            for n in range(5):
                answer = await ask(reader, writer, b'{"execute": "query-name", "id": %d}' % (number * 10 + n))
                assert answer == {"return": {"name": "a"}, "id": number * 10 + n}
            writer.close()

        await asyncio.gather(*(session(number, *client) for number, client in enumerate(clients)))
        await vm.screen.wait_for("ready>")
        while up.sockets["a"].clients:
            await asyncio.sleep(0)


async def test_sockets_in_the_way(tmp_path: Path) -> None:
    async with asyncio.timeout(60), panel(tmp_path, machine(tmp_path, "a")) as up:
        path = up.sockets["a"].path
        second = Panel(up.description)
        with pytest.raises(ConfigError, match="runs: end it|in use"):
            await second.__aenter__()
        assert path.exists()
        plain = tmp_path / "plain.qmp"
        plain.write_text("x")
        with pytest.raises(ConfigError, match="no socket"):
            await QmpServer(plain, up.sockets["a"].target).start()
        dead = tmp_path / "dead.qmp"
        with socket.socket(socket.AF_UNIX) as left:
            left.bind(os.fspath(dead))
        server = QmpServer(dead, up.sockets["a"].target)
        await server.start()
        await server.close()
        assert not dead.exists()
        with pytest.raises(ConfigError, match="too long"):
            await QmpServer(tmp_path / ("x" * 120), up.sockets["a"].target).start()


# -- the stream


@settings(max_examples=200, derandomize=True, deadline=None)
@given(
    st.lists(st.dictionaries(st.text(max_size=5), st.recursive(st.text() | st.integers(), lambda inner: st.lists(inner, max_size=3), max_leaves=6))),
    st.integers(1, 7),
)
async def test_values_in_any_pieces(values: list[dict[str, object]], size: int) -> None:
    data = b"".join(json.dumps(value, ensure_ascii=n % 2 == 0).encode() + b" \r\n"[: n % 4] for n, value in enumerate(values))
    stream = JsonStream()
    found = [decode(text) for at in range(0, len(data), size) for text in stream.feed(data[at : at + size])]
    assert found == values


@settings(max_examples=200, derandomize=True, deadline=None)
@given(st.binary(max_size=60))
async def test_any_bytes(data: bytes) -> None:
    """Whatever came, after a line's end and closing brackets enough a command is understood again."""
    stream = JsonStream()
    for text in stream.feed(data):
        try:
            decode(text)
        except QmpError:
            pass
    for text in stream.feed(b'"\n' + b"}" * 61 + b"\n\n"):
        try:
            decode(text)
        except QmpError:
            pass
    assert [decode(text) for text in stream.feed(b'{"a": 1}')] == [{"a": 1}]
