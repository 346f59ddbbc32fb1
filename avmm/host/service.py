"""The service OS (VM-H): the router of I/O request packets with the device models outside, and the real resources.

The invariant: after it has ended no task of it is left, every disk is closed and every Irp is answered.
"""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from avmm.host.opening import Mode
from avmm.host.router import Router
from avmm.host.virtualization_driver import Disk


class ServiceOs(Router):
    """The privileged VM-H. ``async with ServiceOs() as service:``; after it no task is left and every Irp is answered."""

    def __init__(self, name: str = "service-os") -> None:
        super().__init__(name)
        self.disks: dict[str, Disk] = {}

    # -- lifecycle

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        self.start(self._group)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            await self.stop()
            for outside in list(self.outside.values()):
                await outside.stop()
            self.outside.clear()
            async with AsyncExitStack() as disks:  # each is closed, whatever goes wrong with another
                for name in self.disks:
                    disks.push_async_callback(self.close_disk, name)
        finally:
            # Not handing over `error`: it goes on to the caller as it is, not in an exception group.
            await self._group.__aexit__(None, None, None)

    async def open_disk(
        self, name: str, path: str | Path, mode: Mode = "rw", overlay_path: str | Path | None = None, size: int | None = None
    ) -> Disk:
        """Open an image as :meth:`BackingFile.open` does; the disk's tasks are ours and it is closed when the service ends."""
        if name in self.disks:
            raise ValueError(f"the service OS has a disk called {name} already")
        disk = await Disk.open(path, mode, overlay_path, size, name=name, group=self._group)
        self.disks[name] = disk
        return disk

    async def close_disk(self, name: str) -> None:
        """Flush and close a disk before the service ends; nothing happens if there is none of that name."""
        disk = self.disks.pop(name, None)
        if disk is not None:
            await disk.close()
