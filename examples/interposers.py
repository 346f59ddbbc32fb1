"""Look over the shoulder of a guest that writes to its disk, copy the disk meanwhile, and slow it down: interposers, which are put
between the emulated disk and the real one while the guest runs, and taken away again.
"""

import asyncio
import json
import tempfile
from collections import Counter
from pathlib import Path

import avmm
import avmm_guests


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        log, copy = Path(folder) / "requests.jsonl", Path(folder) / "copy.img"
        copy.write_bytes(bytes(2 << 20))  # as large as the guest's disk
        async with avmm.Host() as host:
            disk = avmm.Disk(avmm_guests.image(), "overlay")
            vm = await host.create_vm(avmm.VmConfig(memory="16M", disks=[disk], physical=["ata0"]))
            await vm.start()
            await vm.serial.wait_for("ok> ")
            await vm.virtualize("ata0")
            await vm.interpose("ata0", "trace", path=log)
            mirror = await vm.interpose("ata0", "mirror", target=await host.service.open_disk("copy", copy))
            await vm.interpose("ata0", "limit", bytes_per_s=1_000_000)
            vm.serial.write("write note.txt a file that is written while it is copied\n")
            await vm.serial.wait_for("\nok> ")
            began = vm.now
            vm.serial.write("sum pattern.txt\n")
            await vm.serial.wait_for("as written.")
            print(f"64 KiB took {(vm.now - began) * 1000:.0f} ms at 1 MB/s")
            await vm.wait_until(lambda: mirror.complete, 60, "the copy was complete")
            for kind in ("limit", "mirror", "trace"):
                await vm.remove_interposer("ata0", kind)
            await vm.devirtualize("ata0")
        requests = [json.loads(line) for line in log.read_text().splitlines()]
        print("seen:", dict(Counter(request["op"] for request in requests)))
        print("the copy has the new file:", b"written while it is copied" in copy.read_bytes())


asyncio.run(main())
