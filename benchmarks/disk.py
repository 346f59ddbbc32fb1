"""``dd`` in Linux from the emulated IDE disk, PIO and DMA, ours beside QEMU's TCG, same kernel, same image."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.measure import Result, median_of, qemu
from tests.vm import initrd

MEGABYTES = 64
INIT = f"""
for round in 1 2 3; do
echo 3 > /proc/sys/vm/drop_caches
read begin rest < /proc/uptime
dd if=/dev/sda of=/dev/null bs=64k count={MEGABYTES * 16} 2> /dev/null
read end rest < /proc/uptime
echo READ $begin $end
done
echo DD-DONE
poweroff -f
"""
COMMAND_LINE = "console=ttyS0 nokaslr mitigations=off panic=-1 quiet random.trust_cpu=on"


def _rates(text: str) -> float:
    """Return the best MB/s of the rounds, by the guest's own clock (10 ms steps)."""
    rounds = [float(end) - float(begin) for begin, end in re.findall(r"READ ([\d.]+) ([\d.]+)", text)]
    if not rounds:
        raise SystemExit(f"no figure from dd:\n{text[-1500:]}")
    return MEGABYTES * 1.048576 / min(rounds)


def run(runs: int) -> list[Result]:
    """Take turns."""
    emulator = qemu()
    kernel = str(initrd.kernel())
    results = []
    with tempfile.TemporaryDirectory() as folder:
        ramdisk, image = Path(folder) / "initrd", Path(folder) / "disk.img"
        image.write_bytes(bytes(range(256)) * (MEGABYTES << 12))
        for name, parameters in (("PIO", {"libata": "dma=0"}), ("DMA", {})):
            ramdisk.write_bytes(initrd.build(INIT, ["ata_piix", "sd_mod"], parameters=parameters))
            ours, theirs = [], []
            for _ in range(runs):
                text = subprocess.run(
                    [sys.executable, "-m", "benchmarks.linux_guest", kernel, str(ramdisk), COMMAND_LINE, "real", "DD-DONE", str(image)],
                    capture_output=True, text=True, check=True, timeout=300,
                ).stdout  # fmt: skip
                ours.append(_rates(text))
                if emulator is not None:
                    command = [emulator, "-accel", "tcg", "-m", "256", "-nographic", "-no-reboot", "-net", "none", "-kernel", kernel,
                               "-initrd", str(ramdisk), "-append", COMMAND_LINE,
                               "-drive", f"file={image},format=raw,if=ide,readonly=off,snapshot=on"]  # fmt: skip
                    theirs.append(_rates(subprocess.run(command, capture_output=True, text=True, check=True, timeout=300).stdout))
            results.append(
                median_of(f"dd 64 KiB reads in Linux, IDE {name}", "MB/s", ours, reference=theirs, ratio=1.0, at_least=True)
            )
    return results
