"""What a virtual machine consists of, as its user describes it.

Everything is checked before anything is made: a ConfigError is one sentence that says what is wrong and what to do.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from avmm.devices.device import Device
    from avmm.interpose.interposers.share import SharedDisk

MIB = 1 << 20
MEMORY_DEFAULT = 64 * MIB
THREADS = 64  # on which a host may run guests
MEMORY_LIMIT = 3 << 30  # RAM ends below the PCI hole

Clock = Literal["real", "virtual"]
Mode = Literal["rw", "ro", "overlay"]
PHYSICAL = ("ata0", "ata1", "com1", "frame0")
_UNITS = {"": 1, "k": 1 << 10, "m": MIB, "g": 1 << 30}


class ConfigError(ValueError):
    """The description of a machine is wrong; one sentence says what and what to do."""


def parse_address(text: str) -> tuple[str, int] | Path:
    """Return where "HOST:PORT", ":PORT", "PORT" or "unix:PATH" is. By default HOST is this host only."""
    if text.startswith("unix:") and text != "unix:":
        return Path(text[5:])
    host, _, port = text.rpartition(":")
    if not port.isascii() or not port.isdecimal() or int(port) > 65535:
        raise ConfigError(f"cannot read {text!r} as an address: write HOST:PORT, PORT or unix:PATH")
    return host.strip("[]") or "127.0.0.1", int(port)


def parse_size(text: str | int) -> int:
    """Return the bytes that "64M", "512K", "1G" or a plain number mean."""
    if isinstance(text, int):
        return text
    match = re.fullmatch(r"\s*(\d+)\s*([kmg]?)(?:i?b)?\s*", text.lower())
    if match is None:
        raise ConfigError(f"cannot read {text!r} as a size: write a number with K, M or G, such as 64M")
    return int(match[1]) * _UNITS[match[2]]


@dataclass(frozen=True, slots=True)
class Disk:
    """An image and how it may be used: ``rw``, ``ro``, or ``overlay`` (changes are kept apart and the image is not touched)."""

    path: str | Path | SharedDisk
    """A file, or what ``vm.share_disk`` of another machine has given: that is read-only."""
    mode: Mode = "rw"
    overlay: str | Path | None = None
    """Where an overlay keeps its changes; None for a temporary place that vanishes with the machine."""


@dataclass(frozen=True, slots=True)
class VmConfig:
    """One virtual machine. Paths are checked when it is made, sizes at once."""

    name: str = "vm"
    memory: str | int = MEMORY_DEFAULT
    disks: tuple[Disk, ...] | list[Disk] = ()
    floppies: tuple[Disk, ...] | list[Disk] = ()
    cdrom: str | Path | None = None
    kernel: str | Path | None = None
    initrd: str | Path | None = None
    append: str = ""
    bios: str | Path = "builtin"
    """``builtin`` (services by the VMM), ``seabios`` (Debian's package), or the path of a firmware image."""
    vgabios: str | Path | None = None
    """The video BIOS that goes with a firmware image; by default Debian's vgabios-isavga.bin beside SeaBIOS."""
    boot: str = ""
    """Boot order for the built-in BIOS: letters a (floppy), c (disk), d (CD-ROM); by default what is there, in that order."""
    clock: Clock = "virtual"
    seed: int = 0
    epoch: int | None = None
    """Seconds since 1970 that the real-time clock starts from; by default now, or a fixed date in virtual time."""
    placement: dict[str, str] = field(default_factory=dict)
    """Device name -> "hypervisor" or "service" (or "kernel" in the host structure); what is not named lives where it does by default."""
    devices: tuple[type[Device] | str, ...] | list[type[Device] | str] = ()
    """Devices of your own: classes, or names of entry points of the group ``avmm.devices``."""
    physical: tuple[str, ...] | list[str] = ()
    """Devices that stand for real hardware and are the guest's own until ``vm.virtualize``: ``ata0``, ``ata1``, ``com1``, and ``frame0``, a
    memory-mapped frame device that a machine has only then."""
    auto_placement: bool = False
    """Whether device models that are touched often are installed in the hypervisor by themselves."""
    acpi: bool = True
    hyperv: bool = False
    """Whether the machine is enlightened: Hyper-V's CPUID leaves, MSRs and hypercalls, and VMBus (``vm.machine.vmbus``)."""
    hyperv_disks: bool = True
    """Whether an enlightened machine finds its disks on a SCSI controller over VMBus too, beside the emulated IDE."""
    hyperv_ide: bool = False
    """Whether it finds each as an *IDE accelerator*, a controller beside the drive that it stands for. The SCSI controller is then for
    disks that are plugged in later."""
    resolution: str = "1024x768"
    """What an enlightened machine's monitor on VMBus asks the guest to show, at most 1920x1080 pixels of 32 bits."""
    on_triple_fault: Literal["reset", "stop"] = "reset"
    slice_us: int = 1000
    """Longest time in us that the guest runs before others get their turn, and the event loop its own (docs/control.md)."""
    code_cache: str | int = 0
    """Bytes for translated code; 0 chooses by the size of the memory."""
    gdb: str = ""
    """Where a gdb may connect and debug the machine: ``HOST:PORT``, ``PORT`` or ``unix:PATH``; empty for nowhere (docs/debugging.md)."""
    gdb_wait: bool = False
    """Whether the machine stands still before its first instruction until a debugger lets it go on."""
    gdb_reverse: bool = False
    """Whether the machine keeps a history, so that gdb can run it backwards; virtual time only."""
    weight: int = 100
    """Share of the processor beside other busy machines, 1 to 10000: twice the weight is twice the time."""
    cap: float | None = None
    """The part of one host processor it may use at most, 0.01 to 1; None for no limit."""

    def __post_init__(self) -> None:
        size = self.memory_bytes
        if size < MIB:
            raise ConfigError(f"{self.memory} of memory is too little: a PC needs at least 1M")
        if size > MEMORY_LIMIT:
            raise ConfigError(f"{self.memory} of memory is too much: at most 3G, which end below the PCI hole")
        free = _host_memory()
        if size > free:
            raise ConfigError(f"{self.memory} of memory is more than this host has ({free // MIB}M)")
        _ = self.resolution_pixels
        if self.clock not in ("real", "virtual"):
            raise ConfigError(f"there is no clock {self.clock!r}: choose real or virtual")
        if self.initrd is not None and self.kernel is None:
            raise ConfigError("an initrd needs a kernel, and none is named")
        if self.append and self.kernel is None:
            raise ConfigError("a kernel command line needs a kernel, and none is named")
        if len(self.disks) > 4 or (len(self.disks) > 3 and self.cdrom is not None):
            raise ConfigError("an IDE controller takes four drives, CD-ROM included")
        unknown = sorted(set(self.physical) - set(PHYSICAL))
        if unknown:
            raise ConfigError(f"{unknown[0]} cannot be a physical device: choose {', '.join(PHYSICAL)}")
        placed = sorted(set(self.physical) & set(self.placement))
        if placed:
            raise ConfigError(f"{placed[0]} is physical: it has no device model that could be placed")
        if len(self.floppies) > 2:
            raise ConfigError("a PC takes two floppies")
        if self.floppies and self.bios != "builtin":
            raise ConfigError("floppies are served by the built-in BIOS only, there is no controller for another firmware")
        if self.hyperv_ide and not (self.hyperv and self.hyperv_disks):
            raise ConfigError("accelerators of IDE drives are offered on VMBus: hyperv_ide needs hyperv = true and hyperv_disks")
        if self.gdb:
            parse_address(self.gdb)
        if self.gdb_reverse and self.clock != "virtual":
            raise ConfigError("only a machine in virtual time runs backwards: choose the virtual clock")
        if self.gdb_wait and not self.gdb:
            raise ConfigError("a machine that waits for a debugger needs an address where one connects, or nobody could let it go on")
        if self.slice_us < 1:
            raise ConfigError(f"{self.slice_us} is no slice: choose a number of microseconds above 0, 1000 is usual")
        if not 1 <= self.weight <= 10_000:
            raise ConfigError(f"{self.weight} is no weight: choose 1 to 10000, 100 is usual")
        if self.cap is not None and not 0.01 <= self.cap <= 1:
            raise ConfigError(f"{self.cap:g} is no cap: choose 0.01 to 1, the part of one host processor")

    @property
    def resolution_pixels(self) -> tuple[int, int]:
        """Width and height of the monitor on VMBus."""
        match = re.fullmatch(r"(\d{3,4})x(\d{3,4})", self.resolution)
        if match is None or not (640 <= int(match[1]) and 480 <= int(match[2]) and int(match[1]) * int(match[2]) <= 1 << 21):
            raise ConfigError(f"cannot use {self.resolution!r} as a resolution: write 640x480 to 1920x1080, such as 1280x1024")
        return int(match[1]), int(match[2])

    @property
    def memory_bytes(self) -> int:
        """RAM in bytes, whole pages."""
        return parse_size(self.memory) & ~4095


def _host_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
