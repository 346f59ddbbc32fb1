"""The human monitor: a few commands of QEMU's in text, behind ``human-monitor-command`` and ``avmm ctl hmp``."""

from __future__ import annotations

import re
import shlex
from collections.abc import Awaitable, Callable
from typing import Any

from avmm.control.commands import block, debugging, snapshots, user
from avmm.control.commands.command import REFUSALS, Call
from avmm.control.commands.machine import STATUS
from avmm.control.commands.physical import describe
from avmm.control.qmp import QmpError, version
from avmm.control.vm import Vm
from avmm.hypervisor.report import disassembly, registers

Handler = Callable[[Call, list[str]], Awaitable[str]]
DUMP_LIMIT = 4096
_SIZES = {"b": 1, "h": 2, "w": 4, "g": 8}
_FORMAT = re.compile(r"/(\d*)(?=[xduoci]?[bhwg]?$|[bhwg][xduoci]$)([a-z]*)")


async def run(call: Call, line: str) -> str:
    """Carry out a line and return what QEMU's monitor would print, mistakes included."""
    try:
        words = shlex.split(re.sub(r"^\s*(xp?)/", r"\1 /", line))
    except ValueError as error:
        return f"{error}\r\n"
    if not words:
        return ""
    handler = _COMMANDS.get(words[0])
    if handler is None:
        return f"unknown command: '{words[0]}'\r\n"
    try:
        text = await handler[0](call, words[1:])
    except REFUSALS as error:
        text = f"Error: {error}"
    return text.replace("\n", "\r\n") + "\r\n" if text else ""


async def run_for(vm: Vm, line: str) -> str:
    """The same for somebody who has no socket to the machine, such as its gdb; lines end in a plain newline."""
    from avmm.control.commands import COMMANDS, Target

    async def quit(_: Vm | None) -> None:
        await vm.partition.stop("quit")

    target = Target(vm.host, COMMANDS, quit, vm)
    try:
        return (await run(Call(target, {}, vm), line)).replace("\r\n", "\n")
    finally:
        target.unwatch(vm)


def usages() -> dict[str, tuple[str, str]]:
    """Return for each command how it is used and what it does."""
    found = {}
    for name, (_, text) in _COMMANDS.items():
        usage, _, what = text.partition("--")
        found[name] = usage.strip(), what.strip()
    return found


def subjects() -> list[str]:
    """Return what ``info`` can tell about."""
    return list(_INFO)


def _plain(name: str) -> Handler:
    """Return the handler that is the QMP command without arguments."""

    async def handler(call: Call, words: list[str]) -> str:
        if words:
            raise QmpError(f"{name} takes no arguments")
        await _execute(call, name, {})
        return ""

    return handler


async def _sendkey(call: Call, words: list[str]) -> str:
    if not 1 <= len(words) <= 2 or not all(word.isdigit() for word in words[1:]):
        raise QmpError("sendkey KEY-KEY... [HOLD-MS]")
    names = [user.key_name({"type": "qcode", "data": name}) for name in re.split(r"-(?=.)", words[0])]
    user.press(call.running, names, int(words[1]) if len(words) == 2 else user.HOLD_MS)
    return ""


async def _screendump(call: Call, words: list[str]) -> str:
    if len(words) != 1:
        raise QmpError("screendump FILE")
    user.dump(call.vm, words[0], "png" if words[0].endswith(".png") else "ppm")
    return ""


async def _eject(call: Call, words: list[str]) -> str:
    force = "-f" in words
    names = [word for word in words if word != "-f"]
    block.removable(call.running, names[0] if names else "").eject(force)
    return ""


async def _change(call: Call, words: list[str]) -> str:
    if len(words) != 2:
        raise QmpError("change DRIVE FILE")
    await block.removable(call.running, words[0]).insert(words[1], force=False)
    return ""


async def _mode(call: Call, words: list[str]) -> str:
    if len(words) > 1:
        raise QmpError("mode [emulated|enlightened|shunt-only]")
    if words:
        await _execute(call, "x-avmm-mode", {"mode": words[0]})
    return f"mode: {call.vm.mode or 'nobody tells'}"


async def _savevm(call: Call, words: list[str]) -> str:
    if len(words) != 1:
        raise QmpError("savevm FILE")
    await snapshots.save(call, words[0])
    return ""


async def _loadvm(call: Call, words: list[str]) -> str:
    if len(words) != 1:
        raise QmpError("loadvm FILE")
    await snapshots.load(call, words[0])
    return ""


