"""Debian's Linux from the bzImage to userspace and off again: whole processes, ours beside QEMU's TCG."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.measure import Result, median_of, qemu
from tests.vm import initrd

COMMAND_LINE = "console=ttyS0 nokaslr mitigations=off panic=-1 quiet random.trust_cpu=on no_timer_check"
INIT = "echo BOOTED-OK > /dev/console\npoweroff -f"


def _seconds(command: list[str]) -> float:
    begin = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    if "BOOTED-OK" not in done.stdout:
        raise SystemExit(f"{command[0]} did not boot:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return time.perf_counter() - begin


def run(runs: int) -> list[Result]:
    """Take turns, so that both see the same machine."""
    emulator = qemu()
    kernel = str(initrd.kernel())
    with tempfile.TemporaryDirectory() as folder:
        ramdisk = Path(folder) / "initrd"
        ramdisk.write_bytes(initrd.build(INIT))
        ours: dict[str, list[float]] = {"real": [], "virtual": []}
        theirs: list[float] = []
        for _ in range(runs):
            for clock, times in ours.items():
                guest = [sys.executable, "-m", "benchmarks.linux_guest", kernel, str(ramdisk), COMMAND_LINE, clock, "BOOTED-OK"]
                times.append(_seconds(guest))
            if emulator is not None:
                theirs.append(
                    _seconds([emulator, "-accel", "tcg", "-m", "256", "-nographic", "-no-reboot", "-net", "none", "-kernel", kernel,
                              "-initrd", str(ramdisk), "-append", COMMAND_LINE])
                )  # fmt: skip
    return [
        median_of("Linux boot to userspace and off, real time", "s", ours["real"], reference=theirs, ratio=1.2),
        median_of("Linux boot to userspace and off, virtual time", "s", ours["virtual"], reference=theirs),
    ]
