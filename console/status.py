"""The lines around the guests: the tabs above, the state of the machine that has the keys below.

The invariant: each is a plain function of what the console holds, and fits in one line.
"""

from __future__ import annotations

from prompt_toolkit.formatted_text import StyleAndTextTuples

from avmm.control.seat import Facts

from .machines import Machine
from .panes import Panes, Tab


def tab_bar(panes: Panes) -> StyleAndTextTuples:
    """Return the tabs; those that are shown stand out, and most of all the one that has the keys."""
    shown = [pane.tab for pane in panes.shown]
    made: StyleAndTextTuples = []
    for number, tab in enumerate(panes.tabs, 1):
        style = "class:tab.current" if tab == panes.tab else "class:tab.shown" if tab in shown else "class:tab"
        number_shown = f"{number} " if number < 10 else ""
        made.append((style, f" {number_shown}{tab.title}{_mark(tab.machine)} "))
    return made


def _mark(machine: Machine) -> str:
    facts = machine.seat.facts
    if machine.lost_because:
        return " (lost)"
    return f" ({facts.state})" if facts is not None and facts.state != "running" else ""


def pane_title(tab: Tab, has_keys: bool) -> StyleAndTextTuples:
    """Return the line above a pane, where there is more than one."""
    return [("class:tab.current" if has_keys else "class:tab", f" {tab.title} ")]


def status(tab: Tab, prefix: str, width: int) -> str:
    """Return the state of the machine of a tab, and at its end where help is."""
    state, end = _state(tab, prefix), f" {prefix} h helps "
    room = max(1, width - len(end))
    return f"{state if len(state) <= room else state[: room - 1] + '…':<{room}}{end}"


def _state(tab: Tab, prefix: str) -> str:
    machine = tab.machine
    facts = machine.seat.facts
    if machine.lost_because:
        return f" {machine.name}  {machine.lost_because}"
    if facts is None:
        return f" {machine.name}  waiting for its first words"
    picture = machine.seat.picture
    where = "serial line" if tab.serial else "x".join(map(str, picture.size)) if picture is not None else "no picture"
    typing = (machine.line if tab.serial else machine.keyboard).length
    parts = [
        machine.name, facts.state, where, f"{facts.clock} time {facts.machine_ns / 1e9:.0f} s",
        f"{machine.path.rates.exits:,} exits/s", *disks(facts), *homes(facts),
    ]  # fmt: skip
    if facts.reason:
        parts.insert(2, facts.reason)
    if typing > 1:
        parts.insert(1, f"{typing:,} characters to type, {prefix} Esc drops them")
    return f" {'  '.join(parts)}"


def disks(facts: Facts) -> list[str]:
    """Return the way on which the guest reaches each disk; those on the same way together."""
    modes: dict[str, list[str]] = {}
    for disk in facts.disks:
        modes.setdefault(disk.mode, []).append(disk.name)
    return [f"{','.join(names)}:{mode}" for mode, names in modes.items()]


def homes(facts: Facts) -> list[str]:
    """Return where devices live, as far as they were moved, else how many live where."""
    if facts.moved:
        return [f"{name}:{place}" for name, place in facts.moved.items()]
    places = list(facts.placement.values())
    return [f"{places.count('hypervisor')} inside, {len(places) - places.count('hypervisor')} outside"]
