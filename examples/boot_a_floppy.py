"""Boot a floppy and type: an operating system of 43 bytes, that greets and shows each key that is pressed."""

import asyncio
import tempfile
from pathlib import Path

import avmm

CODE = bytes.fromhex(
    "31c0 8ed8 bb0700"  #       xor ax, ax / mov ds, ax / mov bx, 7
    "be1f7c"  #                 mov si, greeting
    "ac 84c0 7406"  #     next: lodsb / test al, al / jz keys
    "b40e cd10 ebf5"  #         mov ah, 0eh / int 10h / jmp next       the BIOS shows a character
    "b400 cd16"  #        keys: mov ah, 0 / int 16h                    ... and waits for a key
    "b40e cd10 ebf6"  #         mov ah, 0eh / int 10h / jmp keys
)


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "floppy.img"
        sector = (CODE + b"Hello from a floppy! > \0").ljust(510, b"\0") + b"\x55\xaa"
        image.write_bytes(sector.ljust(1440 * 1024, b"\0"))
        async with avmm.Host() as host:
            vm = await host.create_vm(avmm.VmConfig(memory="1M", floppies=[avmm.Disk(image)]))
            await vm.start()
            await vm.screen.wait_for("Hello from a floppy! >")
            await vm.keyboard.type("it lives")
            print(await vm.screen.wait_for("it lives"))
            print(f"{vm.now * 1000:.0f} ms after power-on, with {vm.stats.exits['in'] + vm.stats.exits['out']} port accesses")


asyncio.run(main())
