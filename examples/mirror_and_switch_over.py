"""Move a running guest's disk to another file: copy it while the guest writes, then leave the first one behind."""

import asyncio
import shutil
import tempfile
from pathlib import Path

import avmm
import avmm_guests


async def main(folder: Path) -> None:
    first, second = folder / "first.img", folder / "second.img"
    shutil.copy(avmm_guests.image(), first)
    async with avmm.Host() as host:
        vm = await host.create_vm(avmm.VmConfig(memory="16M", disks=[avmm.Disk(first)], physical=["ata0"]))
        await vm.start()
        await vm.serial.wait_for("ok> ")

        await vm.virtualize("ata0")
        await vm.interpose("ata0", "mirror", file=second)
        vm.serial.write("write note.txt written while the disk is copied\n")
        await vm.serial.wait_for("\nok> ")
        await vm.wait_until(lambda: vm.interposers("ata0")["mirror"]["complete"] is True, 10, "the copy was complete")
        vm.switch_over("ata0")
        vm.serial.write("write last.txt written to the second file only\n")
        await vm.serial.wait_for("\nok> ")
        print("copied", vm.interposers("ata0")["mirror"]["copied"], "sectors")
    for path in (first, second):
        data = path.read_bytes()
        print(path.name, "has the note:", b"while the disk is copied" in data, "- and the last words:", b"second file only" in data)


with tempfile.TemporaryDirectory() as place:
    asyncio.run(main(Path(place)))
