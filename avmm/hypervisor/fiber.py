"""A function that can wait for an awaitable in the middle of itself: what a vCPU's run loop runs in.

The task around it awaits what it hands out and lets it go on with the result. Here it is a greenlet, in the event loop's own
thread; :mod:`avmm.hypervisor.rounds` has the same in a thread.

The invariant: either the function runs or its task does, never both.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from typing import Any, Final, Protocol

from greenlet import getcurrent, greenlet


class Fiber(Protocol):
    """Runs a function that may wait."""

    async def run(self) -> None:
        """Run the function to its end; what it raises comes out here. Cancelled, it is raised where the function waits."""

    def wait(self, awaitable: Awaitable[Any], *, midway: bool = False) -> Any:
        """Return the awaitable's result, or raise what it raised. Only from within the function: see :attr:`inside`.

        ``midway``: in the middle of a slice, which is to go on soon.
        """

    def turn(self) -> None:
        """Let the event loop have a turn. Only from within the function."""

    @property
    def inside(self) -> bool:
        """Whether the caller is the function, or was called by it."""


class _Turn:
    """Awaited, lets the event loop have one turn."""

    def __await__(self) -> Generator[None, None, None]:
        yield


_TURN: Final = _Turn()


class GreenletFiber:
    """A ``Fiber`` in the event loop's thread: while the function runs, nothing else does."""

    def __init__(self, function: Callable[[], None]) -> None:
        self._greenlet = greenlet(function)
        self._parent: greenlet | None = None

    async def run(self) -> None:
        """Run the function; see ``Fiber.run``."""
        running = self._greenlet
        self._parent = getcurrent()
        try:
            awaitable = running.switch()
            while not running.dead:
                result, error = None, None
                try:
                    result = await awaitable
                except BaseException as raised:
                    error = raised
                self._parent = getcurrent()
                awaitable = running.switch(result) if error is None else running.throw(error)
        finally:
            self._parent = None

    def wait(self, awaitable: Awaitable[Any], *, midway: bool = False) -> Any:
        """Hand the awaitable to the task; see ``Fiber.wait``."""
        assert self._parent is not None
        return self._parent.switch(awaitable)

    def turn(self) -> None:
        """Let the event loop have a turn; see ``Fiber.turn``."""
        self.wait(_TURN)

    @property
    def inside(self) -> bool:
        """Whether the caller runs in the greenlet."""
        return getcurrent() is self._greenlet
