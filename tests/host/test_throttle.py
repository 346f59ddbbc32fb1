"""When writes to the page cache are left to threads, and when that is over."""

from __future__ import annotations

import random
import time
from itertools import count, pairwise

from avmm.host.throttle import FIRST, FORGET, MOST, SLOW, Throttle, sleeps


def sleeping() -> Throttle:
    """One whose writer sleeps in each write."""
    return Throttle(count(1).__next__)


def made_here(throttle: Throttle, writes: int, ns: int) -> list[int]:
    """Make writes that take ``ns`` each and return which of them were made here."""
    here = []
    for number in range(writes):
        if not throttle.for_thread():
            throttle.took(ns)
            here.append(number)
    return here


def test_slow_writes_are_tried_less_and_less() -> None:
    here = made_here(sleeping(), 1000, SLOW + 1)
    assert [later - sooner - 1 for sooner, later in pairwise(here)][:5] == [0, FIRST, 16, MOST, MOST]
    assert all(sum(first <= number < first + 64 for number in here) <= 4 for first in range(1000))


def test_quick_writes_are_all_made_here_and_let_slow_ones_be_forgotten() -> None:
    throttle = sleeping()
    assert len(made_here(throttle, 100, SLOW)) == 100
    made_here(throttle, 24, SLOW + 1)  # the fourth of them that was made here was the last
    assert len(made_here(throttle, MOST + FORGET - 1, SLOW)) == FORGET - 1
    assert made_here(throttle, 2, SLOW) == [0, 1]
    assert made_here(throttle, FIRST + 3, SLOW + 1) == [0, 1, FIRST + 2]


def test_writes_for_which_the_writer_did_not_sleep_need_no_threads() -> None:
    """Others ran on its processor."""
    asked = 0

    def never() -> int:
        nonlocal asked
        asked += 1
        return 7

    throttle = Throttle(never)
    assert len(made_here(throttle, 100, SLOW)) == 100
    assert not asked  # nobody wants to know while no write is slow
    assert len(made_here(throttle, 1000, SLOW + 1)) == 1000


def test_a_host_that_is_busy_now_and_then_costs_few_threads() -> None:
    """Even if the writer sleeps between its writes, so that it cannot be told."""
    throttle, chance = sleeping(), random.Random(1)
    here = sum(len(made_here(throttle, 1, 3 * SLOW if chance.random() < 0.007 else SLOW // 500)) for _ in range(20_000))
    assert here > 17_000  # 64 for each slow one would leave fewer than 14_000


def test_that_a_thread_sleeps_is_counted() -> None:
    before = sleeps()
    time.sleep(0.001)
    assert sleeps() > before
