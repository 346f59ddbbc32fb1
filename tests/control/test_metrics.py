"""Prometheus metrics: read back with the client library's own parser, over real HTTP on 127.0.0.1."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse

from avmm.control.config import ConfigError
from avmm.control.metrics import MetricsServer
from tests.control.panels import ECHO, machine, panel

pytestmark = pytest.mark.asyncio
LATCH = bytes.fromhex("e643 e440") + ECHO.replace(b"\x1c\x7c", b"\x20\x7c")
"""OUT 43h, AL; IN AL, 40h; and the other boot sector."""


async def fetch(port: int, request: bytes) -> tuple[str, dict[str, str], str]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    head, _, body = (await reader.read()).decode().partition("\r\n\r\n")
    writer.close()
    await writer.wait_closed()
    status, *lines = head.split("\r\n")
    return status, dict(line.split(": ", 1) for line in lines), body


async def test_scrape(tmp_path: Path) -> None:
    async with asyncio.timeout(30), panel(
        tmp_path, machine(tmp_path, "a", LATCH, placement={"pit": "service"}), machine(tmp_path, "b", weight=200), metrics_port=0
    ) as up:
        assert up.metrics is not None
        vm = up.host.vms["a"]
        await vm.screen.wait_for("ready>")
        await vm.pause()
        status, headers, body = await fetch(up.metrics.port, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        assert status == "HTTP/1.1 200 OK"
        assert headers["Content-Type"].startswith("text/plain; version=0.0.4")
        assert int(headers["Content-Length"]) == len(body.encode())
        found = {(sample.name, *sorted(sample.labels.items())): sample.value for family in parse(body) for sample in family.samples}
        stats = vm.stats
        for kind, count in stats.exits.items():
            assert found["avmm_exits_total", ("kind", kind), ("vm", "a")] == count
        assert found["avmm_accesses_total", ("vm", "a"), ("where", "inside")] == stats.inside
        assert found["avmm_accesses_total", ("vm", "a"), ("where", "outside")] == stats.outside
        assert found["avmm_accesses_total", ("vm", "a"), ("where", "plain")] == stats.plain
        assert found["avmm_interrupts_injected_total", ("vm", "a")] == stats.injected > 0
        assert found["avmm_machine_seconds_total", ("vm", "a")] == stats.machine_ns / 1e9
        assert found["avmm_disk_requests_total", ("disk", "floppy0"), ("vm", "a")] > 0
        assert found["avmm_disk_bytes_total", ("direction", "read"), ("disk", "floppy0"), ("vm", "a")] >= 512
        assert found["avmm_disk_errors_total", ("disk", "floppy0"), ("vm", "a")] == 0
        assert found["avmm_irps_total", ("device", "pit"), ("vm", "a")] == 2
        irps = [count for (name, *labels), count in found.items() if name == "avmm_irps_total" and ("vm", "a") in labels]
        assert sum(irps) == stats.outside
        assert found["avmm_irp_errors_total", ("device", "pit"), ("vm", "a")] == 0
        assert found["avmm_state", ("state", "paused"), ("vm", "a")] == 1
        assert found["avmm_state", ("state", "running"), ("vm", "a")] == 0
        assert found["avmm_state", ("state", "running"), ("vm", "b")] == 1
        assert found["avmm_device_inside", ("device", "pit"), ("vm", "a")] == 0
        assert found["avmm_device_inside", ("device", "pit"), ("vm", "b")] == 1
        assert found["avmm_device_inside", ("device", "ata0"), ("vm", "a")] == 0
        assert found["avmm_weight", ("vm", "b")] == 200

        _, headers, body = await fetch(up.metrics.port, b"GET / HTTP/1.1\r\nAccept: application/openmetrics-text; version=1.0.0\r\n\r\n")
        assert headers["Content-Type"].startswith("application/openmetrics-text")
        assert {family.name for family in parse_openmetrics(body)} >= {"avmm_exits", "avmm_state"}
        await vm.resume()


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET /nope HTTP/1.1\r\n\r\n", "HTTP/1.1 404 Not Found"),
        (b"POST /metrics HTTP/1.1\r\n\r\n", "HTTP/1.1 405 Method Not Allowed"),
        (b"HEAD /metrics HTTP/1.1\r\n\r\n", "HTTP/1.1 200 OK"),
        (b"\xff\r\n\r\n", "HTTP/1.1 405 Method Not Allowed"),
        (b"x" * 20_000, ""),
    ],
)
async def test_odd_requests(tmp_path: Path, request_: bytes, status: str) -> None:
    async with asyncio.timeout(30), panel(tmp_path, machine(tmp_path, "a"), metrics_port=0) as up:
        assert up.metrics is not None
        try:
            got, _, body = await fetch(up.metrics.port, request_)
        except ConnectionError:
            got = body = ""
        assert got == status
        assert not (request_.startswith(b"HEAD") and body)


async def test_port_in_use(tmp_path: Path) -> None:
    async with asyncio.timeout(30), panel(tmp_path, machine(tmp_path, "a"), metrics_port=0) as up:
        assert up.metrics is not None
        second = MetricsServer(up.host, up.metrics.port)
        with pytest.raises(ConfigError, match="cannot serve metrics on 127.0.0.1"):
            await second.start()


def listening() -> set[str]:
    """The TCP and UDP sockets on which this process can be reached, by their inodes."""
    mine = {os.readlink(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd") if os.path.islink(f"/proc/self/fd/{name}")}
    found = set()
    for kind in ("tcp", "tcp6", "udp", "udp6"):
        for line in Path(f"/proc/self/net/{kind}").read_text().splitlines()[1:]:
            state, inode = line.split()[3], line.split()[9]
            if (state == "0A" or kind.startswith("udp")) and f"socket:[{inode}]" in mine:
                found.add(inode)
    return found


async def test_nothing_listens_on_a_network_unless_asked_to(tmp_path: Path) -> None:
    async with asyncio.timeout(30):
        before = listening()
        async with panel(tmp_path / "1", machine(tmp_path, "a")) as up:
            assert up.metrics is None
            assert listening() == before
        async with panel(tmp_path / "2", machine(tmp_path, "a"), metrics_port=0):
            assert len(listening() - before) == 1
