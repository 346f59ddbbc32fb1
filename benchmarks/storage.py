"""Storage in an enlightened Linux beside QEMU's virtio-blk under TCG, same kernel, same image; and in the built-in guest beside PIO.

The guest reads and writes with direct I/O (``examples/direct.asm``), each size so many times in three rounds; its clock tells, the
best round counts. Either side keeps the same file, which lies in the host's page cache (QEMU: ``cache=writeback``), and the guest's
I/O scheduler is ``none``, as is usual for a virtual disk: the deadline scheduler's two task switches a request would be the same on
both sides and hide half of what is compared.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

import uvloop

import avmm
import avmm_guests
from avmm.control.demo_linux import DIRECT
from avmm.control.demo_storage import demo_builtin
from benchmarks.measure import Result, median_of, qemu
from tests.vm import initrd

MEGABYTES = 64
REQUESTS = {4096: 6000, 65536: 960}
OPERATIONS = ("read", "write")
DEPTHS = (1, 8)
WORKLOAD = "\n".join(
    f"""
for round in 1 2 3; do
read begin rest < /proc/uptime
i=0; while [ $i -lt {depth} ]; do work {op} {size} {requests // depth} & i=$((i+1)); done; wait
read end rest < /proc/uptime
echo DONE {op} {size} {depth} {requests} $begin $end
done"""
    for op in OPERATIONS
    for size, requests in REQUESTS.items()
    for depth in DEPTHS
)
INIT = f"""
chmod +x /direct
until disk=$(ls -d /sys/block/sd* /sys/block/vd* 2>/dev/null | head -1) && [ -n "$disk" ]; do sleep 0.05; done
disk=/dev/${{disk##*/}}
dd if=$disk of=/dev/null bs=64k 2> /dev/null
echo none > /sys/block/${{disk##*/}}/queue/scheduler
work() {{ /direct $disk $1 $2 $3 $((i*$3)) || echo FAILED; }}
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


Rates = dict[tuple[str, int, int], float]


def _rates(text: str) -> Rates:
    """Return the best MB/s by operation, size and depth, by the guest's own clock (10 ms steps)."""
    rates: Rates = {}
    for op, size, depth, requests, begin, end in re.findall(r"DONE (\w+) (\d+) (\d+) (\d+) ([\d.]+) ([\d.]+)", text):
        key = op, int(size), int(depth)
        rates[key] = max(rates.get(key, 0.0), int(size) * int(requests) / 1e6 / max(0.01, float(end) - float(begin)))
    if len(rates) != len(OPERATIONS) * len(REQUESTS) * len(DEPTHS) or "FAILED" in text:
        raise SystemExit(f"no figures from the guest:\n{text[-1500:]}")
    return rates


def _builtin() -> dict[tuple[str, str], float]:
    """Return MB/s of 64 KiB requests of the built-in guest, by path and operation.

    The best of five rounds, as a round is 64 requests, two milliseconds of the quick path: in the first its code is translated.
    """
    found = uvloop.run(demo_builtin(avmm_guests.image(), rounds=5))
    return {(one.path, one.op): one.mb_s for one in found if (one.size, one.depth) == (65536, 1)}


def run(runs: int) -> list[Result]:
    """Take turns."""
    emulator = qemu()
    kernel = str(initrd.kernel())
    ours: list[Rates] = []
    theirs: list[Rates] = []
    with tempfile.TemporaryDirectory() as folder:
        image, enlightened, virtio = (Path(folder) / name for name in ("disk.img", "enlightened", "virtio"))
        image.write_bytes(bytes(range(256)) * (MEGABYTES << 12))
        enlightened.write_bytes(initrd.build(INIT, ["sd_mod", "hv_vmbus", "hv_storvsc"], files={"direct": DIRECT}))
        virtio.write_bytes(initrd.build(INIT, ["virtio_pci", "virtio_blk"], files={"direct": DIRECT}))
        for _ in range(runs):
            command = [sys.executable, "-m", "benchmarks.storage", kernel, str(enlightened), str(image)]
            ours.append(_rates(subprocess.run(command, capture_output=True, text=True, check=True, timeout=300).stdout))
            if emulator is not None:
                command = [emulator, "-accel", "tcg,thread=single", "-m", "256", "-nographic", "-no-reboot", "-net", "none",
                           "-kernel", kernel, "-initrd", str(virtio), "-append", COMMAND_LINE,
                           "-drive", f"file={image},format=raw,if=virtio,cache=writeback"]  # fmt: skip
                theirs.append(_rates(subprocess.run(command, capture_output=True, text=True, check=True, timeout=300).stdout))
    results = [
        median_of(
            f"{size} B direct {op}s in Linux, {depth} at a time: StorVSP, virtio-blk", "MB/s", [one[op, size, depth] for one in ours],
            reference=[one[op, size, depth] for one in theirs], ratio=1.0, at_least=True,
        )
        for op in OPERATIONS for size in REQUESTS for depth in DEPTHS
    ]  # fmt: skip
    found = [_builtin() for _ in range(runs)]
    results += [
        median_of(
            f"64 KiB {op}s in the built-in guest, 1 at a time: StorVSP, PIO", "MB/s", [one["enlightened", op] for one in found],
            reference=[one["pio", op] for one in found], ratio=10.0, at_least=True,
        )
        for op in OPERATIONS
    ]  # fmt: skip
    return results


if __name__ == "__main__":
    print(uvloop.run(boot(*sys.argv[1:4])))
