"""Make the pictures of this manual: ``python docs/pictures.py``. Each is a screen of a machine, saved by avmm itself."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import avmm
import avmm_guests

FOLDER = Path(__file__).parent / "pictures"
GRUB = Path(__file__).parent.parent / ".cache/guests/root/usr/lib/grub-rescue/grub-rescue-floppy.img"


async def guest() -> None:
    """The built-in guest after two commands."""
    async with avmm.Host() as host:
        vm = await host.create_vm(avmm.VmConfig(memory="16M", disks=[avmm.Disk(avmm_guests.image(), "overlay")]))
        await vm.start()
        await vm.screen.wait_for("ok>")
        await vm.keyboard.type("dir\ncolor\n")
        await vm.screen.wait_for(lambda text: text.count("ok>") == 3)
        vm.screen.save_png(FOLDER / "guest.png")


async def stacks() -> None:
    """The built-in guest on its enlightened stack."""
    async with avmm.Host() as host:
        vm = await host.create_vm(avmm.VmConfig(memory="16M", disks=[avmm.Disk(avmm_guests.image(), "overlay")], hyperv=True))
        await vm.start()
        await vm.screen.wait_for("ok>")
        for number, line in enumerate(("mode", "devices", "mode enlightened", "devices", "shunt status"), 2):
            await vm.keyboard.type(line + "\n")
            await vm.screen.wait_for(lambda text, n=number: text.count("ok>") == n)
        vm.screen.save_png(FOLDER / "stacks.png")


async def grub() -> None:
    """The menu of Debian's GRUB rescue floppy."""
    async with avmm.Host() as host:
        vm = await host.create_vm(avmm.VmConfig(memory="16M", floppies=[avmm.Disk(GRUB, "ro")]))
        await vm.start()
        await vm.screen.wait_for("command-line.")
        await vm.sleep(0.5)
        vm.screen.save_png(FOLDER / "grub.png")


async def main() -> None:
    """Make all; GRUB's only where ``make fetch`` has put it."""
    FOLDER.mkdir(exist_ok=True)
    await guest()
    await stacks()
    if GRUB.exists():
        await grub()
    else:
        print(f"no {GRUB}: `make fetch` gets it", file=sys.stderr)


if __name__ == "__main__":
    asyncio.run(main())
