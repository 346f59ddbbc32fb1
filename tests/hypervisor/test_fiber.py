"""Functions that wait in the middle of themselves, in a greenlet and in a thread, and the rounds of the threads."""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
from collections.abc import Callable

import pytest

from avmm.hypervisor.fiber import Fiber, GreenletFiber
from avmm.hypervisor.rounds import Rounds
from tests.turns import turns

Make = Callable[[Callable[[], None]], Fiber]


def in_threads(threads: int = 2, expected: int = 0) -> tuple[Rounds, Make]:
    rounds = Rounds(threads, lambda: expected)
    return rounds, lambda function: rounds.fiber(function, "test")


@pytest.fixture(params=["greenlet", "thread"])
def make(request: pytest.FixtureRequest) -> Make:
    return GreenletFiber if request.param == "greenlet" else in_threads()[1]


async def later(value: int) -> int:
    await asyncio.sleep(0)
    return value


@pytest.mark.asyncio
async def test_it_waits_and_goes_on(make: Make) -> None:
    got: list[int] = []

    def function() -> None:
        assert asyncio.get_running_loop() is loop
        got.extend(fiber.wait(later(n)) for n in range(5))

    loop = asyncio.get_running_loop()
    fiber = make(function)
    await fiber.run()
    assert got == [0, 1, 2, 3, 4]
    assert not fiber.inside


@pytest.mark.asyncio
async def test_what_it_raises_comes_out_and_what_it_awaits_comes_in(make: Make) -> None:
    async def broken() -> int:
        raise OSError("gone")

    def function() -> None:
        with pytest.raises(OSError, match="gone"):
            fiber.wait(broken())
        raise ValueError("my own")

    fiber = make(function)
    with pytest.raises(ValueError, match="my own"):
        await fiber.run()


@pytest.mark.asyncio
async def test_cancelled_where_it_waits(make: Make) -> None:
    ends: list[str] = []

    def function() -> None:
        try:
            fiber.wait(asyncio.get_running_loop().create_future())
        finally:
            ends.append("cleaned up")

    fiber = make(function)
    task = asyncio.create_task(fiber.run())
    await turns()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ends == ["cleaned up"]


@pytest.mark.asyncio
async def test_it_may_go_on_after_a_cancel(make: Make) -> None:
    """As a coroutine may: the cancel is one exception, and what is raised, or not, is the function's business."""

    def function() -> None:
        with pytest.raises(asyncio.CancelledError):
            fiber.wait(asyncio.get_running_loop().create_future())
        got.append(fiber.wait(later(7)))

    got: list[int] = []
    fiber = make(function)
    task = asyncio.create_task(fiber.run())
    await turns()
    task.cancel()
    await task
    assert got == [7]


@pytest.mark.asyncio
async def test_a_cancel_before_the_round_takes_effect_where_it_waits_next() -> None:
    """A thread is never left running: the task waits for the round, and is cancelled afterwards."""
    _, make = in_threads(expected=2)  # of which one never comes: the round begins some turns of the event loop later
    order: list[str] = []

    def function() -> None:
        order.append("runs")
        try:
            fiber.wait(asyncio.get_running_loop().create_future())
        except asyncio.CancelledError:
            order.append("cancelled")
            raise

    fiber = make(function)
    task = asyncio.create_task(fiber.run())
    await asyncio.sleep(0)
    assert order == []
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert order == ["runs", "cancelled"]


@pytest.mark.asyncio
async def test_members_of_a_round_run_at_once_and_the_loop_stands_still() -> None:
    rounds, make = in_threads(expected=3)
    barrier = threading.Barrier(2)  # that two pass only if both are running, without the house lock: in guest code
    seen: list[tuple[str, int]] = []

    def member(name: str) -> Callable[[], None]:
        def function() -> None:
            for n in range(20):
                rounds.house.release()  # what a processor does for guest code
                if name != "third":
                    barrier.wait(10)
                rounds.house.acquire()
                seen.append((name, turns))
                fibers[name].wait(asyncio.sleep(0, n))

        return function

    turns = 0
    fibers = {name: make(member(name)) for name in ("first", "second", "third")}
    tasks = [asyncio.create_task(fiber.run()) for fiber in fibers.values()]
    while not all(task.done() for task in tasks):
        turns += 1
        await asyncio.sleep(0)
    await asyncio.gather(*tasks)
    assert rounds.parallel >= 20
    assert [sum(name == one for one, _ in seen) for name in fibers] == [20, 20, 20]
    for n in range(20):  # all three in one round: at one turn of the event loop
        assert len({turn for _, turn in seen[3 * n : 3 * n + 3]}) == 1


@pytest.mark.asyncio
async def test_python_is_undivided() -> None:
    """Threads lose the GIL between any two instructions; with the house lock a read-modify-write is whole all the same."""
    rounds, make = in_threads(threads=4, expected=4)
    count = 0

    def function() -> None:
        nonlocal count
        for _ in range(200):
            rounds.house.release()
            rounds.house.acquire()
            before = count
            for _ in range(50):
                pass
            count = before + 1

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        await asyncio.gather(*(make(function).run() for _ in range(4)))
    finally:
        sys.setswitchinterval(interval)
    assert count == 800


@pytest.mark.asyncio
async def test_no_more_than_the_threads_run_at_once() -> None:
    rounds, make = in_threads(threads=2, expected=5)
    running = most = 0

    def function() -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        rounds.house.release()
        threading.Event().wait(0.002)
        rounds.house.acquire()
        running -= 1

    await asyncio.gather(*(make(function).run() for _ in range(5)))
    assert (rounds.rounds, most) == (1, 2)


@pytest.mark.asyncio
async def test_ctrl_c_in_a_round_comes_out_when_all_have_stopped() -> None:
    class Interrupt(BaseException):
        pass

    def interrupt(number: int, frame: object) -> None:
        raise Interrupt

    rounds, make = in_threads()
    ended: list[bool] = []

    def function() -> None:
        rounds.house.release()
        signal.raise_signal(signal.SIGUSR1)
        threading.Event().wait(0.01)
        rounds.house.acquire()
        ended.append(True)

    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        with pytest.raises(Interrupt):
            await make(function).run()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert ended == [True]
    for thread in threading.enumerate():
        if thread.name == "test":
            thread.join()


@pytest.mark.asyncio
async def test_not_in_debug_mode() -> None:
    loop = asyncio.get_running_loop()
    loop.set_debug(True)
    try:
        with pytest.raises(RuntimeError, match="use threads=1"):
            await in_threads()[1](lambda: None).run()
    finally:
        loop.set_debug(False)
