"""Machine time and its timers."""

from __future__ import annotations

import asyncio
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avmm.clock import FOREVER, VirtualClock, WallClock


class Hand:
    """A clock turned by hand."""

    def __init__(self) -> None:
        self.time = 0
        self.clock = VirtualClock(lambda: self.time)


def test_timers_fire_in_order_of_deadline_then_of_arming() -> None:
    hand = Hand()
    fired: list[str] = []
    for name, due in (("c", 30), ("a", 10), ("b1", 20), ("b2", 20)):
        hand.clock.timer(lambda name=name: fired.append(name)).arm(due)  # type: ignore[misc]
    assert hand.clock.next_due() == 10
    hand.time = 9
    assert hand.clock.run_due() is None
    assert fired == []
    hand.time = 20
    hand.clock.run_due()
    assert fired == ["a", "b1", "b2"]
    hand.time = 1000
    hand.clock.run_due()
    assert fired == ["a", "b1", "b2", "c"]
    assert hand.clock.next_due() is None


def test_a_timer_armed_anew_fires_once() -> None:
    hand = Hand()
    fired: list[int] = []
    timer = hand.clock.timer(lambda: fired.append(hand.time))
    timer.arm(10)
    timer.arm(20)
    timer.arm(20)
    assert timer.armed
    hand.time = 15
    hand.clock.run_due()
    hand.time = 25
    hand.clock.run_due()
    assert fired == [25]
    assert not timer.armed


def test_cancel() -> None:
    hand = Hand()
    timer = hand.clock.timer(lambda: pytest.fail("cancelled"))
    timer.cancel()
    timer.arm(10)
    timer.cancel()
    hand.time = 100
    hand.clock.run_due()
    assert hand.clock.next_due() is None


def test_a_callback_may_arm_its_timer_again() -> None:
    hand = Hand()
    fired: list[int] = []

    def tick() -> None:
        assert timer.due is None
        fired.append(len(fired))
        if len(fired) < 5:
            timer.arm(hand.time)  # in the past: at the next opportunity, which is this very round

    timer = hand.clock.timer(tick)
    timer.arm(0)
    hand.clock.run_due()
    assert fired == [0, 1, 2, 3, 4]


def test_a_callback_that_cancels_another() -> None:
    hand = Hand()
    other = hand.clock.timer(lambda: pytest.fail("cancelled"))
    hand.clock.timer(other.cancel).arm(5)
    other.arm(5)
    hand.time = 5
    hand.clock.run_due()


def test_on_earlier_is_called_when_the_next_deadline_comes_closer() -> None:
    hand = Hand()
    calls: list[int | None] = []
    hand.clock.on_earlier = lambda: calls.append(hand.clock.next_due())
    a, b = hand.clock.timer(lambda: None), hand.clock.timer(lambda: None)
    a.arm(100)
    b.arm(200)
    b.arm(50)
    a.arm(300)
    a.arm(40)
    assert calls == [100, 50, 40]


def test_the_heap_does_not_grow_with_cancelled_deadlines_at_its_top() -> None:
    hand = Hand()
    timer = hand.clock.timer(lambda: None)
    for due in range(1000, 0, -1):
        timer.arm(due)
        timer.cancel()
        assert hand.clock.next_due() is None
    assert hand.clock._heap == []


def test_arming_over_and_over_does_not_fill_memory() -> None:
    """A watchdog: moved further away a million times, while something else is due earlier."""
    hand = Hand()
    hand.clock.timer(lambda: None).arm(1)
    timer = hand.clock.timer(lambda: None)
    for due in range(10_000):
        timer.arm(1000 + due)
    assert len(hand.clock._heap) < 1000


@pytest.mark.asyncio
async def test_a_timer_waits_for_the_host() -> None:
    hand = Hand()
    fired: list[str] = []
    first, second = hand.clock.timer(lambda: fired.append("first")), hand.clock.timer(lambda: fired.append("second"))
    first.ready = asyncio.get_running_loop().create_future()
    first.arm(10)
    second.arm(11)
    hand.time = 20
    assert hand.clock.run_due() is first.ready
    assert fired == []  # machine time waits: nothing later overtakes
    first.ready.set_result(None)
    assert hand.clock.run_due() is None
    assert fired == ["first", "second"]


