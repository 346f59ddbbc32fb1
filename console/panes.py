"""What the console shows where: a tab for each screen and each serial line, and one or more panes with a tab each.

The invariant: there is always a pane, and one of them is current: it has the keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .machines import Machine
from .painter import Area

MOST = 4
"""Panes at once."""


@dataclass(frozen=True, slots=True)
class Tab:
    """One machine's screen or serial line."""

    machine: Machine
    serial: bool

    @property
    def title(self) -> str:
        """What it is called."""
        return f"{self.machine.name} serial" if self.serial else self.machine.name


class Pane:
    """A part of the terminal, and the tab in it."""

    def __init__(self, tab: Tab) -> None:
        self.tab = tab
        self.area = Area(lambda width, height: self.tab.machine.frame(self.tab.serial, width, height))


class Panes:
    """Which tabs are shown, beside or below one another."""

    def __init__(self, machines: Sequence[Machine]) -> None:
        self.machines = list(machines)
        self.tabs = [Tab(machine, serial) for machine in machines for serial in (False, True)]
        self.shown = [Pane(self.tabs[0])]
        self.beside = True
        """Whether the panes are side by side, and not one above the other."""
        self._current = 0

    @property
    def current(self) -> Pane:
        """The pane that has the keys."""
        return self.shown[self._current]

    @property
    def tab(self) -> Tab:
        """What is in it."""
        return self.current.tab

    def shows(self, tab: Tab) -> bool:
        """Whether a tab can be seen."""
        return any(pane.tab == tab for pane in self.shown)

    def choose(self, number: int) -> bool:
        """Show the tab of this number, from 0; whether there is one."""
        if number >= len(self.tabs):
            return False
        self.current.tab = self.tabs[number]
        return True

    def toggle(self) -> None:
        """Show the machine's serial line instead of its screen, or its screen again."""
        self.current.tab = Tab(self.tab.machine, not self.tab.serial)

    def step(self, by: int) -> None:
        """Show the next machine, or with -1 the one before."""
        at = (self.machines.index(self.tab.machine) + by) % len(self.machines)
        self.current.tab = Tab(self.machines[at], self.tab.serial)

    def split(self, beside: bool) -> bool:
        """Make another pane with what is not shown yet: the next machine, or the only one's other line. False when there are enough."""
        if len(self.shown) >= MOST:
            return False
        self.beside = beside
        shown = [pane.tab for pane in self.shown]
        start = self.tabs.index(self.tab)
        following = [self.tabs[(start + n) % len(self.tabs)] for n in range(1, len(self.tabs))]
        same_kind = [tab for tab in following if tab.serial == self.tab.serial]
        fresh = [tab for tab in (*same_kind, *following) if tab not in shown]
        self._current += 1
        self.shown.insert(self._current, Pane(fresh[0] if fresh else self.tabs[start]))
        return True

    def other(self) -> None:
        """Give the keys to the next pane."""
        self._current = (self._current + 1) % len(self.shown)

    def unsplit(self) -> None:
        """Leave only the current pane."""
        self.shown = [self.current]
        self._current = 0
