"""Virtualize and devirtualize a device while its guest runs: state machines, the VMM's own driver, the switch, interposers."""
