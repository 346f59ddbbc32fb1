"""What does a guest do when its disk goes wrong? It drives the disk by itself and knows of no VMM; then the VMM takes the disk
over, puts a fault between the disk and its own driver, and watches.
"""

import asyncio

import avmm
import avmm_guests

FAULTS = {
    "nothing": [],
    "each write 50 ms late": [{"action": "delay", "op": "write", "seconds": 0.05}],
    "one write in two fails": [{"action": "error", "op": "write", "probability": 0.5}],
    "every write fails": [{"action": "error", "op": "write"}],
    "every write is torn": [{"action": "torn", "op": "write"}],
    "every read fails": [{"action": "error", "op": "read"}],
}


async def attempt(host: avmm.Host, name: str, rules: list[dict[str, object]]) -> None:
    disk = avmm.Disk(avmm_guests.image(), "overlay")
    vm = await host.create_vm(avmm.VmConfig(name=name, memory="16M", disks=[disk], physical=["ata0"]))
    await vm.start()
    await vm.serial.wait_for("ok> ")
    await vm.virtualize("ata0")
    layer = await vm.interpose("ata0", "fault", rules=rules, seed=1)
    began = vm.now
    said = []
    for command in ("write note.txt still here", "sum pattern.txt"):
        vm.serial.write(f"{command}\n")
        _, *answer, _ = (await vm.serial.wait_for("\nok> ")).splitlines()
        said.append(f"{command.split()[0]}: {answer[0] if answer else 'done'}")
    print(f"{name:<22} {sum(layer.hits):>3} faults {(vm.now - began) * 1000:6.0f} ms   {said[0]:<38} {said[1]}")


async def main() -> None:
    async with avmm.Host() as host:
        for name, rules in FAULTS.items():
            await attempt(host, name, rules)


asyncio.run(main())
