"""A small Linux userland as an initrd: busybox, kernel modules with what they depend on, and an init script.

The archive is newc cpio (Linux Documentation/driver-api/early-userspace/buffer-format). The invariant: the same files give
the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path


class Cpio:
    """A newc archive under construction."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._inode = 0

    def add(self, name: str, data: bytes = b"", mode: int = 0o100644, device: tuple[int, int] = (0, 0)) -> None:
        """Append a file; ``mode`` with its type bits."""
        self._inode += 1
        fields = (self._inode, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(name) + 1, 0)
        head = b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
        self._parts.append(head + bytes(-len(head) % 4) + data + bytes(-len(data) % 4))

    def folder(self, name: str) -> None:
        """Append a directory."""
        self.add(name, mode=0o040755)

    def close(self) -> bytes:
        """Return the finished archive."""
        self.add("TRAILER!!!", mode=0)
        return b"".join(self._parts)


def modules(tree: Path, names: Iterable[str]) -> list[tuple[str, bytes]]:
    """Return (file name, content) of modules below ``tree`` with what they depend on, in the order to load them.

    What is not there is taken to be built into the kernel.
    """
    by_name = {path.stem.replace("-", "_"): path for path in tree.rglob("*.ko")}
    order: list[Path] = []

    def need(name: str) -> None:
        path = by_name.get(name.replace("-", "_"))
        if path is None or path in order:
            return
        for dependency in _depends(path):
            need(dependency)
        order.append(path)

    for name in names:
        need(name)
    return [(path.name, path.read_bytes()) for path in order]


def _depends(path: Path) -> list[str]:
    """Read a module's ``depends=`` line from its modinfo section."""
    data = path.read_bytes()
    at = data.find(b"\0depends=") + 1 or (data.find(b"depends=") if data.startswith(b"depends=") else -1)
    if at <= 0:
        return []
    value = data[at + 8 : data.index(b"\0", at)].decode()
    return [name for name in value.split(",") if name]


def build(
    init: str,
    busybox: bytes,
    to_load: Iterable[tuple[str, bytes]] = (),
    files: dict[str, bytes] | None = None,
    parameters: dict[str, str] | None = None,
) -> bytes:
    """Return an initrd whose /init runs the shell lines ``init`` after mounting proc, sys and dev and loading the modules.

    ``parameters`` are those of modules, by file name without ``.ko``: a module takes none from the kernel's command line here.
    """
    archive = Cpio()
    for folder in ("bin", "dev", "proc", "sys", "mnt", "modules", "tmp"):
        archive.folder(folder)
    archive.add("dev/console", mode=0o020600, device=(5, 1))
    archive.add("dev/null", mode=0o020666, device=(1, 3))
    archive.add("bin/busybox", busybox, 0o100755)
    archive.add("bin/sh", b"busybox", 0o120777)
    loads = []
    for name, data in to_load:
        archive.add(f"modules/{name}", data)
        loads.append(f"insmod /modules/{name} {(parameters or {}).get(name.removesuffix('.ko'), '')}".rstrip())
    for name, data in (files or {}).items():
        archive.add(name, data)
    script = "\n".join(
        ["#!/bin/sh", "/bin/busybox --install -s /bin", "export PATH=/bin", "mount -t proc proc /proc", "mount -t sysfs sys /sys",
         "mount -t devtmpfs dev /dev", *loads, init, ""]
    )  # fmt: skip
    archive.add("init", script.encode(), 0o100755)
    return archive.close()
