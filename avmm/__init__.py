"""avmm: an asyncio virtual machine monitor that runs real, unmodified x86 software.

What is listed here is imported when it is first used: a program that only speaks to a machine of another process does not load a machine.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from avmm import compiled

compiled.check()

if TYPE_CHECKING:
    from avmm.boot.errors import BootError
    from avmm.control.config import ConfigError, Disk, VmConfig
    from avmm.control.host import Host
    from avmm.control.mode import ModeError
    from avmm.control.physical import VirtualizeError
    from avmm.control.snapshot import Snapshot, SnapshotError
    from avmm.control.vm import Vm
    from avmm.control.watch import MachineEnded, WaitTimeout
    from avmm.cpu.engine import ProcessorError
    from avmm.cpu.script import ScriptCpu
    from avmm.host.opening import ImageError
    from avmm.hypervisor.image import DeviceImageError
    from avmm.hypervisor.install import InstallError, InstallReport
    from avmm.hypervisor.partition import RunState
    from avmm.hypervisor.report import GuestFailure
    from avmm.interpose.switch import SwitchReport

_HOMES = {
    "BootError": "avmm.boot.errors",
    "ConfigError": "avmm.control.config",
    "DeviceImageError": "avmm.hypervisor.image",
    "Disk": "avmm.control.config",
    "GuestFailure": "avmm.hypervisor.report",
    "Host": "avmm.control.host",
    "ImageError": "avmm.host.opening",
    "InstallError": "avmm.hypervisor.install",
    "InstallReport": "avmm.hypervisor.install",
    "MachineEnded": "avmm.control.watch",
    "ModeError": "avmm.control.mode",
    "ProcessorError": "avmm.cpu.engine",
    "RunState": "avmm.hypervisor.partition",
    "ScriptCpu": "avmm.cpu.script",
    "Snapshot": "avmm.control.snapshot",
    "SnapshotError": "avmm.control.snapshot",
    "SwitchReport": "avmm.interpose.switch",
    "VirtualizeError": "avmm.control.physical",
    "Vm": "avmm.control.vm",
    "VmConfig": "avmm.control.config",
    "WaitTimeout": "avmm.control.watch",
}

__all__ = [
    "BootError",
    "ConfigError",
    "DeviceImageError",
    "Disk",
    "GuestFailure",
    "Host",
    "ImageError",
    "InstallError",
    "InstallReport",
    "MachineEnded",
    "ModeError",
    "ProcessorError",
    "RunState",
    "ScriptCpu",
    "Snapshot",
    "SnapshotError",
    "SwitchReport",
    "VirtualizeError",
    "Vm",
    "VmConfig",
    "WaitTimeout",
]


def __getattr__(name: str) -> object:
    """Import what is used."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(_HOMES[name]), name)
    return found


def __dir__() -> list[str]:
    """Return what there is, imported or not."""
    return sorted({*globals(), *__all__})
