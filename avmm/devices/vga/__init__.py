"""The video adapter: an IBM-compatible VGA (see :mod:`avmm.devices.vga.vga`)."""

from avmm.devices.vga.vga import Vga

__all__ = ["Vga"]
