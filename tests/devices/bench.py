"""A bench for device models: a board with a clock turned by hand, wires one can look at, and no machine behind it."""

from __future__ import annotations

import random
from collections.abc import Callable, Coroutine
from typing import Any

from avmm.clock import VirtualClock
from avmm.devices.block import SECTOR, BlockError, BlockFault
from avmm.devices.device import Device
from avmm.devices.line import InterruptLine
from avmm.memory import GuestMemory


class Bench:
    """A ``Board``. ``bench.pass_time(ns)`` fires timers in order; ``bench.lines[n]`` are the wires; ``events`` the traces."""

    def __init__(self, ram: int = 1 << 20, seed: int = 1) -> None:
        self.time = 0
        self.clock = VirtualClock(lambda: self.time)
        self.memory = GuestMemory(memoryview(bytearray(ram)))
        self.random = random.Random(seed)
        self.lines: dict[int, InterruptLine] = {}
        self.events: list[tuple[str, dict[str, object]]] = []
        self.requests: list[str] = []
        self.windows: dict[int, tuple[memoryview, bool, int]] = {}
        self.ram_maps: dict[int, tuple[int, memoryview | None]] = {}

    def line(self, number: int) -> InterruptLine:
        return self.lines.setdefault(number, InterruptLine(number))

    def start(self, work: Coroutine[Any, Any, Any], done: Callable[[Any], None], latency: int = 0, *, inline: bool = False) -> None:
        """Run ``work`` at once (it must not really wait) and deliver its result ``latency`` ns later."""
        result: Any
        try:
            work.send(None)
        except StopIteration as stop:
            result = stop.value
        except Exception as error:
            result = error
        else:
            raise AssertionError("work on a bench must not wait")
        self.clock.timer(lambda: done(result)).arm(self.time + latency)
        if not latency:
            self.clock.run_due()

    def trace(self, event: str, **fields: object) -> None:
        self.events.append((event, fields))

    def reset(self, reason: str) -> None:
        self.requests.append(f"reset: {reason}")

    def power_off(self, reason: str) -> None:
        self.requests.append(f"power off: {reason}")

    def map_ram(self, first: int, size: int, buffer: memoryview | None) -> None:
        self.ram_maps[first] = (size, buffer)

    def window(self, port: int, buffer: memoryview | None, *, out: bool = False, start: int = 0) -> None:
        if buffer is None:
            self.windows.pop(port, None)
        else:
            self.windows[port] = (buffer, out, start)

    def window_position(self, port: int) -> int:
        return self.windows[port][2] if port in self.windows else 0

    def pass_time(self, ns: int) -> None:
        """Let machine time go on by ``ns``, firing each timer at its own deadline."""
        end = self.time + ns
        while (due := self.clock.next_due()) is not None and due <= end:
            self.time = max(self.time, due)
            self.clock.run_due()
        self.time = end

    # -- port access as the bus makes it, windows included

    def read(self, device: Device, port: int, size: int = 1) -> int:
        if port in self.windows and not self.windows[port][1]:
            buffer, _, position = self.windows[port]
            if position + size <= len(buffer):
                value = int.from_bytes(buffer[position : position + size], "little")
                self._moved(device, port, position + size)
                return value
        answer = device.read(port, size)
        assert isinstance(answer, int)
        assert 0 <= answer < 1 << 8 * size
        return answer

    def write(self, device: Device, port: int, value: int, size: int = 1) -> None:
        if port in self.windows and self.windows[port][1]:
            buffer, _, position = self.windows[port]
            if position + size <= len(buffer):
                buffer[position : position + size] = value.to_bytes(size, "little")
                self._moved(device, port, position + size)
                return
        assert device.write(port, size, value) is None

    def _moved(self, device: Device, port: int, position: int) -> None:
        buffer, out, _ = self.windows[port]
        if position == len(buffer):
            del self.windows[port]
            assert device.window_done(port) is None
        else:
            self.windows[port] = (buffer, out, position)


class MemoryDisk:
    """A ``BlockDevice`` in memory. ``bad`` sectors fail with MEDIUM; ``log`` says what was asked."""

    def __init__(self, sectors: int = 2048, read_only: bool = False) -> None:
        self.data = bytearray(sectors * SECTOR)
        self.read_only = read_only
        self.bad: set[int] = set()
        self.log: list[tuple[str, int, int]] = []

    @property
    def sectors(self) -> int:
        return len(self.data) // SECTOR

    def _check(self, lba: int, count: int) -> None:
        if lba + count > self.sectors:
            raise BlockError(BlockFault.RANGE, max(lba, self.sectors))
        for sector in range(lba, lba + count):
            if sector in self.bad:
                raise BlockError(BlockFault.MEDIUM, sector)

    async def read(self, lba: int, count: int) -> bytearray:
        self.log.append(("read", lba, count))
        self._check(lba, count)
        return self.data[lba * SECTOR : (lba + count) * SECTOR]

    async def write(self, lba: int, data: bytes | bytearray | memoryview) -> None:
        self.log.append(("write", lba, len(data) // SECTOR))
        if self.read_only:
            raise BlockError(BlockFault.READ_ONLY, lba)
        self._check(lba, len(data) // SECTOR)
        self.data[lba * SECTOR : lba * SECTOR + len(data)] = data

    async def flush(self) -> None:
        self.log.append(("flush", 0, 0))
