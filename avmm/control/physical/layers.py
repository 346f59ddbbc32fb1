"""The interposers by name, made from the options that a user gives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from avmm.control.physical.ata import PhysicalChannel
from avmm.devices.block import BlockDevice
from avmm.interpose.interposers import FaultLayer, Interposer, LimitLayer, MirrorLayer, Rule, TraceLayer


def _trace(channel: PhysicalChannel, path: str | Path) -> Interposer:
    return TraceLayer(channel.partition.clock, path)


def _fault(channel: PhysicalChannel, rules: list[Rule | dict[str, Any]], seed: int = 0) -> Interposer:
    return FaultLayer(channel.partition.clock, [rule if isinstance(rule, Rule) else Rule(**rule) for rule in rules], seed)


def _limit(channel: PhysicalChannel, bytes_per_s: float = 0, requests_per_s: float = 0, burst: float = 0.01) -> Interposer:
    return LimitLayer(channel.partition.clock, bytes_per_s, requests_per_s, burst)


def _mirror(channel: PhysicalChannel, target: BlockDevice, drive: int = 0) -> Interposer:
    return MirrorLayer(channel.partition, drive, target, channel.disks[drive])


KINDS: dict[str, Callable[..., Interposer]] = {"trace": _trace, "fault": _fault, "limit": _limit, "mirror": _mirror}
