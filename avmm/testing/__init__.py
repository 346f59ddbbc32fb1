"""Guests in tests: what a scenario author imports, and the pytest plugin that gives fixtures (see :mod:`avmm.testing.plugin`)."""

from avmm.control.config import Disk, VmConfig
from avmm.control.watch import MachineEnded, WaitTimeout
from avmm.hypervisor.report import GuestFailure

__all__ = ["Disk", "GuestFailure", "MachineEnded", "VmConfig", "WaitTimeout"]
