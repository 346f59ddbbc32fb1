"""Functions that wait in the middle of themselves, in a greenlet and in a thread, and the rounds of the threads."""

from __future__ import annotations

import asyncio
import itertools
import signal
import sys
import threading
from collections.abc import Callable

import pytest

from avmm.hypervisor.fiber import Fiber, GreenletFiber
from avmm.hypervisor.rounds import ALONE, SLICES, TURNS, Rounds, ThreadFiber
from avmm.hypervisor.schedule import Schedule
from tests.turns import turns

Make = Callable[[Callable[[], None]], Fiber]


def in_threads(threads: int = 2, expected: int = 0) -> tuple[Rounds, Make]:
    """Rounds of so many threads, which expect so many members: that many machines have a turn."""
    schedule = Schedule(turns=threads)
    schedule.holders.update(schedule.share(str(n)) for n in range(expected))
    rounds = Rounds(schedule)
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


# -- several slices in a round


class Rig:
    """Fibers that each have so many slices, and what the event loop saw of it: at which of its turns, and in which round, each slice was."""

    def __init__(self, threads: int) -> None:
        self.now = 0
        self.schedule = Schedule(lambda: self.now, turns=threads)
        self.rounds = Rounds(self.schedule)
        self.turns = 0
        self.slices: list[tuple[str, int, int]] = []
        self._fibers: dict[str, Fiber] = {}

    def fiber(self, name: str, slices: int, then: Callable[[Fiber, int], object] = lambda fiber, n: None) -> None:
        """Add one; ``then`` is called after each of its slices, before it wants to go on."""
        self.schedule.holders.add(self.schedule.share(name))

        def function() -> None:
            for n in range(slices):
                self.slices.append((name, self.turns, self.rounds.rounds))
                then(self._fibers[name], n)
                self._fibers[name].turn()

        self._fibers[name] = self.rounds.fiber(function, name)

    async def run(self) -> None:
        tasks = [asyncio.create_task(fiber.run()) for fiber in self._fibers.values()]
        while not all(task.done() for task in tasks):
            self.turns += 1
            await asyncio.sleep(0)
        await asyncio.gather(*tasks)

    def rounds_of(self, name: str) -> list[int]:
        """How many slices it had in each round that it was in."""
        rounds = [number for who, _, number in self.slices if who == name]
        return [rounds.count(number) for number in dict.fromkeys(rounds)]


@pytest.mark.asyncio
async def test_a_round_has_several_slices_while_nobody_needs_the_event_loop() -> None:
    rig = Rig(2)
    rig.fiber("first", 2 * SLICES + 1)
    rig.fiber("second", 2 * SLICES + 1)
    await rig.run()
    for name in ("first", "second"):
        assert sum(rig.rounds_of(name)) == 2 * SLICES + 1
        assert max(rig.rounds_of(name)) > 1
        assert max(rig.rounds_of(name)) <= SLICES
    assert rig.rounds.rounds < 2 * SLICES
    turns = [min(turn for _, turn, number in rig.slices if number == one) for one in range(1, rig.rounds.rounds + 1)]
    assert all(later - earlier >= TURNS for earlier, later in itertools.pairwise(turns[1:]))


@pytest.mark.asyncio
async def test_a_round_ends_with_the_slices_in_which_somebody_stops() -> None:
    """A machine that halts may be needed by the event loop, and by its users: the busy one beside it does not keep it waiting."""
    rig = Rig(2)
    stopped = [threading.Event() for _ in range(10)]
    leave = rig.rounds.leave

    def leaves(fiber: ThreadFiber) -> None:
        name = threading.current_thread().name
        leave(fiber)
        if name == "halts" and (waited := [event for event in stopped if not event.is_set()]):
            waited[0].set()

    def busy(fiber: Fiber, n: int) -> None:
        if n < len(stopped):  # its slice is longer
            rig.rounds.house.release()
            assert stopped[n].wait(10)
            rig.rounds.house.acquire()

    rig.rounds.leave = leaves  # type: ignore[method-assign]
    rig.fiber("halts", 10, lambda fiber, n: fiber.wait(asyncio.sleep(0)))
    rig.fiber("busy", 20, busy)
    await rig.run()
    assert rig.rounds_of("busy")[:10] == [1] * 10


@pytest.mark.asyncio
@pytest.mark.parametrize("why", ["outside", "alarm"])
async def test_a_round_has_one_slice_of_each_while_the_event_loop_is_needed(why: str) -> None:
    """By a packet or other work on its way; by a halted machine that goes on."""
    rig = Rig(1)
    sleeping = rig.schedule.share("sleeping")
    rig.fiber("busy", 3 * SLICES)
    if why == "outside":
        rig.schedule.outside = 1
    else:
        sleeping.alarm = rig.now
    await rig.run()
    assert rig.rounds_of("busy") == [1] * 3 * SLICES


@pytest.mark.asyncio
async def test_a_round_ends_when_a_halted_machine_goes_on() -> None:
    rig = Rig(1)
    rig.schedule.share("sleeping").alarm = 6

    def passes(fiber: Fiber, n: int) -> None:
        rig.now += 1

    rig.fiber("busy", 3 * SLICES, passes)
    await rig.run()
    assert rig.rounds_of("busy")[1:4] == [SLICES, 1, 1]  # the first round is a short one: whoever starts may not be the only one


@pytest.mark.asyncio
async def test_who_waits_in_the_middle_of_a_slice_goes_on_alone_and_not_for_ever() -> None:
    rig = Rig(2)

    def asks(fiber: Fiber, n: int) -> None:
        for _ in range(3 * ALONE):
            rig.slices.append(("packets", rig.turns, rig.rounds.rounds))
            rig.schedule.outside += 1
            fiber.wait(later(1), midway=True)
            rig.schedule.outside -= 1

    rig.fiber("asks", 1, asks)
    rig.fiber("busy", 100)
    await rig.run()
    packets = [number for name, _, number in rig.slices if name == "packets"]
    common = {number for name, _, number in rig.slices if name == "busy"}
    assert len(set(packets)) == 3 * ALONE  # each had a round, and of those
    assert 2 <= len(common & set(packets)) <= 4  # every ninth was one of both


@pytest.mark.asyncio
async def test_a_fiber_that_only_takes_turns_can_be_cancelled() -> None:
    rig = Rig(1)
    rig.fiber("busy", 1_000_000)
    task = asyncio.create_task(rig.run())
    await turns()
    task.cancel()
    (busy,) = [one for one in asyncio.all_tasks() if one not in (task, asyncio.current_task())]
    busy.cancel()
    await asyncio.gather(task, busy, return_exceptions=True)
    assert 0 < len(rig.slices) < 1000
