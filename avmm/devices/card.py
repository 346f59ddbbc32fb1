"""A card: the short way to write a device of one's own.

A :class:`Card` is a :class:`Device` whose state is what its ``State`` says. The fields of ``State`` are its attributes, from
power-on on; saving, restoring and reset, of the timer and the interrupt lines as well, come by themselves. ``examples/dice.py``
is a complete one.

The invariant: everything that a card remembers between two accesses is a field of its ``State``, the timer's deadline, or the
level of one of its lines.
"""

from __future__ import annotations

import dataclasses
import random
from dataclasses import dataclass
from typing import Any, ClassVar, overload

from avmm.devices.device import Board, Device, PortRange
from avmm.devices.line import InterruptLine


class Line:
    """``irq = Line(5)`` in a class: each instance's wire to interrupt input 5, as ``self.irq``."""

    def __init__(self, number: int) -> None:
        self.number = number

    @overload
    def __get__(self, card: None, owner: type) -> Line: ...

    @overload
    def __get__(self, card: Card, owner: type) -> InterruptLine: ...

    def __get__(self, card: Card | None, owner: type) -> Line | InterruptLine:
        return self if card is None else card.board.line(self.number)


@dataclass(frozen=True, slots=True)
class CardState:
    """A saved card: its own fields, the timer's deadline (ns) and the levels of its lines."""

    own: tuple[tuple[str, Any], ...]
    due: int | None
    lines: tuple[tuple[str, bool], ...]
    version: int = 1


class Card(Device):
    """A device with a ``State`` of plain values, one timer and any number of ``Line``\\ s. Its name is the class's in lower case."""

    @dataclass(frozen=True)
    class State:
        """Override it: one field with a default for each thing to remember."""

        version: int = 1

    _lines: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "name" not in vars(cls):
            cls.name = cls.__name__.lower()
        ports: object = cls.ports
        if isinstance(ports, PortRange):
            cls.ports = (ports,)  # ports = PortRange(...), without the comma that makes a tuple
        cls._lines = tuple(key for base in cls.__mro__ for key, value in vars(base).items() if isinstance(value, Line))

    def __init__(self, board: Board) -> None:
        super().__init__(board)
        self.timer = board.clock.timer(self.on_timer)
        """Armed with ``self.timer.arm(self.clock.now() + ns)``, it calls :meth:`on_timer`."""
        self._power_on()

    def _power_on(self) -> None:
        for field in dataclasses.fields(self.State):
            if field.name != "version":
                value = field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
                setattr(self, field.name, value)

    @property
    def random(self) -> random.Random:
        """The machine's seeded generator."""
        return self.board.random

    def on_timer(self) -> None:
        """The timer's deadline has come. Override it."""

    def reset(self) -> None:
        self.timer.cancel()
        self._power_on()
        for line in self._lines:
            getattr(self, line).lower()

    def save(self) -> CardState:
        own = tuple((field.name, getattr(self, field.name)) for field in dataclasses.fields(self.State) if field.name != "version")
        return CardState(own, self.timer.due, tuple((line, getattr(self, line).level) for line in self._lines), self._version())

    def restore(self, state: Any) -> None:
        known = {field.name for field in dataclasses.fields(self.State)} - {"version"}
        if not isinstance(state, CardState) or state.version != self._version() or {key for key, _ in state.own} != known:
            raise ValueError(f"this is not a state of {self.name}, version {self._version()}")
        for key, value in state.own:
            setattr(self, key, value)
        self.timer.cancel()
        if state.due is not None:
            self.timer.arm(state.due)
        for line, level in state.lines:
            getattr(self, line).set(level)

    def _version(self) -> int:
        return int(getattr(self.State, "version", 1))
