"""Putting interposers between a machine's disks and their driver, and taking them away: what ``vm.interpose`` does.

The invariant: while anything is between, the guest cannot have the device back; a file that was opened for an interposer is closed with it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from avmm.control.machine import Machine
from avmm.control.physical.ata import PhysicalChannel
from avmm.control.physical.devices import VirtualizeError
from avmm.devices.block import SECTOR, BlockDevice
from avmm.interpose.interposers.fault import FaultLayer, Rule
from avmm.interpose.interposers.limit import LimitLayer
from avmm.interpose.interposers.mirror import MirrorLayer
from avmm.interpose.interposers.share import SharedDisk
from avmm.interpose.interposers.stack import Interposer
from avmm.interpose.interposers.trace import TraceLayer

KINDS = ("trace", "fault", "limit", "mirror")


class Interposing:
    """The interposers of one machine."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._files: dict[tuple[str, str], str] = {}
        """What the service OS calls the file that was opened for an interposer."""

    async def add(self, device: str, kind: str, options: dict[str, Any]) -> Interposer:
        """Attach one; see ``Vm.interpose``."""
        channel = self._virtualized(device)
        if kind in channel.layers:
            raise VirtualizeError(f"{device} has a {kind} interposer already")
        if kind not in KINDS:
            raise VirtualizeError(f"there is no interposer {kind!r}: choose {', '.join(KINDS)}")
        try:
            layer = await self._make(channel, kind, options)
        except (TypeError, ValueError, OSError, LookupError) as error:
            await self._close(device, kind)
            why = f"cannot open {error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else error
            raise VirtualizeError(f"{kind}: {why}") from None
        if channel.front.target is not channel.front.emulated:  # it went while a file was opened
            layer.close()
            await self._close(device, kind)
            raise VirtualizeError(f"{device} is direct: virtualize it first")
        channel.add(kind, layer)
        return layer

    async def remove(self, device: str, kind: str) -> None:
        """Take one away again; ``share`` ends every view."""
        channel = self._channel(device)
        if kind == "share" and channel.shares:
            channel.end_shares()
            return
        if kind not in channel.layers:
            raise VirtualizeError(f"{device} has no {kind} interposer")
        try:
            channel.remove(kind)
        except ValueError as error:
            raise VirtualizeError(str(error)) from None
        await self._close(device, kind)

    def switch_over(self, device: str) -> None:
        """Let the guest use the mirror only."""
        mirror = self._channel(device).layers.get("mirror")
        if not isinstance(mirror, MirrorLayer):
            raise VirtualizeError(f"{device} has no mirror interposer")
        try:
            mirror.switch_over()
        except ValueError as error:
            raise VirtualizeError(str(error)) from None

    def status(self, device: str) -> dict[str, dict[str, object]]:
        """Return what is between, the newest last, and what it has done."""
        channel = self._machine.physical.find(device)
        if not isinstance(channel, PhysicalChannel):
            return {}
        told = {kind: layer.status() for kind, layer in channel.layers.items()}
        if channel.shares:
            told["share"] = {"requests": sum(share.requests for share in channel.shares), "views": len(channel.shares)}
        return told

    def share(self, device: str, drive: int = 0) -> SharedDisk:
        """Return a read-only view of a virtualized disk."""
        channel = self._virtualized(device)
        if drive not in channel.stacks:
            raise VirtualizeError(f"{device} has no drive {drive}")
        return channel.share(drive)

    def _channel(self, device: str) -> PhysicalChannel:
        found = self._machine.physical.find(device)
        if not isinstance(found, PhysicalChannel):
            raise VirtualizeError(f"{device} has no disks: interposers are for ata0 and ata1")
        return found

    def _virtualized(self, device: str) -> PhysicalChannel:
        channel = self._channel(device)
        if channel.front.target is not channel.front.emulated:
            raise VirtualizeError(f"{device} is direct: virtualize it first")
        return channel

    async def _make(self, channel: PhysicalChannel, kind: str, options: dict[str, Any]) -> Interposer:
        clock = channel.partition.clock
        if kind == "trace":
            return TraceLayer(clock, **options)
        if kind == "fault":
            return FaultLayer(clock, rules=[_rule(rule) for rule in options.pop("rules", ())], **options)
        if kind == "limit":
            return LimitLayer(clock, **options)
        return await self._mirror(channel, **options)

    async def _mirror(
        self, channel: PhysicalChannel, target: BlockDevice | None = None, file: str | Path | None = None, drive: int = 0
    ) -> Interposer:
        source = channel.disks[drive]
        if (target is None) is (file is None):
            raise ValueError("say where to, by target or by file")
        if file is not None:
            name = f"{channel.partition.name}/{channel.name}-mirror"
            target = await self._machine.service.open_disk(name, file, "rw", size=source.sectors * SECTOR)
            self._machine.names.append(name)
            self._files[channel.name, "mirror"] = name
        assert target is not None
        return MirrorLayer(channel.partition, drive, target, source)

    async def _close(self, device: str, kind: str) -> None:
        name = self._files.pop((device, kind), None)
        if name is not None:
            self._machine.names.remove(name)
            await self._machine.service.close_disk(name)


def _rule(rule: Rule | dict[str, Any] | str) -> Rule:
    if isinstance(rule, Rule):
        return rule
    return Rule.parse(rule) if isinstance(rule, str) else Rule(**rule)
