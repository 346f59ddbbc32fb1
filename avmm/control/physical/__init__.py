"""The physical devices of a machine: what ``VmConfig.physical`` names, who has each, and what is put between."""

from avmm.control.physical.devices import PhysicalDevices, VirtualizeError

__all__ = ["PhysicalDevices", "VirtualizeError"]
