"""One Linux in a process of its own, and nothing else: what is timed as a whole beside QEMU's process."""

from __future__ import annotations

import sys

import uvloop

import avmm

CONTROLLER = ("ata0", "bmide")

async def boot(kernel: str, ramdisk: str, command_line: str, clock: str, *rest: str) -> str:
    """Boot until the guest has said ``rest[0]`` on the serial line and is off; return what it said.

    ``rest[1]`` is a disk image, which stays as it is, and ``rest[2]`` where the disk's controller is placed.
    """
    wanted, image, place = (*rest, "", "")[:3]
    async with avmm.Host() as host:
        config = avmm.VmConfig(
            memory="256M", kernel=kernel, initrd=ramdisk, append=command_line, clock="virtual" if clock == "virtual" else "real",
            disks=[avmm.Disk(image, "overlay")] if image else [], placement=dict.fromkeys(CONTROLLER, place) if place else {},
        )  # fmt: skip
        vm = await host.create_vm(config)
        await vm.start()
        said = await vm.serial.wait_for(wanted, timeout=240)
        await vm.wait_off(timeout=60)
        return said


if __name__ == "__main__":
    print(uvloop.run(boot(*sys.argv[1:])))
