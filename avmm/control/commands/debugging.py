"""The monitor's commands for debugging: registers, memory, instructions, breakpoints, stepping.

Addresses are linear; they are written as numbers, as ``$register``, or as ``SEGMENT:OFFSET`` of real mode, and any of them may be
followed by ``+NUMBER``. The machine may run while breakpoints are set and deleted; it is looked at and stepped while it stands still.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable

from avmm.control.commands.command import Call
from avmm.control.qmp import QmpError
from avmm.control.vm import Vm
from avmm.debug.debugger import Debugger, Stop
from avmm.hypervisor.report import LONGEST, decoded, registers

Handler = Callable[[Call, list[str]], Awaitable[str]]
OWNER = "console"
DUMP_LIMIT = 4096
INSTRUCTION_LIMIT, STEP_LIMIT = 200, 10_000
PATIENCE = 1.0  # seconds of the host's time that a step may take before it is said that the machine waits for something
KINDS = ("read", "write", "access")
_SEGMENTED = re.compile(r"([0-9a-fA-F]{1,4}):([0-9a-fA-F]{1,4})")


def _number(text: str, what: str, limit: int = 1 << 64) -> int:
    try:
        value = int(text, 0)
    except ValueError:
        raise QmpError(f"{text} is no {what}") from None
    if not 0 <= value < limit:
        raise QmpError(f"{text} is no {what}: up to {limit - 1:#x}")
    return value


def address(vm: Vm, text: str) -> int:
    """Return the linear address that somebody has written."""
    base, plus, offset = text.partition("+")
    if plus:
        return address(vm, base) + _number(offset, "number") & (1 << 64) - 1
    segmented = _SEGMENTED.fullmatch(text)
    if segmented is not None:
        return (int(segmented[1], 16) << 4) + int(segmented[2], 16)
    if not text.startswith("$"):
        return _number(text, "address")
    name = text[1:]
    if name in ("pc", "rip", "eip", "ip"):
        return vm.debugger.pc
    try:
        return vm.debugger.register(name)
    except KeyError:
        raise QmpError(f"there is no register {text}") from None


def _words(words: list[str], usage: str, least: int, most: int) -> list[str]:
    if not least <= len(words) <= most:
        raise QmpError(usage)
    return words


# -- looking


async def _registers(call: Call, words: list[str]) -> str:
    _words(words, "registers", 0, 0)
    call.vm.debugger.unit.begin()
    return registers(call.vm.partition.processor)


async def _memory(call: Call, words: list[str]) -> str:
    usage = "memory [-p] ADDRESS [LENGTH]"
    physical = "-p" in words
    words = _words([word for word in words if word != "-p"], usage, 1, 2)
    debugger = call.vm.debugger
    start = address(call.vm, words[0])
    length = _number(words[1], "length", DUMP_LIMIT + 1) if len(words) == 2 else 64
    data = debugger.read(start, length, physical=physical)
    lines = [_dump_line(start + at, data[at : at + 16]) for at in range(0, len(data), 16)]
    if len(data) < length:
        lines.append(f"{start + len(data):#x} is not mapped, or no RAM")
    return "\n".join(lines)


def _dump_line(at: int, data: bytes) -> str:
    hexadecimal = f"{data[:8].hex(' ')}  {data[8:].hex(' ')}"
    text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in data)
    return f"{at:016x}  {hexadecimal:<48}  |{text}|"


def _instructions(debugger: Debugger, start: int, count: int) -> str:
    points = {point.address for point in debugger.points.values() if point.kind == "code"}
    data = debugger.read(start, LONGEST * count)
    lines = []
    for at, text in decoded(debugger.partition.processor, data, start, count):
        lines.append(f"{'=>' if at == debugger.pc else '  '}{'*' if at in points else ' '}{text}")
    return "\n".join(lines) or f"{start:#x} is not mapped, no RAM, or no instruction"


async def _disassemble(call: Call, words: list[str]) -> str:
    _words(words, "disassemble [ADDRESS [COUNT]]", 0, 2)
    debugger = call.vm.debugger
    start = address(call.vm, words[0]) if words else debugger.pc
    return _instructions(debugger, start, _number(words[1], "count", INSTRUCTION_LIMIT + 1) if len(words) == 2 else 10)


# -- breakpoints


async def _break(call: Call, words: list[str]) -> str:
    _words(words, "break ADDRESS", 1, 1)
    debugger = call.running.debugger
    return await _add(debugger, "code", address(call.vm, words[0]), 1)


async def _watch(call: Call, words: list[str]) -> str:
    usage = "watch ADDRESS [LENGTH] [read|write|access]"
    kind = words[-1] if words and words[-1] in KINDS else "write"
    words = _words([word for word in words if word not in KINDS], usage, 1, 2)
    debugger = call.running.debugger
    length = _number(words[1], "length", DUMP_LIMIT + 1) if len(words) == 2 else 4
    return await _add(debugger, kind, address(call.vm, words[0]), max(1, length))


async def _add(debugger: Debugger, kind: str, at: int, length: int) -> str:
    point = await debugger.add(kind, at, length, OWNER)
    return f"{'breakpoint' if kind == 'code' else 'watchpoint'} {point.number} at {at:#x}"


async def _delete(call: Call, words: list[str]) -> str:
    _words(words, "delete NUMBER|all", 1, 1)
    debugger = call.vm.debugger
    if words[0] == "all":
        await debugger.remove_all(OWNER)
    else:
        await debugger.remove(_number(words[0], "number"))
    return ""


async def _breakpoints(call: Call, words: list[str]) -> str:
    _words(words, "breakpoints", 0, 0)
    points = call.vm.debugger.points.values()
    rows = [f"{point.number:>3}  {point.kind:<6}  {point.address:#018x}  {point.length:>6}  {point.owner}" for point in points]
    return "\n".join(["  #  kind    address             length  set by", *rows]) if rows else "there are none"


# -- going on


async def _step(call: Call, words: list[str]) -> str:
    _words(words, "step [COUNT]", 0, 1)
    debugger = call.running.debugger
    stop: Stop | None = None
    for _ in range(_number(words[0], "count", STEP_LIMIT + 1) if words else 1):
        stop = await _one_step(debugger)
        if stop is None:
            return "the machine waits in this instruction for an interrupt: it stops behind it, or say stop"
        if stop.cause != "step":
            break
    return _told(debugger, stop) if stop is not None else ""


async def _one_step(debugger: Debugger) -> Stop | None:
    stopping = asyncio.ensure_future(debugger.next_stop())
    try:
        await debugger.step()
        async with asyncio.timeout(PATIENCE):
            return await asyncio.shield(stopping)
    except TimeoutError:
        return None
    finally:
        stopping.cancel()


def _told(debugger: Debugger, stop: Stop) -> str:
    if stop.cause == "ended":
        return "the machine has ended"
    why = "" if stop.cause == "step" or stop.point is None else f"{stop.cause} {stop.point.number}\n"
    return why + _instructions(debugger, stop.pc, 1)


async def _continue(call: Call, words: list[str]) -> str:
    _words(words, "continue", 0, 0)
    await call.running.debugger.resume()
    return ""


async def _reverse_step(call: Call, words: list[str]) -> str:
    _words(words, "reverse-step", 0, 0)
    return await _back(call, call.running.reverse.step)


async def _reverse_continue(call: Call, words: list[str]) -> str:
    _words(words, "reverse-continue", 0, 0)
    return await _back(call, call.running.reverse.resume)


async def _back(call: Call, go: Callable[[], Awaitable[Stop]]) -> str:
    debugger = call.vm.debugger
    stop = await go()
    return ("the beginning of the history\n" if stop.cause == "begin" else "") + _told(debugger, stop)


async def _history(call: Call, words: list[str]) -> str:
    _words(words, "history", 0, 0)
    history = await call.running.keep_history()
    return f"kept since {history.start / 1e9:.6f} s of machine time"


async def _gdbserver(call: Call, words: list[str]) -> str:
    _words(words, "gdbserver [HOST:PORT|PORT|unix:PATH]", 0, 1)
    server = await call.running.gdb_server(words[0] if words else "127.0.0.1:0")
    return f"target remote {server.address}"


HANDLERS: dict[str, tuple[Handler, str]] = {
    "registers": (_registers, "-- the processor's registers"),
    "memory": (_memory, "[-p] ADDRESS [LENGTH] -- what memory holds, from a linear or (-p) physical address"),
    "disassemble": (_disassemble, "[ADDRESS [COUNT]] -- the instructions there, or those to come"),
    "break": (_break, "ADDRESS -- stop before the instruction there"),
    "watch": (_watch, "ADDRESS [LENGTH] [read|write|access] -- stop behind an access"),
    "delete": (_delete, "NUMBER|all -- take breakpoints away"),
    "breakpoints": (_breakpoints, "-- what is set"),
    "step": (_step, "[COUNT] -- execute one instruction, or so many"),
    "continue": (_continue, "-- go on until something stops the machine"),
    "history": (_history, "-- keep one from now on, to run backwards in"),
    "reverse-step": (_reverse_step, "-- be before the instruction executed last"),
    "reverse-continue": (_reverse_continue, "-- be where a breakpoint would have stopped the machine last"),
    "gdbserver": (_gdbserver, "[HOST:PORT|PORT|unix:PATH] -- let a gdb connect"),
}
