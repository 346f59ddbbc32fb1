"""The virtual video as a person or a scenario sees it."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from avmm.control.watch import in_turn, wait_stable, wait_until
from avmm.devices.vga.render import save_png
from avmm.devices.vga.vga import Vga
from avmm.hypervisor.partition import Partition

if TYPE_CHECKING:
    from avmm.vmbus.video import SyntheticVideo

Wanted = str | re.Pattern[str] | Callable[[str], bool]


def matches(wanted: Wanted, text: str) -> bool:
    """Whether ``text`` holds what is wanted: a string in it, a pattern found in it, or a function that says so."""
    if isinstance(wanted, str):
        return wanted in text
    if isinstance(wanted, re.Pattern):
        return wanted.search(text) is not None
    return wanted(text)


def match_end(wanted: Wanted, text: str) -> int | None:
    """Return where in ``text`` the first match ends, None when there is none; a function matches all of it."""
    if isinstance(wanted, str):
        at = text.find(wanted)
        return None if at < 0 else at + len(wanted)
    if isinstance(wanted, re.Pattern):
        found = wanted.search(text)
        return None if found is None else found.end()
    return len(text) if wanted(text) else None


def describe(wanted: Wanted) -> str:
    """Return how to name what is wanted in a message."""
    return repr(wanted.pattern) if isinstance(wanted, re.Pattern) else repr(wanted)


class Display(Protocol):
    """What draws the picture: the VGA, or an enlightened guest on VMBus."""

    def mode(self) -> str:
        """Return "text" or "graphics"."""

    @property
    def size(self) -> tuple[int, int]:
        """Columns and rows of text, width and height of graphics."""

    def text_rows(self) -> list[str]:
        """Return the rows of text; an empty list when there are only pixels."""

    def pixels(self) -> tuple[int, int, bytes]:
        """Return width, height and the picture as red, green, blue bytes."""

    @property
    def generation(self) -> int:
        """A number that grows when what is shown may have changed."""


class Screen:
    """What the guest shows. ``print(vm.screen.text())``."""

    def __init__(self, partition: Partition, vga: Vga, synthetic: SyntheticVideo | None = None) -> None:
        self._partition = partition
        self.vga = vga
        self._synthetic = synthetic

    @property
    def display(self) -> Display:
        """Who draws what the monitor shows now: the VGA until an enlightened guest has a frame buffer on VMBus."""
        return self._synthetic if self._synthetic is not None and self._synthetic.shown else self.vga

    @property
    def generation(self) -> tuple[bool, int]:
        """Another value than before when what is shown may have changed."""
        display = self.display
        return display is self.vga, display.generation

    def text(self) -> str:
        """Return the text on the screen, lines without trailing blanks; empty in a graphics mode."""
        if self.display.mode() != "text":
            return ""
        return "\n".join(row.rstrip() for row in self.display.text_rows()).rstrip()

    def pixels(self) -> tuple[int, int, bytes]:
        """Return (width, height, RGB bytes) of what the monitor shows."""
        return self.display.pixels()

    def pixel(self, x: int, y: int) -> tuple[int, int, int]:
        """Return the colour at (x, y)."""
        width, _, rgb = self.pixels()
        at = 3 * (y * width + x)
        return rgb[at], rgb[at + 1], rgb[at + 2]

    def save_png(self, path: str | Path) -> None:
        """Write a picture of the screen."""
        save_png(path, self.pixels())

    async def wait_for(self, wanted: Wanted, timeout: float = 10) -> str:
        """Wait until the screen's text matches and return it; ``timeout`` in seconds of machine time.

        Raises WaitTimeout with the screen as it is then, MachineEnded or GuestFailure.
        """
        await wait_until(
            self._partition,
            lambda: matches(wanted, self.text()),
            timeout,
            lambda: f"the screen showed {describe(wanted)}; {self._showing()}",
        )
        return self.text()

    async def wait_stable(self, quiet: float = 0.5, timeout: float = 10) -> str:
        """Wait until nothing on the screen, text or picture, has changed for ``quiet`` s of machine time; return the text."""
        what = f"the screen kept still for {quiet:g} s"
        await wait_stable(self._partition, lambda: self.generation, quiet, timeout, lambda: f"{what}; {self._showing()}")
        return self.text()

    async def wait_pixel(self, x: int, y: int, colour: tuple[int, int, int], timeout: float = 10) -> None:
        """Wait until the pixel at (x, y) has that colour."""
        generation: tuple[bool, int] | None = None
        shown = "outside of the picture"

        def met() -> bool:
            nonlocal generation, shown
            before, generation = generation, self.generation
            if generation != before:  # a picture takes milliseconds to make
                width, height, _ = self.pixels()
                shown = str(self.pixel(x, y)) if 0 <= x < width and 0 <= y < height else f"outside of {width}x{height}"
            return shown == str(tuple(colour))

        await wait_until(self._partition, met, timeout, lambda: f"the pixel at ({x}, {y}) was {tuple(colour)}; it is {shown}")

    async def expect_sequence(self, *wanted: Wanted, timeout: float = 10) -> list[str]:
        """Wait for one after another and return what the screen showed each time; ``timeout`` is for all of them together."""
        return await in_turn(self._partition, [partial(self.wait_for, one) for one in wanted], timeout)

    def _showing(self) -> str:
        return f"it shows:\n{self.text() or '(nothing, or graphics)'}"
