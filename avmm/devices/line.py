"""An interrupt line: a wire with a level and a sink.

Redirecting a line is swapping its sink; the level is replayed to the new one, so nothing is lost in between.
"""

from __future__ import annotations

from collections.abc import Callable

Sink = Callable[[bool], None]


class InterruptLine:
    """One wire from a device to an interrupt controller."""

    __slots__ = ("_sink", "edges", "level", "number")

    def __init__(self, number: int, sink: Sink | None = None) -> None:
        self.number = number
        """The IRQ number (ISA 0-15, or a global system interrupt above)."""
        self.level = False
        self.edges = 0
        """Rising edges so far."""
        self._sink = sink

    def set(self, level: bool) -> None:
        """Drive the line; the sink hears only changes."""
        if level != self.level:
            self.level = level
            self.edges += level
            if self._sink is not None:
                self._sink(level)

    def raise_(self) -> None:
        """Drive the line high."""
        self.set(True)

    def lower(self) -> None:
        """Drive the line low."""
        self.set(False)

    def pulse(self) -> None:
        """Drive a low-to-high edge and go low again: what an edge-triggered ISA card does."""
        self.set(False)
        self.set(True)
        self.set(False)

    @property
    def sink(self) -> Sink | None:
        """Who hears of changes."""
        return self._sink

    def connect(self, sink: Sink | None) -> None:
        """Give the line another sink and replay its level there."""
        self._sink = sink
        if sink is not None:
            sink(self.level)
