"""QMP commands that plug devices in and out: the user's own ones, published under the entry point group ``avmm.devices``."""

from __future__ import annotations

from weakref import WeakKeyDictionary

from avmm.control.commands.command import Arg, Call, Table
from avmm.control.placement import add_outside, places
from avmm.control.qmp import QmpError
from avmm.control.vm import Vm
from avmm.devices.device import Device
from avmm.hypervisor.image import DeviceImageError, entry_point_class
from avmm.hypervisor.slot import Slot

TABLE = Table()
_ADDED: WeakKeyDictionary[Vm, set[str]] = WeakKeyDictionary()
"""The names of the devices that were plugged in while the machine was on."""


def own_device(vm: Vm, name: str) -> Device:
    """Return a device that was plugged in by ``device_add``. QmpError when there is none of that name."""
    device = vm.partition.devices.get(name)
    if device is None:
        raise QmpError(f"Device '{name}' not found", "DeviceNotFound")
    if name not in _added(vm):
        raise QmpError(f"Device '{name}' is part of the machine and cannot be unplugged")
    return device


def _added(vm: Vm) -> set[str]:
    return _ADDED.setdefault(vm, set())


@TABLE.command("device_add", driver=Arg(str), id=Arg(str, ""), placement=Arg(str, "hypervisor"))
async def _device_add(call: Call) -> object:
    """Plug a device in. ``id``, if given, is the name that the device has anyway."""
    vm, driver, place = call.running, call["driver"], call["placement"]
    _check_not_recorded(vm)
    try:
        image = entry_point_class(driver)
    except DeviceImageError as error:
        raise QmpError(f"'{driver}' is not a valid device model name: {error}") from None
    service = vm.machine.service
    if place not in places(service):
        raise QmpError(f"Parameter 'placement' does not accept value '{place}': choose {' or '.join(places(service))}")
    device = await vm.partition.at_boundary(lambda: _plug(vm, image, place, call["id"]))
    return {"id": device.name}


def _check_not_recorded(vm: Vm) -> None:
    if vm.inputs.recorder is not None:
        raise QmpError(f"what reaches {vm.name} is recorded, and a record holds no devices of one's own: end it first")


def _plug(vm: Vm, image: type[Device], place: str, wanted: str) -> Device:
    partition = vm.partition
    slot = Slot(partition, inside=place == "hypervisor")
    try:
        device = image(slot)
        if wanted not in ("", device.name):
            raise ValueError(f"the device is called '{device.name}', not '{wanted}'")
        partition.plug(device, inside=place == "hypervisor")
    except ValueError as error:  # a BusError is one
        slot.discard()
        raise QmpError(str(error)) from None
    add_outside(vm.machine.service, device, f"{vm.name}/{device.name}", place)
    partition.placement[device.name] = place
    _added(vm).add(device.name)
    return device


@TABLE.command("device_del", id=Arg(str))
async def _device_del(call: Call) -> object:
    """Unplug a device that ``device_add`` plugged in; DEVICE_DELETED says when it is gone."""
    vm, name = call.running, call["id"]
    _check_not_recorded(vm)
    own_device(vm, name)
    await vm.partition.at_boundary(lambda: _unplug(vm, name))
    call.target.announce(vm, "DEVICE_DELETED", device=name, path=f"/machine/peripheral/{name}")
    return {}


def _unplug(vm: Vm, name: str) -> None:
    device = own_device(vm, name)
    partition = vm.partition
    device.reset()  # its lines go low, its timers are cancelled
    partition.unplug(device)
    vm.machine.service.withdraw(device)
    if isinstance(device.board, Slot):
        device.board.discard()
    _added(vm).discard(name)