async def _switch(call: Call, words: list[str], command: str) -> str:
    if not 1 <= len(words) <= 4:
        raise QmpError(f"{command} DEVICE [between|middle] [BOUND-MS] [rollback|defer]")
    names = ("device", "when", "bound", "on-bound")
    try:
        given = {name: float(word) / 1000 if name == "bound" else word for name, word in zip(names, words, strict=False)}
    except ValueError:
        raise QmpError(f"{words[2]} is no bound in ms") from None
    report = await _execute(call, f"x-avmm-{command}", given)
    pause = f"pause {report['pause_ns'] / 1000:.0f} us at: {report['stage']}"
    return f"{report['device']}: {report['outcome']}{', ' + report['reason'] if report['reason'] else ''}; {pause}"


async def _virtualize(call: Call, words: list[str]) -> str:
    return await _switch(call, words, "virtualize")


async def _devirtualize(call: Call, words: list[str]) -> str:
    return await _switch(call, words, "devirtualize")


async def _interpose(call: Call, words: list[str]) -> str:
    if len(words) < 2:
        raise QmpError("interpose DEVICE trace|fault|limit|mirror|share [NAME=VALUE]...")
    options: dict[str, object] = {}
    for word in words[2:]:
        name, _, value = word.partition("=")
        if name == "rule":
            options["rules"] = [*options.get("rules", []), value]  # type: ignore[misc]
        else:
            options[name] = _number(value)
    await _execute(call, "x-avmm-interpose", {"device": words[0], "kind": words[1], "options": options})
    return ""


def _number(text: str) -> object:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


async def _remove(call: Call, words: list[str]) -> str:
    if len(words) != 2:
        raise QmpError("remove_interposer DEVICE KIND")
    await _execute(call, "x-avmm-remove-interposer", {"device": words[0], "kind": words[1]})
    return ""


async def _execute(call: Call, name: str, arguments: dict[str, Any]) -> Any:
    """Carry out a QMP command on this machine."""
    return await call.target.execute(name, arguments if call.target.vm is not None else {**arguments, "vm": call.vm.name})


async def _help(call: Call, words: list[str]) -> str:
    return "\n".join(f"{name} {what}".strip() for name, (_, what) in sorted(_COMMANDS.items()))


# -- info


async def _info(call: Call, words: list[str]) -> str:
    show = _INFO.get(words[0] if words else "")
    if show is None:
        return "\n".join(f"info {name}" for name in sorted(_INFO))
    return show(call.vm)


def _status(vm: Vm) -> str:
    return f"VM status: {STATUS[vm.state]}"


def _registers(vm: Vm) -> str:
    return registers(vm.partition.processor)


def _version(vm: Vm) -> str:
    return str(version()["package"])


def _cpus(vm: Vm) -> str:
    return f"* CPU #0: {vm.partition.vcpu.halts} halts, {vm.partition.vcpu.slices} slices"


def _blocks(vm: Vm) -> str:
    lines = []
    for name, disk in block.drives(vm).items():
        stats = disk.stats
        lines.append(f"{name}: {disk.file.path} (raw{', read-only' if disk.read_only else ''})")
        lines.append(f"    {stats.requests} requests, {stats.bytes_read} bytes read, {stats.bytes_written} written, {stats.errors} errors")
    return "\n".join(lines)


def _mtree(vm: Vm) -> str:
    partition = vm.partition
    lines = ["memory", f"  {0:016x}-{partition.memory.size - 1:016x}: ram"]
    for device in partition.devices.values():
        lines += [
            f"  {span.first:016x}-{span.first + span.size - 1:016x}: {device.name} ({partition.placement[device.name]})"
            for span in device.memory
        ]
    lines.append("I/O")
    spans = [(span, device) for device in partition.devices.values() for span in device.ports]
    for span, device in sorted(spans, key=lambda found: found[0].first):
        lines.append(f"  {span.first:04x}-{span.first + span.count - 1:04x}: {device.name} ({partition.placement[device.name]})")
    return "\n".join(lines)


def _irq(vm: Vm) -> str:
    return "\n".join(f"{number:2}: {line.edges}" for number, line in sorted(vm.partition.lines.items()) if line.edges)


def _physical(vm: Vm) -> str:
    lines = []
    for entry in describe(vm):
        lines.append(f"{entry['device']}: {entry['mode']}")
        lines += [f"    {kind}: {', '.join(f'{k} {v}' for k, v in told.items())}" for kind, told in entry["interposers"].items()]
    return "\n".join(lines)


