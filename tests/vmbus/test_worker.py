"""The worker behind a channel: a task with a bell in real time, a timer in virtual time."""

from __future__ import annotations

import pytest

from avmm.clock import VirtualClock, WallClock
from avmm.vmbus.worker import SIGNAL_LATENCY, Worker
from tests.turns import turns


@pytest.mark.asyncio
async def test_a_task_that_serves_each_burst_once() -> None:
    served: list[int] = []
    worker = Worker("w", WallClock(), served.append)  # type: ignore[arg-type]
    worker.start(lambda: served.append(1))
    await turns()
    assert served == []
    assert worker.task is not None
    assert worker.task.get_name() == "w"
    for _ in range(10):
        worker.ring()
    await turns()
    assert served == [1]
    worker.hold(True)
    worker.ring()
    await turns()
    assert served == [1]
    worker.hold(False)
    await turns()
    assert served == [1, 1]
    worker.ring()
    worker.close()
    await turns()
    assert served == [1, 1]
    assert worker.task.cancelled()


@pytest.mark.asyncio
async def test_a_service_may_close_its_worker_and_errors_are_passed_on() -> None:
    errors: list[Exception] = []
    worker = Worker("w", WallClock(), errors.append)
    worker.start(worker.close)
    worker.ring()
    await turns()
    assert worker.task is not None
    assert worker.task.cancelled()
    assert not errors
    empty: dict[str, None] = {}
    bad = Worker("b", WallClock(), errors.append)
    bad.start(lambda: empty["bug"])
    bad.ring()
    await turns()
    assert [type(error) for error in errors] == [KeyError]
    bad.close()
    await turns()


def test_in_virtual_time_it_is_a_fixed_time_after_the_signal() -> None:
    clock = VirtualClock()
    served: list[int] = []
    worker = Worker("w", clock, lambda error: None)
    worker.start(lambda: served.append(clock.now()))
    clock.advance_to(1000)
    worker.ring()
    clock.advance_to(1500)
    worker.ring()
    assert worker.task is None
    assert clock.next_due() == 1000 + SIGNAL_LATENCY
    clock.advance_to(1000 + SIGNAL_LATENCY)
    clock.run_due()
    assert served == [1000 + SIGNAL_LATENCY]
    assert clock.next_due() is None
    worker.ring()
    worker.close()
    clock.advance_to(10**6)
    clock.run_due()
    assert len(served) == 1


@pytest.mark.asyncio
async def test_a_signal_is_attended_to_in_its_exit_if_nobody_else_is_at_it() -> None:
    served: list[str] = []
    worker = Worker("w", WallClock(), served.append)  # type: ignore[arg-type]
    more = [False]

    def service() -> None:
        served.append("turn")
        if len(served) == 1:
            assert not worker.attend(), "from within the service it is left to the task"
        if more[0]:
            more[0] = False
            worker.ring()

    worker.start(service)
    assert not worker.attend(), "the task has not begun"
    await turns()
    assert served == ["turn", "turn"]
    assert worker.attend()
    assert served == ["turn"] * 3
    more[0] = True
    assert not worker.attend(), "there is more than was done in one turn"
    assert served == ["turn"] * 4
    await turns()
    assert served == ["turn"] * 5
    worker.hold(True)
    assert worker.attend()
    assert served == ["turn"] * 5
    worker.hold(False)
    await turns()
    assert served == ["turn"] * 6
    worker.close()
    await turns()
