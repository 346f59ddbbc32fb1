"""The storage demonstration's workload in an unmodified Linux: a program with direct I/O, several at a time for more depth.

One boot does it all: the disk behind the emulated controller by ``ata_piix``, first by port I/O (libata's ``dma=0``) and then,
loaded again, with bus-master DMA; then the same disk by ``hv_storvsc``.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from avmm.boot import initrd
from avmm.control.config import Disk, VmConfig
from avmm.control.demo_storage import DEPTHS, OPERATIONS, SIZES, DemoError, Measurement, Meter, Report, Segment
from avmm.control.host import Host
from avmm.control.vm import Vm

PATHS = ("pio", "dma", "enlightened")
REQUESTS = {512: 2400, 4096: 2400, 65536: 800}
QUICK_REQUESTS = {512: 240, 4096: 240, 65536: 64}
TIMEOUT = 120  # s of machine time for one step
CACHE = Path(".cache") / "guests" / "root"
"""Where ``make test`` unpacks Debian's packages, below the folder with the sources; AVMM_GUEST_CACHE says otherwise."""
DIRECT = bytes.fromhex(
    "7f454c4602010100000000000000000002003e00010000007800400000000000400000000000000000000000000000000000"
    "0000400038000100000000000000010000000700000000000000000000000000400000000000000040000000000012010000"
    "0000000000000200000000000010000000000000488b742428e87b0000004889c5488b742420e86e0000004889c3488b7424"
    "30e86100000048f7e34989c4488b7424184531ed803e77410f94c54183c511b802000000488b7c2410be024000000f0585c0"
    "78274189c64489e84489f7be000041004889da4d89e20f054839d8750c4901dc48ffcd75e031ffeb05bf01000000b83c0000"
    "000f0531c00fb61683ea30720a6bc00a01d048ffc6ebeec3"
)
"""A program for x86-64: ``direct DEVICE read|write SIZE COUNT SKIP``. Its source is examples/direct.asm."""
_SERVER = 'chmod +x /tmp/direct\nstty -echo\necho "<<0>>"\nwhile read -r line; do eval "$line"; echo "<<$?>>"; done'
_DONE = re.compile(r"<<(\d+)>>\r?\n")
_LOOK = "for v in /sys/block/sd*/device/vendor; do case $(cat $v 2>/dev/null) in {vendor}*) break 2;; esac; done"
_FIND = f"while :; do {_LOOK}; sleep 0.05; done"
_MODULES = {"pio": ("sd_mod", "ata_piix"), "dma": ("sd_mod", "ata_piix"), "enlightened": ("sd_mod", "hv_vmbus", "hv_storvsc")}
_PARAMETERS = {"pio": {"libata.ko": "dma=0"}}


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


def _load(files: LinuxFiles, path: str) -> tuple[str, dict[str, bytes]]:
    """Return a shell line that loads the modules for a path, what is loaded already left out, and the modules."""
    order = initrd.modules(files.modules, _MODULES[path])
    if _MODULES[path][-1] + ".ko" not in dict(order):
        raise DemoError(f"There is no module {_MODULES[path][-1]}.ko below {files.modules}: name the folder of this kernel's modules.")
    parameters = _PARAMETERS.get(path, {})
    lines = [f"[ -e /sys/module/{name.removesuffix('.ko')} ] || insmod /modules/{name} {parameters.get(name, '')}" for name, _ in order]
    return " && ".join(f"{{ {line.rstrip()}; }}" for line in lines), {f"modules/{name}": data for name, data in order}


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
    one = f"/tmp/direct {disk} {op} {size} {each} $((i*{each}))"
    return f"i=0; while [ $i -lt {depth} ]; do {one} & i=$((i+1)); done; wait"


async def _measure(vm: Vm, meter: Meter, disk: str, path: str, requests: dict[int, int]) -> AsyncIterator[Measurement]:
    for op in OPERATIONS:
        for size in SIZES:
            for depth in DEPTHS:
                segment = Segment(size, requests[size])
                meter.expect(op, [segment])
                await _run(vm, _workload(disk, op, size, requests[size], depth))
                if segment.last is None:
                    raise DemoError(f"Linux did not {op} {requests[size]} times {size} bytes of {disk}.")
                yield segment.measurement(path, op, depth, streams=depth)


async def demo_linux(files: LinuxFiles, report: Report = lambda one: None, *, quick: bool = False) -> list[Measurement]:
    """Measure the three paths of an unmodified Linux, on a disk that vanishes afterwards."""
    requests = QUICK_REQUESTS if quick else REQUESTS
    found = []
    with tempfile.TemporaryDirectory() as folder:
        image, ramdisk = Path(folder) / "disk.img", Path(folder) / "initrd.img"
        image.write_bytes(os.urandom(1 << 16) * max(size * count >> 16 for size, count in requests.items()))
        loads = {path: _load(files, path) for path in PATHS}
        modules = {name: data for _, of_path in loads.values() for name, data in of_path.items()}
        ramdisk.write_bytes(initrd.build(_SERVER, files.busybox.read_bytes(), files={**modules, "tmp/direct": DIRECT}))
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
                    await _run(vm, loads[path][0])
                    disk = await _appears(vm, "AVMM" if path == "enlightened" else "ATA")
                    async for one in _measure(vm, meter, disk, path, requests):
                        report(one)
                        found.append(one)
                    if path != "enlightened":
                        await _run(vm, "rmmod ata_piix libata")
    return found
