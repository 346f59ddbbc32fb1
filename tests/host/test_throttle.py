"""When writes to the page cache are left to threads, and when that is over."""

from __future__ import annotations

import random
from itertools import pairwise

from avmm.host.throttle import FIRST, FORGET, MOST, SLOW, Throttle


def made_here(throttle: Throttle, writes: int, ns: int) -> list[int]:
    """Make writes that take ``ns`` each and return which of them were made here."""
    here = []
    for number in range(writes):
        if not throttle.for_thread():
            throttle.took(ns)
            here.append(number)
    return here


def test_slow_writes_are_tried_less_and_less() -> None:
    here = made_here(Throttle(), 1000, SLOW + 1)
    assert [later - sooner - 1 for sooner, later in pairwise(here)][:4] == [FIRST, 16, MOST, MOST]
    assert all(sum(first <= number < first + 64 for number in here) <= 3 for first in range(1000))


def test_quick_writes_are_all_made_here_and_let_slow_ones_be_forgotten() -> None:
    throttle = Throttle()
    assert len(made_here(throttle, 100, SLOW)) == 100
    made_here(throttle, 23, SLOW + 1)  # the third of them that was made here was the last
    assert len(made_here(throttle, MOST + FORGET - 1, SLOW)) == FORGET - 1
    assert made_here(throttle, 2, SLOW) == [0, 1]
    assert made_here(throttle, FIRST + 2, SLOW + 1) == [0, FIRST + 1]


def test_a_host_that_is_busy_now_and_then_costs_few_threads() -> None:
    throttle, chance = Throttle(), random.Random(1)
    here = sum(len(made_here(throttle, 1, 3 * SLOW if chance.random() < 0.007 else SLOW // 500)) for _ in range(20_000))
    assert here > 17_000  # 64 for each slow one would leave fewer than 14_000
