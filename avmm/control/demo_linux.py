"""The storage demonstration's workload in an unmodified Linux: busybox dd with direct I/O, several at a time for more depth.

One boot does it all: the enlightened disk by ``hv_storvsc``, then the same disk behind the emulated controller by
``ata_piix``, first with bus-master DMA and then, libata loaded again with ``dma=0``, by port I/O.
"""

from __future__ import annotations

import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

from avmm.boot import initrd
from avmm.control.config import Disk, VmConfig
from avmm.control.demo_storage import DEPTHS, OPERATIONS, SIZES, DemoError, Measurement, Meter, Report, Segment
from avmm.control.host import Host
from avmm.control.vm import Vm

PATHS = ("enlightened", "dma", "pio")
MODULES = ("hv_vmbus", "hv_storvsc", "sd_mod")
REQUESTS = {512: 2400, 4096: 2400, 65536: 800}
QUICK_REQUESTS = {512: 240, 4096: 240, 65536: 64}
TIMEOUT = 120  # s of machine time for one step
CACHE = Path(".cache") / "guests" / "root"
"""Where ``make test`` unpacks Debian's packages, below the folder with the sources; AVMM_GUEST_CACHE says otherwise."""
_SERVER = 'stty -echo\necho "<<0>>"\nwhile read -r line; do eval "$line"; echo "<<$?>>"; done'
_DONE = re.compile(r"<<(\d+)>>\r?\n")
_FIND = "while :; do for v in /sys/block/sd*/device/vendor; do case $(cat $v 2>/dev/null) in {vendor}*) break 2;; esac; done; sleep 0.05; done"
_PREPARE = {
    "enlightened": ":",
    "dma": "insmod /modules/libata.ko && insmod /modules/ata_piix.ko",
    "pio": "insmod /modules/libata.ko dma=0 && insmod /modules/ata_piix.ko",
}


@dataclass(frozen=True, slots=True)
class LinuxFiles:
    """The third-party files: a kernel, the folder with its modules, and a static busybox."""

    kernel: Path
    modules: Path
    busybox: Path


def find_files(kernel: Path | None = None, modules: Path | None = None, busybox: Path | None = None) -> LinuxFiles:
    """Return the files named, and for the others those in the tests' cache. DemoError says which is missing."""
    named = os.environ.get("AVMM_GUEST_CACHE")
    root = Path(named) / "root" if named else Path(__file__).resolve().parents[2] / CACHE

    def find(given: Path | None, pattern: str, what: str, option: str) -> Path:
        found = [given] if given is not None else sorted(root.glob(pattern))
        if not found or not found[-1].exists():
            where = given if given is not None else root
            raise DemoError(f"There is no {what} ({where}): name one with {option}, or have `make test` fetch Debian's packages.")
        return found[-1]

    return LinuxFiles(
        find(kernel, "boot/vmlinuz-*", "Linux kernel", "--kernel"),
        find(modules, "lib/modules/*/kernel", "folder with kernel modules", "--initrd-modules"),
        find(busybox, "bin/busybox", "static busybox", "--busybox"),
    )


def _ramdisk(files: LinuxFiles) -> bytes:
    first = initrd.modules(files.modules, MODULES)
    names = {name for name, _ in first}
    later = {f"modules/{name}": data for name, data in initrd.modules(files.modules, ("ata_piix",)) if name not in names}
    for wanted in ("hv_storvsc.ko", "ata_piix.ko"):
        if wanted not in names and f"modules/{wanted}" not in later:
            raise DemoError(f"There is no module {wanted} below {files.modules}: name the folder of this kernel's modules.")
    return initrd.build(_SERVER, files.busybox.read_bytes(), first, later)


async def _run(vm: Vm, command: str) -> str:
    """Have the guest run a line; DemoError when it fails."""
    vm.serial.write(command + "\n")
    said = await vm.serial.wait_for(_DONE, TIMEOUT)
    if not said.rstrip().endswith("<<0>>"):
        raise DemoError(f"Linux could not run {command!r}: {said.strip()}")
    return said[: said.rindex("<<")].strip()


async def _appears(vm: Vm, vendor: str) -> str:
    """Wait for the disk of that vendor and return its device file."""
    await _run(vm, _FIND.format(vendor=vendor))
    return "/dev/" + (await _run(vm, "echo $v")).split("/")[3]


def _workload(disk: str, op: str, size: int, requests: int, depth: int) -> str:
    each = requests // depth
    part = f"$((i*{each}))"
    one = f"if={disk} of=/dev/null iflag=direct skip={part}" if op == "read" else f"if=/dev/zero of={disk} oflag=direct conv=notrunc seek={part}"
    return f"i=0; while [ $i -lt {depth} ]; do dd {one} bs={size} count={each} 2>/dev/null & i=$((i+1)); done; wait"


async def _measure(vm: Vm, meter: Meter, disk: str, path: str, requests: dict[int, int], report: Report) -> list[Measurement]:
    found = []
    for op in OPERATIONS:
        for size in SIZES:
            for depth in DEPTHS:
                segment = Segment(size, requests[size])
                meter.expect(op, [segment])
                await _run(vm, _workload(disk, op, size, requests[size], depth))
                if segment.last is None:
                    raise DemoError(f"Linux did not {op} {requests[size]} times {size} bytes of {disk}.")
                found.append(segment.measurement(path, op, depth, streams=depth))
                report(found[-1])
    return found


async def demo_linux(files: LinuxFiles, report: Report = lambda one: None, *, quick: bool = False) -> list[Measurement]:
    """Measure the three paths of an unmodified Linux, on a disk that vanishes afterwards."""
    requests = QUICK_REQUESTS if quick else REQUESTS
    found = []
    with tempfile.TemporaryDirectory() as folder:
        image, ramdisk = Path(folder) / "disk.img", Path(folder) / "initrd.img"
        image.write_bytes(os.urandom(1 << 16) * max(size * count >> 16 for size, count in requests.items()))
        ramdisk.write_bytes(_ramdisk(files))
        config = VmConfig(
            name="storage", memory="192M", kernel=files.kernel, initrd=ramdisk, disks=[Disk(image)], hyperv=True, clock="real",
            append="console=ttyS0 nokaslr mitigations=off panic=-1 quiet random.trust_cpu=on",
        )  # fmt: skip
        async with Host() as host:
            vm = await host.create_vm(config)
            await vm.start()
            await vm.serial.wait_for(_DONE, TIMEOUT)
            with Meter(vm) as meter:
                for path in PATHS:
                    await _run(vm, _PREPARE[path])
                    disk = await _appears(vm, "AVMM" if path == "enlightened" else "ATA")
                    found += await _measure(vm, meter, disk, path, requests, report)
                    if path != "enlightened":
                        await _run(vm, "rmmod ata_piix libata")
    return found