def _placement(vm: Vm) -> str:
    return "\n".join(f"{name}: {place}" for name, place in vm.partition.placement.items())


def _trace(vm: Vm) -> str:
    return "\n".join(map(str, vm.partition.trace_log.events))


_INFO: dict[str, Callable[[Vm], str]] = {
    "status": _status, "registers": _registers, "version": _version, "cpus": _cpus, "block": _blocks, "mtree": _mtree, "irq": _irq,
    "name": lambda vm: vm.name, "placement": _placement, "physical": _physical, "trace": _trace, "stats": lambda vm: str(vm.stats),
}  # fmt: skip


# -- memory


def _parse_dump(words: list[str]) -> tuple[int, str, int, str]:
    """Return count, format letter, unit size and the address as written, of ``/16xb ADDRESS``."""
    count, letter, size = 1, "x", 4
    if words and words[0].startswith("/"):
        found = _FORMAT.fullmatch(words[0])
        if found is None:
            raise QmpError(f"invalid format {words[0]}: /COUNT, then x d u o c i, then b h w g")
        count = int(found[1] or 1)
        letter = next((one for one in found[2] if one not in _SIZES), "x")
        size = _SIZES[next((one for one in found[2] if one in _SIZES), "b" if letter == "c" else "w")]
        words = words[1:]
    if len(words) != 1:
        raise QmpError("give one address")
    if count * size > DUMP_LIMIT:
        raise QmpError(f"that is more than {DUMP_LIMIT} bytes")
    return count, letter, size, words[0]


def _shown(value: int, letter: str, size: int) -> str:
    if letter == "x":
        return f"0x{value:0{2 * size}x}"
    if letter == "d":
        return str(value - (1 << 8 * size) if value >> 8 * size - 1 else value)
    if letter == "c":
        return repr(chr(value)) if 32 <= value < 127 else f"'\\x{value:02x}'"
    return f"0{value:o}" if letter == "o" else str(value)


def _dump(vm: Vm, words: list[str], *, physical: bool) -> str:
    count, letter, size, where = _parse_dump(words)
    start = debugging.address(vm, where)
    processor, memory = vm.partition.processor, vm.partition.memory
    if letter == "i":
        return "\n".join(disassembly(processor, memory, count, start))
    lines = []
    per_line = max(1, 16 // size)
    for first in range(0, count, per_line):
        values = []
        for n in range(first, min(first + per_line, count)):
            data = bytearray()
            for address in range(start + n * size, start + (n + 1) * size):
                found = address if physical else processor.translate(address)
                if found is None:
                    lines.append(f"Cannot access memory at address 0x{address:x}")
                    return "\n".join(lines)
                data += memory.read(found, 1)
            values.append(_shown(int.from_bytes(data, "little"), letter, size))
        lines.append(f"{start + first * size:016x}: {' '.join(values)}")
    return "\n".join(lines)


async def _x(call: Call, words: list[str]) -> str:
    return _dump(call.vm, words, physical=False)


async def _xp(call: Call, words: list[str]) -> str:
    return _dump(call.vm, words, physical=True)


_COMMANDS: dict[str, tuple[Handler, str]] = {
    "help": (_help, ""),
    "info": (_info, "SUBJECT -- registers, block, irq, mtree, placement ..."),
    "x": (_x, "/FORMAT ADDRESS -- dump linear memory"),
    "xp": (_xp, "/FORMAT ADDRESS -- dump physical memory"),
    "sendkey": (_sendkey, "KEY-KEY... [HOLD-MS] -- press keys together"),
    "screendump": (_screendump, "FILE"),
    "eject": (_eject, "[-f] DRIVE"),
    "change": (_change, "DRIVE FILE"),
    "savevm": (_savevm, "FILE -- write a snapshot to a file"),
    "loadvm": (_loadvm, "FILE -- go on from a snapshot"),
    "virtualize": (_virtualize, "DEVICE [between|middle] [BOUND-MS] [rollback|defer] -- take a physical device from the guest"),
    "devirtualize": (_devirtualize, "DEVICE ... -- and give it back"),
    "interpose": (_interpose, "DEVICE KIND [NAME=VALUE]... -- put something between a disk and its driver"),
    "remove_interposer": (_remove, "DEVICE KIND"),
    "mode": (_mode, "[MODE] -- how the built-in guest reaches its disk"),
    **debugging.HANDLERS,
    **{name: (_plain(name), "") for name in ("stop", "cont", "system_reset", "system_powerdown", "quit")},
}
_COMMANDS["c"] = _COMMANDS["cont"]
