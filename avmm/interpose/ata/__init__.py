"""The ATA channel as a device that can be virtualized."""
