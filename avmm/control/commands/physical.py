"""QMP commands for physical devices: who has each, changing that, and what is put between a disk and its driver."""

from __future__ import annotations

from typing import Any

from avmm.control.commands.command import Arg, Call, Table
from avmm.control.commands.jsonable import jsonable
from avmm.control.config import ConfigError, Disk
from avmm.control.qmp import QmpError
from avmm.control.vm import Vm
from avmm.interpose.switch import SwitchReport

TABLE = Table()


@TABLE.command("x-avmm-physical")
async def _physical(call: Call) -> object:
    """Return the physical devices, who has each, and what is between."""
    return describe(call.vm)


def describe(vm: Vm) -> list[dict[str, Any]]:
    """Return the physical devices of a machine."""
    return [{"device": name, "mode": mode, "interposers": vm.interposers(name)} for name, mode in vm.physical.items()]


_DEVICE, _WHEN, _BOUND, _ON_BOUND, _PATIENCE = Arg(str), Arg(str, "between"), Arg(float, 0.002), Arg(str, "rollback"), Arg(float, 2.0)


@TABLE.command("x-avmm-virtualize", device=_DEVICE, when=_WHEN, bound=_BOUND, on_bound=_ON_BOUND, patience=_PATIENCE)
async def _virtualize(call: Call) -> object:
    return await _switched(call, call.running.virtualize)


@TABLE.command("x-avmm-devirtualize", device=_DEVICE, when=_WHEN, bound=_BOUND, on_bound=_ON_BOUND, patience=_PATIENCE)
async def _devirtualize(call: Call) -> object:
    return await _switched(call, call.running.devirtualize)


async def _switched(call: Call, switch: Any) -> object:
    """Return the report; whether the device has changed hands is in ``done``."""
    report: SwitchReport = await switch(call["device"], call["when"], float(call["bound"]), call["on-bound"], float(call["patience"]))
    if report.done:
        call.target.announce(call.vm, "X_AVMM_PHYSICAL", device=report.device, mode=report.to)
    return {**jsonable(report), "done": report.done}


@TABLE.command("x-avmm-interpose", device=Arg(str), kind=Arg(str), options=Arg(dict, {}))
async def _interpose(call: Call) -> object:
    """Put an interposer in; ``share`` with the option ``with`` plugs the disk, read-only, into another machine of this host."""
    device, options = call["device"], dict(call["options"])
    if call["kind"] == "share":
        return await _share(call, device, options)
    try:
        await call.running.interpose(device, call["kind"], **options)
    except TypeError as error:  # an option called like another parameter
        raise QmpError(str(error)) from None
    return describe_one(call.vm, device)


async def _share(call: Call, device: str, options: dict[str, Any]) -> object:
    other = call.target.host.vms.get(str(options.get("with", "")))
    if other is None or other is call.vm:
        known = ", ".join(name for name in call.target.host.vms if name != call.vm.name)
        raise QmpError(f"say with which machine of this host, by the option 'with' ({known or 'there is no other'})")
    shared = call.running.share_disk(device, int(options.get("drive", 0)))
    try:
        lun = await other.attach_disk(Disk(shared, "ro"))
    except ConfigError as error:
        await call.vm.remove_interposer(device, "share")
        raise QmpError(f"{other.name}: {error}") from None
    return {"vm": other.name, "lun": lun}


@TABLE.command("x-avmm-remove-interposer", device=Arg(str), kind=Arg(str))
async def _remove(call: Call) -> object:
    """Take away what is between a disk and its driver."""
    await call.vm.remove_interposer(call["device"], call["kind"])
    return describe_one(call.vm, call["device"])


@TABLE.command("x-avmm-switch-over", device=Arg(str))
async def _switch_over(call: Call) -> object:
    """Use the mirror's disk only, from now on."""
    call.running.switch_over(call["device"])
    return describe_one(call.vm, call["device"])


def describe_one(vm: Vm, device: str) -> dict[str, Any]:
    """Return what is known of one physical device."""
    return next(entry for entry in describe(vm) if entry["device"] == device)
