"""The path of what happens now, drawn: from the guest over the hypervisor to a file, with what passes each arrow in a second.

The invariant: the picture is made of two moments' facts about the machine and nothing else, and fits 80 columns.
"""

from __future__ import annotations

from dataclasses import astuple

from avmm.control.seat import Counters, Facts

LEAST = 0.5
"""Facts closer together than this (s) are not compared: they were taken for another reason than time passing."""
CORNER = 43
"""The column in which the ways inside and outside part."""
_SHUNT = {"emulated": "passes", "enlightened": "diverts all", "shunt": "diverts reads and writes"}


class PathView:
    """Takes the facts as they come, and draws what is between the last two."""

    HEIGHT = 7

    def __init__(self) -> None:
        self._facts: Facts | None = None
        self._at = 0.0
        self.rates = Counters()

    def take(self, facts: Facts, now: float) -> None:
        """Take facts; ``now`` in seconds."""
        if self._facts is not None and now - self._at < LEAST:
            return
        if self._facts is not None:
            self.rates = rates(self._facts.counters, facts.counters, now - self._at)
        self._facts, self._at = facts, now

    def text(self) -> str:
        """Return the picture."""
        return picture(self.rates, self._facts) if self._facts is not None else ""


def rates(before: Counters, after: Counters, seconds: float) -> Counters:
    """Return what happened a second; a counter that began anew counts as nothing."""
    return Counters(*(max(0, round((b - a) / seconds)) for a, b in zip(astuple(before), astuple(after), strict=True)))


def picture(rate: Counters, facts: Facts) -> str:
    """Draw the rates. A line is double while something passes there, so that one sees which way the guest's requests take."""
    mode = next((disk.mode for disk in facts.disks if disk.name.startswith("disk")), "")
    shunt = f"shunt: {_SHUNT[mode]}" if facts.vmbus is not None and mode in _SHUNT else ""
    kinds = f"I/O {rate.io:,} mem {rate.memory:,} more {rate.other:,}"
    down = "║" if rate.irps or rate.channel_requests else "│"
    split = ("╦", "╚", "╗") if rate.irps else ("┬", "└", "┐")
    lines = [
        f" guest {_arrow(rate.exits, '/s', 16)} trap ═> hypervisor {split[0]}{_arrow(rate.inside, '/s', 18)} in the exit",
        _across(f" ▲ class driver  {kinds}", split[1], f"{_arrow(rate.irps, ' IRP/s', 18)} outside {'═' if rate.irps else '─'}{split[2]}"),
        _across(f" │ {shunt}", " ", f"{'disk: ' + mode if mode else '':<28}{down}"),
        f" │ {_bus(rate, facts.vmbus)}{down if facts.vmbus is None else '╣' if rate.channel_requests else '┤'}",
        f" └{_line(rate.injected, '/s', 16)} interrupts{'':<44}▼",
        f"{f'file, {_bytes(rate.disk_bytes)}/s <' + _line(rate.requests, ' requests/s', 22) + ' port driver <─ class driver: VM-H':>73}",
    ]
    if mode == "direct":
        lines.append(f" guest {_arrow(rate.direct, '/s', 16)} physical disk, direct: accesses without a trap")
    elif mode == "virtualized":
        lines.append(" virtualized: the guest's accesses trap; the VMM drives the physical disk")
    return "\n".join(line[:80] for line in lines)


def _across(left: str, corner: str, right: str) -> str:
    return f"{left:<{CORNER}.{CORNER}}{corner}{right}"


def _bus(rate: Counters, vmbus: bool | None) -> str:
    if vmbus is None:
        return f"{'no VMBus':<70}"
    if not vmbus:
        return f"{'VMBus, to which the guest is not connected ':─<70}"
    return f"StorVSC {_arrow(rate.signals, ' signals/s', 22)} VMBus {_line(rate.channel_requests, ' requests/s', 32)}"


def _arrow(rate: int, unit: str, width: int) -> str:
    """An arrow with a rate in it."""
    return f"{_line(rate, unit, width - 1)}>"


def _line(rate: int, unit: str, width: int) -> str:
    return f"{f' {rate:,}{unit} ':{'═' if rate else '─'}^{width}}"


def _bytes(count: float) -> str:
    for unit in ("B", "KiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} MiB"
