"""When the stage paints: the pause that a painting earns, on a clock that only goes when it is told to."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from avmm_console import stage
from avmm_console.stage import LOAD, LONGEST, SAVED, Stage


class Handle:
    """A call that is due later."""

    def __init__(self, due: float, call: Callable[[], None]) -> None:
        self.due, self.call = due, call
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class Hall:
    """A stage with nothing on it, its terminal, and the loop's clock. A painting takes ``wall`` and ``used`` seconds."""

    def __init__(self) -> None:
        self.now, self.spent = 100.0, 0.0
        self.wall = self.used = 0.0
        self.painted: list[float] = []
        self.handles: list[Handle] = []
        self.stage = Stage(list, lambda: None)
        renderer = SimpleNamespace(last_rendered_screen=None)
        self.app: Any = SimpleNamespace(output=None, renderer=renderer, is_running=True)

    # -- what a painter does

    def paint(self, areas: object) -> None:
        self.painted.append(self.now)
        self.now += self.wall
        self.spent += self.used

    def forget(self) -> None: ...

    # -- what a loop does

    def time(self) -> float:
        return self.now

    def call_later(self, delay: float, callback: Callable[[Any], None], argument: object) -> Handle:
        handle = Handle(self.now + delay, lambda: callback(argument))
        self.handles.append(handle)
        return handle

    # -- what happens

    def render(self, wall: float, used: float) -> None:
        """Something was drawn, and a painting goes with it."""
        self.wall, self.used = wall, used
        self.stage.before_render(self.app)
        self.stage.after_render(self.app)

    def spend(self) -> None:
        """Use up what the time without painting has saved."""
        for _ in range(2):
            self.render(0.0, SAVED / 2 / LOAD)

    def echo(self, wall: float = 0.0, used: float = 0.0) -> float:
        """Return how long what a key has changed waits for its painting."""
        asked, before = self.now, len(self.painted)
        self.wall, self.used = wall, used
        self.stage.paint_soon()
        while len(self.painted) == before:
            handle = next(handle for handle in self.handles if not handle.cancelled)
            self.handles.remove(handle)
            self.now = max(self.now, handle.due)
            handle.call()
        return self.painted[-1] - asked


@pytest.fixture
def hall(monkeypatch: pytest.MonkeyPatch) -> Hall:
    hall = Hall()
    monkeypatch.setattr(asyncio, "get_running_loop", lambda: hall)
    monkeypatch.setattr(time, "thread_time", lambda: hall.spent)
    monkeypatch.setattr(stage, "Painter", lambda output: hall)
    return hall


def test_the_first_picture_does_not_hold_up_the_first_key(hall: Hall) -> None:
    """Tables are filled for it, which takes so long that its pause would be half a second."""
    hall.render(wall=0.017, used=0.017)
    assert LOAD * 0.017 > 0.5
    assert hall.echo() == 0


def test_no_painting_holds_up_the_next_for_longer_than_it_may(hall: Hall) -> None:
    hall.spend()
    assert hall.echo(wall=0.02, used=0.02) == 0
    assert hall.echo() == pytest.approx(LONGEST - 0.02)


@pytest.mark.parametrize("used", [0.001, 0.002, 0.005])
def test_painting_without_end_takes_a_part_of_a_core(hall: Hall, used: float) -> None:
    hall.spend()
    for _ in range(20):
        hall.echo(used, used)
    last = hall.painted[2:]
    assert [later - earlier for earlier, later in itertools.pairwise(last)] == pytest.approx([LOAD * used] * 19)


def test_an_echo_does_not_wait_because_a_line_was_painted_just_before(hall: Hall) -> None:
    hall.spend()
    hall.now += SAVED
    paintings = int(SAVED / (LOAD * 0.002))
    assert [hall.echo(0.0, 0.002) for _ in range(paintings)] == [0.0] * paintings
    assert sum(hall.echo(0.0, 0.002) for _ in range(2)) > 0


def test_what_a_slow_terminal_takes_is_not_saved_up(hall: Hall) -> None:
    hall.spend()
    hall.render(wall=1.0, used=0.001)
    assert hall.echo(0.0, 0.001) == 0  # it took the second itself
    assert hall.echo() == pytest.approx(LOAD * 0.001)


def test_one_painting_is_due_at_a_time_and_none_after_the_end(hall: Hall) -> None:
    hall.spend()
    hall.render(wall=0.01, used=0.01)
    for _ in range(3):
        hall.stage.paint_soon()
    (handle,) = hall.handles
    painted = len(hall.painted)
    hall.render(wall=0.0, used=0.0)  # paints, and what was due is not any more
    assert handle.cancelled
    hall.stage.paint_soon()
    hall.stage.close()
    assert all(handle.cancelled for handle in hall.handles)
    hall.stage.paint_soon()
    assert len(hall.painted) == painted + 1
