"""avmm: an asyncio virtual machine monitor that runs real, unmodified x86 software."""

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
