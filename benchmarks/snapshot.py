"""Snapshots: taking one, going back to it, making machines of it, beside QEMU's savevm and loadvm of the same guest.

Ours are in memory, copy-on-write; QEMU's go to a qcow2 file in memory (/dev/shm), by ``savevm`` and ``loadvm`` of its monitor. The
guests are the built-in one at its prompt (16 MiB) and Debian's Linux at a shell (256 MiB), in virtual time. A clone's memory is what
the process has more of its own (RssAnon) for each. ``apt-get install qemu-system-x86 qemu-utils`` brings the other side.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import uvloop

import avmm
import guests
from benchmarks.measure import Result, median_of, qemu
from tests.vm import initrd
from tests.vm.linux import COMMAND_LINE, PROMPT, SHELL

CLONES = 100
PATIENCE = 120


def run(runs: int) -> list[Result]:
    """Measure both guests, ours and QEMU's."""
    with tempfile.TemporaryDirectory() as folder:
        ramdisk = Path(folder) / "initrd"
        ramdisk.write_bytes(initrd.build(SHELL))
        linux = avmm.VmConfig(memory="256M", kernel=initrd.kernel(), initrd=ramdisk, append=COMMAND_LINE)
        small = avmm.VmConfig(memory="16M", disks=[avmm.Disk(guests.image(), "overlay")])
        theirs = {"built-in guest": _qemu_builtin(runs), "Linux": _qemu_linux(ramdisk, runs)}
        ours = {"built-in guest": uvloop.run(_ours(small, False, runs)), "Linux": uvloop.run(_ours(linux, True, runs))}
    results = []
    for guest, limit in (("built-in guest", 10), ("Linux", 100)):
        times, other = ours[guest], theirs[guest]
        size = "16 MiB" if limit == 10 else "256 MiB"
        results += [
            median_of(f"{guest}, {size}: take a snapshot", "ms", times["take"], reference=other.get("take"), limit=limit),
            median_of(f"{guest}, {size}: take one more", "ms", times["again"], limit=limit),
            median_of(f"{guest}, {size}: go back to it", "ms", times["restore"], reference=other.get("restore"), limit=limit),
            median_of(f"{guest}, {size}: make a clone (of {CLONES})", "ms", times["clone"], limit=50),
            median_of(f"{guest}, {size}: memory of a clone", "MiB", times["memory"], limit=8),
        ]
    return results


async def _ours(config: avmm.VmConfig, linux: bool, runs: int) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in ("take", "again", "restore", "clone", "memory")}
    for _ in range(runs):
        async with avmm.Host() as host:
            vm = await host.create_vm(config)
            await vm.start()
            await (vm.serial.wait_for(PROMPT, PATIENCE) if linux else vm.screen.wait_for("ok>"))
            taken = await _timed(times["take"], vm.snapshot())
            await _work(vm, linux)
            await _timed(times["again"], vm.snapshot())
            await _timed(times["restore"], vm.restore(taken))
            await vm.pause()
            before = _own_memory()
            begin = time.perf_counter()
            for _ in range(CLONES):
                await host.clone(taken, paused=True)
            times["clone"].append((time.perf_counter() - begin) * 1000 / CLONES)
            times["memory"].append((_own_memory() - before) / CLONES)
    return times


async def _timed(times: list[float], work: Any) -> Any:
    begin = time.perf_counter()
    result = await work
    times.append((time.perf_counter() - begin) * 1000)
    return result


async def _work(vm: avmm.Vm, linux: bool) -> None:
    if linux:
        vm.serial.write("ls -lR /proc/self /sys/class | tail -3\n")
        await vm.serial.wait_for(PROMPT, PATIENCE)
    else:
        await vm.keyboard.type("bench disk\n")
        await vm.sleep(1)


def _own_memory() -> float:
    """MiB of memory that this process has for itself alone."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("RssAnon"))


# -- QEMU


def _qemu_builtin(runs: int) -> dict[str, list[float]]:
    return _qemu(["-m", "16", "-drive", "file={disk},format=qcow2"], guests.image(), "ok> ", runs)


def _qemu_linux(ramdisk: Path, runs: int) -> dict[str, list[float]]:
    kernel = ["-m", "256", "-kernel", str(initrd.kernel()), "-initrd", str(ramdisk), "-append", COMMAND_LINE]
    return _qemu([*kernel, "-drive", "file={disk},format=qcow2,if=none"], None, PROMPT, runs)


def _qemu(arguments: list[str], base: Path | None, prompt: str, runs: int) -> dict[str, list[float]]:
    """Return the times of savevm and loadvm in ms; nothing where there is no QEMU."""
    emulator, image_tool = qemu(), shutil.which("qemu-img")
    times: dict[str, list[float]] = {"take": [], "restore": []}
    if emulator is None or image_tool is None:
        return {}
    for _ in range(runs):
        with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
            disk = Path(folder) / "disk.qcow2"
            backing = [] if base is None else ["-b", str(base), "-F", "raw"]
            subprocess.run([image_tool, "create", "-q", "-f", "qcow2", *backing, str(disk), *(["64M"] if base is None else [])], check=True)
            command = [emulator, "-accel", "tcg", "-display", "none", "-net", "none", *(word.format(disk=disk) for word in arguments)]
            with _running(command, Path(folder), prompt) as monitor:
                for name, line in (("take", "savevm s"), ("restore", "loadvm s")):
                    begin = time.perf_counter()
                    monitor(line)
                    times[name].append((time.perf_counter() - begin) * 1000)
    return times


@contextmanager
def _running(command: list[str], folder: Path, prompt: str) -> Iterator[Any]:
    """A QEMU whose guest has come to its prompt; gives a function that carries out a line of its monitor."""
    qmp, serial = folder / "qmp", folder / "serial"
    with ExitStack() as held:
        listeners = [held.enter_context(_listener(path)) for path in (qmp, serial)]
        process = subprocess.Popen([*command, "-qmp", f"unix:{qmp}", "-serial", f"unix:{serial}"])
        held.callback(process.wait)
        held.callback(process.kill)
        control, line = [held.enter_context(listener.accept()[0]) for listener in listeners]
        said = b""
        while prompt.encode() not in said:
            said += line.recv(4096) or _died(said)
        stream = held.enter_context(control.makefile("rw"))

        def execute(name: str, **arguments: str) -> str:
            stream.write(json.dumps({"execute": name, "arguments": arguments}) + "\n")
            stream.flush()
            while "return" not in (answer := json.loads(stream.readline())):
                if "error" in answer:
                    raise SystemExit(f"QEMU refused {name}: {answer['error']}")
            return str(answer["return"])

        execute("qmp_capabilities")

        def monitor(command: str) -> None:
            if said := execute("human-monitor-command", **{"command-line": command}):
                raise SystemExit(f"QEMU refused {command}: {said}")

        yield monitor


def _listener(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    listener.settimeout(PATIENCE)
    return listener


def _died(said: bytes) -> bytes:
    raise SystemExit(f"QEMU's guest did not come to its prompt:\n{said[-2000:].decode(errors='replace')}")

