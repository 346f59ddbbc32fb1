"""Events worth knowing, in a bounded ring, rate-limited by event name: a guest cannot fill memory or a log with them."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass

from avmm.clock import SECOND

KEPT = 1024
BURST = 20  # events of one name in a second of machine time


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened; ``time`` is machine time in ns."""

    time: int
    name: str
    fields: dict[str, object]

    def __str__(self) -> str:
        details = " ".join(f"{key}={value}" for key, value in self.fields.items())
        return f"{self.time / SECOND:12.6f} {self.name} {details}".rstrip()


class Trace:
    """A machine's events. ``subscribers`` hear each that is kept."""

    def __init__(self, now: Callable[[], int]) -> None:
        self._now = now
        self.events: deque[Event] = deque(maxlen=KEPT)
        self.counts: Counter[str] = Counter()
        self.suppressed: Counter[str] = Counter()
        self.subscribers: list[Callable[[Event], None]] = []
        self._second = -1
        self._in_second: Counter[str] = Counter()

    def add(self, name: str, fields: dict[str, object]) -> None:
        """Record an event, unless too many of its name came in this second of machine time."""
        now = self._now()
        if now // SECOND != self._second:
            self._second = now // SECOND
            self._in_second.clear()
        self.counts[name] += 1
        self._in_second[name] += 1
        if self._in_second[name] > BURST:
            self.suppressed[name] += 1
            return
        event = Event(now, name, fields)
        self.events.append(event)
        for subscriber in self.subscribers:
            subscriber(event)