def test_virtual_time_jumps_and_never_goes_back() -> None:
    hand = Hand()
    hand.time = 100
    assert hand.clock.now() == 100
    hand.clock.advance_to(500)
    assert hand.clock.now() == 500
    hand.clock.advance_to(300)
    assert hand.clock.now() == 500
    hand.time = 150
    assert hand.clock.now() == 550
    assert hand.clock.virtual


def test_wall_clock_stands_still_while_paused(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1_000_000
    monkeypatch.setattr("avmm.clock.time.monotonic_ns", lambda: now)
    clock = WallClock()
    assert clock.now() == 0
    now += 50
    assert clock.now() == 50
    clock.pause()
    clock.pause()
    now += 1000
    assert clock.now() == 50
    clock.resume()
    clock.resume()
    now += 7
    assert clock.now() == 57
    assert clock.origin + clock.now() == now
    assert not clock.virtual


@settings(derandomize=True, max_examples=60)
@given(st.lists(st.tuples(st.sampled_from(["arm", "cancel", "pass"]), st.integers(0, 4), st.integers(0, 50)), max_size=40))
def test_against_a_model(steps: list[tuple[str, int, int]]) -> None:
    hand = Hand()
    fired: list[tuple[int, int]] = []
    timers = [hand.clock.timer(lambda i=i: fired.append((i, hand.time))) for i in range(5)]  # type: ignore[misc]
    model: dict[int, tuple[int, int]] = {}
    expected: list[tuple[int, int]] = []
    for serial, (what, i, amount) in enumerate(steps):
        if what == "arm":
            timers[i].arm(hand.time + amount)
            model[i] = (hand.time + amount, serial)
        elif what == "cancel":
            timers[i].cancel()
            model.pop(i, None)
        else:
            hand.time += amount
            hand.clock.run_due()
            for i in sorted((k for k in model if model[k][0] <= hand.time), key=lambda k: model[k]):
                expected.append((i, hand.time))
                del model[i]
        assert hand.clock.next_due() == (min(model.values())[0] if model else None)
    assert fired == expected


def test_wall_time_stands_still_at_a_horizon(monkeypatch: pytest.MonkeyPatch) -> None:
    host = 1_000
    monkeypatch.setattr(time, "monotonic_ns", lambda: host)
    clock, told, fired = WallClock(), [], []
    clock.on_change = lambda base, end: told.append((host + base, end + base))
    clock.timer(lambda: fired.append(clock.now())).arm(150)
    clock.timer(lambda: fired.append(clock.now())).arm(151)
    clock.set_horizon(200)
    clock.set_horizon(150)
    host += 149
    assert clock.now() == 149
    clock.run_due()
    assert not fired
    host += 500
    assert clock.now() == 150
    clock.run_due()
    assert fired == [150]
    clock.pause()
    host += 500
    clock.resume()
    assert clock.now() == 150
    clock.lift_horizon(150)
    assert clock.now() == 150
    host += 10
    assert clock.now() == 160
    clock.run_due()
    assert fired == [150, 160]
    clock.lift_horizon(200)
    host += 1000
    assert clock.now() == 1160
    assert told == [(0, 200), (0, 150), (150, 150), (150, 150), (150, 200), (160, FOREVER)]


def test_a_horizon_that_has_been_passed_already_takes_time_back_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if it had been set in time, when nobody has looked since: neither a timer nor the time stamp counter."""
    host = 1_000
    monkeypatch.setattr(time, "monotonic_ns", lambda: host)
    clock, told = WallClock(), []
    clock.on_change = lambda base, end: told.append((host + base, end + base))
    host += 500
    clock.set_horizon(150)
    assert clock.now() == 150
    clock.set_horizon(170)  # the nearer one counts
    assert clock.now() == 150
    clock.lift_horizon(150)
    host += 10
    assert clock.now() == 160
    clock.pause()
    clock.set_horizon(165)
    host += 10
    assert clock.now() == 160
    clock.resume()
    host += 10
    assert clock.now() == 165
    clock.lift_horizon(165)
    clock.lift_horizon(170)
    host += 100
    assert clock.now() == 265
    assert told[0] == (500, 150)  # what it would be now, and where it stops


def test_paused_wall_time_can_be_set_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    host = 1_000
    monkeypatch.setattr(time, "monotonic_ns", lambda: host)
    clock = WallClock()
    clock.pause()
    clock.set(5_000)
    host += 100
    assert clock.now() == 5_000
    clock.resume()
    host += 100
    assert clock.now() == 5_100
