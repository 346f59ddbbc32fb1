"""A coroutine that was begun without a task, because most of its kind end at once, and now has to wait: the rest goes into a task.

A task costs 5 us, its creation and a turn of the event loop; a coroutine that awaits nothing needs none. The invariant: the
coroutine is sent what a task would have sent it, the exceptions included.
"""

from __future__ import annotations

from collections.abc import Coroutine, Generator
from typing import Any, Generic, TypeVar, cast

T = TypeVar("T")


class Started(Generic[T]):  # not Awaitable[T], an abstract class: isinstance() of one costs more than the rest of a packet's hop
    """A coroutine that has yielded ``blocker``: awaiting this goes on with it, and gives its result."""

    __slots__ = ("_blocker", "coroutine")

    def __init__(self, coroutine: Coroutine[Any, Any, T], blocker: Any) -> None:
        self.coroutine = coroutine
        self._blocker = blocker

    def __await__(self) -> Generator[Any, None, T]:
        blocker = self._blocker
        while True:
            thrown: BaseException | None = None
            try:
                yield blocker
            except BaseException as error:
                thrown = error
            try:
                blocker = self.coroutine.send(None) if thrown is None else self.coroutine.throw(thrown)
            except StopIteration as stop:
                return cast("T", stop.value)
