"""What a status line and a picture of a machine's workings are made of: one dataclass, taken from the machine's own counters.

Which way a guest reaches its disks the built-in one tells itself. Of another it is told from what VM-H sees: nothing on VMBus is
*emulated*; an open channel to the disks is *enlightened*; an open channel while commands still come to the emulated controller is a
*shunt* alone, which sends its primary requests over the bus and lets the others trap.

The invariant: looking changes nothing, and nothing is counted for it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from avmm.control.commands.block import drives
from avmm.control.placement import OUTSIDE_BY_DEFAULT
from avmm.control.vm import Vm

ATA = ("ata0", "ata1")
OVER_BUS = {"emulated": "emulated", "shunt-only": "shunt", "enlightened": "enlightened"}
"""How a guest with a channel to its disks uses them, by the mode it tells."""
PHYSICAL = ("direct", "virtualized")
"""Modes of disks that stand for real hardware; those are never outside."""


@dataclass(frozen=True, slots=True)
class Counters:
    """What has happened so far, or, as a difference, in a second."""

    io: int = 0
    memory: int = 0
    other: int = 0
    inside: int = 0
    """Accesses answered in their exit: by a device inside, or a plain register of one outside."""
    irps: int = 0
    """I/O request packets to devices outside."""
    ata: int = 0
    """Accesses to the registers of the disks' emulated controller."""
    direct: int = 0
    """Accesses that went straight to a physical device."""
    signals: int = 0
    channel_requests: int = 0
    """Requests for disks that came over VMBus."""
    injected: int = 0
    requests: int = 0
    """Requests that VM-H carried out on the backing files."""
    flushes: int = 0
    disk_bytes: int = 0

    @property
    def exits(self) -> int:
        """All VM exits."""
        return self.io + self.memory + self.other


@dataclass(frozen=True, slots=True)
class DiskFacts:
    """One drive, and the way on which the guest reaches it."""

    name: str
    mode: str
    """emulated, enlightened, shunt, direct or virtualized."""
    file: str


@dataclass(frozen=True, slots=True)
class Facts:
    """A machine at one moment."""

    state: str
    reason: str
    """Why it has ended or does not start; empty otherwise."""
    clock: str
    machine_ns: int
    counters: Counters
    disks: tuple[DiskFacts, ...]
    placement: dict[str, str]
    vmbus: bool | None
    """Whether a guest has connected to VMBus; None without one."""
    mouse: bool
    """Whether the guest listens to its mouse."""

    @property
    def ended(self) -> bool:
        """Whether it is off for good."""
        return self.state in ("off", "failed")

    @property
    def moved(self) -> dict[str, str]:
        """The devices that do not live where they do by default."""
        outside = frozenset() if any(disk.mode in PHYSICAL for disk in self.disks) else OUTSIDE_BY_DEFAULT
        usual = {name: "service" if name in outside else "hypervisor" for name in self.placement}
        return {name: place for name, place in self.placement.items() if place != usual[name]}

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, given: dict[str, Any]) -> Facts:
        """Return what :meth:`as_dict` was made of. TypeError or KeyError when it was not."""
        counters = Counters(**given["counters"])
        return cls(**{**given, "counters": counters, "disks": tuple(DiskFacts(**disk) for disk in given["disks"])})


class Observer:
    """Takes a machine's facts now and then, and remembers what tells the shunt from an enlightened stack."""

    def __init__(self, vm: Vm) -> None:
        self._vm = vm
        self._before = Counters()
        self._channel = False
        self._shunt = False

    def take(self) -> Facts:
        """Return the facts now."""
        vm = self._vm
        counters = self._counters()
        bus, channel = vm.machine.vmbus, bool(vm.machine.disk_channels())
        self._judge(counters, channel)
        failure = vm.partition.failure
        return Facts(
            state=vm.state.value, reason=vm.boot_failure or (str(failure).partition("\n")[0] if failure else vm.partition.off_reason),
            clock=vm.config.clock, machine_ns=vm.partition.clock.now(), counters=counters, disks=self._disks(channel),
            placement=dict(vm.partition.placement), vmbus=None if bus is None else bus.connected,
            mouse=vm.mouse.listening,
        )  # fmt: skip

    def _judge(self, now: Counters, channel: bool) -> None:
        """A flush that the controller's registers know nothing of is an enlightened stack's; what comes there meanwhile passed a shunt."""
        before, self._before = self._before, now
        was, self._channel = self._channel, channel
        if not (was and channel):
            self._shunt = False
        elif now.ata > before.ata:
            self._shunt = True
        elif now.flushes > before.flushes:
            self._shunt = False

    def _disks(self, channel: bool) -> tuple[DiskFacts, ...]:
        physical = self._vm.physical
        over_bus = OVER_BUS.get(self._vm.mode or "", "shunt" if self._shunt else "enlightened")
        found = []
        for name, disk in drives(self._vm).items():
            ata = f"ata{int(name[4:]) // 2}" if name.startswith("disk") else ""
            mode = physical.get(ata) or (over_bus if channel and name.startswith("disk") else "emulated")
            found.append(DiskFacts(name, mode, str(disk.file.path)))
        return tuple(found)

    def _counters(self) -> Counters:
        vm = self._vm
        stats, exits = vm.stats, vm.stats.exits
        disks = [disk.stats for disk in drives(vm).values()]
        return Counters(
            io=exits["in"] + exits["out"], memory=exits["load"] + exits["store"], other=exits["instruction"] + exits["interrupt"],
            inside=stats.inside + stats.plain, irps=stats.outside, direct=stats.direct, injected=stats.injected,
            ata=sum(port.reads + port.writes for port in stats.ports if port.device in ATA),
            signals=sum(channel.stats.signals for channel in vm.machine.disk_channels()),
            channel_requests=sum(server.stats.requests for server in vm.machine.disk_servers()),
            requests=sum(disk.requests for disk in disks), flushes=sum(disk.flushes for disk in disks),
            disk_bytes=sum(disk.bytes_read + disk.bytes_written for disk in disks),
        )  # fmt: skip
