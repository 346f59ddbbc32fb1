"""Storage in an enlightened Linux beside QEMU's virtio-blk under TCG, same kernel, same image; and VM-H's own part of a request.

The guest reads with direct I/O, each size so many times in three rounds; its clock tells, the best round counts.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

import avmm
from avmm.control.demo_linux import DIRECT
from benchmarks import vmbus
from benchmarks.measure import Result, median_of, qemu
from tests.vm import initrd

MEGABYTES = 64
REQUESTS = {4096: 6000, 65536: 1000}
WORKLOAD = "\n".join(
    f"""
for round in 1 2 3; do
read begin rest < /proc/uptime
i=0; while [ $i -lt {depth} ]; do work {size} {requests // depth} & i=$((i+1)); done; wait
read end rest < /proc/uptime
echo READ {size} {depth} {requests} $begin $end
done"""
    for size, requests in REQUESTS.items()
    for depth in (1, 8)
)
INIT = f"""
chmod +x /direct
until disk=$(ls -d /sys/block/sd* /sys/block/vd* 2>/dev/null | head -1) && [ -n "$disk" ]; do sleep 0.05; done
disk=/dev/${{disk##*/}}
dd if=$disk of=/dev/null bs=64k 2> /dev/null
work() {{ /direct $disk read $1 $2 $((i*$2)) || echo FAILED; }}
{WORKLOAD}
echo ALL-DONE
poweroff -f
"""
COMMAND_LINE = "console=ttyS0 nokaslr mitigations=off panic=-1 quiet random.trust_cpu=on"


async def boot(kernel: str, ramdisk: str, image: str) -> str:
    """Run the workload in this process and return what the guest said."""
    async with avmm.Host() as host:
        config = avmm.VmConfig(
            memory="256M", kernel=kernel, initrd=ramdisk, append=COMMAND_LINE, disks=[avmm.Disk(image)], clock="real", hyperv=True
        )
        vm = await host.create_vm(config)
        await vm.start()
        return await vm.serial.wait_for("ALL-DONE", timeout=240)


def _rates(text: str) -> dict[tuple[int, int], float]:
    """Return the best MB/s by size and depth, by the guest's own clock (10 ms steps)."""
    rates: dict[tuple[int, int], float] = {}
    for size, depth, requests, begin, end in re.findall(r"READ (\d+) (\d+) (\d+) ([\d.]+) ([\d.]+)", text):
        key = int(size), int(depth)
        rates[key] = max(rates.get(key, 0.0), int(size) * int(requests) / 1e6 / max(0.01, float(end) - float(begin)))
    if len(rates) != 2 * len(REQUESTS) or "FAILED" in text:
        raise SystemExit(f"no figures from the guest:\n{text[-1500:]}")
    return rates


def run(runs: int) -> list[Result]:
    """Take turns."""
    emulator = qemu()
    kernel = str(initrd.kernel())
    ours: list[dict[tuple[int, int], float]] = []
    theirs: list[dict[tuple[int, int], float]] = []
    with tempfile.TemporaryDirectory() as folder:
        image, enlightened, virtio = (Path(folder) / name for name in ("disk.img", "enlightened", "virtio"))
        image.write_bytes(bytes(range(256)) * (MEGABYTES << 12))
        enlightened.write_bytes(initrd.build(INIT, ["sd_mod", "hv_vmbus", "hv_storvsc"], files={"direct": DIRECT}))
        virtio.write_bytes(initrd.build(INIT, ["virtio_pci", "virtio_blk"], files={"direct": DIRECT}))
        for _ in range(runs):
            command = [sys.executable, "-m", "benchmarks.storage", kernel, str(enlightened), str(image)]
            ours.append(_rates(subprocess.run(command, capture_output=True, text=True, check=True, timeout=300).stdout))
            if emulator is not None:
                command = [emulator, "-accel", "tcg", "-m", "256", "-nographic", "-no-reboot", "-net", "none", "-kernel", kernel,
                           "-initrd", str(virtio), "-append", COMMAND_LINE,
                           "-drive", f"file={image},format=raw,if=virtio,snapshot=on"]  # fmt: skip
                theirs.append(_rates(subprocess.run(command, capture_output=True, text=True, check=True, timeout=300).stdout))
    results = [
        median_of(
            f"{size} B direct reads in Linux, {depth} at a time: StorVSP, virtio-blk", "MB/s", [one[size, depth] for one in ours],
            reference=[one[size, depth] for one in theirs], ratio=1.0, at_least=True,
        )
        for size in REQUESTS for depth in (1, 8)
    ]  # fmt: skip
    for depth, limit in ((1, 40.0), (8, 15.0)):
        spent = [vmbus.run(depth) for _ in range(runs)]
        results.append(median_of(f"4 KiB over VMBus, ring to interrupt, {depth} at a time", "us", spent, limit=limit))
    return results


if __name__ == "__main__":
    import uvloop

    print(uvloop.run(boot(*sys.argv[1:4])))
