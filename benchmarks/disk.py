"""``dd`` in Linux from and to the emulated IDE disk, PIO and DMA, ours beside QEMU's TCG, same kernel, same image.

Ours twice: the channel and the bus master inside the hypervisor, as QEMU has them, and outside with the service OS, where they are
unless asked for otherwise.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.measure import Result, median_of, qemu
from tests.vm import initrd

MEGABYTES = 64
ROUNDS = 5
INIT = f"""
for round in {" ".join(map(str, range(ROUNDS)))}; do
for work in "read if=/dev/sda of=/dev/null" "write if=/dev/zero of=/dev/sda conv=fsync"; do
set -- $work
name=$1; shift
echo 3 > /proc/sys/vm/drop_caches
read begin rest < /proc/uptime
dd $* bs=64k count={MEGABYTES * 16} 2> /dev/null
read end rest < /proc/uptime
echo RATE $name $begin $end
done
done
echo DD-DONE
poweroff -f
"""
WAYS: tuple[tuple[str, dict[str, str]], ...] = (("PIO", {"libata": "dma=0"}), ("DMA", {}))
PLACES = ("hypervisor", "service")
COMMAND_LINE = "console=ttyS0 nokaslr mitigations=off panic=-1 quiet random.trust_cpu=on"


def _rates(text: str) -> dict[str, float]:
    """Return the best MB/s of the rounds, reads and writes, by the guest's own clock (10 ms steps)."""
    seconds: dict[str, list[float]] = {}
    for name, begin, end in re.findall(r"RATE (\w+) ([\d.]+) ([\d.]+)", text):
        seconds.setdefault(name, []).append(float(end) - float(begin))
    if len(seconds) != 2:
        raise SystemExit(f"no figures from dd:\n{text[-1500:]}")
    return {name: MEGABYTES * 1.048576 / min(rounds) for name, rounds in seconds.items()}


def _ours(kernel: str, ramdisk: Path, image: Path, place: str) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.linux_guest", kernel, str(ramdisk), COMMAND_LINE, "real", "DD-DONE", str(image), place]
    return _rates(subprocess.run(command, capture_output=True, text=True, check=True, timeout=300).stdout)


def _theirs(emulator: str, kernel: str, ramdisk: Path, image: Path) -> dict[str, float]:
    command = [emulator, "-accel", "tcg", "-m", "256", "-nographic", "-no-reboot", "-net", "none", "-kernel", kernel,
               "-initrd", str(ramdisk), "-append", COMMAND_LINE,
               "-drive", f"file={image},format=raw,if=ide,readonly=off,snapshot=on"]  # fmt: skip
    return _rates(subprocess.run(command, capture_output=True, text=True, check=True, timeout=300).stdout)


def run(runs: int) -> list[Result]:
    """Take turns."""
    emulator = qemu()
    kernel = str(initrd.kernel())
    results = []
    with tempfile.TemporaryDirectory() as folder:
        ramdisk, image = Path(folder) / "initrd", Path(folder) / "disk.img"
        image.write_bytes(bytes(range(256)) * (MEGABYTES << 12))
        for name, parameters in WAYS:
            ramdisk.write_bytes(initrd.build(INIT, ["ata_piix", "sd_mod"], parameters=parameters))
            ours: dict[str, list[dict[str, float]]] = {place: [] for place in PLACES}
            theirs: list[dict[str, float]] = []
            for _ in range(runs):
                for place in PLACES:
                    ours[place].append(_ours(kernel, ramdisk, image, place))
                if emulator is not None:
                    theirs.append(_theirs(emulator, kernel, ramdisk, image))
            results += [
                median_of(f"dd 64 KiB {work}s in Linux, IDE {name}, {place}", "MB/s", [rates[work] for rates in ours[place]],
                          reference=[rates[work] for rates in theirs], ratio=1.0, at_least=True)
                for work in ("read", "write") for place in PLACES
            ]  # fmt: skip
    return results
