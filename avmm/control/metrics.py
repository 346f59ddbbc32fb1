"""Prometheus metrics of a host's machines, served on 127.0.0.1.

The text formats are the client library's (Prometheus text 0.0.4 and OpenMetrics); HTTP is a GET and its answer, then the
connection is closed. Everything is read from the machines' own counters when a scrape comes: nothing is counted twice, and
nothing costs a guest time while nobody looks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector, CollectorRegistry

from avmm.control.commands.block import drives
from avmm.control.commands.machine import STATUS
from avmm.control.config import ConfigError
from avmm.control.host import Host
from avmm.control.listener import Listener
from avmm.control.vm import Vm
from avmm.host.router import DeviceStats

ADDRESS = "127.0.0.1"
PATIENCE = 5.0
_REQUEST_LIMIT = 8192
_CLIENTS = 16


class MachineCollector(Collector):
    """Makes the samples when a registry asks for them."""

    def __init__(self, host: Host) -> None:
        self._host = host

    def collect(self) -> Iterable[Metric]:
        """Return the metrics of every machine."""
        exits = CounterMetricFamily("avmm_exits", "VM exits by kind", labels=["vm", "kind"])
        accesses = CounterMetricFamily("avmm_accesses", "Register accesses by who answered", labels=["vm", "where"])
        injected = CounterMetricFamily("avmm_interrupts_injected", "Interrupts delivered to the guest", labels=["vm"])
        resets = CounterMetricFamily("avmm_resets", "Machine resets", labels=["vm"])
        host_time = CounterMetricFamily("avmm_host_seconds", "Host time by where it went", labels=["vm", "where"])
        machine_time = CounterMetricFamily("avmm_machine_seconds", "Machine time since power-on", labels=["vm"])
        irps = CounterMetricFamily("avmm_irps", "I/O request packets answered outside the hypervisor", labels=["vm", "device"])
        failed = CounterMetricFamily("avmm_irp_errors", "I/O request packets that failed", labels=["vm", "device"])
        requests = CounterMetricFamily("avmm_disk_requests", "Finished storage requests", labels=["vm", "disk"])
        data = CounterMetricFamily("avmm_disk_bytes", "Bytes moved", labels=["vm", "disk", "direction"])
        errors = CounterMetricFamily("avmm_disk_errors", "Storage requests that failed", labels=["vm", "disk"])
        latency = CounterMetricFamily("avmm_disk_seconds", "Sum of the storage requests' host time", labels=["vm", "disk"])
        state = GaugeMetricFamily("avmm_state", "1 for the state that a machine is in", labels=["vm", "state"])
        inside = GaugeMetricFamily("avmm_device_inside", "1 for a device model in the hypervisor, else 0", labels=["vm", "device"])
        weight = GaugeMetricFamily("avmm_weight", "Share of the processor beside others", labels=["vm"])
        for vm in self._host.vms.values():
            name, stats = vm.name, vm.stats
            for kind, count in stats.exits.items():
                exits.add_metric([name, kind], count)
            for where in ("inside", "outside", "plain", "floating"):
                accesses.add_metric([name, where], getattr(stats, where))
            injected.add_metric([name], stats.injected)
            resets.add_metric([name], stats.resets)
            where_ns = {"guest": stats.guest_ns, "inside": stats.inside_ns, "outside": stats.outside_ns, "idle": stats.idle_ns}
            for where, ns in where_ns.items():
                host_time.add_metric([name, where], ns / 1e9)
            machine_time.add_metric([name], stats.machine_ns / 1e9)
            for device, seen in _outside(self._host, vm):
                irps.add_metric([name, device], seen.irps)
                failed.add_metric([name, device], seen.errors)
            for drive, disk in drives(vm).items():
                requests.add_metric([name, drive], disk.stats.requests)
                data.add_metric([name, drive, "read"], disk.stats.bytes_read)
                data.add_metric([name, drive, "written"], disk.stats.bytes_written)
                errors.add_metric([name, drive], disk.stats.errors)
                latency.add_metric([name, drive], disk.stats.latency / 1e9)
            for run_state, label in STATUS.items():
                state.add_metric([name, label], int(vm.state is run_state))
            for device, place in vm.partition.placement.items():
                inside.add_metric([name, device], int(place == "hypervisor"))
            weight.add_metric([name], vm.config.weight)
        counted = [exits, accesses, injected, resets, host_time, machine_time, irps, failed, requests, data, errors, latency]
        return [*counted, state, inside, weight]


def _outside(host: Host, vm: Vm) -> Iterator[tuple[str, DeviceStats]]:
    for name, stats in host.service.stats.items():
        machine, _, device = name.partition("/")
        if machine == vm.name:
            yield device, stats


class MetricsServer:
    """Serves a registry of its own over HTTP. ``await server.start()``, then ``close()``."""

    def __init__(self, host: Host, port: int) -> None:
        self.registry = CollectorRegistry(auto_describe=False)
        self.registry.register(MachineCollector(host))
        self.port = port
        """The port; after :meth:`start` the one that was chosen, if it was 0."""
        self._listener = Listener("metrics", self._serve, _CLIENTS)

    async def start(self) -> None:
        """Listen. ConfigError when the port cannot be had."""
        try:
            self.port = await self._listener.tcp(ADDRESS, self.port, _REQUEST_LIMIT)
        except OSError as error:
            raise ConfigError(f"cannot serve metrics on {ADDRESS}, port {self.port}: {error.strerror or error}") from None

    async def close(self) -> None:
        """Let all clients go and stop listening."""
        await self._listener.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(PATIENCE):
                request = await reader.readuntil(b"\r\n\r\n")
                writer.write(self.answer(request))
                await writer.drain()
        except (ConnectionError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # no request of ours, or nobody waits for the answer

    def answer(self, request: bytes) -> bytes:
        """Return the HTTP response to a request's head."""
        first, *rest = request.decode("latin-1").split("\r\n")
        method, _, target = first.partition(" ")
        path = target.split(" ")[0].split("?")[0]
        if method not in ("GET", "HEAD"):
            return _response("405 Method Not Allowed", b"GET /metrics\n")
        if path not in ("/", "/metrics"):
            return _response("404 Not Found", b"see /metrics\n")
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in rest)}
        encoder, kind = choose_encoder(headers.get("accept", ""))
        body = encoder(self.registry)
        return _response("200 OK", body, kind, head=method == "HEAD")


def _response(status: str, body: bytes, kind: str = "text/plain; charset=utf-8", *, head: bool = False) -> bytes:
    text = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    return text.encode() + (b"" if head else body)
