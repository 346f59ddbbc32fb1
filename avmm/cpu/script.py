"""A guest written as a Python coroutine, on the same hypervisor path as real code.

::

    async def guest(cpu: ScriptCpu) -> None:
        await cpu.outb(0x43, 0x36)
        count = await cpu.inb(0x40)
        await cpu.hlt()

Each operation is one VM exit, as the corresponding instruction would be. Interrupts are callbacks: ``cpu.on(0x20, handler)``;
they are taken between two operations when the interrupt flag is set (:meth:`ScriptCpu.sti`), and in ``hlt``.

The invariant: what a scripted guest does goes through the processor's callbacks and nowhere else.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Generator
from threading import Lock
from typing import Any

from avmm.cpu.engine import LAST_TIME, Callbacks, CpuState, DebugUnit, Exit, ProcessorError, ProcessorState, Segment

OPERATION_UNITS = 100  # ns of virtual time an operation takes: about a port access, so that polling a device gets somewhere
RFLAGS_IF = 0x200

Guest = Callable[["ScriptCpu"], Coroutine[Any, Any, None]]
Handler = Callable[["ScriptCpu"], Coroutine[Any, Any, None]]


class _Halt:
    """What ``hlt`` hands to the processor: an operation that ends the run."""


class _Operation(Awaitable[Any]):
    __slots__ = ("action",)

    def __init__(self, action: Callable[[], Any] | _Halt) -> None:
        self.action = action

    def __await__(self) -> Generator[_Operation, Any, Any]:
        return (yield self)


class ScriptCpu:
    """What a scripted guest holds: its ports, memory and interrupts."""

    def __init__(self, processor: ScriptProcessor) -> None:
        self._processor = processor

    def _in(self, port: int, size: int) -> _Operation:
        return _Operation(lambda: self._processor.read_port(port, size))

    def _out(self, port: int, size: int, value: int) -> _Operation:
        return _Operation(lambda: self._processor.write_port(port, size, value & (1 << 8 * size) - 1))

    def inb(self, port: int) -> Awaitable[int]:
        """IN AL, port."""
        return self._in(port, 1)

    def inw(self, port: int) -> Awaitable[int]:
        """IN AX, port."""
        return self._in(port, 2)

    def inl(self, port: int) -> Awaitable[int]:
        """IN EAX, port."""
        return self._in(port, 4)

    def outb(self, port: int, value: int) -> Awaitable[None]:
        """OUT port, AL."""
        return self._out(port, 1, value)

    def outw(self, port: int, value: int) -> Awaitable[None]:
        """OUT port, AX."""
        return self._out(port, 2, value)

    def outl(self, port: int, value: int) -> Awaitable[None]:
        """OUT port, EAX."""
        return self._out(port, 4, value)

    def insw(self, port: int, count: int) -> Awaitable[bytes]:
        """REP INSW: ``count`` words, served from the port's data window where one is open."""
        return _Operation(lambda: self._processor.read_string(port, 2, count))

    def outsw(self, port: int, data: bytes) -> Awaitable[None]:
        """REP OUTSW: the words of ``data``."""
        return _Operation(lambda: self._processor.write_string(port, 2, data))

    def load(self, address: int, size: int = 4) -> Awaitable[int]:
        """Read ``size`` bytes of guest-physical memory, RAM or memory-mapped."""
        return _Operation(lambda: self._processor.load(address, size))

    def store(self, address: int, value: int, size: int = 4) -> Awaitable[None]:
        """Write ``size`` bytes of guest-physical memory."""
        return _Operation(lambda: self._processor.store(address, size, value))

    def hlt(self) -> Awaitable[None]:
        """HLT: go on after the next interrupt. Interrupts must be on, or the machine halts for ever."""
        return _Operation(_Halt())

    def sti(self) -> None:
        """Set the interrupt flag."""
        self._processor.rflags |= RFLAGS_IF

    def cli(self) -> None:
        """Clear the interrupt flag."""
        self._processor.rflags &= ~RFLAGS_IF

    def on(self, vector: int, handler: Handler) -> None:
        """Let ``handler(cpu)`` take interrupt ``vector``; it runs with interrupts off, and sends its own EOI."""
        self._processor.handlers[vector] = handler


