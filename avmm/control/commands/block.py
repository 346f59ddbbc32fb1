"""QMP commands about drives and their media. A drive is called as in VM-H: disk0, floppy0, cdrom."""

from __future__ import annotations

from pathlib import Path

from avmm.control.commands.command import Arg, Call, Table
from avmm.control.media import CDROM, Media
from avmm.control.qmp import QmpError
from avmm.control.vm import Vm
from avmm.host.virtualization_driver import Disk

TABLE = Table()


def drives(vm: Vm) -> dict[str, Disk]:
    """Return a machine's drives by name."""
    disks = vm.machine.service.disks
    return {name.split("/", 1)[1].partition("+")[0]: disks[name] for name in vm.machine.names if name in disks}


def block_info(vm: Vm) -> list[dict[str, object]]:
    """Return QMP's BlockInfo of each drive."""
    infos: list[dict[str, object]] = []
    for name, disk in drives(vm).items():
        removable = not name.startswith("disk")
        cd = vm.media.drive() if name == CDROM else None
        info: dict[str, object] = {
            "device": name, "qdev": f"/machine/{name}", "type": "unknown", "removable": removable,
            "locked": cd is not None and cd.modes.locked,
        }  # fmt: skip
        if cd is not None:
            info["tray_open"] = not cd.modes.loaded
        if cd is None or cd.modes.loaded:
            info["io-status"] = "ok"
            info["inserted"] = _inserted(vm, name, disk)
        infos.append(info)
    return infos


def _inserted(vm: Vm, name: str, disk: Disk) -> dict[str, object]:
    file = str(disk.file.path)
    return {
        "node-name": name, "drv": "raw", "file": file, "ro": disk.read_only, "encrypted": False,
        "image": {"filename": file, "format": "raw", "virtual-size": disk.file.size},
    }  # fmt: skip


@TABLE.command("query-block")
async def _query_block(call: Call) -> object:
    return block_info(call.vm)


@TABLE.command("query-blockstats")
async def _query_blockstats(call: Call) -> object:
    return [
        {
            "device": name,
            "stats": {
                "rd_bytes": disk.stats.bytes_read, "wr_bytes": disk.stats.bytes_written, "flush_operations": disk.stats.flushes,
                "x-requests": disk.stats.requests, "x-errors": disk.stats.errors, "x-total-time-ns": disk.stats.latency,
            },
        }
        for name, disk in drives(call.vm).items()
    ]  # fmt: skip


@TABLE.command("eject", device=Arg(str, ""), id=Arg(str, ""), force=Arg(bool, False))
async def _eject(call: Call) -> object:
    removable(call.running, call["device"] or call["id"]).eject(call["force"])
    return {}


@TABLE.command(
    "blockdev-change-medium",
    device=Arg(str, ""), id=Arg(str, ""), filename=Arg(str), format=Arg(str, "raw"), force=Arg(bool, False),
)  # fmt: skip
async def _change_medium(call: Call) -> object:
    await removable(call.running, call["device"] or call["id"]).insert(call["filename"], call["force"])
    return {}


def _is_built_in(path: Path) -> bool:
    import avmm_guests

    try:
        return path.samefile(avmm_guests.image())
    except FileNotFoundError:
        return False


@TABLE.command("x-avmm-commit")
async def _commit(call: Call) -> object:
    """Flush all drives, and write what overlays hold into their images; the machine stands still meanwhile."""
    vm = call.running
    for disk in drives(vm).values():
        if disk.file.overlay is not None and _is_built_in(disk.file.path):
            raise QmpError(f"{disk.file.path} is the built-in guest's, which is part of avmm: copy it, and run the copy")
    async with vm.partition.still():
        written = {name: await disk.file.commit() for name, disk in drives(vm).items() if not disk.read_only}
    return {"drives": [{"device": name, "sectors": sectors} for name, sectors in written.items()]}


def removable(vm: Vm, name: str) -> Media:
    """Return the media of the drive called ``name``, which must be the CD-ROM drive. QmpError otherwise."""
    if not name:
        raise QmpError("Parameter 'device' is missing")
    if name not in drives(vm):
        raise QmpError(f"Device '{name}' not found", "DeviceNotFound")
    if name != CDROM:
        raise QmpError(f"Device '{name}' is not removable")
    return vm.media
