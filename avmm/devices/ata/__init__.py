"""ATA: channels with disks and CD-ROM drives, and the bus master of a PCI IDE function."""

from avmm.devices.ata.busmaster import BusMaster
from avmm.devices.ata.channel import AtaChannel
from avmm.devices.ata.drive import AtaDisk, AtapiCdrom, Drive, Geometry
from avmm.devices.ata.registers import Phase

__all__ = ["AtaChannel", "AtaDisk", "AtapiCdrom", "BusMaster", "Drive", "Geometry", "Phase"]