class ScriptProcessor:
    """A ``Processor`` whose guest is a coroutine. Ends with HLT and interrupts off, for ever, when the coroutine returns."""

    def __init__(self, callbacks: Callbacks, guest: Guest) -> None:
        self.callbacks = callbacks
        self.failure = ""
        self.debug: DebugUnit | None = None
        self.house: Lock | None = None  # a scripted guest is Python: nobody else runs meanwhile
        self.units = 0
        self.rflags = 2
        self.handlers: dict[int, Handler] = {}
        self.finished = False
        self.executed: Callable[[], int] = lambda: self.units
        self._guest = guest
        self._stack: list[Coroutine[Any, Any, None]] = []
        self._results: list[Any] = []
        self._pending = self._stopped = self._kicked = False
        self._ram: list[tuple[int, memoryview]] = []
        self._windows: dict[int, tuple[memoryview, bool, int]] = {}

    def run(self, budget: int, deadline: int | None = None) -> Exit:
        """Run operations until the budget is used up, the guest halts, or someone stops it."""
        self._kicked = False
        end = self.units + budget
        while self._stack:
            if self._stopped:
                self._stopped = False
                return Exit.STOPPED
            if self.units >= end or self._kicked:
                return Exit.BUDGET
            self._take_interrupt()
            try:
                operation = self._stack[-1].send(self._results[-1])
            except StopIteration:
                del self._stack[-1], self._results[-1]
                if self._stack:
                    self.rflags |= RFLAGS_IF  # IRET
                continue
            if not isinstance(operation, _Operation):
                raise TypeError(f"a scripted guest may only await its cpu's operations, not {operation!r}")
            self.units += OPERATION_UNITS
            self._results[-1] = None
            if isinstance(operation.action, _Halt):
                return Exit.HALT
            self._results[-1] = operation.action()
        self.finished = True
        self.rflags &= ~RFLAGS_IF
        return Exit.HALT

    def _take_interrupt(self) -> None:
        if not (self._pending and self.rflags & RFLAGS_IF):
            return
        vector = self.callbacks.acknowledge()
        if vector is None:
            self._pending = False
            return
        self._pending = vector >= 0x100
        handler = self.handlers.get(vector & 0xFF)
        if handler is not None:
            self.rflags &= ~RFLAGS_IF
            self._stack.append(handler(ScriptCpu(self)))
            self._results.append(None)

    @property
    def interruptible(self) -> bool:
        """Whether the guest accepts interrupts."""
        return bool(self.rflags & RFLAGS_IF)

    def stop(self) -> None:
        """End the current run with ``Exit.STOPPED``."""
        self._stopped = True

    def kick(self) -> None:
        """End the current slice with ``Exit.BUDGET``."""
        self._kicked = True

    def interrupt(self, pending: bool) -> None:
        """Drive the INTR pin."""
        self._pending = pending

    def set_time_base(self, base: int, end: int = LAST_TIME) -> None:
        """A scripted guest has no time stamp counter."""

    def reset(self, state: CpuState) -> None:
        """Start the guest over; a scripted guest has no use for ``state``."""
        self.close()
        self.rflags = 2
        self.finished = False
        self.handlers.clear()
        self._stack = [self._guest(ScriptCpu(self))]
        self._results = [None]

    def save(self, halted: bool = False) -> ProcessorState:
        """Refuse: a coroutine cannot be copied."""
        raise ProcessorError("a guest written in Python keeps its state in a coroutine, which cannot be saved")

    def restore(self, state: ProcessorState) -> None:
        """Refuse, likewise."""
        raise ProcessorError("a guest written in Python cannot become what was saved")

    def close(self) -> None:
        """End the guest's coroutines."""
        while self._stack:
            self._stack.pop().close()
        self._results.clear()

    def register(self, name: str) -> int:
        """Return ``rflags``; a scripted guest has no other registers, they read zero."""
        return self.rflags if name == "rflags" else 0

    def set_register(self, name: str, value: int) -> None:
        """Set ``rflags``; other registers are not there."""
        if name == "rflags":
            self.rflags = value | 2

    def segment(self, name: str) -> Segment:
        """Return a flat segment."""
        return Segment(0, 0, 0xFFFFFFFF)

    def translate(self, linear: int) -> int | None:
        """Return the address itself: there is no paging."""
        return linear

    def map_ram(self, address: int, buffer: memoryview) -> None:
        """Let ``buffer`` answer that range; the latest mapping wins."""
        self._ram.insert(0, (address, buffer))

    def unmap_ram(self, address: int, size: int) -> None:
        """Send that range to the memory callbacks again."""
        rest: list[tuple[int, memoryview]] = []
        for base, buffer in self._ram:
            end = base + len(buffer)
            if base >= address + size or end <= address:
                rest.append((base, buffer))
                continue
            if base < address:
                rest.append((base, buffer[: address - base]))
            if end > address + size:
                rest.append((address + size, buffer[address + size - base :]))
        self._ram = rest

    def invalidate(self, address: int, length: int) -> None:
        """Nothing is translated here."""

    def load(self, address: int, size: int) -> int:
        """Read memory as the guest does."""
        for base, buffer in self._ram:
            if base <= address and address + size <= base + len(buffer):
                return int.from_bytes(buffer[address - base : address - base + size], "little")
        value = self.callbacks.memory_read(address, size)
        return (1 << 8 * size) - 1 if value is None else value

    def store(self, address: int, size: int, value: int) -> None:
        """Write memory as the guest does."""
        value &= (1 << 8 * size) - 1
        for base, buffer in self._ram:
            if base <= address and address + size <= base + len(buffer):
                buffer[address - base : address - base + size] = value.to_bytes(size, "little")
                return
        self.callbacks.memory_write(address, size, value)

    def window(self, port: int, buffer: memoryview | None, *, out: bool = False, start: int = 0) -> None:
        """Serve ``port`` from or into ``buffer`` until it is used up."""
        if buffer is None:
            self._windows.pop(port, None)
        else:
            self._windows[port] = (buffer, out, start)

    def window_position(self, port: int) -> int:
        """Return how far the window on ``port`` has been moved."""
        return self._windows[port][2] if port in self._windows else 0

    def read_port(self, port: int, size: int) -> int | None:
        """IN, served from the port's window if one is open and the element fits what is left of it."""
        window = self._windows.get(port)
        if window is None or window[1] or window[2] + size > len(window[0]):
            return self.callbacks.port_in(port, size)
        buffer, _, at = window
        self._moved(port, at + size)
        return int.from_bytes(buffer[at : at + size], "little")

    def write_port(self, port: int, size: int, value: int) -> None:
        """OUT, likewise."""
        window = self._windows.get(port)
        if window is None or not window[1] or window[2] + size > len(window[0]):
            self.callbacks.port_out(port, size, value)
            return
        buffer, _, at = window
        buffer[at : at + size] = value.to_bytes(size, "little")
        self._moved(port, at + size)

    def read_string(self, port: int, size: int, count: int) -> bytes:
        """REP INS of ``count`` elements; those that a window has are moved in bulk, as a processor does."""
        parts: list[bytes] = []
        while count:
            window = self._windows.get(port)
            whole = 0 if window is None or window[1] else min(count, (len(window[0]) - window[2]) // size)
            if window is not None and whole:
                end = window[2] + whole * size
                parts.append(bytes(window[0][window[2] : end]))
                self._moved(port, end)
            else:
                whole = 1
                parts.append((self.read_port(port, size) or 0).to_bytes(size, "little"))
            count -= whole
        return b"".join(parts)

    def write_string(self, port: int, size: int, data: bytes) -> None:
        """REP OUTS of the elements of ``data``, likewise."""
        at = 0
        while at < len(data):
            window = self._windows.get(port)
            whole = 0 if window is None or not window[1] else min(len(data) - at, len(window[0]) - window[2]) // size * size
            if window is not None and whole:
                window[0][window[2] : window[2] + whole] = data[at : at + whole]
                self._moved(port, window[2] + whole)
            else:
                whole = size
                self.write_port(port, size, int.from_bytes(data[at : at + size], "little"))
            at += whole

    def _moved(self, port: int, position: int) -> None:
        buffer, out, _ = self._windows[port]
        if position >= len(buffer):
            del self._windows[port]
            self.callbacks.window_done(port)
        else:
            self._windows[port] = (buffer, out, position)
