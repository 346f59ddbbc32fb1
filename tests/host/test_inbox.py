"""The inbox of one task: order, bound, and what cancelling leaves behind."""

from __future__ import annotations

import asyncio
import random

import pytest

from avmm.host.inbox import Inbox


@pytest.mark.asyncio
async def test_items_come_out_in_order_and_no_more_than_the_limit_wait() -> None:
    inbox: Inbox[tuple[int, int]] = Inbox(3)
    dice = random.Random(7)
    taken: list[tuple[int, int]] = []

    async def write(writer: int) -> None:
        for number in range(50):
            await inbox.put((writer, number))
            for _ in range(dice.randrange(3)):
                await asyncio.sleep(0)

    async def read() -> None:
        while len(taken) < 200:
            taken.append(await inbox.get())
            assert len(inbox) <= 3
            for _ in range(dice.randrange(3)):
                await asyncio.sleep(0)

    async with asyncio.TaskGroup() as group:
        group.create_task(read())
        for writer in range(4):
            group.create_task(write(writer))
    for writer in range(4):
        assert [number for who, number in taken if who == writer] == list(range(50))
    assert not inbox


@pytest.mark.asyncio
async def test_a_full_inbox_refuses() -> None:
    inbox: Inbox[int] = Inbox(2)
    assert [inbox.offer(n) for n in range(3)] == [True, True, False]
    assert [inbox.take(), inbox.take()] == [0, 1]
    with pytest.raises(IndexError):
        inbox.take()


@pytest.mark.asyncio
@pytest.mark.parametrize("told", [False, True])
async def test_a_cancelled_writer_hands_the_room_on(told: bool) -> None:
    inbox: Inbox[int] = Inbox(1)
    inbox.offer(0)
    writers = [asyncio.create_task(inbox.put(n)) for n in (1, 2)]
    await asyncio.sleep(0)
    if told:
        assert inbox.take() == 0  # the first writer is told, and cancelled before it goes on
    writers[0].cancel()
    if not told:
        assert inbox.take() == 0
    await asyncio.wait(writers)
    assert writers[0].cancelled()
    assert (len(inbox), inbox.take()) == (1, 2)


@pytest.mark.asyncio
async def test_a_cancelled_reader_loses_nothing() -> None:
    inbox: Inbox[int] = Inbox(1)
    reader = asyncio.create_task(inbox.get())
    await asyncio.sleep(0)
    inbox.offer(5)
    reader.cancel()
    await asyncio.wait([reader])
    assert reader.cancelled()
    assert await inbox.get() == 5
