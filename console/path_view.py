"""The path of what happens now, drawn: from the guest over the hypervisor to a file, with what passes each arrow in a second.

The rates are differences of the machine's own counters (vm.stats, VM-H's disks, VMBus channels), taken once a second of the
host's time. The invariant: looking changes nothing, and nothing is counted for the picture's sake.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass

import avmm
from avmm.control.commands.block import drives
from avmm.control.placement import OUTSIDE_BY_DEFAULT


@dataclass(frozen=True, slots=True)
class Counters:
    """What has happened so far, as far as the picture shows it."""

    io: int = 0
    memory: int = 0
    other: int = 0
    inside: int = 0
    irps: int = 0
    signals: int = 0
    injected: int = 0
    requests: int = 0
    disk_bytes: int = 0


def counters(vm: avmm.Vm) -> Counters:
    """Return a machine's counters now."""
    stats, exits = vm.stats, vm.stats.exits
    disks = [disk.stats for disk in drives(vm).values()]
    return Counters(
        io=exits["in"] + exits["out"], memory=exits["load"] + exits["store"], other=exits["instruction"] + exits["interrupt"],
        inside=stats.inside, irps=stats.outside, signals=_signals(vm), injected=stats.injected,
        requests=sum(disk.requests for disk in disks), disk_bytes=sum(disk.bytes_read + disk.bytes_written for disk in disks),
    )  # fmt: skip


def _signals(vm: avmm.Vm) -> int:
    """The guest's signals on the channels that are open now."""
    bus, server = vm.machine.vmbus, vm.machine.scsi
    channel = bus.channel(server) if bus is not None and server is not None else None
    return channel.stats.signals if channel is not None else 0


class PathView:
    """Takes the counters now and then, and draws what is between the last two."""

    HEIGHT = 7

    def __init__(self, vm: avmm.Vm) -> None:
        self._vm = vm
        self._before: Counters | None = None
        self._at = 0.0
        self._rates = Counters()

    def sample(self, now: float) -> bool:
        """Take the counters if a second has passed; returns whether there are new rates. ``now`` in seconds."""
        seconds = now - self._at
        if self._before is not None and seconds < 1:
            return False
        after = counters(self._vm)
        if self._before is not None:
            self._rates = rates(self._before, after, seconds)
        self._before, self._at = after, now
        return True

    def text(self) -> str:
        """Return the picture."""
        bus = self._vm.machine.vmbus
        return picture(self._rates, None if bus is None else bus.connected)


def rates(before: Counters, after: Counters, seconds: float) -> Counters:
    """Return what happened a second; a counter that began anew counts as nothing."""
    return Counters(*(max(0, round((b - a) / seconds)) for a, b in zip(astuple(before), astuple(after), strict=True)))


def whereabouts(vm: avmm.Vm) -> list[str]:
    """Return what is not as usual: devices that live elsewhere, and disks that an enlightened guest reaches over VMBus."""
    bus, server = vm.machine.vmbus, vm.machine.scsi
    enlightened = bus is not None and server is not None and bus.channel(server) is not None
    usual = {name: "service" if name in OUTSIDE_BY_DEFAULT else "hypervisor" for name in vm.partition.placement}
    moved = [f"{name}:{place}" for name, place in vm.partition.placement.items() if place != usual[name]]
    return [*(["enlightened"] if enlightened else []), *moved]


def picture(rate: Counters, vmbus: bool | None) -> str:
    """Draw the rates. ``vmbus``: whether a guest is connected, None without a bus."""
    traps = rate.io + rate.memory + rate.other
    bus = "no VMBus" if vmbus is None else "VMBus" if vmbus else "VMBus, not connected"
    inside = f" guest ═{_label(traps)}═> trap ═> hypervisor ═"
    outside = f"{'   ║':<{len(inside)}}╚═{_label(rate.irps, ' IRP')}═> device outside "
    at, end = len(inside), len(outside)
    kinds = f"   ▲  I/O {rate.io:,}  memory {rate.memory:,}  other {rate.other:,}"
    file = f"file  {rate.requests:,} requests/s, {_bytes(rate.disk_bytes)}/s"
    signals, interrupts = _label(rate.signals, " signals"), _label(rate.injected)
    channel, back = f" guest ═{signals}═> {bus} ", f"   ╚═{interrupts}═ interrupts"
    lines = (
        f"{inside}╦═{_label(rate.inside)}═> device inside",
        f"{kinds[:at]:<{at}}║",
        f"{outside}╗",
        f"{back:<{end}}╠> VM-H",
        f"{channel:═<{end}}╝    ║",
        f"{'':<{end + 5}}▼",
        f"{file:>{end + 6}}",
    )
    return "\n".join(lines)


def _label(rate: int, unit: str = "") -> str:
    return f"{f' {rate:,}{unit}/s ':═^11}"


def _bytes(count: float) -> str:
    for unit in ("B", "KiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} MiB"
