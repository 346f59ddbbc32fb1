"""Panels of small machines for the tests: a boot sector each, sockets in a temporary folder."""

from __future__ import annotations

from pathlib import Path

from avmm.control.config import Disk, VmConfig
from avmm.control.description import Description, HostConfig
from avmm.control.panel import Panel

# mov si, msg / l: lodsb / or al, al / jz k / mov ah, 0Eh / int 10h / jmp l / k: mov ah, 0 / int 16h / mov ah, 0Eh / int 10h / jmp k
ECHO = bytes.fromhex("31c0 8ed8 be1c7c ac 08c0 7406 b40e cd10 ebf5 b400 cd16 b40e cd10 ebf6") + b"ready> \0"
"""A boot sector that greets and then shows each key."""
BUSY = bytes.fromhex("40 4b eb fc")
"""A boot sector that counts for ever."""


def image(folder: Path, name: str, code: bytes) -> Path:
    """Write a floppy image with a boot sector."""
    path = folder / f"{name}.img"
    path.write_bytes(code.ljust(510, b"\0") + b"\x55\xaa" + bytes(512 * 2879))
    return path


def machine(folder: Path, name: str, code: bytes = ECHO, **more: object) -> VmConfig:
    """Describe a machine that boots such a sector."""
    floppies = [Disk(image(folder, name, code), "ro")]
    return VmConfig(name=name, memory="2M", floppies=floppies, **more)  # type: ignore[arg-type]


def panel(folder: Path, *vms: VmConfig, metrics_port: int | None = None) -> Panel:
    """Return a panel of these machines, not up yet."""
    return Panel(Description(folder / "test.toml", HostConfig(folder / "run", None, metrics_port), vms))
