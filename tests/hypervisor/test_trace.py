"""The ring of events: bounded, and rate-limited by name in machine time."""

from __future__ import annotations

from avmm.clock import SECOND
from avmm.hypervisor.trace import BURST, KEPT, Event, Trace


def test_events_are_kept_with_their_time() -> None:
    trace = Trace(lambda: 1_500_000_000)
    heard: list[Event] = []
    trace.subscribers.append(heard.append)
    trace.add("reset", {"reason": "port 64h", "n": 3})
    assert list(trace.events) == heard == [Event(1_500_000_000, "reset", {"reason": "port 64h", "n": 3})]
    assert str(heard[0]) == "    1.500000 reset reason=port 64h n=3"
    assert str(Event(0, "x", {})) == "    0.000000 x"


def test_a_flood_is_limited_by_name_and_second() -> None:
    now = 0
    trace = Trace(lambda: now)
    for _ in range(BURST + 5):
        trace.add("flood", {})
    trace.add("other", {})
    assert [e.name for e in trace.events] == ["flood"] * BURST + ["other"]
    assert trace.counts == {"flood": BURST + 5, "other": 1}
    assert trace.suppressed == {"flood": 5}
    now = SECOND
    trace.add("flood", {})
    assert len(trace.events) == BURST + 2


def test_the_ring_is_bounded() -> None:
    now = 0
    trace = Trace(lambda: now)
    for now in range(0, (KEPT + 100) * SECOND, SECOND):
        trace.add("tick", {"at": now})
    assert len(trace.events) == KEPT
    assert trace.events[0].time == 100 * SECOND
